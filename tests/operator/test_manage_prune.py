"""manage.py prune: M5."""

import time

import pytest

from models import Ticket
from tests.helpers.follower import CHANGES, pages

KEPT = "SELECT version FROM ticket_version WHERE ticket_id = {} ORDER BY version"


@pytest.fixture
def moments(app):
    """Two tickets, five PATCHes of the first; return the time after each of them."""
    Ticket.add({"user_description": "x"})
    Ticket.add({"user_description": "y"})
    moments = []
    for number in range(5):
        Ticket.patch(1, {"category": f"n {number}"})
        time.sleep(0.005)
        moments.append(Ticket.clock())
        time.sleep(0.005)
    Ticket.patch(2, {"category": "newest"})
    return moments


@pytest.fixture
def kept(sql):
    """Return the numbers of the versions that are kept of a ticket."""
    return lambda ticket_id: [row["version"] for row in sql(KEPT.format(ticket_id))]


def test_versions_that_were_replaced_before_are_deleted(moments, manage, kept):
    """Version 4 was written before the time, but replaced after it."""
    assert kept(1) == [1, 2, 3, 4, 5]
    line = manage("prune", "--before", moments[2])
    assert line == f"Deleted 2 versions replaced before {moments[2]}\n"
    assert kept(1) == [1, 4, 5]


def test_the_first_and_the_newest_row_stay(moments, manage, kept):
    """M5."""
    manage("prune", "--before", "9999-12-31")
    assert kept(1) == [1]
    assert kept(2) == [1]


def test_the_first_version_of_a_returned_ticket_stays(app, manage, kept, sql):
    """M5: the marks of its deletion and of its return are no versions."""
    Ticket.add({"user_description": "x"})
    sql("DELETE FROM ticket WHERE id = 1")
    sql("INSERT INTO ticket (id, user_description, status) VALUES (1, 'x', 'closed')")
    for number in range(3):
        Ticket.patch(1, {"category": f"n {number}"})
    manage("prune", "--before", "9999-12-31")
    assert kept(1) == [0, 0, 1, 3]


def test_the_newest_row_of_the_table_stays(moments, manage, kept, sql):
    """M5."""
    Ticket.patch(1, {"category": "again"})
    manage("prune", "--before", "9999-12-31")
    assert kept(1) == [1, 6]
    Ticket.patch(1, {"category": "again"})
    ids = [row["id"] for row in sql("SELECT id FROM ticket_version ORDER BY id")]
    assert ids[-1] == 8


@pytest.fixture
def follow(client):
    """Return a function that answers the ids of what is new since its last call."""
    path = CHANGES

    def read():
        nonlocal path
        found, path = pages(client, path)
        return [ticket_id for page in found for ticket_id in page]

    return read


def test_a_follower_that_was_away_misses_nothing(moments, manage, follow):
    """F3: the versions that told of these changes are gone."""
    Ticket.add({"user_description": "z"})
    follow()
    for number in range(3):
        Ticket.patch(1, {"category": f"m {number}"})
    Ticket.patch(2, {"category": "newest"})
    manage("prune", "--before", "9999-12-31")
    assert {1, 2} <= set(follow())
    assert follow() == []


def test_a_follower_that_was_there_reads_nothing_twice(moments, manage, follow):
    """F3."""
    follow()
    manage("prune", "--before", "9999-12-31")
    assert follow() == []
    Ticket.patch(2, {"category": "newest"})
    assert follow() == [2]


def test_a_deleted_ticket_makes_no_follower_begin_again(moments, follow, sql):
    """F1: its versions are gone too, but it has left a mark."""
    follow()
    Ticket.patch(1, {"category": "late"})
    sql("DELETE FROM ticket WHERE id = 1")
    assert follow() == [1]


def test_the_lowest_version_of_an_old_ticket_stays(moments, manage, kept, sql):
    """M5."""
    sql("DELETE FROM ticket_version WHERE ticket_id = 1 AND version < 3")
    manage("prune", "--before", "9999-12-31")
    assert kept(1) == [3]


def test_the_present_version_stays(moments, manage, sql):
    """M5."""
    before = sql("SELECT * FROM ticket ORDER BY id")
    manage("prune", "--before", "9999-12-31")
    assert sql("SELECT * FROM ticket ORDER BY id") == before


def test_marks_of_deleted_tickets_stay(moments, manage, kept, sql):
    """M5."""
    sql("DELETE FROM ticket WHERE id = 1")
    Ticket.patch(2, {"category": "newer"})
    manage("prune", "--before", "9999-12-31")
    assert kept(1) == [0]


def test_a_second_run_deletes_nothing(moments, manage):
    """M5."""
    manage("prune", "--before", moments[2])
    line = manage("prune", "--before", moments[2])
    assert line == f"Deleted 0 versions replaced before {moments[2]}\n"


def test_more_versions_than_a_portion_are_all_pruned(
    moments, manage, kept, monkeypatch
):
    """M5."""
    monkeypatch.setattr("manage.PORTION", 2)
    assert manage("prune", "--before", moments[4]).startswith("Deleted 4 versions ")
    assert kept(1) == [1]
