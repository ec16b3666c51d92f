"""Words of the contract that several test files need, and the shape of an error."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text("utf-8")
OPENAPI = (ROOT / "openapi.json").read_text("utf-8")

TICKETS = "/api/v1/tickets"
DESCRIPTION = "The export button does nothing"
WRITABLE = ("status", "category", "ai_suggested_response")  # by a PATCH
MIB = 1024 * 1024  # bytes, the limit of a body
JSON = "application/json"
JSON_TYPE = f"Content-Type: {JSON}"
# As a regular expression: N3.
TIMESTAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"

INVALID = "Invalid field values"
NOT_A_STATUS = ["Must be one of: ai_resolved, pending_agent, closed."]
NOT_JSON = "Request body is not valid JSON"
TOO_LARGE = "Request body is larger than 1 MiB"
CHANGED = "Ticket has changed since it was read"
BAD_KEY = (
    "Idempotency-Key must be 1 to 255 visible ASCII characters without a comma, "
    "sent once"
)
NO_TOKEN = "A token is needed: send Authorization: Bearer <token>"
BAD_TOKEN = "The token is not valid"

# For a test that says the same whatever the database is.
once = pytest.mark.database("sqlite")


def no_such_path(path):
    """Return the sentence of a 404 for a path: N5."""
    return f"No such path: {path}"


def entity_tag(version, ticket):
    """Return the entity tag of a ticket (a dict) with this version: C1."""
    return f'"{version}-{ticket["updated_at"]}"'


def assert_version(reply, version):
    """Pin the entity tag of an answer with one ticket."""
    assert reply.headers["ETag"] == entity_tag(version, reply.json)


def assert_error(response, status, message, fields=None):
    """Pin the whole shape of an error: N1, N2."""
    body = {"error": message}
    if fields is not None:
        body["fields"] = fields

    assert response.status_code == status
    assert response.content_type == JSON
    assert (
        response.get_data(as_text=True) == json.dumps(body, ensure_ascii=False) + "\n"
    )
