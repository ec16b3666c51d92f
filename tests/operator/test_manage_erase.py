"""manage.py erase: M4."""

import sqlite3
import threading
from contextlib import closing

import pytest

from tests.helpers.contract import TICKETS
from tests.helpers.databases import connect

SECRET = "Geheimnis"
LATER = "Nachtrag"


def file_text(folder):
    """Return all that is in the file and in its log."""
    return b"".join(path.read_bytes() for path in folder.glob("tickets.db*"))


@pytest.fixture
def customer(client):
    """Ticket 1 with several versions, and ticket 2 of somebody else."""
    client.post(TICKETS, json={"user_description": f"{SECRET} " * 900})
    client.post(TICKETS, json={"user_description": "other", "category": "other"})
    for number in range(5):
        client.patch(f"{TICKETS}/1", json={"category": f"{SECRET} {number}"})
        client.patch(
            f"{TICKETS}/1", json={"ai_suggested_response": f"{LATER} " * number * 900}
        )
    return 1


@pytest.fixture
def free_pages(client, tmp_path):
    """Text of a ticket that was deleted without secure_delete."""
    for _ in range(20):
        client.post(TICKETS, json={"user_description": f"{SECRET} " * 900})
    path = tmp_path / "tickets.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA secure_delete = OFF")
        connection.execute("DELETE FROM ticket WHERE id > 2")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert path.read_bytes().count(SECRET.encode()) > 1000


@pytest.mark.database("sqlite")
def test_no_text_is_left_in_the_file_or_its_log(
    client, customer, free_pages, manage, tmp_path
):
    """M4."""
    assert file_text(tmp_path).count(LATER.encode()) > 1000
    line = manage("erase", customer)
    assert line == "Erased 1 ticket with all versions; backups still hold them\n"
    text = file_text(tmp_path)
    assert SECRET.encode() not in text
    assert LATER.encode() not in text
    assert client.get(f"{TICKETS}/2").json["category"] == "other"


@pytest.mark.database("sqlite")
def test_no_text_is_left_beside_a_running_service(
    make_server, start_load, manage, tmp_path
):
    """M4."""
    server = make_server().start()
    server.post({"user_description": f"{SECRET} " * 900})
    server.fill(1000)
    server.patch(1, {"category": SECRET})
    start_load(server, 4)
    server.wait_for_answers(50)
    manage("erase", 1)
    assert SECRET.encode() not in file_text(tmp_path)
    assert server.get(1).status == 404


def test_an_erased_ticket_leaves_a_mark_without_text(customer, manage, client, sql):
    """M4."""
    manage("erase", customer)
    assert client.get(f"{TICKETS}/1").status_code == 404
    assert client.get(f"{TICKETS}/1/history").status_code == 404
    (mark,) = sql("SELECT * FROM ticket_version")
    assert (mark["ticket_id"], mark["version"], mark["status"]) == (1, 0, "deleted")
    assert mark["category"] is mark["ai_suggested_response"] is None


def test_an_id_is_not_given_out_again(customer, manage, client):
    """M4."""
    manage("erase", 1, 2)
    assert client.post(TICKETS, json={"user_description": "x"}).json["id"] == 3


def test_an_unknown_id_erases_nothing(customer, manage, client):
    """M4."""
    error = manage("erase", 1, 99, status=1)
    assert error == "Error: there is no ticket 99; nothing is erased\n"
    assert client.get(f"{TICKETS}/1").status_code == 200


def test_an_id_given_twice_counts_once(customer, manage):
    """M4."""
    assert manage("erase", 1, 1).startswith("Erased 1 ticket ")


@pytest.mark.database("sqlite")
def test_what_was_deleted_by_hand_can_be_erased(
    customer, free_pages, manage, tmp_path, sql
):
    """And so a run that was killed after it had deleted can be finished."""
    sql("DELETE FROM ticket WHERE id = 1")
    assert manage("erase", 1).startswith("Erased 0 tickets ")
    assert SECRET.encode() not in file_text(tmp_path)


def test_what_an_older_version_left_of_a_deleted_ticket_is_erased(
    customer, manage, sql, on_sqlite
):
    """M4: it had no trigger that deletes the versions."""
    sql(f"DROP TRIGGER ticket_deleted {'' if on_sqlite else 'ON ticket'}")
    sql("DELETE FROM ticket WHERE id = 1")
    left = "SELECT id FROM ticket_version WHERE ticket_id = 1"
    assert sql(left) != []
    assert manage("erase", 1).startswith("Erased 0 tickets ")
    assert sql(left) == []


@pytest.mark.database("sqlite")
def test_a_file_behind_a_symbolic_link_is_erased(customer, manage, tmp_path):
    """M4: its log is beside the file, not beside the link."""
    link = tmp_path / "elsewhere" / "link.db"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "tickets.db")
    line = manage("erase", 1, url=f"sqlite:///{link}")
    assert line.startswith("Erased 1 ticket ")
    assert SECRET.encode() not in file_text(tmp_path)


@pytest.mark.database("sqlite")
def test_a_reader_that_holds_the_log_is_an_error(
    customer, manage, tmp_path, sql, monkeypatch
):
    """M4."""
    monkeypatch.setattr("database.READER_TIMEOUT", 0.5)
    with closing(sqlite3.connect(tmp_path / "tickets.db")) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM ticket").fetchall()
        error = manage("erase", 1, status=1)
        assert error == (
            "Error: 1 ticket deleted, but the text may be in the file until the same "
            f"command succeeds: a reader keeps {tmp_path}/tickets.db-wal from being "
            "emptied\n"
        )
        assert LATER.encode() in file_text(tmp_path)
        reader.execute("COMMIT")
    manage("erase", 1)
    assert LATER.encode() not in file_text(tmp_path)


@pytest.mark.database("sqlite")
def test_a_file_that_takes_long_to_write_anew_is_erased(
    customer, manage, tmp_path, sql, monkeypatch
):
    """M4: meanwhile the thread wakes up that copies the log of a quiet service."""
    monkeypatch.setattr("database.QUIET_TIME", 0.01)
    sql(
        """
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
        INSERT INTO ticket (user_description, status)
        SELECT printf('%.5000c', 'x'), 'closed' FROM n
        """
    )
    for ticket_id in range(10, 20):
        assert manage("erase", ticket_id).startswith("Erased 1 ticket ")


@pytest.mark.database("postgresql")
def test_on_postgresql_the_line_says_what_remains(customer, manage):
    """M4."""
    assert manage("erase", customer) == (
        "Erased 1 ticket with all versions; backups, replicas, the server's log and "
        "unused space of its pages still hold them\n"
    )


@pytest.fixture
def short_timeouts(sql):
    """Timeouts of the PostgreSQL database that end every wait at once."""
    (found,) = sql("SELECT current_database() AS name")
    sql(f"ALTER DATABASE {found['name']} SET lock_timeout = '50ms'")
    yield
    sql(f"ALTER DATABASE {found['name']} RESET lock_timeout")


@pytest.mark.database("postgresql")
def test_a_vacuum_of_another_session_is_waited_for(
    customer, short_timeouts, manage, database_url
):
    """M4: whatever the timeouts of the database are."""
    with closing(connect(database_url)) as other:
        connection = other.connection()
        connection.execute("BEGIN; LOCK TABLE ticket IN SHARE UPDATE EXCLUSIVE MODE")
        released = threading.Timer(1, connection.rollback)
        released.start()
        try:
            assert manage("erase", customer).startswith("Erased 1 ticket ")
        finally:
            released.cancel()
            released.join()
