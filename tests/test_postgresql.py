"""PostgreSQL alone: its connections, its restarts, its silences, and several services on it."""

import os
import shlex
import signal
import subprocess
import time
from contextlib import contextmanager

import pytest

import models
from tests.conftest import POSTGRESQL, connect, lost, result
from tests.test_concurrency import together
from tests.test_settings import start_line

POOLS = 2 * 8  # connections of two workers


@pytest.fixture
def database_url(postgresql_url):
    """This is about PostgreSQL."""
    return postgresql_url


@contextmanager
def held(statement):
    """Run a statement in a transaction of another client that stays open meanwhile."""
    database = connect(POSTGRESQL)
    with database.transaction() as transaction:
        database.execute_sql(statement)
        yield database
        transaction.rollback()
    database.close()


def control(action):
    command = os.environ.get("TICKETSVC_TEST_PG_CTL")
    if not command:
        pytest.skip("set TICKETSVC_TEST_PG_CTL to the pg_ctl command of the server")
    subprocess.run([*shlex.split(command), *action], check=True, stdout=subprocess.DEVNULL)


def test_two_services_lose_nothing_on_one_database(make_server, server, sql):
    """P1, C1: 200 PATCHes of one ticket through each, other fields at the same moment."""
    other = make_server().start()
    ticket_id = server.post().json["id"]

    def client(number):
        service, field = ((server, "category"), (other, "ai_suggested_response"))[number % 2]
        connection = service.connect()
        tags = []
        for turn in range(50):
            body = {field: f"{number} {turn}"}
            reply = service.patch(ticket_id, body, connection=connection)
            assert reply.status == 200
            tags.append(reply.headers["ETag"])
        connection.close()
        return tags

    tags = [tag for tags in together(8, client) for tag in tags]
    assert len(set(tags)) == 400
    row = sql("SELECT * FROM ticket")[0]
    assert row["version"] == 401
    assert row["category"].endswith(" 49")
    assert row["ai_suggested_response"].endswith(" 49")


def test_a_commit_waits_for_the_disk_whatever_the_default(app, sql):
    """E4."""
    sql("ALTER DATABASE postgres SET synchronous_commit = off")
    try:
        models.database.close_all()
        row = models.database.execute_sql("SHOW synchronous_commit").fetchone()
        assert row == ("on",)
    finally:
        sql("ALTER DATABASE postgres RESET synchronous_commit")


