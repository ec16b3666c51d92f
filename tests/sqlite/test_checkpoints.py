"""D4: the log is copied into the database while nobody can commit, and stays bounded.

The WAL-reset bug (sqlite.org/wal.html) needs a commit that restarts the log between two
moments of a checkpoint: it reads the header of the log's index, and compares it with
what was copied before. No lock lies between the two, so that no delay of a lock can
widen that window; but a commit needs the write lock. So it is enough to see that each
checkpoint begins and ends while its own process holds the write lock.
"""

import os
import re
import shutil
import sqlite3
import time
from contextlib import closing

import pytest

from tests.helpers.load import assert_all_succeeded
from tests.helpers.processes import attached
from tests.helpers.timing import wait_for

pytestmark = pytest.mark.database("sqlite")

# Bytes of the log's index that are locked (sqlite.org/walformat.html, section 2.3).
WRITE_LOCK = 120
CHECKPOINT_LOCK = 121
LOCKED = re.compile(
    r"fcntl\(\d+, F_SETLK, \{l_type=(F_\w+), l_whence=SEEK_SET, "
    r"l_start=(\d+), l_len=(\d+)\}\)\s+= 0"
)
LARGE = {"ai_suggested_response": "x" * 50_000}


def checkpoints(trace):
    """Yield for each checkpoint of a traced process if it holds the write lock."""
    is_writing = False
    is_checkpoint = False
    for line in trace.read_text().splitlines():
        found = LOCKED.search(line)
        if not found:
            continue
        first = int(found[2])
        locked = range(first, first + int(found[3]))
        if WRITE_LOCK in locked:
            is_writing = found[1] == "F_WRLCK"
            assert is_writing or not is_checkpoint
        if CHECKPOINT_LOCK in locked:
            is_checkpoint = found[1] == "F_WRLCK"
            if is_checkpoint:
                yield is_writing


def test_no_checkpoint_meets_a_commit(server, start_load, tmp_path):
    """D4: with two workers under load, and of a quiet service."""
    server.fill(300)
    traces = [tmp_path / f"trace-{pid}" for pid in server.workers()]
    with attached(server.workers(), "trace=fcntl", outputs=traces):
        load = start_load(server, 16, 300)
        server.wait_for_answers(2000)
        assert_all_succeeded(load.end())
        time.sleep(3)
    held = [each for trace in traces for each in checkpoints(trace)]
    assert len(held) > 2
    assert all(held)


@pytest.fixture
def wait_until_copied(server, tmp_path):
    """Return a function that waits until the file alone holds a category."""

    def find_categories():
        copy = tmp_path / "copy.db"
        shutil.copy(server.path, copy)
        with closing(sqlite3.connect(f"file:{copy}?immutable=1", uri=True)) as other:
            try:
                return other.execute("SELECT category FROM ticket").fetchall()
            except sqlite3.DatabaseError:
                return []

    return lambda category: wait_for(
        lambda: find_categories() == [(category,)], "it is in the log only", 10
    )


def test_a_quiet_service_has_written_its_log_back(server, wait_until_copied):
    """D4: the file alone holds what was acknowledged."""
    ticket_id = server.post().json["id"]
    server.patch(ticket_id, {"category": "later"})
    wait_until_copied("later")


def test_what_a_reader_kept_in_the_log_is_written_back(server, wait_until_copied):
    """D4: when it has ended, also if nothing else is written."""
    ticket_id = server.post().json["id"]
    with closing(sqlite3.connect(server.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM ticket").fetchall()
        server.patch(ticket_id, {"category": "later"})
        time.sleep(3)  # In which the service tries to copy it.
        reader.execute("COMMIT")
        wait_until_copied("later")


def test_the_log_shrinks_after_a_long_reader(server):
    """D4: it grows beside the reader, and a few writes later 64 MiB stay at most."""
    log = f"{server.path}-wal"
    ids = [server.post(LARGE | {"user_description": "x"}).json["id"] for _ in range(4)]
    options = {"isolation_level": None}
    with closing(sqlite3.connect(server.path, **options)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM ticket").fetchall()
        while os.path.getsize(log) < 70 * 2**20:
            for ticket_id in ids:
                assert server.patch(ticket_id, LARGE).status == 200

    def has_shrunk():
        assert server.patch(ids[0], {"category": "x"}).status == 200
        time.sleep(0.5)
        return os.path.getsize(log) <= 64 * 2**20

    wait_for(has_shrunk, "the log stays as large as it was", 15)


def test_a_checkpoint_waits_for_no_reader(server, start_load):
    """D4: a reader that never ends stops no write and no checkpoint of the rest."""
    server.fill(100)
    with closing(sqlite3.connect(server.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM ticket").fetchall()
        assert_all_succeeded(start_load(server, 16, 100, 2).result())
