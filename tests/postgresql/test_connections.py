"""PostgreSQL alone: its connections, its restarts, its silences, and several services
on it.
"""

import os
import shlex
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from urllib.parse import quote, urlsplit

import pytest

from tests.helpers.contract import TICKETS
from tests.helpers.databases import (
    OTHERS,
    WAITING,
    close_connections,
    connect,
    execute,
    postgresql_database,
)
from tests.helpers.load import assert_all_succeeded, lost
from tests.helpers.server import free_port, start_line
from tests.helpers.timing import together, wait_for
from ticketsvc import create_app

pytestmark = pytest.mark.database("postgresql")
alone = pytest.mark.alone


@pytest.fixture
def name(database_url):
    """The name of the test's database."""
    return urlsplit(database_url).path[1:]


@pytest.fixture
def held(database_url):
    """Return a context in which a statement stands in an open transaction of another
    client.
    """

    @contextmanager
    def hold(statement):
        with (
            closing(connect(database_url)) as other,
            other.transaction() as transaction,
        ):
            execute(other, statement)
            yield other
            transaction.rollback()

    return hold


def control(*action):
    """Have the server stopped or started, which only its own host can."""
    command = os.environ.get("TICKETSVC_TEST_PG_CTL")
    if not command:
        pytest.skip("set TICKETSVC_TEST_PG_CTL to the pg_ctl command of the server")
    subprocess.run(
        [*shlex.split(command), *action], check=True, stdout=subprocess.DEVNULL
    )


def backends(sql):
    """Return the process ids of the service's connections."""
    rows = sql(
        f"SELECT pid FROM pg_stat_activity WHERE {OTHERS} "
        "AND backend_type = 'client backend'"
    )
    return [row["pid"] for row in rows]


def wait_for_locks(sql, count=1):
    """Return when so many connections wait for a lock."""
    wait_for(lambda: len(sql(WAITING)) >= count, "nobody waits for the lock")


@contextmanager
def stopped(pids):
    """Have processes of the server stand still."""
    control("status")  # Without pg_ctl they may be another host's.

    def send(signal_number):
        for pid in pids:
            with suppress(ProcessLookupError):  # It has ended by itself.
                os.kill(pid, signal_number)

    try:
        send(signal.SIGSTOP)
        yield
    finally:
        send(signal.SIGCONT)


def test_two_services_lose_nothing_on_one_database(make_server, server, sql):
    """P1, C1: 200 PATCHes of one ticket through each, of two fields."""
    other = make_server().start()
    ticket_id = server.post().json["id"]

    def client(number):
        service, field = ((server, "category"), (other, "ai_suggested_response"))[
            number % 2
        ]
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


@pytest.fixture
def setting(sql):
    """Return a function that returns a setting as a PATCH of an application has it."""

    def show(app, name):
        sql(
            f"""
            CREATE OR REPLACE FUNCTION show_setting() RETURNS trigger
            LANGUAGE plpgsql AS $$
            BEGIN
                NEW.category := current_setting('{name}');
                RETURN NEW;
            END $$
            """
        )
        sql("DROP TRIGGER IF EXISTS show_setting ON ticket")
        sql(
            "CREATE TRIGGER show_setting BEFORE UPDATE ON ticket "
            "FOR EACH ROW EXECUTE FUNCTION show_setting()"
        )
        client = app.test_client()
        ticket = client.post(TICKETS, json={"user_description": "x"}).json
        url = f"{TICKETS}/{ticket['id']}"
        return client.patch(url, json={"status": "closed"}).json["category"]

    yield show
    sql("DROP FUNCTION IF EXISTS show_setting CASCADE")


def test_a_commit_waits_for_the_disk_whatever_the_default(app, sql, name, setting):
    """E4."""
    sql(f"ALTER DATABASE {name} SET synchronous_commit = off")
    try:
        close_connections()
        assert setting(app, "synchronous_commit") == "on"
    finally:
        sql(f"ALTER DATABASE {name} RESET synchronous_commit")


@pytest.mark.parametrize(
    ("pool", "most"),
    [({}, 16), ({"TICKETSVC_POOL_SIZE": "2"}, 4)],
    ids=["default", "2"],
)
def test_the_pool_is_bounded_and_waits(make_server, start_load, sql, pool, most):
    """E7: 64 clients, two workers, so many connections to each, no failure."""
    server = make_server(**pool).start().fill(1000)
    load = start_load(server, 64, 1000, 3)
    seen = []
    while load.is_running:
        seen.append(len(backends(sql)))
        time.sleep(0.05)
    found = load.result()
    assert_all_succeeded(found)
    assert 2 <= max(seen) <= most
    assert not lost(found, sql("SELECT * FROM ticket"))


def test_dropped_connections_are_replaced(server, sql):
    """The next requests succeed, whichever thread and connection they get."""
    server.fill(1)
    together(32, lambda number: server.get(1))

    def are_gone():
        # A connection that was still being made comes after the others are gone.
        sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OTHERS}")
        return not backends(sql)

    wait_for(are_gone, "they are still connected")
    replies = together(32, lambda number: server.patch(1, {"category": f"n {number}"}))
    assert {reply.status for reply in replies} == {200}
    assert "Traceback" not in server.log


