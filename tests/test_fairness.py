"""Writers wait their turn: nobody waits behind anybody else."""

import sqlite3
import threading
import time

import pytest

from models import Ticket, database
from tests.conftest import lost, result
from tests.test_concurrency import together

HELD = 0.3  # seconds out of every second


@pytest.fixture
def database_url(sqlite_url):
    """This is about SQLite."""
    return sqlite_url


@pytest.fixture
def holder(database_url):
    """A connection of another process that may take the write lock away from the service."""
    path = database_url.removeprefix("sqlite:///")
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    yield connection
    connection.close()


def test_no_writer_starves(server, full, sql):
    """E4: 64 clients, and the slowest hundredth waits less than three mean turns."""
    server.fill(1000)
    found = result(server.load(64, 20 if full else 5))
    assert set(found["statuses"]) == {200}
    assert set(found["failures"].values()) == {0}
    assert found["p99"] < 3 * 64 / found["throughput"]
    assert not lost(found["acknowledged"], found["sent"], sql("SELECT * FROM ticket"))


def test_a_writer_outside_the_service_is_waited_for(server, full, holder):
    """P10: 300 ms out of every second the write lock is somebody else's."""
    seconds = 20 if full else 5
    server.fill(1000)
    load = server.load(64, seconds)
    for _ in range(seconds):
        holder.execute("BEGIN IMMEDIATE")
        time.sleep(HELD)
        holder.execute("ROLLBACK")
        time.sleep(1 - HELD)
    found = result(load)
    assert set(found["statuses"]) == {200}
    assert set(found["failures"].values()) == {0}


def test_a_write_that_cannot_get_in_is_a_500_in_time(server, holder):
    """P10: eight of them, all after five seconds, and none behind another; reading goes on."""
    server.fill(10)
    holder.execute("BEGIN IMMEDIATE")
    answers = []

    def patch(number):
        started = time.monotonic()
        reply = server.patch(number + 1, {"status": "closed"}, timeout=30)
        answers.append((reply.status, time.monotonic() - started))

    writers = threading.Thread(target=together, args=(8, patch))
    writers.start()
    for _ in range(10):
        started = time.monotonic()
        assert server.get(1).status == 200
        assert server.request("GET", "/api/health").status == 200
        assert time.monotonic() - started < 1
        time.sleep(0.1)
    writers.join()
    assert [status for status, _ in answers] == [500] * 8
    assert all(4.5 < waited < 7 for _, waited in answers), answers
    assert server.log.count("failed: database is locked") == 8
    holder.execute("ROLLBACK")
    assert server.patch(1, {"status": "closed"}).status == 200


def test_a_write_that_breaks_a_rule_takes_no_other_along(server, sql):
    """P10: a rule that only the table knows; those committed together with it are not harmed."""
    server.fill(16)
    sql(
        "CREATE TRIGGER unlucky BEFORE UPDATE ON ticket WHEN NEW.id = 13 "
        "BEGIN SELECT RAISE(ABORT, 'unlucky'); END"
    )
    for _ in range(10):
        replies = together(16, lambda number: server.patch(number + 1, {"category": "x"}))
        assert [reply.status for reply in replies] == [200] * 12 + [500] + [200] * 3
    assert server.log.count("failed: unlucky") == 10


def test_a_write_that_cannot_be_bound_leaves_no_transaction_open(app, sql):
    """E4: nothing that another thread was told is written may hang in it."""
    ids = [Ticket.add({"user_description": "x"})["id"] for _ in range(16)]

    def write(number):
        if number % 4 == 0:
            with pytest.raises(OverflowError):
                database.write("UPDATE ticket SET version = ? RETURNING id", [2**64])
        else:
            assert Ticket.patch(ids[number], {"category": f"n {turn}"})
        database.close()

    for turn in range(50):
        together(16, write)
        rows = sql("SELECT category FROM ticket ORDER BY id")
        expected = [None if number % 4 == 0 else f"n {turn}" for number in range(16)]
        assert [row["category"] for row in rows] == expected
