"""Settings: a bad one stops the start with one line that names it."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from tests.helpers.contract import ROOT
from tests.helpers.databases import run_sql
from tests.helpers.server import exit_line, start_line
from tests.helpers.timing import wait_for
from ticketsvc import read_settings

pytestmark = pytest.mark.database("sqlite")


@pytest.mark.parametrize(
    ("variable", "value", "advice"),
    [
        ("DATABASE_URL", "oracle://x/y", "must be sqlite:///tickets.db"),
        ("DATABASE_URL", "tickets.db", "must be sqlite:///tickets.db"),
        ("DATABASE_URL", "sqlite://tickets.db", "must be sqlite:///tickets.db"),
        ("DATABASE_URL", "sqlite:///", "must be sqlite:///tickets.db"),
        ("DATABASE_URL", "sqlite:///:memory:", "must be sqlite:///tickets.db"),
        (
            "DATABASE_URL",
            "sqlite:////nowhere/at/all/tickets.db",
            "No such file or directory",
        ),
        ("DATABASE_URL", "sqlite:////tmp", "cannot be used"),
        (
            "DATABASE_URL",
            "sqlite:////tmp/x.db?colour=red",
            "must be sqlite:///tickets.db",
        ),
        ("TICKETSVC_MISSING_STATUS", "410", "404 or 500"),
        ("TICKETSVC_MISSING_STATUS", "four", "404 or 500"),
        ("TICKETSVC_LOG_LEVEL", "loud", "debug, info, warning"),
        ("TICKETSVC_TOKENS", "a,,b", "single commas"),
        ("TICKETSVC_TOKENS", ",", "single commas"),
        ("TICKETSVC_TOKENS", "", "single commas"),
        ("TICKETSVC_TOKENS", "  ", "single commas"),
        ("TICKETSVC_TOKENS", "\u2026", "single commas"),
        ("TICKETSVC_TOKENS", "two words", "single commas"),
        ("TICKETSVC_TOKENS", "alice:", "single commas"),
        ("TICKETSVC_TOKENS", ":s3cret", "single commas"),
        ("TICKETSVC_TOKENS", "al ice:s3cret", "single commas"),
        ("TICKETSVC_TOKENS", "alice:s3cret,bob:s3cret", "twice"),
        (
            "DATABASE_URL",
            "postgres://user:s3cret@host/db?pool_size=1&size=1",
            "must be sqlite",
        ),
        ("TICKETSVC_TOKEN", "s3cret", "is not a setting"),
        ("TICKETSVC_", "s3cret", "is not a setting"),
        ("TICKETSVC_MISSING_STATUS", "", "404 or 500"),
        ("TICKETSVC_LOG_LEVEL", "", "debug, info, warning"),
        ("TICKETSVC_POOL_SIZE", "0", "1 to 99"),
        ("TICKETSVC_POOL_SIZE", "many", "1 to 99"),
        ("DATABASE_URL", "", "a URL"),
        ("DATABASE_URL", "sqlite:tickets.db", "must be sqlite:///tickets.db"),
        ("DATABASE_URL", "sqlite:///a#b.db", "must be sqlite:///tickets.db"),
        (
            "DATABASE_URL",
            "postgres://user:pa/s3cret@host/db",
            "must be sqlite:///tickets.db",
        ),
        (
            "DATABASE_URL",
            "postgres://user:s3cret@host:port/db",
            "must be sqlite:///tickets.db",
        ),
        ("DATABASE_URL", "postgres://user:s3cret@host", "must be sqlite:///tickets.db"),
        (
            "DATABASE_URL",
            "postgres://user:s3cret@[host/db",
            "must be sqlite:///tickets.db",
        ),
        ("WEB_CONCURRENCY", "0", "1 to 999"),
        ("WEB_CONCURRENCY", "-1", "1 to 999"),
    ],
)
def test_a_bad_value_stops_the_start_with_one_line(variable, value, advice):
    line = exit_line(**{variable: value})
    assert line.startswith(f"{variable}")
    assert advice in line
    assert line.count("\n") == 1
    assert "s3cret" not in line


def test_the_variables_of_the_tests_stop_no_start():
    """A service may be started by hand where the tests are run."""
    environ = {"TICKETSVC_TEST_PG_CTL": "pg_ctl"}
    assert read_settings(environ) == read_settings({})


def test_a_file_that_is_no_database_stops_the_start(tmp_path):
    (tmp_path / "notes.txt").write_text(
        "Not a database, whatever its name says.\n" * 100
    )
    line = start_line(DATABASE_URL=f"sqlite:///{tmp_path}/notes.txt")
    assert line.startswith("DATABASE_URL: ")
    assert "file is not a database" in line
    assert line.count("\n") == 1


def test_a_database_with_another_ticket_table_stops_the_start(tmp_path):
    run_sql(
        f"sqlite:///{tmp_path}/other.db", "CREATE TABLE ticket (seat TEXT, status TEXT)"
    )
    line = start_line(DATABASE_URL=f"sqlite:///{tmp_path}/other.db")
    assert line.startswith("DATABASE_URL: cannot be used: ")
    assert line.count("\n") == 1


def test_an_old_sqlite_stops_the_start(sqlite_url):
    """The one thing here that is pretended: the version, not the library."""
    version = (
        "sqlite3.sqlite_version_info, sqlite3.sqlite_version = (3, 34, 1), '3.34.1'"
    )
    line = start_line(f"import sqlite3; {version}\n", DATABASE_URL=sqlite_url)
    assert line.count("\n") == 1
    assert "SQLite 3.35 or newer" in line
    assert "3.34.1" in line


def test_a_file_on_a_dyno_is_warned_of_once(make_server):
    server = make_server(DYNO="web.1").start()
    assert server.log.count("the disk of a dyno does not outlive") == 1


def test_the_started_service_ends_with_the_same_line(make_server):
    server = make_server(TICKETSVC_MISSING_STATUS="teapot").start(wait=False)
    assert server.process.wait(60) == 1
    assert server.log == "TICKETSVC_MISSING_STATUS must be 404 or 500\n"


def test_the_default_is_a_file_in_the_current_folder(tmp_path):
    program = "import ticketsvc; print(ticketsvc.create_app({}).config['DATABASE_URL'])"
    command = [sys.executable, "-c", program]
    environ = {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        command, cwd=tmp_path, env=environ, capture_output=True, text=True
    )
    assert process.stdout == "sqlite:///tickets.db\n"
    assert (tmp_path / "tickets.db").exists()


TOKEN = {"TICKETSVC_TOKENS": "secret"}
# A network namespace of its own, so that nothing outside reaches the open port.
NAMESPACE = ["unshare", "--map-root-user", "--net"]
LAN = [
    *NAMESPACE,
    "sh",
    "-c",
    'echo 1 >/proc/sys/net/ipv4/ip_nonlocal_bind; exec "$@"',
    "sh",
]


@pytest.mark.parametrize(
    ("behind", "bind", "tokens", "warnings"),
    [
        pytest.param([], "localhost:0", {}, 0, id="loopback"),
        pytest.param([], "unix:{tmp_path}/socket", {}, 0, id="unix"),
        pytest.param(NAMESPACE, "0.0.0.0:0", TOKEN, 0, id="token"),
        pytest.param(NAMESPACE, "0.0.0.0:0", {}, 1, id="open"),
        pytest.param(NAMESPACE, "[::]:0", {}, 1, id="open-IPv6"),
        pytest.param(LAN, "192.0.2.1:0", {}, 1, id="open-on-the-LAN"),
    ],
)
def test_an_open_service_is_warned_of_once(
    make_server, tmp_path, behind, bind, tokens, warnings
):
    if behind and (
        not shutil.which("unshare") or subprocess.call([*behind, "true"]) != 0
    ):
        pytest.skip("needs unshare(1) and the right to make a network namespace")
    server = make_server(**tokens)
    server.start(wait=False, bind=bind.format(tmp_path=tmp_path), behind=behind)
    server.wait_for_log("Booting worker")
    server.stop()
    assert server.log.count("without a token") == warnings


def test_a_service_opens_no_control_socket(make_server, tmp_path):
    """Else a thread serves it at one path for every gunicorn of a user
    (control_socket).
    """
    server = make_server(XDG_RUNTIME_DIR=str(tmp_path)).start()
    server.process.send_signal(
        signal.SIGTTIN
    )  # One worker more, when the start is over.
    wait_for(lambda: len(server.workers()) == 3, "there is no third worker")
    assert len(os.listdir(f"/proc/{server.process.pid}/task")) == 1
    assert not list(tmp_path.glob("gunicorn*"))
