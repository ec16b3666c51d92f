"""Kills, stops and failing disks: nothing that was acknowledged is lost, no repair is
needed.
"""

import http.client
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import time

import pytest

from tests.helpers.contract import TICKETS
from tests.helpers.databases import assert_whole
from tests.helpers.load import assert_all_succeeded, lost, memory
from tests.helpers.processes import SYNCS, attached, limited
from tests.helpers.timing import together, wait_for
from tests.helpers.wal import resets

pytestmark = pytest.mark.database("sqlite")

# Root is bound by the permissions of files only without these capabilities.
BOUND = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]


def test_a_kill_of_every_process_loses_nothing_acknowledged(server, start_load, full):
    """E4: at a random moment under load, again and again."""
    server.fill(100)
    for _ in range(20 if full else 4):
        load = start_load(server, 16, 100)
        server.wait_for_answers()
        time.sleep(random.uniform(0, 0.5))
        server.kill()
        found = load.end()
        server.start()
        assert_whole(server)
        assert found["acknowledged"]
        rows = server.sql("SELECT * FROM ticket")
        assert not lost(found, rows)
        server.sql("UPDATE ticket SET category = NULL")


def test_an_answer_comes_after_the_sync(server, tmp_path):
    """E4: a power cut takes what was written but not synced, so the sync precedes the
    answer.
    """
    server.fill(1)
    traces = [tmp_path / f"trace-{pid}" for pid in server.workers()]
    calls = f"trace=pwrite64,sendto,{SYNCS}"
    with attached(server.workers(), calls, "decode-fds=path", outputs=traces):
        assert server.patch(1, {"status": "closed"}).status == 200
    trace = "".join(trace.read_text() for trace in traces)
    calls = re.findall(r"(pwrite64|fdatasync|fsync|sendto)\(\d+<([^>]*)>", trace)
    order = [(name, path.endswith("-wal")) for name, path in calls]
    last_write = max(i for i, call in enumerate(order) if call == ("pwrite64", True))
    answer = next(i for i, (name, _) in enumerate(order) if name == "sendto")
    assert {("fdatasync", True), ("fsync", True)} & set(order[last_write:answer])


def failures(server):
    """Return the first lines of the failures in the log, and how many tracebacks it
    has.
    """
    return re.findall(r"failed: (.*)", server.log), server.log.count("Traceback")


def patch_until_it_fails(server, limit=3000):
    for number in range(limit):
        text = f"{number} " + "x" * 5000
        if server.patch(1, {"ai_suggested_response": text}).status != 200:
            return number
    raise AssertionError("it does not fail")


def test_a_full_disk_is_survived(server):
    """P10: a file-size limit stands for the end of the disk."""
    server.fill(1)
    with limited(
        [server.process.pid, *server.workers()], resource.RLIMIT_FSIZE, 256 * 1024
    ):
        number = patch_until_it_fails(server)
        assert number > 0
        reply = server.patch(1, {"category": "more", "status": "closed"})
        assert reply.status == 500
        assert reply.json == {"error": "Internal server error"}
        stored = server.get(1).json
        assert stored["ai_suggested_response"].startswith(f"{number - 1} ")
        assert (stored["category"], stored["status"]) == (None, "pending_agent")
        causes, _ = failures(server)
        assert len(causes) == 2
        assert all("disk" in cause for cause in causes)
    for _ in range(8):
        assert server.patch(1, {"category": "more"}).status == 200
    assert_whole(server)


@pytest.fixture
def bound_server(make_server):
    """The service under a user whom the permissions of a file bind."""
    if os.geteuid() != 0:
        return make_server().start()
    if not shutil.which("setpriv"):
        pytest.skip("needs setpriv(1), or a user other than root")
    return make_server().start(behind=BOUND)


def replace_workers(server):
    """Have the master make new workers, whose threads have no connections yet."""
    old = set(server.workers())
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    wait_for(
        lambda: len(set(server.workers()) - old) == len(old), "there are no new workers"
    )


def test_a_read_only_file_is_survived(bound_server):
    """P10: and the threads that opened it read-only write again when they may."""
    server = bound_server
    server.fill(1)
    os.chmod(server.path, 0o444)
    replace_workers(server)  # Their connections may write.
    replies = together(16, lambda number: server.patch(1, {"category": f"n {number}"}))
    assert {reply.status for reply in replies} == {500}
    assert server.get(1).json["category"] is None
    assert server.request("GET", "/api/health").status == 200
    causes, tracebacks = failures(server)
    assert causes == ["attempt to write a readonly database"] * 16
    assert tracebacks >= 16
    os.chmod(server.path, 0o644)
    replies = together(16, lambda number: server.patch(1, {"category": f"n {number}"}))
    assert {reply.status for reply in replies} == {200}


def test_an_unreadable_wal_is_survived(bound_server):
    """P10, H1: 500 and 503, until it can be read again."""
    server = bound_server
    holder = sqlite3.connect(server.path)  # Keeps the -wal file from being deleted.
    holder.execute(
        "INSERT INTO ticket (user_description, status) VALUES ('x', 'closed')"
    )
    holder.commit()
    os.chmod(f"{server.path}-wal", 0)
    replace_workers(server)  # Their connections have it open.
    assert server.patch(1, {"status": "closed"}).status == 500
    assert server.get(1).status == 500
    reply = server.request("GET", "/api/health")
    assert (reply.status, reply.json) == (503, {"error": "Database unavailable"})
    assert failures(server)[0] == ["unable to open database file"] * 2
    os.chmod(f"{server.path}-wal", 0o644)
    for _ in range(8):
        assert server.patch(1, {"status": "closed"}).status == 200
        assert server.request("GET", "/api/health").status == 200
    holder.close()


def work(server, load, count):
    """Read the list beside a load of PATCHes; return the largest size of the WAL."""
    wal, wanted = 0, server.log.count(" PATCH /") + count
    reader = server.connect()
    while server.log.count(" PATCH /") < wanted:
        assert load.is_running
        try:
            server.request("GET", f"{TICKETS}?limit=1000", connection=reader)
        except http.client.HTTPException:
            reader.close()
        wal = max(wal, os.path.getsize(f"{server.path}-wal"))
    reader.close()
    assert_all_succeeded(load.end())
    return wal


def test_the_wal_and_the_memory_stay_bounded(server, start_load, full):
    """E4: an hour's worth of writes, beside a reader of the list.

    A slow disk may keep the log from being reset while several processes write, but not
    longer.
    """
    server.fill(300)
    count = 100_000 if full else 3000
    for _ in range(4):  # Each thread has its buffers only once it has worked.
        together(100, lambda number: server.request("GET", f"{TICKETS}?limit=1000"))
    work(server, start_load(server, 16, 300, 500), count // 5)
    before = memory(server)
    largest = work(server, start_load(server, 16, 300, 500), count)
    assert largest < 24 * 1024 * 1024
    assert memory(server) < before * 1.1 + 1
    reset = resets(server.path)
    for _ in range(2000):
        assert server.patch(1, {"category": "alone"}).status == 200
        if resets(server.path) > reset:
            break
    else:
        raise AssertionError("the log is never reset")
