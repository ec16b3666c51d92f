"""Fixtures: an application on a file, and the service started by its Procfile."""

import fcntl
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import ExitStack, closing, contextmanager
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

from database import backend, database
from manage import cli
from models import MODELS, TRIGGERS
from tests.helpers.contract import DESCRIPTION, ROOT, TICKETS
from tests.helpers.databases import (
    POSTGRESQL,
    close_connections,
    connect,
    execute,
    postgresql_database,
    run_sql,
)
from tests.helpers.load import Load
from tests.helpers.server import Server
from ticketsvc import create_app

# The tests, and the services that they start, run in a time zone that is not UTC.
os.environ["TZ"] = "Europe/Berlin"
time.tzset()


def pytest_addoption(parser):
    parser.addoption(
        "--full", action="store_true", help="run the slow tests at full length"
    )


def pytest_generate_tests(metafunc):
    """Run each test on both databases, or on the one that its marker names."""
    if "kind" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("database")
        metafunc.parametrize(
            "kind", marker.args if marker else ["sqlite", "postgresql"]
        )


@pytest.fixture
def full(request):
    """Whether the slow tests run at full length."""
    return request.config.getoption("--full")


@pytest.fixture
def sqlite_url(tmp_path):
    return f"sqlite:///{tmp_path}/tickets.db"


@pytest.fixture(scope="session")
def turn(tmp_path_factory):
    """Return a context that holds a lock, shared or exclusive, on the one PostgreSQL
    server.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    @contextmanager
    def wait(lock):
        with (
            (folder / "gate.lock").open("w") as gate,
            (folder / "server.lock").open("w") as server,
        ):
            fcntl.flock(
                gate, fcntl.LOCK_EX
            )  # Behind one that waits to be alone, no other begins.
            fcntl.flock(server, lock)
            fcntl.flock(gate, fcntl.LOCK_UN)
            yield

    return wait


@pytest.fixture(scope="session")
def postgresql(turn):
    """The URL of a database of this process's own.

    It is made and dropped while no test of another process has the server stopped.
    """
    if not POSTGRESQL:
        pytest.skip("set TICKETSVC_TEST_POSTGRESQL to the URL of a PostgreSQL database")
    with ExitStack() as made:
        with turn(fcntl.LOCK_SH):
            url = made.enter_context(postgresql_database())
            name = urlsplit(url).path[1:]
            run_sql(url, f"ALTER DATABASE {name} SET timezone = 'Europe/Berlin'")
        yield url
        with turn(fcntl.LOCK_SH):
            made.close()


@pytest.fixture
def postgresql_url(postgresql, request, turn):
    """The URL of an empty database; a test that is marked `alone` has the server to
    itself.
    """
    with turn(
        fcntl.LOCK_EX if request.node.get_closest_marker("alone") else fcntl.LOCK_SH
    ):
        tables = ", ".join(model._meta.table_name for model in MODELS)
        functions = ", ".join(trigger.name for trigger in TRIGGERS)
        with closing(connect(postgresql)) as other:
            execute(other, f"DROP TABLE IF EXISTS {tables}")
            execute(other, f"DROP FUNCTION IF EXISTS {functions}")
        yield postgresql


@pytest.fixture
def database_url(kind, request):
    """The URL of an empty database of this kind."""
    return request.getfixturevalue(f"{kind}_url")


@pytest.fixture
def on_sqlite(kind):
    return kind == "sqlite"


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
    with closing(connect(database_url)) as other:
        yield lambda statement, params=None: execute(other, statement, params)


@pytest.fixture
def manage(database_url, settings):
    """Run a command of manage.py on the test's database; return what it printed."""

    def run(*arguments, status=0, url=database_url):
        selected = backend.obj, database.obj
        environ = {"DATABASE_URL": url, **settings}
        try:
            result = CliRunner().invoke(cli, list(map(str, arguments)), env=environ)
            if backend.obj is not selected[0]:
                close_connections()
        finally:
            backend.initialize(selected[0])
            database.initialize(selected[1])
        assert result.exit_code == status, result.output
        return result.stdout if status == 0 else result.stderr

    return run


@pytest.fixture
def start_manage(database_url, settings):
    """Start manage.py in a process of its own; it is killed after the test."""
    processes = []

    def start(*arguments, **options):
        processes.append(
            subprocess.Popen(
                [sys.executable, ROOT / "manage.py", *map(str, arguments)],
                env={"DATABASE_URL": database_url, **settings},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                **options,
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        with process:
            process.kill()


@pytest.fixture
def row(sql):
    """Read one row of the table past the application."""
    return lambda ticket_id: sql(f"SELECT * FROM ticket WHERE id = {ticket_id}")[0]


@pytest.fixture
def holder(database_url):
    """A connection of another program that may take the write lock away from the
    service.
    """
    path = database_url.removeprefix("sqlite:///")
    connection = sqlite3.connect(
        path, timeout=60, isolation_level=None, check_same_thread=False
    )
    yield connection
    connection.close()


@pytest.fixture
def make_server(tmp_path, database_url, settings):
    """Return a function that makes a Server on the test's database; all are ended after
    it.
    """
    servers = []

    def make(*command, prefix="", **environ):
        environ = {"DATABASE_URL": database_url, **settings, **environ}
        servers.append(Server(tmp_path, environ, *command, prefix=prefix))
        return servers[-1]

    yield make
    for server in servers:
        if server.process is not None:
            server.kill()
            if server.log_path.is_file():
                print(server.log[-10_000:])  # Shown where the test has failed.


@pytest.fixture
def start_load():
    """Return a function that starts a Load; all are ended after the test."""
    loads = []

    def start(server, *arguments, **options):
        loads.append(Load(server, *arguments, **options))
        return loads[-1]

    yield start
    for load in loads:
        load.kill()


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