@alone
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_of_the_database_fails_only_what_is_in_flight(
    server, start_load, mode
):
    """E4, P10: under load; nothing acknowledged is lost, and the service is not
    restarted.
    """
    server.fill(1000)
    load = start_load(server, 16)
    server.wait_for_answers(100)
    control("stop", "-m", mode)
    try:
        server.wait_for_log(" 500 ")
    finally:
        control("start")
    wait_for(
        lambda: server.request("GET", "/api/health").status == 200,
        "it has no connection",
    )
    server.wait_for_answers(100)
    log = len(server.log)
    server.wait_for_answers(100)
    found = load.end()
    assert "Traceback" not in server.log[log:]
    assert set(found["statuses"]) == {200, 500}
    assert found["failures"] == {}
    assert not lost(found, server.sql("SELECT * FROM ticket"))


def test_a_locked_row_is_a_500_in_time(server, held):
    """P10, E7: the lock timeout."""
    server.fill(1)
    with held("SELECT * FROM ticket FOR UPDATE"):
        assert server.patch(1, {"status": "closed"}, timeout=20).status == 500
        assert server.get(1).status == 200
    assert server.log.count("failed: canceling statement due to lock timeout") == 1
    assert server.patch(1, {"status": "closed"}).status == 200


@alone
def test_a_silent_database_is_a_500_meanwhile(server, sql):
    """P10, H1, E7: 64 requests while every process of the server is stopped."""
    server.fill(1)
    together(8, lambda number: server.get(1))
    pids = [row["pid"] for row in sql("SELECT pid FROM pg_stat_activity")]
    with open(f"/proc/{pids[0]}/stat") as stat:
        postmaster = int(stat.read().rpartition(")")[2].split()[1])

    def ask(number):
        if number % 8 == 0:
            return server.request("GET", "/api/health").status
        return server.patch(1, {"status": "closed"}).status

    with server.clock() as ticks, stopped([postmaster, *pids]):
        statuses = together(64, ask)
        assert len(ticks) < 3
    assert statuses == [503 if number % 8 == 0 else 500 for number in range(64)]
    wait_for(
        lambda: server.request("GET", "/api/health").status == 200,
        "it has no connection",
    )
    replies = together(32, lambda number: server.patch(1, {"status": "closed"}))
    assert {reply.status for reply in replies} == {200}


@alone
def test_a_write_that_was_given_up_is_not_written_later(make_server, sql):
    """E7: its connections stand still, a PATCH is given up, and they go on."""
    server = make_server(WEB_CONCURRENCY="1", TICKETSVC_POOL_SIZE="1").start()
    server.fill(1)
    server.patch(1, {"category": "first"})
    pids = backends(sql)
    with stopped(pids):
        assert server.patch(1, {"category": "given up"}).status == 500
        assert server.patch(1, {"category": "newer"}).status == 200
    wait_for(lambda: not set(pids) & set(backends(sql)), "they have not seen their end")
    assert server.get(1).json["category"] == "newer"
    assert sql("SELECT version FROM ticket") == [{"version": 3}]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_services_start_at_once_on_an_empty_database(make_server, sql, workers):
    """E7: eight of them, so that they compete for the processor too."""
    servers = [make_server(WEB_CONCURRENCY=workers).start(wait=False) for _ in range(8)]
    for server in servers:
        server.wait()
        assert server.post().status == 201
        assert "Traceback" not in server.log


def test_options_of_the_url_are_added_to_those_of_the_service(database_url, setting):
    """E4, E7: they replace none of them."""
    options = quote("-c statement_timeout=0 -c synchronous_commit=off -c work_mem=1MB")
    app = create_app({"DATABASE_URL": f"{database_url}?options={options}"})
    names = ("statement_timeout", "synchronous_commit", "work_mem")
    shown = [setting(app, name) for name in names]
    close_connections()
    assert shown == ["5s", "on", "1MB"]


