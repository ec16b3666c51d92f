"""Backups and restores beside writers: whole, and with what was acknowledged before."""

import sqlite3
import threading
from contextlib import closing

import pytest

from tests.helpers.contract import assert_version
from tests.helpers.databases import assert_whole
from tests.helpers.load import assert_all_succeeded
from tests.helpers.timing import together, wait_for

pytestmark = pytest.mark.database("sqlite")

CLIENTS = 8


@pytest.fixture
def run(start_manage):
    """Run a command in a process of its own, as an operator does."""

    def run(*arguments, status=0):
        process = start_manage(*arguments)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == status, errors

    return run


def test_a_backup_under_load_is_whole(server, run, tmp_path):
    """M1, E4."""
    server.fill(20_000)
    acknowledged = [0] * CLIENTS
    over = threading.Event()

    def write(number):
        with closing(server.connect()) as connection:
            while not over.is_set():
                value = acknowledged[number] + 1
                body = {"category": f"n {value}"}
                reply = server.patch(number + 1, body, connection=connection)
                assert reply.status == 200
                acknowledged[number] = value

    load = threading.Thread(target=together, args=(CLIENTS, write))
    load.start()
    try:
        wait_for(lambda: min(acknowledged) >= 20, "no PATCH is answered")
        before = list(acknowledged)
        run("backup", tmp_path / "copy.db")
    finally:
        over.set()
        load.join()

    with closing(sqlite3.connect(tmp_path / "copy.db")) as backup:
        assert backup.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        stored = backup.execute(
            "SELECT category FROM ticket WHERE id <= ? ORDER BY id", [CLIENTS]
        ).fetchall()
    values = [int(category.removeprefix("n ")) for (category,) in stored]
    assert all(value >= least for value, least in zip(values, before, strict=True))


def test_a_restore_under_load_brings_the_backup_back(server, run, start_load, tmp_path):
    """M2, E4: and fails no write."""
    copy = tmp_path / "copy.db"
    server.fill(16)
    run("backup", copy)
    for _ in range(4):
        load = start_load(server, 16, 16)
        server.wait_for_answers(100)
        run("restore", copy)
        assert_all_succeeded(load.end())

    for is_killed in (False, True):
        assert server.patch(1, {"category": "later"}).status == 200
        if is_killed:
            server.kill()
        run("restore", copy)
        if is_killed:
            server.start()
        assert server.get(1).json["category"] is None
    assert_version(server.patch(1, {"category": "again"}), 2)
    assert_whole(server)
