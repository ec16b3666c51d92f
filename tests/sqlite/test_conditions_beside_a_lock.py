"""A PATCH whose condition no ticket can meet waits for nobody: C2, C4."""

import time

import pytest

from tests.helpers.contract import (
    AT_ONCE,
    CHANGED,
    TICKETS,
    UNMET,
    assert_error,
    assert_version,
)

pytestmark = pytest.mark.database("sqlite")

CLOSED = {"status": "closed"}


@pytest.mark.parametrize("headers", UNMET)
def test_a_condition_that_cannot_be_met_is_refused_at_once(
    client, ticket, holder, headers
):
    holder.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    response = client.patch(f"{TICKETS}/1", json=CLOSED, headers=headers)
    assert time.monotonic() - started < AT_ONCE
    holder.execute("ROLLBACK")
    assert_error(response, 412, CHANGED)
    assert_version(client.get(f"{TICKETS}/1"), 1)


@pytest.mark.parametrize("headers", UNMET)
def test_on_an_unknown_ticket_it_is_a_500_at_once(client, ticket, holder, headers):
    """C4, P9."""
    holder.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    response = client.patch(f"{TICKETS}/9", json=CLOSED, headers=headers)
    assert time.monotonic() - started < AT_ONCE
    holder.execute("ROLLBACK")
    assert_error(response, 500, "Internal server error")
