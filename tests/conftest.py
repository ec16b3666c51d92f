"""Fixtures: an application on a file, and the service itself started by its Procfile."""

import fcntl
import os
import sqlite3

import pytest

from tests.helpers import DESCRIPTION, POSTGRESQL, TICKETS, Server, close_connections, connect
from ticketsvc import create_app


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run the slow tests at full length")


def pytest_collection_modifyitems(items):
    """Put the tests on PostgreSQL first: one process works on them, the other on the rest."""

    def on_sqlite(item):
        on_postgresql = hasattr(item, "callspec") and "postgresql" in item.callspec.params.values()
        return not on_postgresql and item.path.stem != "test_postgresql"

    items.sort(key=on_sqlite)


@pytest.fixture
def full(request):
    """Whether the slow tests run at full length."""
    return request.config.getoption("--full")


@pytest.fixture
def sqlite_url(tmp_path):
    return f"sqlite:///{tmp_path}/tickets.db"


@pytest.fixture
def postgresql_url(tmp_path_factory):
    """The database that the environment names, for one test at a time, and empty."""
    if not POSTGRESQL:
        pytest.skip("set TICKETSVC_TEST_POSTGRESQL to the URL of a PostgreSQL database")
    with (tmp_path_factory.getbasetemp().parent / "postgresql.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        other = connect(POSTGRESQL)
        other.execute_sql("DROP TABLE IF EXISTS ticket, ticket_version")
        other.execute_sql("DROP FUNCTION IF EXISTS ticket_version_kept")
        other.close()
        yield POSTGRESQL


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request):
    """Each test runs on both databases; a module about one of them overrides this."""
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
def on_sqlite(database_url):
    return database_url.startswith("sqlite")


@pytest.fixture
def settings():
    """Settings beside DATABASE_URL; a test module or class overrides it."""
    return {}


@pytest.fixture
def app(database_url, settings):
    yield create_app({"DATABASE_URL": database_url, **settings})
    close_connections()


@pytest.fixture
def client(app):
    return app.test_client()


@pytest.fixture
def ticket(client):
    """A ticket as the classifier filed it."""
    response = client.post(
        TICKETS,
        json={
            "user_description": DESCRIPTION,
            "category": "bug",
            "ai_suggested_response": "Try another browser.",
            "confidence_score": 0.42,
        },
    )
    return response.json


@pytest.fixture
def sql(database_url):
    """Run a statement on a connection of its own: what it sees has been committed."""
    other = connect(database_url)

    def execute(statement):
        cursor = other.execute_sql(statement)
        if not cursor.description:
            return []
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    yield execute
    other.close()


@pytest.fixture
def row(sql):
    """Read one row of the table past the application."""
    return lambda ticket_id: sql(f"SELECT * FROM ticket WHERE id = {ticket_id}")[0]


@pytest.fixture
def holder(database_url):
    """A connection of another program that may take the write lock away from the service."""
    path = database_url.removeprefix("sqlite:///")
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    yield connection
    connection.close()


@pytest.fixture
def make_server(tmp_path, database_url, settings):
    """Return a function that makes a Server on the test's database; all are ended after it."""
    servers = []

    def make(**environ):
        servers.append(Server(tmp_path, {"DATABASE_URL": database_url, **settings, **environ}))
        return servers[-1]

    yield make
    for server in servers:
        if server.process is not None:
            server.kill()
            if server.log_path.is_file():
                print(server.log[-10_000:])  # Shown where the test has failed.


@pytest.fixture
def server(make_server):
    """The running service."""
    return make_server().start()


def pytest_sessionfinish(session):
    """In CI a skipped test hides work, so it fails the run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter and reporter.stats.get("skipped"):
        reporter.write_line("Skipped tests fail the run in CI.", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
