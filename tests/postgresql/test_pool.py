"""The pool of connections loses none and leaves none open, whatever fails.

Writes that wait for one do not overtake each other.
"""

import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from peewee import OperationalError

import database
from database import FairSemaphore, Pool
from tests.helpers.timing import wait_for

pytestmark = pytest.mark.database("postgresql")


class FakeSession:
    """A session without a server."""

    def __init__(self):
        self.connection = SimpleNamespace()
        self.is_closed = False
        self.was_closed_by_server = False

    def is_stale(self):
        return self.was_closed_by_server

    def close(self):
        self.is_closed = True


def soon():
    """Return a deadline for what is expected to be given up."""
    return time.monotonic() + 0.2


def later():
    """Return a deadline for what is expected to succeed."""
    return time.monotonic() + 30


@pytest.fixture(autouse=True)
def short_pause(monkeypatch):
    monkeypatch.setattr(database, "RETRY_TIME", 0.05)


def test_a_session_is_used_again():
    made = []
    pool = Pool(8, lambda: made.append(FakeSession()) or made[-1])
    for _ in range(3):
        with pool.session(later()) as session:
            assert session is made[0]
    time.sleep(0.05)  # In which a thread would make another one.
    assert len(made) == 1


def test_no_more_than_its_size_are_open():
    pool = Pool(2, FakeSession)
    with (
        pool.session(later()),
        pool.session(later()),
        pytest.raises(OperationalError, match="no connection was free in time"),
        pool.session(soon()),
    ):
        pass


def test_one_whose_statement_failed_is_closed_and_replaced():
    pool = Pool(1, FakeSession)
    with (
        pytest.raises(ValueError, match="the statement"),
        pool.session(later()) as failed,
    ):
        raise ValueError("the statement failed")
    with pool.session(later()) as session:
        assert failed.is_closed
        assert session is not failed


def test_one_that_the_server_has_closed_is_closed_and_replaced():
    pool = Pool(1, FakeSession)
    with pool.session(later()) as stale:
        pass
    stale.was_closed_by_server = True
    with pool.session(later()) as session:
        assert stale.is_closed
        assert session is not stale


def test_a_failed_attempt_is_told_and_loses_no_room():
    failures = [OSError("one\n  line"), OSError("another")]

    def make():
        if failures:
            raise failures.pop(0)
        return FakeSession()

    pool = Pool(1, make)
    for text in ("no connection: one line", "no connection: another"):
        with pytest.raises(OperationalError, match=text), pool.session(later()):
            pass
    with pool.session(later()):
        pass


def test_a_wait_that_is_over_tells_why_no_session_was_added():
    sessions = [FakeSession()]

    def make():
        if not sessions:
            raise OSError("too many\n  clients")
        return sessions.pop()

    pool = Pool(2, make)
    sentence = "no connection was free in time, and a new one failed: too many clients"
    with (
        pool.session(later()),
        pytest.raises(OperationalError, match=sentence),
        pool.session(soon()),
    ):
        pass


def test_a_thread_that_cannot_be_started_loses_no_room(monkeypatch):
    def fail(thread):
        raise RuntimeError("can't start new thread")

    pool = Pool(1, FakeSession)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        for _ in range(2):
            with (
                pytest.raises(OperationalError, match="can't start new thread"),
                pool.session(later()),
            ):
                pass
    with pool.session(later()):
        pass


def test_who_waits_gets_the_first_that_is_free():
    """A new connection that takes long keeps nobody from one that is given back."""
    is_connecting = threading.Event()
    is_over = threading.Event()
    sessions = [FakeSession()]

    def make():
        if not sessions:
            is_connecting.set()
            is_over.wait(60)
            raise OSError("the test is over")
        return sessions.pop()

    pool = Pool(2, make)
    found = []

    def take():
        with pool.session(later()) as session:
            found.append(session)

    with pool.session(later()) as session:
        waiting = threading.Thread(target=take)
        waiting.start()
        is_connecting.wait(60)
    waiting.join()
    is_over.set()
    assert found == [session]


@contextmanager
def turn_of(semaphore, seconds=30):
    """Hold a semaphore."""
    assert semaphore.acquire(seconds)
    yield
    semaphore.release()


def test_nobody_takes_a_turn_before_those_who_wait_for_one():
    """E7: writes that wait for a connection come in the order of their arrival."""
    semaphore = FairSemaphore(1)
    order = []

    def take(number):
        with turn_of(semaphore):
            order.append(number)

    threads = [threading.Thread(target=take, args=[number]) for number in range(3)]
    with turn_of(semaphore):
        for thread in threads:
            thread.start()
            time.sleep(0.1)  # In which it begins to wait.
    with turn_of(semaphore):
        order.append("again")
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, "again"]


def test_a_turn_that_was_given_up_goes_to_the_next():
    semaphore = FairSemaphore(2)
    with turn_of(semaphore), turn_of(semaphore):
        assert not semaphore.acquire(0.05)
    with turn_of(semaphore), turn_of(semaphore):
        assert not semaphore.acquire(0.05)


def test_closing_closes_what_is_idle_in_use_or_being_made():
    may_go_on = threading.Event()
    made = []

    def make():
        if len(made) == 2:
            may_go_on.wait(60)
        made.append(FakeSession())
        return made[-1]

    pool = Pool(3, make)
    with pool.session(later()), pool.session(later()):
        with (
            pytest.raises(OperationalError, match="nobody answers"),
            pool.session(soon()),
        ):
            pass
        pool.close()
        may_go_on.set()
        wait_for(lambda: len(made) == 3 and made[2].is_closed, "it is open")
    assert all(session.is_closed for session in made)
