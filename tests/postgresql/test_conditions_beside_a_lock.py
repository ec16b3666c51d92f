"""A PATCH whose condition no ticket can meet waits for nobody: C2, C4."""

import time
from contextlib import closing

import pytest

from tests.helpers.contract import (
    AT_ONCE,
    CHANGED,
    TICKETS,
    UNMET,
    assert_error,
    assert_version,
)
from tests.helpers.databases import connect, execute

pytestmark = pytest.mark.database("postgresql")


@pytest.mark.parametrize("headers", UNMET)
@pytest.mark.parametrize(
    ("ticket_id", "status", "sentence"),
    [
        pytest.param(1, 412, CHANGED, id="C2-known"),
        pytest.param(9, 500, "Internal server error", id="C4-P9-unknown"),
    ],
)
def test_a_condition_that_cannot_be_met_is_refused_at_once(
    client, ticket, database_url, headers, ticket_id, status, sentence
):
    path = f"{TICKETS}/{ticket_id}"
    with closing(connect(database_url)) as other, other.atomic() as held:
        execute(other, "SELECT 1 FROM ticket FOR UPDATE")
        started = time.monotonic()
        response = client.patch(path, json={"status": "closed"}, headers=headers)
        assert time.monotonic() - started < AT_ONCE
        held.rollback()
    assert_error(response, status, sentence)
    assert_version(client.get(f"{TICKETS}/1"), 1)
