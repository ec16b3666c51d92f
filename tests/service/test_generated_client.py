"""A client that openapi-python-client generates from openapi.json works against the
service: E6.
"""

import importlib
import inspect
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.helpers.contract import (
    CHANGED,
    DESCRIPTION,
    INVALID,
    NO_TOKEN,
    OPENAPI,
    ROOT,
    TICKETS,
    assert_version,
    once,
)

pytestmark = once

DOCUMENT = json.loads(OPENAPI)
COMPONENTS = DOCUMENT["components"]
OPERATIONS = {
    operation["operationId"]: operation
    | {"parameters": [*shared, *operation["parameters"]]}
    for item in DOCUMENT["paths"].values()
    for shared in [item.get("parameters", [])]
    for operation in [
        {"parameters": []} | each for each in item.values() if "responses" in each
    ]
}


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """What the generator writes and prints, given the document and nothing else."""
    folder = tmp_path_factory.mktemp("generated")
    package, config = folder / "ticketsvc_client", folder / "config.json"
    # The hooks have ruff rewrite the package in a way that Python 3.10 cannot import.
    config.write_text('{"post_hooks": []}')
    command = [
        sys.executable,
        "-m",
        "openapi_python_client",
        "generate",
        "--meta",
        "none",
    ]
    command += [
        "--config",
        config,
        "--path",
        ROOT / "openapi.json",
        "--output-path",
        package,
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env={})
    return SimpleNamespace(package=package, run=run)


@pytest.fixture(scope="module")
def library(generated):
    """The generated package, imported: its client, its models, and a module for each
    operation.
    """
    name = generated.package.name
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(generated.package.parent)
        modules = {
            each: importlib.import_module(f"{name}.api.{operation['tags'][0]}.{each}")
            for each, operation in OPERATIONS.items()
        }
        models = importlib.import_module(f"{name}.models")
        yield SimpleNamespace(root=sys.modules[name], models=models, **modules)
    for each in [each for each in sys.modules if each.partition(".")[0] == name]:
        del sys.modules[each]


@pytest.fixture
def client(library, server):
    """A generated client of the running service."""
    url = f"http://127.0.0.1:{server.port}"
    with library.root.Client(
        base_url=url, timeout=10, raise_on_unexpected_status=True
    ) as client:
        yield client


@pytest.fixture
def file(library, client):
    """File a ticket with a confidence, and return the whole response."""

    def create(score=0.42, **options):
        body = library.models.TicketCreate(
            user_description=DESCRIPTION, category="bug", confidence_score=score
        )
        return library.create_ticket.sync_detailed(client=client, body=body, **options)

    return create


def test_generate_without_a_warning(generated):
    """E6: what is not understood is left out, with a warning on stderr and an exit code
    of 0.
    """
    assert generated.run.stdout == f"Generating {generated.package}\n"
    assert generated.run.stderr == ""
    assert generated.run.returncode == 0


def test_generate_every_operation(generated):
    """E6."""
    written = {path.stem for path in generated.package.glob("api/*/[!_]*.py")}
    assert written == set(OPERATIONS)
    assert len(OPERATIONS) == 8


@pytest.mark.parametrize("schema", COMPONENTS["schemas"])
def test_generate_every_schema_with_every_property(library, schema):
    """E6."""
    assert schema in library.models.__all__
    written = inspect.signature(getattr(library.models, schema)).parameters
    assert set(written) == set(COMPONENTS["schemas"][schema]["properties"])


@pytest.mark.parametrize("operation", OPERATIONS)
def test_generate_every_parameter(library, operation):
    """E6."""
    described = OPERATIONS[operation]["parameters"]
    described = [
        each.get("name", each.get("$ref", "").rpartition("/")[2]) for each in described
    ]
    written = inspect.signature(getattr(library, operation).sync_detailed).parameters
    assert set(written) - {"client", "body"} == {
        each.lower().replace("-", "_") for each in described
    }
    assert ("body" in written) == ("requestBody" in OPERATIONS[operation])


@pytest.mark.parametrize("operation", OPERATIONS)
def test_generate_every_status(library, operation):
    """E6."""
    written = inspect.getsource(getattr(library, operation)._parse_response)
    for status in OPERATIONS[operation]["responses"]:
        assert f"response.status_code == {status}:" in written


def test_file_a_ticket(library, client, file, server):
    """O1, O2, O3, C1."""
    response = file(x_request_id="client-1")
    ticket = response.parsed
    assert response.status_code == 201
    assert response.headers["Location"] == f"{TICKETS}/{ticket.id}"
    assert response.headers["X-Request-ID"] == "client-1"
    assert ticket.status is library.models.TicketStatus.PENDING_AGENT
    assert ticket.to_dict() == server.get(ticket.id).json
    assert library.get_ticket.sync(ticket.id, client=client) == ticket


