"""The file of SQLite: deleted, replaced, full or failing to sync, nothing is lost or
doubled.
"""

import os
import resource
import shutil
import sqlite3
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.helpers.contract import TICKETS, assert_version
from tests.helpers.databases import assert_whole
from tests.helpers.load import lost
from tests.helpers.processes import SYNCS, attached, limited
from tests.helpers.timing import together, wait_for
from tests.helpers.wal import commits

pytestmark = pytest.mark.database("sqlite")

GONE = "was deleted or replaced: put it back or restart"


def assert_unavailable(server):
    """Nothing is answered with success, and the log says why."""
    replies = together(8, lambda number: server.post())
    replies += together(8, lambda number: server.patch(1, {"category": f"n {number}"}))
    assert {reply.status for reply in replies} == {500}
    assert server.get(1).status == 500
    assert server.request("GET", "/api/health").status == 503
    assert f"failed: {server.path} {GONE}" in server.log


def move(source, target):
    """Move a database with its log, as one that is not open."""
    for suffix in ("", "-wal", "-shm"):
        if os.path.exists(source + suffix):
            os.rename(source + suffix, target + suffix)


def test_a_deleted_file_is_missed_until_it_is_back(server, tmp_path):
    """E4, H1: and no other file is made in its place."""
    server.fill(8)
    assert server.patch(1, {"category": "n 1"}).status == 200
    move(server.path, f"{tmp_path}/aside.db")
    assert_unavailable(server)
    assert not os.path.exists(server.path)
    move(f"{tmp_path}/aside.db", server.path)
    assert server.get(1).json["category"] == "n 1"
    assert server.request("GET", "/api/health").status == 200
    replies = together(8, lambda number: server.patch(number + 1, {"category": "n 2"}))
    assert {reply.status for reply in replies} == {200}


def test_a_deleted_file_is_made_anew_by_a_restart(server):
    """E4."""
    server.post()
    for suffix in ("", "-wal", "-shm"):
        Path(server.path + suffix).unlink(missing_ok=True)
    assert_unavailable(server)
    server.stop()
    assert server.start().post().status == 201


def test_a_file_replaced_under_load_takes_no_write(server, start_load, tmp_path):
    """E4, H1: every acknowledged write is in the file that was there, and it may come
    back.
    """
    server.fill(100)
    backup, aside = f"{tmp_path}/backup.db", f"{tmp_path}/aside.db"
    server.sql(f"VACUUM INTO '{backup}'")
    load = start_load(server, 16, 100)
    server.wait_for_answers()
    move(server.path, aside)
    os.rename(backup, server.path)
    assert_unavailable(server)
    found = load.end()
    assert set(found["statuses"]) == {200, 500}
    assert_whole(server)
    assert server.sql("SELECT max(version) AS version FROM ticket") == [{"version": 1}]
    os.unlink(server.path)
    move(aside, server.path)
    rows = server.request("GET", f"{TICKETS}?limit=1000").json
    assert not lost(found, rows)
    assert server.patch(1, {"category": "n 0"}).status == 200


def test_a_file_replaced_without_its_log_takes_nothing_of_it(
    server, start_load, tmp_path
):
    """E4: the log stays beside the replacement; none is written into the other."""
    server.fill(100)
    backup, aside = f"{tmp_path}/backup.db", f"{tmp_path}/aside.db"
    server.sql(f"VACUUM INTO '{backup}'")
    content = Path(backup).read_bytes()
    load = start_load(server, 16, 100)
    server.wait_for_answers()
    os.rename(server.path, aside)
    os.rename(backup, server.path)
    server.wait_for_answers(1000)
    found = load.end()
    assert set(found["statuses"]) == {200, 500}
    assert Path(server.path).read_bytes() == content
    os.rename(aside, server.path)
    assert server.request("GET", "/api/health").status == 200
    server.kill()
    rows = server.start().request("GET", f"{TICKETS}?limit=1000").json
    assert not lost(found, rows)


def is_locked(path):
    """Whether somebody holds the write lock of the file."""
    options = {"timeout": 0, "isolation_level": None}
    with closing(sqlite3.connect(path, **options)) as other:
        try:
            other.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        other.execute("ROLLBACK")
        return False


