"""PostgreSQL alone: its connections, its restarts, its silences, and several services on it."""

import os
import shlex
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import quote, urlsplit

import pytest

from database import database
from tests.helpers import POSTGRESQL, close_connections, connect, lost, result, start_line, together
from ticketsvc import create_app

POOLS = 2 * 8  # connections of two workers


@pytest.fixture
def database_url(postgresql_url):
    """This is about PostgreSQL."""
    return postgresql_url


@contextmanager
def held(statement):
    """Run a statement in a transaction of another client that stays open meanwhile."""
    other = connect(POSTGRESQL)
    with other.transaction() as transaction:
        other.execute_sql(statement)
        yield other
        transaction.rollback()
    other.close()


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
    name = sql("SELECT current_database() AS name")[0]["name"]
    sql(f"ALTER DATABASE {name} SET synchronous_commit = off")
    try:
        close_connections()
        assert database.write("SHOW synchronous_commit", []) == [{"synchronous_commit": "on"}]
    finally:
        sql(f"ALTER DATABASE {name} RESET synchronous_commit")


def test_the_pool_is_bounded_and_waits(server, sql):
    """64 clients, eight connections to a process, no failure."""
    server.fill(1000)
    load = server.load(64, 4)
    most = 0
    while load.poll() is None:
        most = max(most, len(backends(sql)))
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
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
        "AND datname = current_database() AND backend_type = 'client backend'"
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
    other = connect(POSTGRESQL)
    cursor = other.execute_sql("SELECT id, category FROM ticket")
    rows = [{"id": ticket_id, "category": category} for ticket_id, category in cursor.fetchall()]
    other.close()
    assert not lost(found["acknowledged"], found["sent"], rows)
    assert server.request("GET", "/api/health").status == 200


def test_a_locked_row_is_a_500_in_time(server):
    """P10, E7: the lock timeout."""
    server.fill(1)
    with held("SELECT * FROM ticket FOR UPDATE"):
        assert server.patch(1, {"status": "closed"}, timeout=20).status == 500
        assert server.get(1).status == 200
    assert server.log.count("failed: canceling statement due to lock timeout") == 1
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
        other = connect(POSTGRESQL)
        other.execute_sql("DROP TABLE IF EXISTS ticket, ticket_version")
        other.close()
        for server in servers:
            server.start(wait=False)
        for server in servers:
            server.wait()
        for server in servers:
            assert server.post().status == 201
            assert "Traceback" not in server.log
        together(4, lambda number: servers[number].stop())


def postmaster(sql):
    """Return the process id of the server, and those of its processes."""
    pids = [row["pid"] for row in sql("SELECT pid FROM pg_stat_activity")]
    with open(f"/proc/{pids[0]}/stat") as stat:
        return int(stat.read().rpartition(")")[2].split()[1]), pids


def backends(sql):
    """Return the process ids of the service's connections."""
    rows = sql(
        "SELECT pid FROM pg_stat_activity "
        "WHERE datname = current_database() AND backend_type = 'client backend' "
        "AND pid <> pg_backend_pid()"
    )
    return [row["pid"] for row in rows]


def test_a_write_that_was_given_up_is_not_written_later(make_server, sql):
    """E7: the server's processes are stopped, a PATCH is given up, and they go on."""
    server = make_server(WEB_CONCURRENCY="1", TICKETSVC_POOL_SIZE="1").start()
    server.fill(1)
    server.patch(1, {"category": "first"})
    stopped = backends(sql)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        assert server.patch(1, {"category": "given up"}, timeout=30).status == 500
        assert server.patch(1, {"category": "newer"}, timeout=30).status == 200
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    time.sleep(0.5)
    assert server.get(1).json["category"] == "newer"
    assert sql("SELECT version FROM ticket") == [{"version": 3}]


def test_options_of_the_url_are_added_to_those_of_the_service(postgresql_url, sql):
    """E4, E7: they replace none of them."""
    options = quote("-c statement_timeout=0 -c synchronous_commit=off -c work_mem=1MB")
    create_app({"DATABASE_URL": f"{postgresql_url}?options={options}"})
    shown = {
        name: database.write(f"SHOW {name}", [])[0][name]
        for name in ("statement_timeout", "synchronous_commit", "work_mem")
    }
    close_connections()
    assert shown == {"statement_timeout": "5s", "synchronous_commit": "on", "work_mem": "1MB"}


