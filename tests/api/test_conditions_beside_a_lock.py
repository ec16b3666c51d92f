"""A PATCH whose condition no ticket can meet waits for nobody: C2, C4."""

import time
from contextlib import closing

import pytest

from tests.helpers.contract import CHANGED, TICKETS, assert_error, assert_version
from tests.helpers.databases import connect, execute

# Conditions that no ticket can meet.
UNMET = [
    pytest.param({"If-Match": 'W/"1"'}, id="C2-weak"),
    pytest.param({"If-Match": 'W/"1", W/"2"'}, id="C2-weak-two"),
    pytest.param({"If-None-Match": "*"}, id="C4-any"),
    pytest.param({"If-Match": "*", "If-None-Match": "*"}, id="C4-any-and-none"),
]
AT_ONCE = 2.5  # seconds; a write waits for twice as long.


@pytest.fixture
def lock(ticket, database_url, on_sqlite):
    """Keep every write to the ticket waiting."""
    options = ["IMMEDIATE"] if on_sqlite else []
    with closing(connect(database_url)) as other, other.atomic(*options) as held:
        if not on_sqlite:
            execute(other, "SELECT 1 FROM ticket FOR UPDATE")
        yield
        held.rollback()


@pytest.mark.parametrize("headers", UNMET)
@pytest.mark.parametrize(
    ("ticket_id", "status", "sentence"),
    [
        pytest.param(1, 412, CHANGED, id="C2-known"),
        pytest.param(9, 500, "Internal server error", id="C4-P9-unknown"),
    ],
)
def test_a_condition_that_cannot_be_met_is_refused_at_once(
    client, lock, headers, ticket_id, status, sentence
):
    path = f"{TICKETS}/{ticket_id}"
    started = time.monotonic()
    response = client.patch(path, json={"status": "closed"}, headers=headers)
    assert time.monotonic() - started < AT_ONCE
    assert_error(response, status, sentence)
    assert_version(client.get(f"{TICKETS}/1"), 1)