@pytest.fixture
def patch_while_moved(server, tmp_path):
    """Return a function that moves the file aside during a PATCH, and then back."""
    aside = f"{tmp_path}/aside.db"

    def patch(moment):
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(server.patch, 1, {"category": "x"})
            wait_for(moment, "nobody writes")
            move(server.path, aside)
            reply = waiting.result()
        move(aside, server.path)
        return reply

    return patch


def test_a_file_moved_during_an_update_fails_it(server, patch_while_moved):
    """E4: before its commit nothing is written."""
    server.fill(1)
    server.sql(
        """
        CREATE TRIGGER slow BEFORE UPDATE ON ticket BEGIN
            SELECT count(*) FROM (
                WITH RECURSIVE n(i) AS (
                    SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1500000
                )
                SELECT i FROM n
            );
        END
        """
    )
    assert patch_while_moved(lambda: is_locked(server.path)).status == 500
    assert f"failed: {server.path} {GONE}" in server.log
    assert_version(server.get(1), 1)


def test_a_file_moved_during_a_commit_fails_it(server, patch_while_moved):
    """E4: nobody is told that something was written, though it may be."""
    server.fill(1)
    before = commits(server.path)
    slow = f"inject={SYNCS}:delay_enter=3s"
    with attached(server.workers(), f"trace={SYNCS}", slow):
        reply = patch_while_moved(lambda: commits(server.path) > before)
        assert reply.status == 500
    assert f"failed: {server.path} {GONE}" in server.log
    assert_version(server.get(1), 2)


def test_a_restore_into_the_running_service_is_taken_up(server, tmp_path):
    """E4: sqlite3's .restore writes into the same file."""
    if not shutil.which("sqlite3"):
        pytest.skip("needs sqlite3(1)")
    server.post()
    shell = ["sqlite3", server.path]
    subprocess.run([*shell, f"VACUUM INTO '{tmp_path}/backup.db'"], check=True)
    for number in range(20):
        server.post()
        assert server.patch(1, {"category": f"n {number}"}).status == 200
        subprocess.run([*shell, f".restore {tmp_path}/backup.db"], check=True)
        assert len(server.request("GET", TICKETS).json) == 1
        assert_version(server.get(1), 1)
        assert_version(server.patch(1, {"category": "after"}), 2)
        assert len(server.request("GET", f"{TICKETS}/1/history").json) == 2


def test_a_failing_sync_doubles_no_write(server, sql):
    """E4: what was answered with 500 is there once or not at all."""
    server.post()
    together(32, lambda number: server.get(1))
    with attached(server.workers(), f"trace={SYNCS}", f"inject={SYNCS}:error=EIO"):
        replies = together(
            64, lambda number: server.post({"user_description": f"n {number}"})
        )
    assert {reply.status for reply in replies} == {500}
    for _ in range(8):
        assert server.post({"user_description": "later"}).status == 201
    counts = sql("SELECT user_description, count(*) AS n FROM ticket GROUP BY 1")
    counts = {row["user_description"]: row["n"] for row in counts}
    assert counts.pop("later") == 8
    assert all(count == 1 for count in counts.values()), counts
    assert_whole(server)


def test_a_disk_that_fills_under_load_loses_nothing_acknowledged(server, start_load):
    """E4, P10: a file-size limit stands for the end of the disk."""
    server.fill(101)
    together(32, lambda number: server.get(1))
    size = os.path.getsize(f"{server.path}-wal") + 400_000
    with limited(server.workers(), resource.RLIMIT_FSIZE, size):
        load = start_load(server, 16, 100)
        server.wait_for_log(" 500 ")
        for _ in range(100):  # The log may not grow either.
            assert server.patch(101, {"category": "n 0"}).status in (200, 500)
        found = load.end()
    assert set(found["statuses"]) == {200, 500}
    server.kill()
    server.start()
    rows = server.request("GET", f"{TICKETS}?limit=1000").json
    assert not lost(found, rows)
    replies = together(16, lambda number: server.patch(number + 1, {"category": "n 0"}))
    assert {reply.status for reply in replies} == {200}