def test_file_a_ticket_once_for_each_key(file):
    """O5."""
    first, again, other = (
        file(score, idempotency_key="mail-4711") for score in (0.9, 0.9, 0.1)
    )
    assert [each.status_code for each in (first, again, other)] == [201, 200, 422]
    assert first.parsed == again.parsed
    assert other.parsed.error == "Idempotency-Key was used for another ticket"


def test_patch_with_a_tag(library, client, file, server):
    """C2: and a tag that is stale is told so, and writes nothing."""
    tag, body = file().headers["ETag"], library.models.TicketPatch(category="billing")
    patch = library.update_ticket.sync_detailed
    written = patch(1, client=client, body=body, if_match=tag)
    assert (written.status_code, written.parsed.category) == (200, "billing")
    stale = patch(1, client=client, body=body, if_match=tag)
    assert (stale.status_code, stale.headers.get("ETag")) == (412, None)
    assert stale.parsed.error == CHANGED
    assert server.get(1).headers["ETag"] == written.headers["ETag"]
    assert_version(server.get(1), 2)


def test_patch_with_a_bad_value(library, client, file):
    """P4, N2: the field that is bad is named."""
    file()
    body = library.models.TicketPatch(category="")
    response = library.update_ticket.sync_detailed(1, client=client, body=body)
    assert (response.status_code, response.parsed.error) == (
        400,
        INVALID,
    )
    assert list(response.parsed.fields.to_dict()) == ["category"]


def test_patch_of_an_unknown_ticket(library, client):
    """P9."""
    body = library.models.TicketPatch(status=library.models.TicketPatchStatus.CLOSED)
    response = library.update_ticket.sync_detailed(9, client=client, body=body)
    assert (response.status_code, response.parsed.error) == (
        500,
        "Internal server error",
    )


def test_list_with_status_and_after(library, client, file):
    """L2, L3: the pending ones, oldest first, page by page."""
    for score in (0.1, 0.9, 0.2, 0.3, 0.9, 0.4):
        file(score)
    query = {"status": library.models.ListTicketsStatus.PENDING_AGENT, "limit": 3}
    pages = [
        library.list_tickets.sync(client=client, after=after, **query)
        for after in (0, 4, 6)
    ]
    assert [[ticket.id for ticket in page] for page in pages] == [[1, 3, 4], [6], []]


def test_read_the_history(library, client, file):
    """V1, V4: down to what the classifier said."""
    file()
    body = library.models.TicketPatch(category="billing")
    library.update_ticket.sync(1, client=client, body=body)
    versions = library.list_versions.sync(1, client=client)
    found = [(each.version, each.category, each.updated_by) for each in versions]
    assert found == [(2, "billing", None), (1, "bug", None)]
    assert library.list_versions.sync(1, client=client, before=2) == versions[1:]


def test_read_what_has_not_changed(library, client, file):
    """C3: and 404 of G1."""
    tag = file().headers["ETag"]
    response = library.get_ticket.sync_detailed(1, client=client, if_none_match=tag)
    assert (response.status_code, response.content) == (304, b"")
    assert library.get_ticket.sync(9, client=client).error == "Ticket not found"


def test_read_health_and_the_document(library, client):
    """H1, E6."""
    assert library.get_health.sync(client=client).status == "ok"
    assert library.get_openapi.sync(client=client).to_dict() == DOCUMENT


def test_follow_the_changes(library, client, server):
    """F1: a ticket that is there, and one that is gone."""
    server.post()
    server.post()
    server.sql("DELETE FROM ticket WHERE id = 1")
    gone, there = library.list_changes.sync(client=client, since="0-0")
    assert gone == library.models.DeletedTicket(id=1, deleted=True)
    assert isinstance(there, library.models.ChangedTicket)
    assert (there.id, there.version, there.filed.category) == (2, 1, None)


class TestTokens:
    """E2: with TICKETSVC_TOKENS set."""

    @pytest.fixture
    def settings(self):
        return {"TICKETSVC_TOKENS": "alice:s3cret"}

    def test_list_with_and_without_a_token(self, library, client, server):
        url = f"http://127.0.0.1:{server.port}"
        known = library.root.AuthenticatedClient(
            base_url=url, timeout=10, token="s3cret"
        )
        with known:
            assert library.list_tickets.sync(client=known) == []
        refused = library.list_tickets.sync(client=client)
        assert refused.error == NO_TOKEN
