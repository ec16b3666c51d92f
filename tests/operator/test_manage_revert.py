"""manage.py revert: M3."""

import time

import pytest

from models import Ticket
from tests.helpers.contract import TICKETS

GOOD = {"status": "pending_agent", "category": "good", "ai_suggested_response": None}
BAD = {"status": "closed", "category": "bad", "ai_suggested_response": "bad"}


@pytest.fixture
def write(app):
    """Write to tickets as a token does."""

    def run(name, *ticket_ids, **changes):
        return [Ticket.patch(each, changes, name) for each in ticket_ids]

    return run


@pytest.fixture
def since(app):
    """Four tickets are filed and edited by bob; return the time after it."""
    for number in range(4):
        Ticket.add({"user_description": f"n {number}"}, "bob")
    for ticket_id in range(1, 5):
        Ticket.patch(ticket_id, {"category": "good"}, "bob")
    return moment()


def moment():
    """Return a time after all that was written, and before all that is."""
    time.sleep(0.005)
    now = Ticket.clock()
    time.sleep(0.005)
    return now


def content(ticket_id):
    ticket = Ticket.find(ticket_id)
    return {name: ticket[name] for name in GOOD}


def test_a_revert_gives_back_what_was_before(since, write, manage):
    """M3."""
    write("alice", 1, 2, **BAD)
    assert manage("revert", "--since", since) == "Reverted 2 tickets, left 0 alone\n"
    assert [content(each) for each in (1, 2, 3)] == [GOOD, GOOD, GOOD]


def test_a_revert_is_a_version_like_any_other(since, write, manage, client):
    """M3."""
    write("alice", 1, category="bad")
    write("alice", 1, status="closed")
    manage("revert", "--since", since)
    versions = client.get(f"{TICKETS}/1/history").json
    assert [
        (each["version"], each["category"], each["status"], each["updated_by"])
        for each in versions
    ] == [
        (5, "good", "pending_agent", "revert"),
        (4, "bad", "closed", "alice"),
        (3, "bad", "pending_agent", "alice"),
        (2, "good", "pending_agent", "bob"),
        (1, None, "pending_agent", "bob"),
    ]
    assert versions[0]["updated_at"] > versions[1]["updated_at"]


def test_tickets_that_were_not_written_stay_as_they_are(since, write, manage, sql):
    """M3."""
    write("alice", 1, **BAD)
    before = sql("SELECT * FROM ticket WHERE id > 1 ORDER BY id")
    manage("revert", "--since", since)
    assert sql("SELECT * FROM ticket WHERE id > 1 ORDER BY id") == before


def test_with_a_name_only_its_changes_are_undone(since, write, manage):
    """M3."""
    write("alice", 1, **BAD)
    write("carol", 2, **BAD)
    line = manage("revert", "--since", since, "--by", "alice")
    assert line == "Reverted 1 ticket, left 0 alone\n"
    assert [content(1), content(2)] == [GOOD, BAD]


def test_a_ticket_that_somebody_has_changed_afterwards_is_left_alone(
    since, write, manage
):
    """M3."""
    write("alice", 1, 2, **BAD)
    write("carol", 2, status="ai_resolved")
    assert manage("revert", "--since", since, "--by", "alice") == (
        "Ticket 2 is left alone: it was changed afterwards by carol\n"
        "Reverted 1 ticket, left 1 alone\n"
    )
    assert content(2) == {**BAD, "status": "ai_resolved"}


def test_a_ticket_that_somebody_has_repaired_is_listed(since, write, manage):
    """M3: that it is as it was before makes no difference."""
    write("alice", 1, **BAD)
    write("carol", 1, **GOOD)
    assert manage("revert", "--since", since, "--by", "alice") == (
        "Ticket 1 is left alone: it was changed afterwards by carol\n"
        "Reverted 0 tickets, left 1 alone\n"
    )


def test_a_ticket_that_was_filed_in_that_time_is_left_alone(since, write, manage):
    """M3."""
    Ticket.add({"user_description": "new"}, "alice")
    write("alice", 5, **BAD)
    assert manage("revert", "--since", since) == (
        "Ticket 5 is left alone: it was filed in that time\n"
        "Reverted 0 tickets, left 1 alone\n"
    )
    assert content(5) == BAD


def test_a_ticket_that_another_filed_in_that_time_is_reverted(since, write, manage):
    """M3."""
    Ticket.add({"user_description": "new"}, "bob")
    write("alice", 5, **BAD)
    manage("revert", "--since", since, "--by", "alice")
    assert content(5) == {**GOOD, "category": None}


def test_a_ticket_whose_version_before_was_pruned_is_left_alone(
    since, write, manage, sql
):
    """M3."""
    write("alice", 1, **BAD)
    sql("DELETE FROM ticket_version WHERE ticket_id = 1 AND version = 2")
    assert manage("revert", "--since", since) == (
        "Ticket 1 is left alone: its version 2 is not kept\n"
        "Reverted 0 tickets, left 1 alone\n"
    )
    assert content(1) == BAD


