"""Nobody waits for PostgreSQL for longer than about 5 seconds: E7."""

import socket
import threading
import time
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from tests.helpers.contract import TICKETS
from tests.helpers.databases import (
    OTHERS,
    WAITING,
    close_connections,
    connect,
    execute,
)
from tests.helpers.relay import Relay
from tests.helpers.timing import together, wait_for
from ticketsvc import create_app

pytestmark = pytest.mark.database("postgresql")

LONGEST = 6.5  # seconds


@pytest.fixture
def relay(database_url):
    with closing(Relay(database_url)) as relay:
        yield relay


@pytest.fixture
def client(relay):
    """A test client of the application behind the relay, with a ticket."""
    app = create_app({"DATABASE_URL": relay.url})
    client = app.test_client()
    client.post(TICKETS, json={"user_description": "x"})
    yield client
    close_connections()


@pytest.fixture
def lock(database_url):
    """Lock all tickets in a transaction of another client."""
    with closing(connect(database_url)) as other, other.transaction() as transaction:
        yield lambda: execute(other, "SELECT * FROM ticket FOR UPDATE")
        transaction.rollback()


def patch_at_once(client, count):
    """Send PATCHes at the same moment; return their statuses and the longest wait."""

    def patch(number):
        started = time.monotonic()
        own = client.application.test_client()
        response = own.patch(f"{TICKETS}/1", json={"category": f"n {number}"})
        return response.status_code, time.monotonic() - started

    answers = together(count, patch)
    return [status for status, _ in answers], max(seconds for _, seconds in answers)


def test_the_open_connections_serve_all_while_no_new_one_is_answered(client, relay):
    relay.swallow_new_connections()
    statuses, longest = patch_at_once(client, 16)
    assert statuses == [200] * 16
    assert longest < LONGEST


def test_a_locked_row_is_given_up_in_time_while_no_new_connection_is_answered(
    client, relay, lock
):
    lock()
    relay.swallow_new_connections()
    statuses, longest = patch_at_once(client, 16)
    assert statuses == [500] * 16
    assert longest < LONGEST


def test_a_request_is_given_up_in_time_if_no_connection_is_left(
    client, relay, sql, caplog
):
    relay.swallow_new_connections()
    sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OTHERS}")
    statuses, longest = patch_at_once(client, 16)
    assert statuses == [500] * 16
    assert longest < LONGEST
    assert "no connection" in caplog.text


def test_a_name_server_that_does_not_answer_is_given_up_in_time(
    database_url, sql, monkeypatch
):
    parts = urlsplit(database_url)
    netloc = parts.netloc.replace(parts.hostname, "localhost")
    app = create_app({"DATABASE_URL": parts._replace(netloc=netloc).geturl()})
    is_over = threading.Event()

    def hang(*names, **options):
        is_over.wait(60)
        raise socket.gaierror("the test is over")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        statuses, longest = patch_at_once(app.test_client(), 16)
    finally:
        is_over.set()
        close_connections()
    assert statuses == [500] * 16
    assert longest < LONGEST


def test_reading_goes_on_while_any_number_of_writes_wait(make_server, start_load, lock):
    """E7: more of them than there are threads."""
    server = make_server(WEB_CONCURRENCY="1").start().fill(100)
    lock()
    load = start_load(server, 100, 100)
    server.wait_for_answers(100)
    for path in (f"{TICKETS}/1", "/api/health") * 2:
        started = time.monotonic()
        assert server.request("GET", path).status == 200
        assert time.monotonic() - started < LONGEST
    assert set(load.end()["statuses"]) == {500}


def test_the_log_has_the_cause_of_a_lost_connection(make_server, lock, sql):
    """P10: in its first line."""
    server = make_server(WEB_CONCURRENCY="1").start().fill(1)
    lock()
    patch = threading.Thread(target=server.patch, args=(1, {"status": "closed"}))
    patch.start()
    wait_for(lambda: sql(WAITING), "it does not wait for the lock")
    sql(f"SELECT pg_terminate_backend(pid) FROM ({WAITING}) AS waiting")
    patch.join()
    assert "PATCH /api/v1/tickets/1 failed: terminating connection" in server.log


def test_the_log_has_the_cause_of_a_broken_connection(client, relay, lock, sql, caplog):
    """P10: the server did not say it, and nobody waited for the deadline."""
    lock()
    path = f"{TICKETS}/1"
    patch = threading.Thread(
        target=client.patch, args=[path], kwargs={"json": {"status": "closed"}}
    )
    patch.start()
    wait_for(lambda: sql(WAITING), "it does not wait for the lock")
    relay.close()
    patch.join()
    assert "PATCH /api/v1/tickets/1 failed: " in caplog.text
    assert "server closed the connection" in caplog.text
    assert "did not answer in time" not in caplog.text
