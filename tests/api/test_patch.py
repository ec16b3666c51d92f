"""PATCH /api/v1/tickets/{id}: P1 to P14."""

import logging
import time

import pytest

from tests.helpers.contract import (
    DESCRIPTION,
    INVALID,
    JSON,
    NOT_A_STATUS,
    NOT_JSON,
    TICKETS,
    WRITABLE,
    assert_error,
    assert_version,
    no_such_path,
    once,
)

NULL = ["Field may not be null."]
NOT_A_STRING = ["Not a valid string."]
UNSTORABLE = ["May not contain NUL or unpaired surrogates."]
BLANK = ["May not be white space only."]


@pytest.fixture
def url(ticket):
    return f"{TICKETS}/{ticket['id']}"


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "closed"},
        {"category": "billing"},
        {"ai_suggested_response": "Zurücksetzen hilft. 🙂"},
        {"ai_suggested_response": "r", "category": "c"},
        {"category": "c", "status": "ai_resolved"},
        {"status": "closed", "ai_suggested_response": "r"},
        {"status": "closed", "category": "c", "ai_suggested_response": "r"},
    ],
    ids=lambda changes: "P1-" + "-".join(changes),
)
def test_patch_writes_only_the_fields_present(client, url, ticket, row, changes):
    """P1, P2."""
    before = row(ticket["id"])
    response = client.patch(url, json=changes)
    after = row(ticket["id"])
    assert response.status_code == 200
    assert {name for name in after if after[name] != before[name]} - {"updated_at"} == {
        *changes,
        "version",
    }
    assert {name: after[name] for name in changes} == changes
    assert response.json == {name: after[name] for name in ticket}


def test_patch_answers_with_the_whole_bare_ticket(client, url, ticket):
    """P2."""
    body = client.patch(url, json={"status": "closed"}).json
    assert body == {**ticket, "status": "closed", "updated_at": body["updated_at"]}


@once
@pytest.mark.parametrize(
    "request_options",
    [
        pytest.param({}, id="P3-no-body"),
        pytest.param({"content_type": "text/plain"}, id="P3-no-body-of-another-type"),
        pytest.param({"json": {}}, id="P3-empty-object"),
        pytest.param({"json": {"colour": "red"}}, id="P3-N4-unknown-key"),
        pytest.param({"json": {"user_description": "x"}}, id="P6-user_description"),
        pytest.param({"json": {"confidence_score": 1}}, id="P6-confidence_score"),
        pytest.param({"json": {"id": 9}}, id="P6-id"),
        pytest.param(
            {"json": {"created_at": "2020-01-01T00:00:00.000Z"}}, id="P6-created_at"
        ),
        pytest.param({"json": {"version": 7}}, id="P3-version"),
    ],
)
def test_patch_without_a_valid_field_is_refused(
    client, url, row, ticket, request_options
):
    before = row(ticket["id"])
    assert_error(client.patch(url, **request_options), 400, "No valid fields to update")
    assert row(ticket["id"]) == before


def test_patch_ignores_the_fields_it_does_not_own(client, url, row, ticket):
    """P6, N4."""
    before = row(ticket["id"])
    changes = {
        "status": "closed",
        "user_description": "other",
        "confidence_score": 1,
        "id": 77,
        "created_at": "2020-01-01T00:00:00.000Z",
        "updated_at": "2020-01-01T00:00:00.000Z",
        "version": 99,
        "nested": {"status": [1, 2]},
        "huge": 10**400,
    }
    time.sleep(0.002)  # The clock has milliseconds.
    assert client.patch(url, json=changes).status_code == 200
    after = row(ticket["id"])
    changed = {"status": "closed", "version": 2, "updated_at": after["updated_at"]}
    assert after == {**before, **changed}
    assert after["updated_at"] > before["updated_at"]


