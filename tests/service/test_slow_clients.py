"""Clients that connect and fall silent do not keep others waiting."""

import contextlib
import os
import re
import resource
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.helpers.contract import JSON, TICKETS
from tests.helpers.processes import limited
from tests.helpers.timing import together, wait_for

pytestmark = pytest.mark.database("sqlite")

SLOW = 150  # Two workers have 128 threads.
HALVES = {
    "silent": b"",
    "half-a-header": f"PATCH {TICKETS}/1 HTTP/1.1\r\nHost: loc".encode(),
    "half-a-body": (
        f"PATCH {TICKETS}/1 HTTP/1.1\r\nHost: localhost\r\n"
        "Content-Type: application/json\r\n"
        'Content-Length: 100\r\n\r\n{"status": '
    ).encode(),
}


@pytest.mark.parametrize("again", [False, True], ids=["once", "again-and-again"])
@pytest.mark.parametrize("sent", HALVES.values(), ids=HALVES)
def test_others_are_served_beside_slow_clients(server, sent, again):
    """E9: more of them than there are threads."""
    server.fill(1)
    with contextlib.ExitStack() as stack:

        def connect():
            connection = socket.create_connection(("127.0.0.1", server.port), 5)
            connection.sendall(sent)
            connection.setblocking(False)
            return stack.enter_context(connection)

        slow_clients = [connect() for _ in range(SLOW)]
        for turn in range(4):
            assert server.patch(1, {"status": "closed"}, timeout=20).status == 200
            if turn == 0 and not sent:  # They wait at the poller, not at a thread.
                assert not any(ended(each) for each in slow_clients)
            if again:
                slow_clients = [
                    connect() if ended(each) else each for each in slow_clients
                ]
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
    received = server.raw(HALVES["half-a-body"], timeout=20)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert received.endswith(b'{"error": "Request body did not arrive in time"}\n')


def descriptors(server):
    """Return how many files and sockets the workers have open."""
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in server.workers())


def test_a_client_that_goes_away_leaves_no_traceback(server):
    server.fill(1)
    before = descriptors(server)
    for half in HALVES.values():
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
                connection.sendall(half)
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
            # A reset in place of an orderly end.
            connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
            )
            connection.sendall(HALVES["half-a-body"])
    wait_for(lambda: descriptors(server) == before, "they are not closed")
    assert server.get(1).status == 200
    assert "Traceback" not in server.log


