"""What all commands have in common: M6, their errors and their exit statuses."""

import pytest

from manage import counted
from tests.helpers.contract import TICKETS
from tests.helpers.databases import close_connections

TIME = "2026-11-24"
COMMANDS = [
    pytest.param(["backup", "copy.db"], id="backup"),
    pytest.param(["revert", "--since", TIME], id="revert"),
    pytest.param(["erase", "1"], id="erase"),
    pytest.param(["prune", "--before", TIME], id="prune"),
]


@pytest.mark.database("sqlite")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_makes_no_database(manage, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    error = manage(*command, status=1)
    assert error == f"Error: there is no database with tickets: {tmp_path}/tickets.db\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.database("postgresql")
@pytest.mark.parametrize("command", COMMANDS[1:])
def test_a_command_makes_no_tables(manage, sql, command):
    error = manage(*command, status=1)
    assert error.startswith("Error: there is no database with tickets: ")
    assert sql("SELECT to_regclass('ticket') AS found") == [{"found": None}]


@pytest.mark.database("postgresql")
@pytest.mark.parametrize("command", COMMANDS[1:])
def test_a_database_that_is_not_there_is_one_line(manage, database_url, command):
    error = manage(*command, url=f"{database_url}_not", status=1)
    assert error.startswith("Error: DATABASE_URL: cannot be used: ")
    assert error.count("\n") == 1


@pytest.mark.database("sqlite")
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["backup"], id="backup without a file"),
        pytest.param(["backup", "--keep", "0", "."], id="backup that keeps none"),
        pytest.param(["backup", "--keep", "2", "nowhere"], id="backup to nowhere"),
        pytest.param(["backup", "."], id="backup to a directory"),
        pytest.param(["restore", "nowhere.db"], id="restore from nowhere"),
        pytest.param(["revert"], id="revert without a time"),
        pytest.param(["revert", "--since", "yesterday"], id="revert since yesterday"),
        pytest.param(["revert", "--since", "2026-02-30"], id="revert since no day"),
        pytest.param(["erase"], id="erase nothing"),
        pytest.param(["erase", "0"], id="erase 0"),
        pytest.param(["erase", "x"], id="erase x"),
        pytest.param(["erase", str(2**63)], id="erase a huge id"),
        pytest.param(["prune"], id="prune without a time"),
    ],
)
def test_a_mistake_in_the_command_line_is_a_usage_error(app, manage, command):
    assert manage(*command, status=2).startswith("Usage: ")


@pytest.mark.database("sqlite")
def test_a_bad_setting_is_one_line(manage):
    error = manage("erase", "1", url="mysql://a:s3cret@host/db", status=1)
    assert error.startswith("Error: DATABASE_URL: must be sqlite:///")
    assert error.count("\n") == 1
    assert "s3cret" not in error


@pytest.mark.database("sqlite")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_is_no_database_is_one_line(manage, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tickets.db").write_text("no database" * 1000)
    error = manage(*command, status=1)
    assert "file is not a database" in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["tickets.db"]


@pytest.mark.database("postgresql")
@pytest.mark.parametrize("folder", ["", "missing"])
def test_a_backup_of_postgresql_names_its_tool(app, manage, tmp_path, folder):
    """M6, whatever the path is."""
    error = manage("backup", tmp_path / folder / "x", status=1)
    assert error.count("\n") == 1
    assert "pg_dump" in error


@pytest.mark.database("postgresql")
def test_a_restore_of_postgresql_names_its_tool(app, manage, tmp_path):
    """M6, whatever the path is."""
    error = manage("restore", tmp_path / "x", status=1)
    assert error.count("\n") == 1
    assert "psql" in error


@pytest.mark.database("sqlite")
def test_a_command_closes_the_database(client, start_manage, tmp_path):
    """What it wrote is in the file, not in a log beside it."""
    client.post(TICKETS, json={"user_description": "x"})
    for category in ("a", "b", "c"):
        client.patch(f"{TICKETS}/1", json={"category": category})
    close_connections()
    output, _ = start_manage("prune", "--before", "9999-12-31").communicate(timeout=60)
    assert output.startswith("Deleted 1 version ")
    names = sorted(path.name for path in tmp_path.glob("tickets.db*"))
    assert names == ["tickets.db"]


@pytest.mark.database("sqlite")
def test_the_process_shows_progress_on_a_terminal_only(app, start_manage, tmp_path):
    process = start_manage("backup", tmp_path / "copy.db")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert output == f"Backed up 0 tickets to {tmp_path}/copy.db, 0.0 MB\n"
    assert errors == ""


def test_one_is_counted_as_one():
    assert [counted(number, "ticket") for number in (0, 1, 2)] == [
        "0 tickets",
        "1 ticket",
        "2 tickets",
    ]


@pytest.mark.database("sqlite")
def test_a_file_without_tickets_is_no_database(manage, tmp_path):
    """M5: a mistyped path must not look like success."""
    (tmp_path / "empty.db").touch()
    manage(
        "prune",
        "--before",
        "2020-01-01",
        status=1,
        url=f"sqlite:///{tmp_path}/empty.db",
    )
    assert (tmp_path / "empty.db").stat().st_size == 0