def test_a_stricter_isolation_of_the_server_fails_no_patch(server, sql):
    """P1: each PATCH that waited sees the row as it has become."""
    name = sql("SELECT current_database() AS name")[0]["name"]
    sql(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
    try:
        server.stop()
        server.start()
        server.fill(1)
        replies = together(
            16, lambda n: [server.patch(1, {"category": f"{n} {turn}"}) for turn in range(10)]
        )
        assert {reply.status for each in replies for reply in each} == {200}
    finally:
        sql(f"ALTER DATABASE {name} RESET default_transaction_isolation")


@pytest.fixture
def limited(sql):
    """A role that may have three connections, and the URL with it."""
    name = sql("SELECT current_database() AS name")[0]["name"]
    sql("DROP ROLE IF EXISTS limited")
    sql("CREATE ROLE limited LOGIN SUPERUSER CONNECTION LIMIT 3 PASSWORD 'limited'")
    sql("ALTER ROLE limited NOSUPERUSER")
    sql(f'GRANT ALL ON DATABASE "{name}" TO limited')
    sql("GRANT ALL ON SCHEMA public TO limited")
    parts = urlsplit(POSTGRESQL)
    host = parts.netloc.rpartition("@")[2]
    yield parts._replace(netloc=f"limited:limited@{host}").geturl()
    sql("DROP OWNED BY limited")
    sql("DROP ROLE limited")


def test_where_no_new_connection_is_to_be_had_the_open_ones_serve_all(make_server, limited):
    """E7: the role may have fewer connections than the pools have room for."""
    server = make_server(DATABASE_URL=limited, WEB_CONCURRENCY="1").start()
    server.fill(64)
    load = server.load(32, 3, 64)
    found = result(load)
    assert set(found["statuses"]) == {200}
    assert set(found["failures"].values()) == {0}
    server.stop()


def test_the_size_of_the_pool_is_a_setting(make_server, sql):
    server = make_server(TICKETSVC_POOL_SIZE="2").start()
    server.fill(64)
    load = server.load(32, 2, 64)
    most = 0
    while load.poll() is None:
        most = max(most, len(backends(sql)))
        time.sleep(0.05)
    assert set(result(load)["statuses"]) == {200}
    assert most <= 4


def test_a_locked_row_delays_the_others_only(server):
    """E7: 16 clients that try again and again for a row that somebody has locked."""
    server.fill(2)
    over = threading.Event()

    def retry(number):
        while not over.is_set():
            assert server.patch(1, {"status": "closed"}, timeout=30).status == 500

    with held("SELECT * FROM ticket WHERE id = 1 FOR UPDATE"):
        clients = threading.Thread(target=together, args=(16, retry))
        clients.start()
        time.sleep(1)
        try:
            for _ in range(5):
                assert server.patch(2, {"status": "closed"}, timeout=30).status == 200
                assert server.get(1, timeout=30).status == 200
                assert server.request("GET", "/api/health", timeout=30).status == 200
        finally:
            over.set()
            clients.join()
    assert server.patch(1, {"status": "closed"}).status == 200


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_an_encoding_that_cannot_hold_every_text_stops_the_start(sql, encoding):
    """N1."""
    sql("DROP DATABASE IF EXISTS narrow")
    sql(f"CREATE DATABASE narrow ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
    try:
        line = start_line(DATABASE_URL=urlsplit(POSTGRESQL)._replace(path="/narrow").geturl())
        assert line == "DATABASE_URL: cannot be used: its encoding must be UTF8\n"
    finally:
        sql("DROP DATABASE narrow")


def test_starts_under_load_on_an_empty_database_all_succeed(make_server):
    """Eight at once, so that they compete for the processor too."""
    servers = [make_server(WEB_CONCURRENCY="1") for _ in range(8)]
    for server in servers:
        server.start(wait=False)
    for server in servers:
        server.wait()
        assert server.post().status == 201
        assert "Traceback" not in server.log


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
        (lambda url: url.rpartition(":")[0] + ":x/postgres", "must be sqlite:///tickets.db"),
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


def test_a_start_waits_for_one_that_takes_long(make_server):
    """As the first index of a large table does."""
    with held("SELECT pg_advisory_xact_lock(8237)"):
        server = make_server(WEB_CONCURRENCY="1").start(wait=False)
        time.sleep(3)
    server.wait()


def test_the_time_of_an_update_is_that_after_its_wait(server):
    """P8: for a row that somebody else was changing; the later version has the later time."""
    server.fill(1)
    clock = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS')"
    with ThreadPoolExecutor(1) as pool, held("UPDATE ticket SET category = 'x'") as other:
        waiting = pool.submit(server.patch, 1, {"status": "closed"})
        time.sleep(0.4)
        released = other.execute_sql(clock).fetchone()[0]
        other.commit()
        reply = waiting.result()
    assert reply.status == 200
    assert reply.json["updated_at"] >= released


def test_a_restart_does_not_wait_for_an_open_transaction(make_server):
    server = make_server(WEB_CONCURRENCY="1").start().fill(1)
    server.stop()
    with held("UPDATE ticket SET category = 'x' WHERE id = 1"):
        assert server.start().get(1).status == 200
