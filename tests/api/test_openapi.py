"""openapi.json cannot drift from the schemas, the routes and the README: E6."""

import json
import re

import pytest
from marshmallow import fields, validate

import ticketsvc
from schemas import (
    CURSOR,
    CursorField,
    DecimalInteger,
    change_query_schema,
    changed_ticket_schema,
    check_storable,
    deleted_ticket_schema,
    page_query_schema,
    ticket_patch_schema,
    ticket_query_schema,
    ticket_schema,
)
from tests.helpers.contract import BAD_TOKEN, JSON, NO_TOKEN, OPENAPI, README, once

pytestmark = once

DOCUMENT = json.loads(OPENAPI)
SCHEMAS = DOCUMENT["components"]["schemas"]
METHODS = {"get", "post", "put", "patch", "delete"}
TYPES = {
    fields.String: "string",
    fields.Float: "number",
    fields.Integer: "integer",
    CursorField: "string",
}
STORABLE = "Not white space only; no NUL and no unpaired surrogate."


def described(field):
    """Return what a field of marshmallow takes, as JSON Schema would say it."""
    kind = next(TYPES[each] for each in type(field).__mro__ if each in TYPES)
    found = {"type": [kind, "null"] if field.allow_none else kind}
    if field.load_default not in (None, fields.missing_):
        found["default"] = field.load_default
    for validator in field.validators:
        if isinstance(validator, validate.Length):
            found |= {"minLength": validator.min, "maxLength": validator.max}
        elif isinstance(validator, validate.Range):
            found |= {"minimum": validator.min, "maximum": validator.max}
        elif isinstance(validator, validate.OneOf):
            found["enum"] = list(validator.choices)
        elif validator is check_storable:
            found["storable"] = True
    if isinstance(field, CursorField):
        found["pattern"] = f"^{CURSOR.pattern.replace('(', '').replace(')', '')}$"
    return found


def documented(schema):
    """Return a property of the document in the same words."""
    found = {name: value for name, value in schema.items() if name != "description"}
    if schema.get("description", "").endswith(STORABLE):
        found["storable"] = True
    return found


def assert_same(properties, required, schema_fields):
    assert {name: documented(each) for name, each in properties.items()} == {
        name: described(each) for name, each in schema_fields.items()
    }
    assert set(required) == {
        name for name, each in schema_fields.items() if each.required
    }


def test_a_patch_is_described_as_it_is_loaded():
    document = SCHEMAS["TicketPatch"]
    assert_same(
        document["properties"], document.get("required", []), ticket_patch_schema.fields
    )
    assert document["minProperties"] == 1


def test_a_new_ticket_is_described_as_it_is_loaded():
    document = SCHEMAS["TicketCreate"]
    assert_same(document["properties"], document["required"], ticket_schema.load_fields)


def test_a_ticket_is_described_as_it_is_dumped():
    document = SCHEMAS["Ticket"]
    found = {name: documented(each) for name, each in document["properties"].items()}
    assert document["required"] == list(found) == list(ticket_schema.dump_fields)
    assert document["additionalProperties"] is False
    expected = {
        name: described(each) for name, each in ticket_schema.dump_fields.items()
    }
    assert found.pop("id") == {**expected.pop("id"), "minimum": 1}
    for name in ("created_at", "updated_at"):
        assert re.fullmatch(found[name].pop("pattern"), "2026-11-23T12:02:00.120Z")
    assert found == expected


