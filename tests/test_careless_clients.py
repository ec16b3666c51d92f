"""Clients that connect and fall silent do not keep others waiting."""

import contextlib
import socket
import time

import pytest

from tests.conftest import TICKETS

CARELESS = 60
HALVES = {
    "silent": b"",
    "half-a-header": f"PATCH {TICKETS}/1 HTTP/1.1\r\nHost: loc".encode(),
    "half-a-body": (
        f"PATCH {TICKETS}/1 HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        'Content-Length: 100\r\n\r\n{"status": '
    ).encode(),
}


@pytest.fixture
def database_url(sqlite_url):
    """This is about SQLite."""
    return sqlite_url


@pytest.mark.parametrize("again", [False, True], ids=["once", "again-and-again"])
@pytest.mark.parametrize("sent", HALVES.values(), ids=HALVES)
def test_the_well_behaved_are_served_beside_the_careless(server, sent, again):
    """Within five seconds every good request is answered in under one, and goes on being so."""
    server.fill(1)
    with contextlib.ExitStack() as stack:

        def connect():
            connection = socket.create_connection(("127.0.0.1", server.port), 5)
            connection.sendall(sent)
            connection.setblocking(False)
            return stack.enter_context(connection)

        careless = [connect() for _ in range(CARELESS)]
        started = time.monotonic()
        slow = []
        while time.monotonic() < started + 8:
            asked = time.monotonic()
            try:
                good = server.patch(1, {"status": "closed"}, timeout=1).status == 200
            except OSError:
                good = False
            if asked > started + 5 and (not good or time.monotonic() - asked > 1):
                slow.append(asked - started)
            time.sleep(0.05)
            careless = [connect() if again and ended(each) else each for each in careless]
        assert not slow
    assert "Traceback" not in server.log


def ended(connection):
    """Whether the server has closed the connection."""
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def test_half_a_body_is_a_408(server):
    """N2: a client that still listens learns why."""
    server.fill(1)
    received = server.raw(HALVES["half-a-body"], timeout=6)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert received.endswith(b'{"error": "Request body did not arrive in time"}\n')


def test_a_client_that_goes_away_leaves_no_traceback(server):
    server.fill(1)
    for half in HALVES.values():
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
                connection.sendall(half)
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
            # A reset in place of an orderly end.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.sendall(HALVES["half-a-body"])
    time.sleep(3)
    assert server.get(1).status == 200
    assert "Traceback" not in server.log


def test_a_client_that_does_not_read_is_cut_off(server):
    """It asks for more than all buffers of the way hold, and takes none of it."""
    ticket = {"user_description": "x" * 10_000, "ai_suggested_response": "y" * 40_000}
    for _ in range(400):
        server.post(ticket)
    with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(f"GET {TICKETS}?limit=1000 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        server.wait_for_log("Socket error processing request.")
    assert server.get(1).status == 200
    assert "Traceback" not in server.log
