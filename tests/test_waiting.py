"""Whoever holds the database, nobody waits for long, and reading goes on: E7."""

import os
import random
import signal
import threading
import time

import pytest

from tests.helpers import TICKETS, result, together

WAIT = 5  # seconds that a write may wait


@pytest.fixture
def database_url(sqlite_url):
    """This is about SQLite."""
    return sqlite_url


def test_a_write_that_is_given_up_is_never_written(server, holder, sql):
    """E7: each that waits is a 500 while the lock is still held; those after it are 200."""
    server.fill(16)
    holder.execute("BEGIN IMMEDIATE")
    replies = together(16, lambda n: server.patch(n + 1, {"category": "given up"}, timeout=30))
    holder.execute("ROLLBACK")
    assert {reply.status for reply in replies} == {500}
    assert server.log.count("failed: database is locked") == 16
    replies = together(16, lambda n: server.patch(n + 1, {"category": "later"}))
    assert {reply.status for reply in replies} == {200}
    rows = sql("SELECT category, version FROM ticket")
    assert rows == [{"category": "later", "version": 2}] * 16


def test_reading_goes_on_while_any_number_of_writes_wait(server, holder):
    """E7: each read is answered before the write in front gives up, and so is SIGTERM's wait."""
    server.fill(1000)
    holder.execute("BEGIN IMMEDIATE")
    load = server.load(200, WAIT + 1)
    time.sleep(0.5)
    started, slowest = time.monotonic(), 0
    while time.monotonic() < started + WAIT:
        asked = time.monotonic()
        assert server.get(1).status == 200
        assert server.request("GET", "/api/health").status == 200
        slowest = max(slowest, time.monotonic() - asked)
        time.sleep(0.1)
    assert slowest < WAIT / 2
    found = result(load)
    assert set(found["statuses"]) == {500}
    assert set(found["failures"].values()) == {0}
    holder.execute("ROLLBACK")
    assert server.patch(1, {"category": "later"}).status == 200


def test_sigterm_while_writes_wait_answers_all(server, holder):
    """E7: those that wait are given up in time."""
    server.fill(1000)
    holder.execute("BEGIN IMMEDIATE")
    load = server.load(64, 1, 1000, "--once")
    time.sleep(0.5)
    assert server.stop(12) == 0
    found = result(load)
    assert set(found["statuses"]) == {500}
    assert set(found["failures"].values()) == {0}
    assert "Traceback" in server.log


def test_a_stopped_worker_holds_nobody_up(server, full):
    """E7: stopped at any moment of a load; what the other accepts is answered."""
    server.fill(64)
    for _ in range(12 if full else 4):
        load = server.load(16, 1, 64, "--once")
        server.wait_for_answers()
        time.sleep(random.uniform(0, 0.3))
        stopped = server.workers()[0]
        os.kill(stopped, signal.SIGSTOP)
        try:
            # A connection that nobody has accepted yet goes to the other one.
            replies = together(16, lambda n: server.patch(n + 1, {"category": "n"}, timeout=20))
            assert {reply.status for reply in replies} <= {200, 500}
            assert server.get(1).status == 200
        finally:
            os.kill(stopped, signal.SIGCONT)
        result(load)
        assert server.patch(1, {"category": "n"}).status == 200


def test_a_writer_outside_the_service_is_waited_for(server, full, holder):
    """P10: 300 ms out of every second the write lock is somebody else's."""
    seconds = 20 if full else 5
    server.fill(1000)
    load = server.load(32, seconds)
    for _ in range(seconds):
        holder.execute("BEGIN IMMEDIATE")
        time.sleep(0.3)
        holder.execute("ROLLBACK")
        time.sleep(0.7)
    found = result(load)
    assert set(found["statuses"]) == {200}
    assert set(found["failures"].values()) == {0}


def test_the_first_to_wait_is_the_first_to_be_written(server, holder):
    """E7: while the lock is held, the writes of a process stand in the order in which they came."""
    server.stop()
    server.environ["WEB_CONCURRENCY"] = "1"
    server.start().fill(1)
    holder.execute("BEGIN IMMEDIATE")
    threads = []
    for number in range(12):
        body = {"category": f"n {number}"}
        threads.append(threading.Thread(target=server.patch, args=(1, body)))
        threads[-1].start()
        time.sleep(0.03)
    holder.execute("ROLLBACK")
    for thread in threads:
        thread.join()
    history = server.request("GET", f"{TICKETS}/1/history").json
    assert [each["category"] for each in history][:-1] == [f"n {n}" for n in range(11, -1, -1)]