def test_patch_ignores_an_unknown_number_of_any_length(client, url):
    """N4: Python itself refuses to read more than 4,300 digits."""
    body = '{"status": "closed", "x": ' + "9" * 5000 + "}"
    response = client.patch(url, data=body, content_type=JSON)
    assert response.status_code == 200


@pytest.mark.parametrize("status", ["ai_resolved", "pending_agent", "closed"])
def test_patch_takes_each_status(client, url, status):
    """P4."""
    assert client.patch(url, json={"status": status}).json["status"] == status


def test_patch_takes_a_category_of_no_classifier(client, url):
    """P5."""
    body = client.patch(url, json={"category": "Élan – 退款 / other?"}).json
    assert body["category"] == "Élan – 退款 / other?"


@once
@pytest.mark.parametrize(
    ("field", "value", "messages"),
    [
        pytest.param("status", "open", NOT_A_STATUS, id="P4-unknown-status"),
        pytest.param("status", "Closed", NOT_A_STATUS, id="P4-case"),
        pytest.param("status", "", NOT_A_STATUS, id="P4-empty"),
        pytest.param("status", None, NULL, id="P7-status-null"),
        pytest.param("status", 1, NOT_A_STRING, id="P7-status-number"),
        pytest.param("status", ["closed"], NOT_A_STRING, id="P7-status-list"),
        pytest.param("category", True, NOT_A_STRING, id="P7-category-boolean"),
        pytest.param("category", {}, NOT_A_STRING, id="P7-category-object"),
        pytest.param(
            "category",
            "",
            ["Length must be between 1 and 100."],
            id="P7-category-empty",
        ),
        pytest.param(
            "category",
            "x" * 101,
            ["Length must be between 1 and 100."],
            id="P7-category-max+1",
        ),
        pytest.param("category", " \t\n\u3000", BLANK, id="P7-category-blank"),
        pytest.param("category", "a\0b", UNSTORABLE, id="P7-category-nul"),
        pytest.param("category", "\ud83d", UNSTORABLE, id="P7-category-surrogate"),
        pytest.param(
            "ai_suggested_response", 0.5, NOT_A_STRING, id="P7-response-number"
        ),
        pytest.param(
            "ai_suggested_response",
            "x" * 50_001,
            ["Length must be between 1 and 50000."],
            id="P7-response-max+1",
        ),
        pytest.param("ai_suggested_response", "   ", BLANK, id="P7-response-blank"),
        pytest.param("ai_suggested_response", "\0", UNSTORABLE, id="P7-response-nul"),
        pytest.param(
            "ai_suggested_response", "\udc00x", UNSTORABLE, id="P7-response-surrogate"
        ),
    ],
)
def test_patch_names_a_bad_field_and_writes_nothing(
    client, url, row, ticket, field, value, messages
):
    before = row(ticket["id"])
    good = {
        "status": "closed",
        "category": "billing",
        "ai_suggested_response": "Sorry!",
    }
    response = client.patch(url, json={**good, field: value})
    assert_error(response, 400, INVALID, {field: messages})
    assert row(ticket["id"]) == before


@once
def test_patch_names_every_bad_field(client, url):
    """P7."""
    response = client.patch(url, json=dict.fromkeys(WRITABLE, 1))
    names = ("category", "ai_suggested_response", "status")
    assert_error(response, 400, INVALID, dict.fromkeys(names, NOT_A_STRING))


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(["category"], id="P7-category"),
        pytest.param(["ai_suggested_response"], id="P7-response"),
        pytest.param(["category", "ai_suggested_response"], id="P7-both"),
    ],
)
def test_patch_clears_a_field_with_null(client, url, ticket, row, fields):
    before = row(ticket["id"])
    response = client.patch(url, json=dict.fromkeys(fields))
    after = row(ticket["id"])
    assert response.status_code == 200
    assert_version(response, 2)
    expected = {**ticket, **dict.fromkeys(fields)}
    assert response.json == {**expected, "updated_at": after["updated_at"]}
    changed = {name for name in after if after[name] != before[name]}
    assert changed - {"updated_at"} == {*fields, "version"}


