"""Whoever holds the database, nobody waits for long, and reading goes on: E7."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.helpers.contract import JSON, TICKETS
from tests.helpers.load import assert_all_succeeded
from tests.helpers.timing import together, wait_for
from tests.helpers.wal import commits

pytestmark = pytest.mark.database("sqlite")


def test_a_write_that_is_given_up_is_never_written(server, holder, sql):
    """E7: each that waits is a 500 while the lock is still held; those after it are
    200.
    """
    server.fill(16)
    holder.execute("BEGIN IMMEDIATE")
    replies = together(16, lambda n: server.patch(n + 1, {"category": "given up"}))
    holder.execute("ROLLBACK")
    assert {reply.status for reply in replies} == {500}
    assert server.log.count("failed: database is locked") == 16
    replies = together(16, lambda n: server.patch(n + 1, {"category": "later"}))
    assert {reply.status for reply in replies} == {200}
    rows = sql("SELECT category, version FROM ticket")
    assert rows == [{"category": "later", "version": 2}] * 16


def test_reading_goes_on_while_any_number_of_writes_wait(
    make_server, start_load, holder
):
    """E7: more of them than there are threads; a read waits for less than the write in
    front.
    """
    server = make_server(WEB_CONCURRENCY="1").start().fill(1000)
    holder.execute("BEGIN IMMEDIATE")
    load = start_load(server, 100)
    server.wait_for_answers()

    def is_sooner(path):
        before = server.log.count("failed: database is locked\n")
        assert server.request("GET", path, timeout=60).status == 200
        return server.log.count("failed: database is locked\n") == before

    # Every 5 seconds writes are given up, but most reads are answered between two such
    # moments.
    paths = [f"{TICKETS}/1", "/api/health"] * 4
    wait_for(
        lambda: all(map(is_sooner, paths)), "writes in front are given up before reads"
    )
    found = load.end()
    assert set(found["statuses"]) == {500}
    assert found["failures"] == {}
    holder.execute("ROLLBACK")
    assert server.patch(1, {"category": "later"}).status == 200


def test_sigterm_while_writes_wait_answers_all(server, start_load, holder):
    """E7: those that wait are given up in time."""
    server.fill(1000)
    holder.execute("BEGIN IMMEDIATE")
    load = start_load(server, 64, 1000, once=True)
    server.wait_for_answers()
    load.send_no_more()  # It sends no more.
    assert server.stop() == 0
    found = load.result()
    assert set(found["statuses"]) == {500}
    assert found["failures"] == {}
    assert "Traceback" in server.log


def test_a_stopped_worker_holds_nobody_up(server, start_load, full):
    """E7: stopped at any moment of a load; what the other accepts is answered."""
    server.fill(64)
    for _ in range(12 if full else 3):
        load = start_load(server, 16, 64, once=True)
        server.wait_for_answers()
        time.sleep(random.uniform(0, 0.3))
        stopped = server.workers()[0]
        os.kill(stopped, signal.SIGSTOP)
        try:
            # A connection that nobody has accepted yet goes to the other one.
            replies = together(
                16, lambda n: server.patch(n + 1, {"category": "n"}, timeout=20)
            )
            assert {reply.status for reply in replies} <= {200, 500}
            assert server.get(1).status == 200
        finally:
            os.kill(stopped, signal.SIGCONT)
        load.end()
        assert server.patch(1, {"category": "n"}).status == 200


def test_a_writer_outside_the_service_is_waited_for(server, start_load, full, holder):
    """P10: 300 ms out of every second the write lock is somebody else's."""
    server.fill(1000)
    load = start_load(server, 16)
    server.wait_for_answers()
    for _ in range(20 if full else 4):
        holder.execute("BEGIN IMMEDIATE")
        time.sleep(0.3)
        holder.execute("ROLLBACK")
        time.sleep(0.7)
    assert_all_succeeded(load.end())


def run_times(pid):
    """Return how long each thread of a process has run, and whether it sleeps."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        state = (task / "stat").read_text().rpartition(")")[2].split()[0]
        nanoseconds = (task / "schedstat").read_text().split()[0]
        found[task.name] = (nanoseconds, state == "S")
    return found


def all_wait(pid):
    """Whether every thread but one, which polls for the lock, waits for something.

    A thread that waits for Python's own lock runs every 5 ms.
    """
    before = run_times(pid)
    time.sleep(0.05)
    after = run_times(pid)
    busy = [name for name in after if after[name] != before.get(name)]
    awake = [name for name, (_, asleep) in after.items() if not asleep]
    return len({*busy, *awake}) <= 1


def test_the_first_to_wait_is_the_first_to_be_written(make_server, holder):
    """E7: writes that wait are one transaction, in the order in which they came."""
    server = make_server(WEB_CONCURRENCY="1").start().fill(1)
    (worker,) = server.workers()
    written = os.stat(server.path).st_mtime_ns
    assert server.patch(1, {"category": "warm"}).status == 200
    # A checkpoint would try to take the lock too. The next commit begins the log anew.
    wait_for(lambda: os.stat(server.path).st_mtime_ns > written, "no checkpoint")
    holder.execute("BEGIN IMMEDIATE")

    waiting = []
    for number in range(12):
        connection = server.connect()
        body = json.dumps({"category": f"n {number}"})
        connection.request("PATCH", f"{TICKETS}/1", body, {"Content-Type": JSON})
        waiting.append(connection)
        wait_for(lambda: all_wait(worker), "it does not wait")

    holder.execute("ROLLBACK")
    for connection in waiting:
        assert connection.getresponse().status == 200
        connection.close()

    versions = server.request("GET", f"{TICKETS}/1/history").json
    categories = [each["category"] for each in reversed(versions)]
    assert categories == [None, "warm", *(f"n {number}" for number in range(12))]
    assert commits(server.path) == 1


def test_more_busy_clients_than_threads_are_served_alike(make_server, start_load, sql):
    """E9: each has one ticket, and sends its next PATCH as soon as it has an answer."""
    server = make_server(WEB_CONCURRENCY="1").start().fill(100)
    load = start_load(server, 100, 100)
    server.wait_for_answers(2000)
    written = [row["version"] - 1 for row in sql("SELECT version FROM ticket")]
    assert_all_succeeded(load.end())
    assert min(written) * 10 > max(written)
