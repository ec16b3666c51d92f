"""manage.py backup: M1."""

import os
import signal
import sqlite3
import stat
import time
from contextlib import closing

import pytest

from manage import BACKUP_PATTERN
from tests.helpers.timing import wait_for

pytestmark = pytest.mark.database("sqlite")
OLD_TABLE = "CREATE TABLE ticket (id INTEGER PRIMARY KEY, user_description TEXT)"


def query(path, statement):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "backups"
    made.mkdir()
    return made


@pytest.fixture
def big(make_server):
    """A running service whose database takes a while to copy."""
    server = make_server().start()
    server.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9000)"
        " INSERT INTO ticket (user_description, ai_suggested_response, status)"
        " SELECT 'n ' || i, hex(randomblob(5000)), 'closed' FROM n"
    )
    return server


def test_a_backup_holds_what_the_database_holds(ticket, manage, folder):
    """M1."""
    copy = folder / "copy.db"
    line = manage("backup", copy)
    assert line == f"Backed up 1 ticket to {copy}, 0.0 MB\n"
    assert names(folder) == ["copy.db"]
    assert query(copy, "SELECT id, category FROM ticket") == [(1, "bug")]
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600


def test_a_backup_overwrites_nothing(ticket, manage, folder):
    """M1."""
    copy = folder / "copy.db"
    copy.write_text("mine")
    assert manage("backup", copy, status=1) == f"Error: {copy} exists\n"
    assert copy.read_text() == "mine"
    assert names(folder) == ["copy.db"]


def test_a_backup_overwrites_no_file_that_came_meanwhile(
    ticket, manage, folder, monkeypatch
):
    """M1."""
    copy = folder / "copy.db"
    monkeypatch.setattr(os, "fsync", lambda file: copy.write_text("mine"))
    assert "File exists" in manage("backup", copy, status=1)
    assert copy.read_text() == "mine"
    assert names(folder) == ["copy.db"]


def test_a_backup_does_not_upgrade_an_old_database(manage, tmp_path, folder):
    """M1."""
    path = tmp_path / "tickets.db"
    query(path, OLD_TABLE)
    before = path.read_bytes()
    manage("backup", folder / "copy.db")
    assert path.read_bytes() == before
    assert names(tmp_path) == ["backups", "tickets.db"]
    assert query(folder / "copy.db", "SELECT sql FROM sqlite_master") == [(OLD_TABLE,)]


def test_a_backup_of_a_database_without_tickets_fails(manage, tmp_path, folder):
    """M1."""
    (tmp_path / "tickets.db").touch()
    error = manage("backup", folder / "x", status=1)
    assert error == f"Error: there is no database with tickets: {tmp_path}/tickets.db\n"
    assert names(folder) == []


def test_a_damaged_database_gives_no_backup(ticket, manage, tmp_path, folder, sql):
    """M1."""
    sql("PRAGMA wal_checkpoint(TRUNCATE)")
    ((page,),) = query(
        tmp_path / "tickets.db",
        "SELECT rootpage FROM sqlite_master WHERE name = 'ticket' AND type = 'table'",
    )
    with (tmp_path / "tickets.db").open("r+b") as file:
        file.seek(4096 * (page - 1))
        file.write(b"\xff" * 4096)
    assert "malformed" in manage("backup", folder / "copy.db", status=1)
    assert names(folder) == []


def test_keep_deletes_all_but_the_newest(ticket, manage, folder):
    """M1."""
    mine = ["tickets.db", "tickets-20200101-000000.db.bak", "x-20200101-000000.db"]
    for name in mine:
        (folder / name).touch()
    for day in range(1, 5):
        (folder / f"tickets-2020010{day}-000000.db").touch()

    line = manage("backup", "--keep", 2, folder)
    assert line.endswith(" MB; deleted 3 older backups\n")
    made = [name for name in names(folder) if BACKUP_PATTERN.fullmatch(name)]
    assert made[0] == "tickets-20200104-000000.db"
    assert len(made) == 2
    assert query(folder / made[1], "SELECT id FROM ticket") == [(1,)]
    assert set(names(folder)) == {*mine, *made}


def test_keep_leaves_what_is_no_file(ticket, manage, folder):
    """M1."""
    (folder / "tickets-20200101-000000.db").mkdir()
    line = manage("backup", "--keep", 1, folder)
    assert line.endswith("; deleted 0 older backups\n")


def test_of_two_backups_within_a_second_the_second_fails(
    ticket, manage, folder, monkeypatch
):
    """M1."""
    monkeypatch.setattr("manage.BACKUP_NAME", "tickets-20261124-031500.db")
    manage("backup", "--keep", 1, folder)
    before = names(folder)
    assert manage("backup", "--keep", 1, folder, status=1).endswith(" exists\n")
    assert names(folder) == before


def test_two_backups_at_once_do_not_meet(big, start_manage, folder):
    """M1."""
    processes = [start_manage("backup", folder / "copy.db") for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 1], outputs
    assert query(folder / "copy.db", "SELECT count(*) FROM ticket") == [(9000,)]
    assert names(folder) == ["copy.db"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_backup_leaves_nothing(big, start_manage, folder, number):
    """M1."""
    process = start_manage("backup", folder / "copy.db")
    wait_for(lambda: names(folder), "nothing is written")
    process.send_signal(number)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output == ""
    assert error == f"Error: stopped by {number.name}\n"
    assert names(folder) == []


def test_a_killed_backup_leaves_what_the_next_removes(big, start_manage, folder):
    """M1."""
    process = start_manage("backup", "--keep", 3, folder)
    wait_for(lambda: names(folder), "nothing is written")
    time.sleep(0.05)
    process.kill()
    process.communicate(timeout=60)
    left = names(folder)
    assert set(left) <= {".tickets.partial", ".tickets.partial-journal"}
    assert left

    next_one = start_manage("backup", "--keep", 3, folder)
    assert next_one.wait(60) == 0
    (made,) = names(folder)
    assert BACKUP_PATTERN.fullmatch(made)
    assert query(folder / made, "PRAGMA integrity_check") == [("ok",)]


def test_a_backup_killed_after_it_was_named_stays_whole(ticket, manage, folder):
    """The hidden name then is a second one of the backup itself."""
    manage("backup", folder / "first.db")
    os.link(folder / "first.db", folder / ".tickets.partial")
    before = (folder / "first.db").read_bytes()
    manage("backup", "--keep", 1, folder)
    assert (folder / "first.db").read_bytes() == before


@pytest.mark.database("sqlite")
def test_a_new_backup_stays_whatever_the_others_are_named(app, manage, tmp_path):
    """M1: a clock that was wrong once has named one for the future."""
    folder = tmp_path / "backups"
    folder.mkdir()
    (folder / "tickets-29990101-000000.db").touch()
    manage("backup", "--keep", "1", folder)
    [path] = folder.iterdir()
    assert path.stat().st_size > 0