def test_patch_clears_what_is_null_already(client, url):
    """P7, P8: an update like any other."""
    assert client.patch(url, json={"category": None}).json["category"] is None
    assert_version(client.patch(url, json={"category": None}), 3)


def test_patch_clears_one_field_beside_another_change(client, url, ticket):
    """P7, P1."""
    changes = {"ai_suggested_response": None, "status": "closed"}
    response = client.patch(url, json=changes)
    updated_at = response.json["updated_at"]
    assert response.json == {**ticket, **changes, "updated_at": updated_at}


@once
def test_patch_with_a_null_status_clears_nothing(client, url, row, ticket):
    """P7: one bad field writes nothing at all."""
    before = row(ticket["id"])
    response = client.patch(url, json=dict.fromkeys(WRITABLE))
    assert_error(response, 400, INVALID, {"status": NULL})
    assert row(ticket["id"]) == before


def test_a_cleared_field_stays_in_the_history(client, url, ticket):
    """P7, V2."""
    client.patch(url, json={"ai_suggested_response": None})
    history = client.get(f"{url}/history").json
    responses = [each["ai_suggested_response"] for each in history]
    assert responses == [None, ticket["ai_suggested_response"]]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param("category", "x", id="P7-category-min"),
        pytest.param("category", "é" * 100, id="P7-category-max"),
        pytest.param("ai_suggested_response", "x", id="P7-response-min"),
        pytest.param("ai_suggested_response", "🙂" * 50_000, id="P7-response-max"),
        pytest.param("category", " padded ", id="P7-verbatim"),
    ],
)
def test_patch_takes_a_string_at_its_limits(client, url, row, ticket, field, value):
    assert client.patch(url, json={field: value}).json[field] == value
    assert row(ticket["id"])[field] == value


def test_patch_of_equal_values_moves_updated_at(client, url, ticket):
    """P8."""
    time.sleep(0.002)
    body = client.patch(url, json={"category": ticket["category"]}).json
    assert body["updated_at"] > ticket["updated_at"]
    assert body["created_at"] == ticket["created_at"]


UNKNOWN_IDS = [
    pytest.param("99", id="P9-unknown"),
    pytest.param("0", id="P9-zero"),
    pytest.param(str(2**63 - 1), id="P9-largest"),
    pytest.param(str(2**63), id="P9-past-largest"),
    pytest.param("9" * 30, id="P9-thirty-digits"),
]


@pytest.mark.parametrize("ticket_id", UNKNOWN_IDS)
def test_patch_of_an_unknown_ticket_is_a_500(client, ticket, caplog, ticket_id):
    with caplog.at_level(logging.INFO):
        response = client.patch(f"{TICKETS}/{ticket_id}", json={"status": "closed"})
    assert_error(response, 500, "Internal server error")
    assert [ticket_id in record.getMessage() for record in caplog.records] == [True]
    assert not caplog.records[0].exc_info


class TestMissingStatus:
    """P9 with TICKETSVC_MISSING_STATUS=404."""

    @pytest.fixture
    def settings(self):
        return {"TICKETSVC_MISSING_STATUS": "404"}

    @pytest.mark.parametrize("ticket_id", UNKNOWN_IDS)
    def test_patch_of_an_unknown_ticket_is_a_404(
        self, client, ticket, caplog, ticket_id
    ):
        with caplog.at_level(logging.INFO):
            response = client.patch(f"{TICKETS}/{ticket_id}", json={"status": "closed"})
        assert_error(response, 404, "Ticket not found")
        assert [ticket_id in record.getMessage() for record in caplog.records] == [True]


def test_patch_hides_a_database_failure(client, url, sql, caplog):
    """P10, N2."""
    sql("DROP TABLE ticket")
    response = client.patch(url, json={"status": "closed"})
    assert_error(response, 500, "Internal server error")
    assert [bool(record.exc_info) for record in caplog.records] == [True]
    assert "ticket" in caplog.text


