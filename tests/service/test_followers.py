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
from tests.helpers.timing import together

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


class Recorder:
    """A follower, and what it has to have read by which of its requests."""

    def __init__(self, server):
        self._follower = Follower(server, limit=1000)
        self._begun = 0  # requests
        self._pages = {}  # id: [(version, the request whose page had it), …]
        self._wanted = []  # (id, version, requests begun when it was acknowledged)

    def read_until(self, is_over):
        while not is_over.is_set():
            self.read_page()

    def read_page(self):
        self._begun += 1
        for ticket in self._follower.read_page():
            found = self._pages.setdefault(ticket["id"], [])
            found.append((ticket["version"], self._begun))

    def acknowledge(self, ticket_id, version):
        """Note that this has been written now."""
        self._wanted.append((ticket_id, version, self._begun))

    def count(self):
        return len(self._wanted)

    def missed(self):
        """Return what was not in the first page asked for after its answer."""
        missed = []
        for ticket_id, version, begun in self._wanted:
            found = [
                request
                for each_version, request in self._pages.get(ticket_id, ())
                if each_version >= version
            ]
            # A page has room for all that a load writes meanwhile.
            if not found or min(found) > begun + 1:
                missed.append((ticket_id, version, begun, found))
        return missed


def write_and_record(server, recorder, count, number):
    """Write so many times to tickets of this thread's own, at random moments."""
    chance = random.Random(number)
    connection = server.connect()
    with closing(connect(server.environ["DATABASE_URL"])) as other:
        for _ in range(count):
            time.sleep(chance.random() * 0.02)
            ticket_id = 180 + 5 * number + chance.randrange(5)
            how = chance.choice(("patch", "post", "by hand"))
            if how == "patch":
                body = {"category": "x"}
                reply = server.patch(ticket_id, body, connection=connection)
                assert reply.status == 200
                version = int(reply.headers["ETag"].strip('"').partition("-")[0])
            elif how == "post":
                reply = server.post(connection=connection)
                assert reply.status == 201
                ticket_id = reply.json["id"]
                version = 1
            else:
                execute(other, "BEGIN")
                change = f"UPDATE ticket SET status = 'closed' WHERE id = {ticket_id}"
                execute(other, change)
                time.sleep(chance.random() * 0.02)
                read = f"SELECT version FROM ticket WHERE id = {ticket_id}"
                version = execute(other, read)[0]["version"]
                execute(other, "COMMIT")
            recorder.acknowledge(ticket_id, version)
    connection.close()


def test_each_acknowledged_write_is_in_the_next_page(server, start_load, full):
    """F3: in the one that was asked for after its answer, or before it."""
    server.fill(FILLED)
    recorder = Recorder(server)
    recorder.read_page()
    load = start_load(server, 4, 64)
    is_over = threading.Event()
    thread = start_thread(recorder.read_until, is_over)
    count = 1000 if full else 60
    try:
        together(4, lambda number: write_and_record(server, recorder, count, number))
    finally:
        is_over.set()
        thread.join()
    load.end()
    recorder.read_page()
    assert recorder.count() == 4 * count
    assert recorder.missed() == []


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
