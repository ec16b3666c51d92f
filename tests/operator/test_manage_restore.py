"""manage.py restore: M2."""

import hashlib
import os
import shutil
import signal
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import pytest

from database import database
from tests.helpers.contract import TICKETS
from tests.helpers.timing import wait_for

pytestmark = pytest.mark.database("sqlite")
OLD = Path(__file__).with_name("0672aee_sqlite.sql").read_text("utf-8")
VERSIONS = "SELECT ticket_id, version, category FROM ticket_version WHERE version > 0"


def run_script(path, script):
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)


def files(folder):
    """Return a digest of each file by its name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
    }


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "backups"
    made.mkdir()
    return made


@pytest.fixture
def copy(ticket, client, manage, folder):
    """A backup of a ticket with two versions."""
    client.patch(f"{TICKETS}/1", json={"category": "before"})
    manage("backup", folder / "copy.db")
    return folder / "copy.db"


def test_a_restore_brings_tickets_and_versions_back(
    client, copy, manage, sql, tmp_path
):
    """M2."""
    before = sql("SELECT * FROM ticket")
    client.patch(f"{TICKETS}/1", json={"category": "after"})
    client.post(TICKETS, json={"user_description": "after"})

    line = manage("restore", copy)
    assert line == (
        f"Restored 1 ticket from {copy} to the database {tmp_path}/tickets.db\n"
    )
    assert sql("SELECT * FROM ticket") == before
    assert sql(VERSIONS) == [{"ticket_id": 1, "version": 1, "category": "bug"}]
    assert client.get(f"{TICKETS}/1").json["category"] == "before"


def test_a_restore_only_reads_the_backup(copy, manage, folder):
    """M2."""
    before = files(folder)
    manage("restore", copy)
    assert files(folder) == before


def test_a_backup_in_wal_mode_is_only_read(ticket, manage, folder, sql, tmp_path):
    """M2."""
    sql("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(tmp_path / "tickets.db", folder / "copy.db")
    before = files(folder)
    assert (folder / "copy.db").read_bytes()[18:20] == b"\2\2"
    manage("restore", folder / "copy.db")
    assert files(folder) == before


def test_no_id_is_given_out_again(client, copy, manage):
    """M2."""
    posted = client.post(TICKETS, json={"user_description": "later"}).json
    manage("restore", copy)
    assert posted["id"] == 2
    assert client.post(TICKETS, json={"user_description": "x"}).json["id"] == 3


def test_ids_of_deleted_tickets_in_the_backup_are_not_given_out(
    client, ticket, manage, folder, sql, tmp_path
):
    """On a new host too."""
    sql("DELETE FROM ticket")
    manage("backup", folder / "copy.db")
    url = f"sqlite:///{tmp_path}/new.db"
    assert manage("restore", folder / "copy.db", url=url) == (
        f"Restored 0 tickets from {folder}/copy.db to the new database "
        f"{tmp_path}/new.db\n"
    )
    with closing(sqlite3.connect(tmp_path / "new.db")) as connection:
        assert connection.execute("SELECT * FROM sqlite_sequence").fetchall() == [
            ("ticket", 1)
        ]


def test_versions_get_ids_above_all_that_were_given_out(client, copy, manage, sql):
    """M2."""
    client.patch(f"{TICKETS}/1", json={"category": "after"})
    (given,) = sql("SELECT max(id) AS id FROM ticket_version")
    manage("restore", copy)
    (least,) = sql("SELECT min(id) AS id FROM ticket_version")
    assert least["id"] > given["id"]


def test_a_ticket_that_is_gone_leaves_a_mark(client, copy, manage, sql):
    """M2."""
    client.post(TICKETS, json={"user_description": "after"})
    manage("restore", copy)
    assert sql("SELECT * FROM ticket_version WHERE version = 0") == [
        {
            "id": 3,
            "ticket_id": 2,
            "version": 0,
            "status": "deleted",
            "category": None,
            "ai_suggested_response": None,
            "updated_at": sql("SELECT max(updated_at) AS m FROM ticket_version")[0][
                "m"
            ],
            "updated_by": None,
        }
    ]


def test_a_backup_without_versions_lets_no_version_id_come_again(
    client, ticket, manage, folder, sql
):
    """M2."""
    manage("backup", folder / "copy.db")
    client.patch(f"{TICKETS}/1", json={"category": "after"})
    (given,) = sql("SELECT max(id) AS id FROM ticket_version")
    manage("restore", folder / "copy.db")
    (newest,) = sql("SELECT id, ticket_id, version FROM ticket_version")
    assert newest["id"] > given["id"]
    assert (newest["ticket_id"], newest["version"]) == (1, 0)
    assert len(client.get(f"{TICKETS}/1/history").json) == 1


def test_the_marks_of_earlier_deletions_stay(client, ticket, manage, folder, sql):
    """M2."""
    manage("backup", folder / "copy.db")
    client.post(TICKETS, json={"user_description": "after"})
    sql("DELETE FROM ticket WHERE id = 2")
    (mark,) = sql("SELECT * FROM ticket_version")
    manage("restore", folder / "copy.db")
    assert mark in sql("SELECT * FROM ticket_version")


def test_a_change_after_a_restore_is_a_version(client, copy, manage, sql):
    """The triggers are there again, and so is all else."""
    before = sql("SELECT name, sql FROM sqlite_master ORDER BY name")
    manage("restore", copy)
    assert sql("SELECT name, sql FROM sqlite_master ORDER BY name") == before
    client.patch(f"{TICKETS}/1", json={"category": "after"})
    sql("UPDATE ticket SET category = 'by hand'")
    versions = client.get(f"{TICKETS}/1/history").json
    assert [each["version"] for each in versions] == [4, 3, 2, 1]
    assert [each["category"] for each in versions][-1] == "bug"


def test_a_backup_of_an_older_version_is_brought_up_to_date(
    client, manage, folder, sql, database_url
):
    """M2."""
    shape = sql("SELECT name, sql FROM sqlite_master ORDER BY name")
    run_script(folder / "old.db", OLD)
    before = files(folder)
    assert manage("restore", folder / "old.db").startswith("Restored 4 tickets ")
    assert files(folder) == before
    assert sql("SELECT name, sql FROM sqlite_master ORDER BY name") == shape
    assert client.get(f"{TICKETS}/2").json["category"] == "Überweisung"
    assert client.post(TICKETS, json={"user_description": "x"}).json["id"] == 6


def test_the_database_itself_is_no_backup(ticket, manage, tmp_path, sql):
    """M2."""
    link = tmp_path / "link.db"
    os.link(tmp_path / "tickets.db", link)
    for path in (tmp_path / "tickets.db", link):
        error = manage("restore", path, status=1)
        assert error == f"Error: {path} is the database itself\n"
    assert len(sql("SELECT * FROM ticket")) == 1


def refused(manage, sql, path):
    """Return the error of a restore, after which all rows are as before."""
    rows = [sql("SELECT * FROM ticket"), sql("SELECT * FROM ticket_version")]
    shape = sql("SELECT * FROM sqlite_master")
    error = manage("restore", path, status=1)
    assert [sql("SELECT * FROM ticket"), sql("SELECT * FROM ticket_version")] == rows
    assert sql("SELECT * FROM sqlite_master") == shape
    assert error.count("\n") == 1
    return error


def test_a_file_that_is_no_database_is_refused(ticket, manage, sql, folder):
    """M2."""
    (folder / "x").write_text("no database" * 100)
    assert "not a database" in refused(manage, sql, folder / "x")


def test_an_empty_file_is_refused(ticket, manage, sql, folder):
    """M2."""
    (folder / "x").touch()
    assert "no such table: ticket" in refused(manage, sql, folder / "x")


def test_a_damaged_backup_is_refused(copy, manage, sql):
    """M2."""
    with copy.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)
    assert f"{copy} cannot be restored: " in refused(manage, sql, copy)


def test_a_torn_backup_is_refused(copy, manage, sql):
    """M2."""
    data = copy.read_bytes()
    copy.write_bytes(data[: len(data) // 2])
    assert refused(manage, sql, copy)


def test_a_database_with_a_log_is_refused(ticket, manage, sql, folder):
    """Its newest changes are in the log."""
    (folder / "x").write_bytes(b"")
    (folder / "x-wal").write_bytes(b"log")
    assert f"changes in {folder}/x-wal" in refused(manage, sql, folder / "x")


def test_a_backup_of_a_newer_version_is_refused(copy, manage, sql):
    """M2."""
    run_script(copy, "ALTER TABLE ticket ADD COLUMN newer TEXT")
    assert "has a column newer" in refused(manage, sql, copy)


def test_a_row_that_breaks_a_rule_is_named(ticket, manage, sql, folder):
    """M2."""
    run_script(
        folder / "x",
        """
        CREATE TABLE ticket
            (id INTEGER PRIMARY KEY, user_description TEXT, status TEXT);
        INSERT INTO ticket VALUES (7, 'x', 'closed'), (8, 'x', 'nonsense');
        """,
    )
    error = refused(manage, sql, folder / "x")
    assert "row 8 of the table ticket breaks CHECK (status IN" in error


def test_a_link_to_a_copied_database_with_a_log_is_refused(sql, manage, folder):
    """M2: the log is beside the file, not beside the link."""
    with closing(sqlite3.connect(folder / "copied.db")) as other:
        other.execute("PRAGMA journal_mode = wal")
        other.execute("CREATE TABLE ticket (id INTEGER PRIMARY KEY)")
        link = folder / "link.db"
        link.symlink_to(folder / "copied.db")
        error = manage("restore", link, status=1)
    assert f"a database with changes in {folder}/copied.db-wal" in error


def test_a_restore_that_fails_amid_a_statement_keeps_no_lock(
    copy, manage, tmp_path, monkeypatch
):
    """M2: closing the connection does not end a transaction whose cursor is in use."""

    def fail(progress):
        database.execute_sql("DELETE FROM ticket")
        rows = database.execute_sql("SELECT 1 FROM backup.ticket UNION ALL SELECT 2")
        raise ValueError(f"stopped at row {rows.fetchone()[0]}")

    monkeypatch.setattr("manage._replace_rows", fail)
    monkeypatch.setattr("database.OPERATOR_TIMEOUT", 1)
    error = manage("restore", copy, url=f"sqlite:///{tmp_path}/new.db", status=1)
    assert error == "Error: stopped at row 1\n"
    assert list(tmp_path.glob("new.db*")) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_restore_makes_no_new_database(
    make_server, manage, start_manage, folder, tmp_path, number
):
    """M2, D3: an empty file would look like a database that is there."""
    server = make_server().start().fill(20_000)
    manage("backup", folder / "copy.db")
    server.stop()
    for path in tmp_path.glob("tickets.db*"):
        path.unlink()

    def is_copying():
        """Whether the log is longer than that of empty tables, which comes first."""
        logs = tmp_path.glob("tickets.db-wal")
        with suppress(FileNotFoundError):
            return any(log.stat().st_size > 1_000_000 for log in logs)

    process = start_manage("restore", folder / "copy.db")
    wait_for(is_copying, "it copies nothing")
    process.send_signal(number)
    assert process.communicate(timeout=60)[1] == f"Error: stopped by {number.name}\n"
    assert process.returncode == 1
    assert list(tmp_path.glob("tickets.db*")) == []


def test_a_bad_backup_makes_no_new_database(manage, tmp_path, folder):
    """M2."""
    (folder / "x").touch()
    manage("restore", folder / "x", status=1)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_restore_beside_a_reader_leaves_it_the_old_state(
    copy, manage, tmp_path, sql, monkeypatch
):
    """M2."""
    monkeypatch.setattr("manage.READER_TIMEOUT", 0.5)
    sql("UPDATE ticket SET category = 'after'")
    with closing(sqlite3.connect(tmp_path / "tickets.db")) as reader:
        reader.execute("BEGIN")
        query = "SELECT category FROM ticket"
        assert reader.execute(query).fetchall() == [("after",)]
        line = manage("restore", copy)
        assert line.endswith("; a reader keeps its log from being emptied\n")
        assert reader.execute(query).fetchall() == [("after",)]
        reader.execute("COMMIT")
        assert reader.execute(query).fetchall() == [("before",)]


def test_the_log_is_empty_after_a_restore(make_server, manage, folder, tmp_path):
    """M2."""
    server = make_server().start().fill(2000)
    manage("backup", folder / "copy.db")
    manage("restore", folder / "copy.db")
    assert (tmp_path / "tickets.db-wal").stat().st_size < 10_000
    assert server.get(2000).status == 200


@pytest.mark.database("sqlite")
def test_a_refused_backup_leaves_no_new_database(app, manage, sql, tmp_path):
    """M2: the next start would find an empty one."""
    manage("backup", tmp_path / "copy.db")
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        copy.execute("ALTER TABLE ticket ADD COLUMN newer TEXT")
    url = f"sqlite:///{tmp_path}/other.db"
    manage("restore", tmp_path / "copy.db", status=1, url=url)
    assert not list(tmp_path.glob("other.db*"))