def test_patch_lets_every_status_follow_every_other(client, url):
    """P11."""
    order = [
        "closed",
        "pending_agent",
        "ai_resolved",
        "closed",
        "ai_resolved",
        "pending_agent",
    ]
    answers = [
        client.patch(url, json={"status": status}).json["status"] for status in order
    ]
    assert answers == order


@once
@pytest.mark.parametrize(
    "media_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/merge-patch+json",
        "application/vnd.ticket+json",
    ],
    ids=lambda media_type: f"P12-{media_type}",
)
def test_patch_takes_json_by_any_name(client, url, media_type):
    response = client.patch(url, data='{"status": "closed"}', content_type=media_type)
    assert response.status_code == 200


@once
@pytest.mark.parametrize(
    "media_type",
    [
        None,
        "application/x-www-form-urlencoded",
        "text/plain",
        "text/json",
        "application/jsonp",
    ],
    ids=lambda media_type: f"P12-{media_type}",
)
def test_patch_refuses_another_media_type(client, url, media_type):
    response = client.patch(url, data='{"status": "closed"}', content_type=media_type)
    came = f"not {media_type}" if media_type else "and none was sent"
    sentence = f"Content-Type must be application/json or application/*+json, {came}"
    assert_error(response, 415, sentence)
    assert (
        response.headers["Accept-Patch"]
        == "application/json, application/merge-patch+json"
    )


@once
def test_options_say_what_patch_takes(client, url):
    """P12: where PATCH is, and nowhere else."""
    response = client.options(url)
    assert response.status_code == 200
    assert response.data == b""
    assert (
        response.headers["Accept-Patch"]
        == "application/json, application/merge-patch+json"
    )
    assert response.allow.as_set() == {"get", "head", "options", "patch"}
    for other in (TICKETS, "/api/health", f"{url}/history"):
        assert "Accept-Patch" not in client.options(other).headers


@once
@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(
            "{",
            f"{NOT_JSON}: Expecting property name enclosed in double quotes "
            "at line 1, column 2",
            id="P13-broken",
        ),
        pytest.param("{}", "No valid fields to update", id="P13-empty"),
        pytest.param('{"status": "x"}', INVALID, id="P13-bad-value"),
    ],
)
def test_patch_checks_the_body_before_the_ticket(client, body, message):
    response = client.patch(f"{TICKETS}/99", data=body, content_type=JSON)
    assert response.status_code == 400
    assert response.json["error"] == message


@once
@pytest.mark.parametrize(
    "ticket_id",
    ["abc", "-1", "+1", "1.5", "1e3", "٣", "1 ", "0x1", "", "1/", "1/x"],
    ids=lambda ticket_id: f"P14-{ticket_id!a}",
)
@pytest.mark.parametrize("method", ["PATCH", "GET"])
def test_an_id_that_is_no_decimal_number_is_not_found(
    client, ticket, method, ticket_id
):
    """P14, N5."""
    path = f"{TICKETS}/{ticket_id}"
    response = client.open(path, method=method, json={"status": "closed"})
    assert_error(response, 404, no_such_path(path))


def test_patch_takes_an_id_with_leading_zeros(client, ticket):
    """P14: 0001 is a plain decimal number."""
    assert (
        client.patch(f"{TICKETS}/000{ticket['id']}", json={"status": "closed"}).json[
            "id"
        ]
        == 1
    )


def test_description_survives_patches_verbatim(client, sql):
    """N3, P1: the creator's words stay as they were."""
    words = "  two\r\n lines\t" + DESCRIPTION
    created = client.post(TICKETS, json={"user_description": words}).json
    patched = client.patch(f"{TICKETS}/{created['id']}", json={"status": "closed"}).json
    assert patched["user_description"] == words