def test_a_stricter_isolation_of_the_server_fails_no_patch(server, sql, name):
    """P1: each PATCH that waited sees the row as it has become."""
    sql(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
    try:
        server.stop()
        server.start()
        server.fill(1)
        replies = together(
            16,
            lambda n: [
                server.patch(1, {"category": f"{n} {turn}"}) for turn in range(10)
            ],
        )
        assert {reply.status for each in replies for reply in each} == {200}
    finally:
        sql(f"ALTER DATABASE {name} RESET default_transaction_isolation")


@pytest.fixture
def limited(sql, database_url, name):
    """The URL with a role that may have three connections."""
    may = (
        "SELECT 1 FROM pg_roles WHERE rolname = current_user "
        "AND (rolsuper OR rolcreaterole)"
    )
    if not sql(may):
        pytest.skip("needs a role that may make another one")
    sql(f"CREATE ROLE {name} LOGIN CONNECTION LIMIT 3 PASSWORD 'limited'")
    sql(f"GRANT ALL ON SCHEMA public TO {name}")
    parts = urlsplit(database_url)
    host = parts.netloc.rpartition("@")[2]
    yield parts._replace(netloc=f"{name}:limited@{host}").geturl()
    sql(f"DROP OWNED BY {name}")
    sql(f"DROP ROLE {name}")


def test_where_no_new_connection_is_to_be_had_the_open_ones_serve_all(
    make_server, start_load, limited
):
    """E7: the role may have fewer connections than the pools have room for."""
    server = make_server(DATABASE_URL=limited, WEB_CONCURRENCY="1").start()
    server.fill(64)
    load = start_load(server, 32, 64)
    server.wait_for_answers(1000)
    assert_all_succeeded(load.end())
    server.stop()


def test_a_locked_row_delays_the_others_only(server, held, sql):
    """E7: 16 clients that try again and again for a row that somebody has locked."""
    server.fill(2)
    over = threading.Event()

    def retry(number):
        while not over.is_set():
            assert server.patch(1, {"status": "closed"}).status == 500

    with held("SELECT * FROM ticket WHERE id = 1 FOR UPDATE"):
        clients = threading.Thread(target=together, args=(16, retry))
        clients.start()
        wait_for_locks(sql, 8)
        try:
            for _ in range(2):
                assert server.patch(2, {"status": "closed"}).status == 200
                assert server.get(1).status == 200
                assert server.request("GET", "/api/health").status == 200
        finally:
            over.set()
            clients.join()
    assert server.patch(1, {"status": "closed"}).status == 200


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_an_encoding_that_cannot_hold_every_text_stops_the_start(
    database_url, encoding
):
    """N1."""
    options = f"ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
    with postgresql_database(options) as url:
        line = start_line(DATABASE_URL=url)
    assert line == "DATABASE_URL: cannot be used: its encoding must be UTF8\n"


def test_a_start_without_the_driver_says_how_to_add_it():
    """The one thing here that is pretended: that psycopg is not installed."""
    line = start_line(
        "import sys; sys.modules['psycopg'] = None\n", DATABASE_URL="postgres://h/d"
    )
    advice = "add it with: pip install 'psycopg[binary]==3.3.9'"
    assert line == f"DATABASE_URL: needs a driver, {advice}\n"


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        pytest.param({"netloc": "nobody:s3cret@{host}"}, "nobody", id="user"),
        pytest.param(
            {"netloc": "u:s3cret@127.0.0.1:{free}"}, "Connection refused", id="port"
        ),
        pytest.param(
            {"netloc": "u:s3cret@{host}:x"},
            "must be sqlite:///tickets.db",
            id="no-port",
        ),
        pytest.param({"path": "/no_such_database"}, "no_such_database", id="database"),
        pytest.param({"query": "sslmode=s3cure"}, "s3cure", id="sslmode"),
        pytest.param(
            {"query": "colour=red"}, 'invalid connection option "colour"', id="option"
        ),
    ],
)
def test_a_database_that_cannot_be_used_stops_the_start(database_url, parts, reason):
    """E8."""
    url = urlsplit(database_url)
    places = {"host": url.netloc.rpartition("@")[2], "free": free_port()}
    changes = {key: value.format(**places) for key, value in parts.items()}
    line = start_line(DATABASE_URL=url._replace(**changes).geturl())
    assert line.startswith("DATABASE_URL: ")
    assert reason in line
    assert line.count("\n") == 1
    assert "s3cret" not in line
    assert url.password is None or url.password not in line


def test_a_start_waits_for_one_that_takes_long(make_server, held, sql):
    """E7: longer than any timeout of a request, as the first index of a large table
    does.
    """
    with held("SELECT pg_advisory_xact_lock(8237)"):
        server = make_server(WEB_CONCURRENCY="1").start(wait=False)
        wait_for_locks(sql)
        time.sleep(1.5)  # lock_timeout is one second.
    server.wait()


@pytest.mark.parametrize("by", ["PATCH", "hand"])
def test_the_time_of_an_update_is_that_after_its_wait(server, held, sql, by):
    """P8, V3: for a row that somebody else was changing; the later version has the
    later time.
    """
    server.fill(1)
    change = {
        "PATCH": lambda: server.patch(1, {"status": "closed"}),
        "hand": lambda: server.sql("UPDATE ticket SET status = 'closed'"),
    }
    clock = """
        SELECT to_char(
            clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS'
        )
    """
    with (
        ThreadPoolExecutor(1) as pool,
        held("UPDATE ticket SET category = 'x'") as other,
    ):
        waiting = pool.submit(change[by])
        wait_for_locks(sql)
        released = other.execute_sql(clock).fetchone()[0]
        other.commit()
        waiting.result()
    ticket = server.get(1).json
    assert ticket["status"] == "closed"
    assert ticket["updated_at"] >= released


def test_a_restart_does_not_wait_for_an_open_transaction(make_server, held):
    """E7."""
    server = make_server(WEB_CONCURRENCY="1").start().fill(1)
    server.stop()
    with held("UPDATE ticket SET category = 'x' WHERE id = 1"):
        assert server.start().get(1).status == 200
