"""The URL of a PostgreSQL database, as libpq reads it: hosts, TLS, parameters."""

import re
from urllib.parse import urlsplit

import pytest

from database import backend
from tests.helpers.contract import TICKETS
from tests.helpers.databases import close_connections
from tests.helpers.server import exit_line, free_port, start_line
from ticketsvc import create_app

pytestmark = pytest.mark.database("postgresql")


@pytest.fixture
def hosts(database_url):
    """Return a function that puts a host where nobody listens before the server's."""
    parts = urlsplit(database_url)
    credentials, _, host = parts.netloc.rpartition("@")

    def make(query=""):
        netloc = f"{credentials}@127.0.0.1:{free_port()},{host}"
        return parts._replace(netloc=netloc, query=query).geturl()

    return make


def test_the_first_host_that_answers_is_used(hosts):
    app = create_app({"DATABASE_URL": hosts("target_session_attrs=read-write")})
    response = app.test_client().post(TICKETS, json={"user_description": "x"})
    close_connections()
    assert response.status_code == 201


def test_the_log_names_all_hosts_without_the_password(hosts, database_url, caplog):
    """E8."""
    create_app({"DATABASE_URL": hosts()})
    close_connections()
    parts = urlsplit(database_url)
    assert f"on {parts.path[1:]}, 127.0.0.1,{parts.hostname}" in caplog.text
    assert parts.password not in caplog.text
    assert backend.name == parts.path[1:]


def test_a_host_that_is_none_to_write_to_stops_the_start(database_url):
    """E8: with the reason that libpq gives."""
    line = start_line(DATABASE_URL=f"{database_url}?target_session_attrs=standby")
    assert line.startswith("DATABASE_URL: cannot be used: ")
    assert "standby" in line
    assert line.count("\n") == 1


@pytest.mark.parametrize("name", ["pgbouncer", "supa", "pool_size", "schema"])
def test_a_parameter_of_another_tool_is_named(name):
    """E8."""
    line = exit_line(
        DATABASE_URL=f"postgres://user:s3cret@host/db?sslmode=require&{name}=true"
    )
    assert line.startswith(f'DATABASE_URL: has an invalid connection option "{name}"')
    assert line.count("\n") == 1
    assert "s3cret" not in line


@pytest.mark.parametrize(
    "rest",
    [
        "u:1234/s3cret@127.0.0.1:1/db",
        "u:1234/x?s3cret=1@127.0.0.1:1/db",
        "u:x?s3cret@127.0.0.1:1/db",
        "u:x#s3cret@127.0.0.1:1/db",
        "u:x@s3cret@127.0.0.1:1/db",
        "u:x%s3cret@127.0.0.1:1/db",
        "u:s3cret@127.0.0.1:1,127.0.0.1:x/db",
        "u:s3cret@127.0.0.1:1,127.0.0.1:2/db",
        "u:s3cret@127.0.0.1:1/db?sslmode=x",
    ],
)
def test_no_part_of_a_password_is_shown(rest):
    """E8: also if a character of it is not encoded."""
    line = exit_line(DATABASE_URL=f"postgres://{rest}")
    assert re.match("DATABASE_URL: (must be|cannot be used: )", line)
    assert line.count("\n") == 1
    assert "s3cret" not in line
