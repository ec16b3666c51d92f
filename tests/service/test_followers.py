"""Followers of the feed beside writers: F1, F3 and F5."""

import os
import random
import signal
import threading
import time
from contextlib import closing, contextmanager

import pytest

from tests.helpers.contract import TICKETS, assert_error
from tests.helpers.databases import connect, execute
from tests.helpers.follower import CHANGES, Follower, start_thread, write_by_hand

WRITERS = 16
# The load has the first tickets; each of the threads by hand has five of the next.
BY_HAND = 4
FILLED = 200


@contextmanager
def hands(server):
    """Run transactions by hand as long as the context lasts."""
    is_over = threading.Event()
    threads = []
    for number in range(BY_HAND):
        first = 100 + 5 * number
        tickets = range(first, first + 5)
        url = server.environ["DATABASE_URL"]
        thread = start_thread(write_by_hand, url, is_over, tickets, number)
        threads.append(thread)
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


@contextmanager
def open_transaction(url, statement):
    """Hold a transaction by hand open that has run a statement; roll it back."""
    with closing(connect(url)) as other:
        execute(other, "BEGIN")
        execute(other, statement)
        yield
        execute(other, "ROLLBACK")


def file_tickets(server, is_over):
    """File tickets through the service, a kill of whose workers may cut it off."""
    while not is_over.is_set():
        try:
            server.post({"user_description": "x"})
        except Exception:
            continue


def kill_workers(server, seconds):
    """Kill one of the workers now and then."""
    chance = random.Random(7)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.3 + chance.random())
        workers = server.workers()
        if workers:
            os.kill(chance.choice(workers), signal.SIGKILL)


def test_a_copy_equals_the_table(server, start_load, sql, full, on_sqlite):
    """F1, F3: after kills of workers, beside transactions that pause and roll back."""
    server.fill(FILLED)
    follower = Follower(server)
    is_over = threading.Event()
    threads = [
        start_thread(follower.read_until, is_over),
        start_thread(file_tickets, server, is_over),
    ]
    load = start_load(server, WRITERS, 64)
    try:
        if on_sqlite:
            kill_workers(server, 30 if full else 4)
        else:
            with hands(server):
                kill_workers(server, 30 if full else 4)
        found = load.end()
    finally:
        is_over.set()
        for thread in threads:
            thread.join()

    server.wait()
    follower.read_to_end()
    assert sum(found["acknowledged"].values()) > 100
    assert follower.statuses.count(200) > 10
    assert follower.differences(sql("SELECT * FROM ticket")) == []


def test_each_acknowledged_write_is_in_the_pages_that_follow(
    server, start_load, sql, full, on_sqlite
):
    """F3: in the first ones that are asked for after its answer."""
    server.fill(FILLED)
    follower = Follower(server, limit=1000)
    follower.read_to_end()
    chance = random.Random(21)
    load = start_load(server, 8, 64)
    connection = server.connect()

    def write(number):
        """Write something; return the id of the ticket, and what it is now."""
        ticket_id = FILLED - number % 50
        value = f"value {number}"
        how = chance.choice(("patch", "post", "hand"))
        if how == "patch":
            body = {"category": value}
            reply = server.patch(ticket_id, body, connection=connection)
            assert reply.status == 200
            return ticket_id, "category", value
        if how == "post":
            body = {"user_description": value}
            reply = server.post(body, connection=connection)
            assert reply.status == 201
            return reply.json["id"], "user_description", value
        statement = f"UPDATE ticket SET user_description = '{value}' WHERE id = "
        sql(f"{statement}{ticket_id}")
        return ticket_id, "user_description", value

    def is_followed(ticket_id, name, value):
        """Read pages until the value is in one; there are few, the load being one."""
        for _ in range(20):
            page = follower.read_page()
            if any(each["id"] == ticket_id and each[name] == value for each in page):
                return True
            if page == []:
                return False
        return False

    def run():
        for number in range(3000 if full else 150):
            time.sleep(chance.random() * 0.01)
            assert is_followed(*write(number)), number

    if on_sqlite:
        run()
    else:
        with hands(server):
            run()
    connection.close()
    load.end()


@pytest.mark.database("postgresql")
class TestWaiting:
    """F5: behind transactions that take long."""

    def test_an_open_transaction_is_a_503_after_a_second(
        self, client, database_url, ticket
    ):
        with open_transaction(database_url, "UPDATE ticket SET status = 'closed'"):
            begun = time.monotonic()
            response = client.get(CHANGES)
            assert 0.9 < time.monotonic() - begun < 3
            assert_error(response, 503, "Database is busy")
            assert response.headers["Retry-After"] == "1"
            assert client.head(CHANGES).status_code == 503
            assert client.get(TICKETS).status_code == 200
        assert client.get(CHANGES).status_code == 200

    @pytest.mark.parametrize(
        "statement",
        [
            "INSERT INTO ticket (user_description, status) VALUES ('x', 'closed')",
            "DELETE FROM ticket WHERE id = 1",
        ],
        ids=["insert", "delete"],
    )
    def test_whatever_it_writes(self, server, database_url, statement):
        server.fill(2)
        with open_transaction(database_url, statement):
            assert server.request("GET", CHANGES).status == 503

    def test_an_open_transaction_that_only_reads_is_not_waited_for(
        self, server, database_url
    ):
        server.fill(2)
        with open_transaction(database_url, "SELECT * FROM ticket FOR UPDATE"):
            assert server.request("GET", CHANGES).status == 200

    def test_waiting_followers_delay_no_write(self, server, database_url, full):
        """F5: twelve of them, and no PATCH fails."""
        server.fill(FILLED)

        def latencies(seconds):
            connection = server.connect()
            found = []
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                begun = time.monotonic()
                reply = server.patch(2, {"category": "x"}, connection=connection)
                assert reply.status == 200
                found.append(time.monotonic() - begun)
            connection.close()
            return sorted(found)

        seconds = 20 if full else 3
        change = "UPDATE ticket SET status = status WHERE id = 1"
        with open_transaction(database_url, change):
            alone = latencies(seconds)
            is_over = threading.Event()
            followers = [Follower(server) for _ in range(12)]
            threads = [start_thread(each.read_until, is_over) for each in followers]
            try:
                beside = latencies(seconds)
            finally:
                is_over.set()
                for thread in threads:
                    thread.join()

        for name, found in (("alone", alone), ("beside followers", beside)):
            middle = found[len(found) // 2]
            print(f"{name}: {len(found)}, p50 {middle:.4f} s, max {found[-1]:.4f} s")
        assert beside[-1] < alone[-1] + 1
        assert {status for each in followers for status in each.statuses} == {503}

    def test_a_continuous_load_does_not_starve_a_follower(self, server, start_load):
        """F5: it waits for the writes that are under way, not for later ones."""
        server.fill(FILLED)
        load = start_load(server, WRITERS, 64)
        server.wait_for_answers(50)
        follower = Follower(server)
        until = time.monotonic() + 3
        while time.monotonic() < until:
            follower.read_page()
        load.end()
        statuses = follower.statuses
        assert len(statuses) > 10
        assert statuses.count(200) > 0.9 * len(statuses)