def test_a_change_is_described_as_it_is_dumped():
    """F1: the ticket as elsewhere, then what only the feed shows."""
    document = SCHEMAS["ChangedTicket"]
    properties = document["properties"]
    assert (
        document["required"] == list(properties) == list(changed_ticket_schema.fields)
    )
    ticket = SCHEMAS["Ticket"]["properties"]
    assert {name: properties[name] for name in ticket} == ticket
    filed = SCHEMAS["FiledTicket"]
    assert filed["required"] == list(filed["properties"])
    assert filed["required"] == list(
        changed_ticket_schema.fields["filed"].schema.fields
    )
    for name in filed["required"]:
        assert filed["properties"][name] == ticket[name]
    deleted = SCHEMAS["DeletedTicket"]
    assert deleted["required"] == list(deleted["properties"])
    assert deleted["required"] == list(deleted_ticket_schema.fields)


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("/api/v1/tickets", ticket_query_schema),
        ("/api/v1/tickets/{ticket_id}/history", page_query_schema),
        ("/api/v1/changes", change_query_schema),
    ],
)
def test_the_query_is_described_as_it_is_loaded(path, schema):
    parameters = DOCUMENT["paths"][path]["get"]["parameters"]
    found = {each["name"]: each["schema"] for each in parameters}
    required = [each["name"] for each in parameters if each.get("required")]
    assert_same(found, required, schema.fields)
    assert isinstance(schema.fields["limit"], DecimalInteger)


def test_no_text_has_a_pattern_where_a_sentence_says_it():
    """E6: a pattern of what is storable is longer than the rest of the schema."""
    for schema in SCHEMAS.values():
        for each in schema.get("properties", {}).values():
            if "maxLength" in each:
                assert "pattern" not in each
                assert each["description"].endswith(STORABLE)


def test_the_examples_of_a_tag_are_tags():
    """C1, E6."""
    etag = DOCUMENT["components"]["headers"]["ETag"]
    assert re.fullmatch(etag["schema"]["pattern"], etag["example"])
    for name in ("If-Match", "If-None-Match"):
        assert DOCUMENT["components"]["parameters"][name]["example"] == etag["example"]


@pytest.mark.parametrize("key", ["mail-4711", "!", "~" * 255, "+", "-", ",", "a b", ""])
def test_the_pattern_of_a_key_is_what_is_taken(key):
    """O5, E6."""
    parameter = DOCUMENT["components"]["parameters"]["Idempotency-Key"]
    documented = re.search(parameter["schema"]["pattern"], key)
    assert bool(documented) == bool(ticketsvc.IDEMPOTENCY_KEY.fullmatch(key))


def test_the_examples_of_a_401_are_its_two_sentences():
    """E2, E6."""
    content = DOCUMENT["components"]["responses"]["Unauthorized"]["content"][JSON]
    values = [example["value"] for example in content["examples"].values()]
    assert values == [{"error": NO_TOKEN}, {"error": BAD_TOKEN}]


def test_every_route_is_described(app):
    """And nothing else; HEAD and OPTIONS go without saying."""
    routes = {
        (re.sub("<(?:int:)?(.*?)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    assert routes == {
        (path, method)
        for path, item in DOCUMENT["paths"].items()
        for method in item
        if method in METHODS
    }


def test_every_operation_is_named_after_its_view(app):
    operations = {
        item[method]["operationId"]
        for item in DOCUMENT["paths"].values()
        for method in item
        if method in METHODS
    }
    assert operations == {
        rule.endpoint.removeprefix("api.") for rule in app.url_map.iter_rules()
    }


@pytest.mark.parametrize(
    ("name", "schema"), [("post", ticket_schema), ("patch", ticket_patch_schema)]
)
def test_the_examples_of_bodies_are_good_and_stand_in_the_readme(name, schema):
    operation = next(item[name] for item in DOCUMENT["paths"].values() if name in item)
    for content in operation["requestBody"]["content"].values():
        assert schema.load(content["example"]) == content["example"]
        assert f"-d '{json.dumps(content['example'])}'" in README


def test_the_document_is_served_as_it_lies_there(client):
    """E6, N1."""
    response = client.get("/api/openapi.json")
    assert response.status_code == 200
    assert response.content_type == JSON
    assert response.get_data(as_text=True) == OPENAPI
    assert OPENAPI.endswith("}\n")


class TestTokens:
    """E2: with TICKETSVC_TOKENS set."""

    @pytest.fixture
    def settings(self):
        return {"TICKETSVC_TOKENS": "s3cret"}

    def test_the_document_is_open(self, client):
        """E2, E6."""
        assert client.get("/api/openapi.json").status_code == 200