def test_the_pool_is_bounded_and_waits(server, sql):
    """64 clients, eight connections to a process, no failure."""
    server.fill(1000)
    load = server.load(64, 4)
    most = 0
    while load.poll() is None:
        # The server's own workers, autovacuum's for one, are in this view too.
        rows = sql(
            "SELECT count(*) AS n FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        most = max(most, rows[0]["n"])
        time.sleep(0.05)
    found = result(load)
    assert set(found["statuses"]) == {200}
    assert set(found["failures"].values()) == {0}
    assert 2 <= most <= POOLS
    assert not lost(found["acknowledged"], found["sent"], sql("SELECT * FROM ticket"))


def test_dropped_connections_are_replaced(server, sql):
    """The next requests succeed, whichever thread and connection they get."""
    server.fill(1)
    together(32, lambda number: server.get(1))
    sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    time.sleep(0.2)
    replies = together(32, lambda number: server.patch(1, {"category": f"n {number}"}))
    assert {reply.status for reply in replies} == {200}
    assert "Traceback" not in server.log


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_of_the_database_fails_only_what_is_in_flight(server, mode):
    """E4, P10: under load; nothing acknowledged is lost, and the service is not restarted."""
    server.fill(1000)
    load = server.load(16, 6)
    time.sleep(1.5)
    control(["stop", "-m", mode])
    time.sleep(0.5)
    control(["start"])
    time.sleep(1)
    log = len(server.log)
    found = result(load)
    failed = found["statuses"].pop(500)
    print(f"{mode}: {failed} failed, {found['statuses'][200]} succeeded")
    assert set(found["statuses"]) == {200}
    assert set(found["failures"].values()) == {0}
    assert "Traceback" not in server.log[log:]
    database = connect(POSTGRESQL)
    cursor = database.execute_sql("SELECT id, category FROM ticket")
    rows = [{"id": ticket_id, "category": category} for ticket_id, category in cursor.fetchall()]
    database.close()
    assert not lost(found["acknowledged"], found["sent"], rows)
    assert server.request("GET", "/api/health").status == 200


def test_a_locked_row_is_a_500_in_time(server):
    """P10: the statement timeout."""
    server.fill(1)
    with held("SELECT * FROM ticket FOR UPDATE"):
        started = time.monotonic()
        assert server.patch(1, {"status": "closed"}, timeout=20).status == 500
        assert 4 < time.monotonic() - started < 7
        assert server.get(1).status == 200
    assert server.log.count("failed: canceling statement due to statement timeout") == 1
    assert server.patch(1, {"status": "closed"}).status == 200


def test_a_silent_database_is_a_500_in_seconds(server, sql):
    """P10, H1: 64 requests while every process of the server is stopped."""
    server.fill(1)
    together(8, lambda number: server.get(1))
    backends = [row["pid"] for row in sql("SELECT pid FROM pg_stat_activity")]
    with open(f"/proc/{backends[0]}/stat") as stat:
        postmaster = int(stat.read().rpartition(")")[2].split()[1])
    for pid in [postmaster, *backends]:
        os.kill(pid, signal.SIGSTOP)
    try:
        started = time.monotonic()

        def ask(number):
            if number % 8 == 0:
                return server.request("GET", "/api/health", timeout=30).status
            return server.patch(1, {"status": "closed"}, timeout=30).status

        statuses = together(64, ask)
        assert statuses == [503 if number % 8 == 0 else 500 for number in range(64)]
        assert time.monotonic() - started < 15
    finally:
        for pid in [postmaster, *backends]:
            os.kill(pid, signal.SIGCONT)
    time.sleep(0.2)
    replies = together(32, lambda number: server.patch(1, {"status": "closed"}))
    assert {reply.status for reply in replies} == {200}


def test_several_services_start_at_once_on_an_empty_database(make_server):
    servers = [make_server() for _ in range(4)]
    for _ in range(3):
        database = connect(POSTGRESQL)
        database.execute_sql("DROP TABLE IF EXISTS ticket")
        database.close()
        for server in servers:
            server.start(wait=False)
        for server in servers:
            server.wait()
        for server in servers:
            assert server.post().status == 201
            assert "Traceback" not in server.log
        together(4, lambda number: servers[number].stop())


def test_a_start_without_the_driver_says_how_to_add_it():
    """The one thing here that is pretended: that psycopg is not installed."""
    line = start_line("import sys; sys.modules['psycopg'] = None\n", DATABASE_URL="postgres://h/d")
    assert (
        line == "DATABASE_URL: needs a driver, add it with: pip install 'psycopg[binary]==3.3.9'\n"
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda url: url.replace("p%40ss", "wrong"), "password authentication failed"),
        (lambda url: url.rpartition(":")[0] + ":1/postgres", "Connection refused"),
        (lambda url: url.rpartition(":")[0] + ":x/postgres", "Port could not be cast"),
        (lambda url: url + "?sslmode=require", "server does not support SSL"),
        (lambda url: url + "?colour=red", 'invalid connection option "colour"'),
    ],
    ids=["password", "port", "no-port", "sslmode", "option"],
)
def test_a_database_that_cannot_be_used_stops_the_start(postgresql_url, change, reason):
    line = start_line(DATABASE_URL=change(postgresql_url))
    assert line.startswith("DATABASE_URL: ")
    assert reason in line
    assert line.count("\n") == 1
    assert "p%40ss" not in line
    assert "p@ss" not in line