def test_a_second_run_finds_nothing_to_do(since, write, manage, sql):
    """M3."""
    write("alice", 1, 2, **BAD)
    for arguments in (["--by", "alice"], []):
        write("alice", 1, 2, **BAD)
        manage("revert", "--since", since, *arguments)
        before = sql("SELECT * FROM ticket ORDER BY id")
        line = manage("revert", "--since", since, *arguments)
        assert line == "Reverted 0 tickets, left 0 alone\n"
        assert sql("SELECT * FROM ticket ORDER BY id") == before


def test_what_a_script_writes_after_a_revert_can_be_undone(since, write, manage):
    """M3."""
    write("alice", 1, **BAD)
    manage("revert", "--since", since, "--by", "alice")
    write("alice", 1, **BAD)
    manage("revert", "--since", since, "--by", "alice")
    assert content(1) == GOOD


def test_a_revert_can_be_reverted(since, write, manage):
    """M3."""
    write("alice", 1, 2, **BAD)
    manage("revert", "--since", since)
    line = manage("revert", "--since", since, "--by", "revert")
    assert line == "Reverted 2 tickets, left 0 alone\n"
    assert [content(1), content(2)] == [BAD, BAD]


def test_a_revert_can_be_reverted_by_its_time(since, write, manage):
    """M3."""
    write("alice", 1, **BAD)
    after = moment()
    manage("revert", "--since", since)
    manage("revert", "--since", after)
    assert content(1) == BAD


def test_versions_of_the_same_millisecond_are_told_apart(since, write, manage, sql):
    """M3."""
    write("alice", 1, category="bad")
    write("alice", 1, category="worse")
    stamp = moment()
    sql("UPDATE ticket_version SET version = version WHERE id = 0")
    sql(
        f"UPDATE ticket_version SET updated_at = '{stamp}' "
        "WHERE ticket_id = 1 AND version = 3"
    )
    sql(
        f"UPDATE ticket SET updated_at = '{stamp}', category = 'worst', "
        "version = version + 1 WHERE id = 1"
    )
    sql(f"UPDATE ticket_version SET updated_at = '{stamp}' WHERE version = 4")
    manage("revert", "--since", stamp)
    assert content(1) == GOOD


def test_a_dry_run_only_lists(since, write, manage, sql):
    """M3."""
    write("alice", 1, 2, **BAD)
    write("carol", 2, status="ai_resolved")
    before = [sql("SELECT * FROM ticket"), sql("SELECT * FROM ticket_version")]
    assert manage("revert", "--since", since, "--by", "alice", "--dry-run") == (
        "Ticket 1 would be as in version 2\n"
        "Ticket 2 is left alone: it was changed afterwards by carol\n"
        "Would revert 1 ticket, left 1 alone\n"
    )
    assert [sql("SELECT * FROM ticket"), sql("SELECT * FROM ticket_version")] == before


def test_a_date_is_the_beginning_of_a_day_in_utc(since, write, manage):
    """M3."""
    write("alice", 1, **BAD)
    line = manage("revert", "--since", "2020-01-01", "--by", "alice")
    assert line == "Reverted 1 ticket, left 0 alone\n"
    line = manage("revert", "--since", "9999-12-31", "--by", "alice")
    assert line == "Reverted 0 tickets, left 0 alone\n"


def test_a_change_between_reading_and_writing_is_not_lost(
    since, write, manage, monkeypatch
):
    """M3."""
    write("alice", 1, 2, **BAD)
    revert = Ticket.revert

    def late(found):
        write("carol", 2, category="mine")
        return revert(found)

    monkeypatch.setattr(Ticket, "revert", late)
    assert manage("revert", "--since", since) == (
        "Ticket 2 is left alone: it was changed just now\n"
        "Reverted 1 ticket, left 1 alone\n"
    )
    assert content(2)["category"] == "mine"


def test_more_tickets_than_a_portion_are_all_reverted(since, sql, manage, monkeypatch):
    """M3."""
    monkeypatch.setattr("manage.PORTION", 3)
    for number in range(10):
        Ticket.add({"user_description": f"n {number}"})
    sql("DELETE FROM ticket WHERE id IN (5, 6, 7, 8)")
    after = moment()
    sql("UPDATE ticket SET category = 'bad'")
    line = manage("revert", "--since", after)
    assert line == "Reverted 10 tickets, left 0 alone\n"
    assert sql("SELECT count(*) AS n FROM ticket WHERE category = 'bad'") == [{"n": 0}]


@pytest.mark.database("sqlite")
def test_a_mark_is_no_version_to_go_back_to(client, ticket, manage, sql, tmp_path):
    """M3: neither that of a restore nor that of a ticket inserted again."""
    manage("backup", tmp_path / "copy.db")
    client.patch(f"{TICKETS}/{ticket['id']}", json={"category": "changed"})
    manage("restore", tmp_path / "copy.db")
    assert sql("SELECT version FROM ticket_version") == [{"version": 0}]
    output = manage("revert", "--since", "2020-01-01")
    assert output.splitlines()[-1] == "Reverted 0 tickets, left 1 alone"
    assert client.get(f"{TICKETS}/{ticket['id']}").json == ticket