def test_a_client_that_does_not_read_is_cut_off(server):
    """It asks for more than all buffers of the way hold, and takes none of it."""
    ticket = {"user_description": "x" * 10_000, "ai_suggested_response": "y" * 40_000}
    for _ in range(400):
        server.post(ticket)
    with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(
            f"GET {TICKETS}?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        )
        server.wait_for_log("Socket error processing request.")
    assert server.get(1).status == 200
    assert "Traceback" not in server.log


def test_a_client_that_trickles_is_cut_off(server):
    """E9: after 10 seconds for the whole of a request, and a silent one after 2."""
    server.fill(1)

    def trickle(name):
        received = b""
        with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
            connection.sendall(HALVES[name])
            connection.settimeout(1)

            def is_cut_off():
                nonlocal received
                try:
                    connection.sendall(b"x")
                    data = connection.recv(4096)
                except TimeoutError:
                    return False
                except OSError:
                    return True
                received += data
                return not data

            wait_for(is_cut_off, "it was not cut off")
        assert 1 <= len(ticks) <= 2
        return received

    with server.clock() as ticks, ThreadPoolExecutor() as pool:
        trickling = pool.map(trickle, ["half-a-header", "half-a-body"])
        server.raw(HALVES["half-a-body"], timeout=60)
        assert len(ticks) == 0
        head, body = trickling
    assert head == b""
    assert body.startswith(b"HTTP/1.1 408 ")
    assert server.get(1).status == 200
    assert "Traceback" not in server.log


def test_a_unix_socket_is_served_like_a_port(make_server, tmp_path):
    """E9, E5: a whole body and half of one; a client has no address there."""
    server = make_server().start(wait=False, bind=f"unix:{tmp_path}/socket")
    server.wait_for_log("Booting worker")
    server.fill(1)

    def send(data):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(f"{tmp_path}/socket")
            connection.sendall(data)
            return b"".join(iter(lambda: connection.recv(4096), b""))

    half = HALVES["half-a-body"].replace(
        b"localhost", b"localhost\r\nConnection: close"
    )
    assert send(half + b'"closed"}'.ljust(100 - len('{"status": '))).startswith(
        b"HTTP/1.1 200 "
    )
    received = send(half)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert received.endswith(b'{"error": "Request body did not arrive in time"}\n')
    assert send(b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    server.wait_for_log(" - - 400 ")
    for status in (200, 408):
        line = re.compile(
            rf" PATCH {TICKETS}/1 {status} [\d.]+ [\d.]+ - - \w+$", re.MULTILINE
        )
        wait_for(lambda line=line: line.search(server.log), "it is not logged")


def test_a_kept_connection_has_the_time_for_each_request(server):
    """E9: each has its own 10 seconds, also when the connection is older than that."""
    server.fill(1)

    def late_body():
        time.sleep(0.01)
        yield b'{"status": "closed"}'

    headers = {"Content-Type": JSON, "Content-Length": "20"}
    with contextlib.closing(server.connect()) as connection:
        over = time.monotonic() + 10.5
        while time.monotonic() < over:
            assert server.get(1, connection=connection).status == 200
            time.sleep(0.01)
        reply = server.patch(1, late_body(), headers=headers, connection=connection)
        assert reply.status == 200


def test_the_soft_limit_of_descriptors_is_raised(make_server):
    """E9: a connection needs one, and the usual soft limit is 1,024."""
    server = make_server().start(behind=["prlimit", "--nofile=1024:4096"])
    for pid in server.workers():
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (4096, 4096)


def test_no_more_connections_are_taken_than_there_are_descriptors(make_server):
    """E9: the others wait to be accepted; each thread needs some for its database
    connection.
    """
    server = make_server(WEB_CONCURRENCY="1").start(
        behind=["prlimit", "--nofile=400:400"]
    )
    server.fill(1)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(contextlib.closing(server.connect(timeout=60)))
        for number in range(500):
            if number < 400:
                address = ("127.0.0.1", server.port)
                stack.enter_context(socket.create_connection(address, 20))
            # Between two requests the worker accepts what it has room for.
            assert server.get(1, connection=first).status == 200
    assert "No room for a connection" not in server.log


def test_a_worker_without_descriptors_survives(make_server):
    """E9: it goes on when there are some again."""
    server = make_server(WEB_CONCURRENCY="1").start()
    server.fill(1)
    (worker,) = server.workers()
    used = len(os.listdir(f"/proc/{worker}/fd"))
    with (
        limited([worker], resource.RLIMIT_NOFILE, used + 20),
        contextlib.ExitStack() as stack,
    ):
        for _ in range(60):
            address = ("127.0.0.1", server.port)
            stack.enter_context(socket.create_connection(address, 5))
        server.wait_for_log("No room for a connection")
    assert server.get(1, timeout=20).status == 200
    assert server.workers() == [worker]
    assert "Traceback" not in server.log


def test_a_worker_that_cannot_start_a_thread_survives(make_server):
    """E9: a limit of the address space keeps stacks from being made.

    As many connections as it may have, which is few here, are lost to it and counted no
    more.
    """
    server = make_server(WEB_CONCURRENCY="1").start(
        behind=["prlimit", "--nofile=320:320"]
    )
    server.fill(64)
    (worker,) = server.workers()
    with open(f"/proc/{worker}/statm") as statm:
        size = int(statm.read().split()[0]) * resource.getpagesize()
    with (
        limited([worker], resource.RLIMIT_AS, size + 4 * 2**20),
        contextlib.ExitStack() as stack,
    ):
        for _ in range(100):
            connection = socket.create_connection(("127.0.0.1", server.port), 5)
            stack.enter_context(connection).sendall(HALVES["half-a-body"])
        wait_for(
            lambda: server.log.count("No room for a connection") > 80, "there was room"
        )
    replies = together(
        64, lambda n: server.patch(n + 1, {"status": "closed"}, timeout=20)
    )
    assert {reply.status for reply in replies} == {200}
    assert server.workers() == [worker]


@pytest.mark.parametrize("status", [401, 413])
def test_an_answer_before_the_body_arrives_whole(make_server, status):
    """E1, E2: the connection is drained before it is closed, else it is reset."""
    settings = {"TICKETSVC_TOKENS": "s3cret"} if status == 401 else {}
    server = make_server(**settings).start()
    head = (
        f"PATCH {TICKETS}/1 HTTP/1.1\r\nHost: localhost\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {3 * 2**19}\r\n\r\n"
    ).encode()

    def upload(number):
        with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
            connection.sendall(head)
            for _ in range(3 * 2**19 // 65536):
                connection.sendall(
                    b" " * 65536
                )  # Raises where the connection was reset.
                time.sleep(0.002)
            received = b""
            while data := connection.recv(65536):
                received += data
            return received

    for received in together(16, upload):
        assert received.startswith(f"HTTP/1.1 {status} ".encode())
        assert received.endswith(b"}\n")
