"""Starts, signals and restarts under load: whoever was accepted is answered."""

import os
import signal
import socket

from tests.helpers.contract import once
from tests.helpers.databases import assert_whole
from tests.helpers.load import assert_all_succeeded, lost
from tests.helpers.timing import together, wait_for

pytestmark = once


def test_a_restart_still_has_the_ticket(server):
    """E4."""
    ticket = server.post().json
    assert server.stop() == 0
    assert server.start().get(ticket["id"]).json == ticket


def test_sigterm_under_load_answers_what_was_accepted(server, start_load):
    """E4: the master ends by itself, and every client has had an answer to what it
    sent.
    """
    server.fill(1000)
    load = start_load(server, 32, 1000, once=True)
    server.wait_for_answers(100)
    assert server.stop() == 0
    assert_all_succeeded(load.end())
    assert "Traceback" not in server.log


def test_sigusr2_hands_over_and_refuses_nothing(server, start_load):
    """E4: as the README says; the new master stays in the process group."""
    server.fill(1000)
    load = start_load(server, 16)
    server.wait_for_answers(100)
    server.process.send_signal(signal.SIGUSR2)
    wait_for(lambda: server.log.count("Booting worker") == 4, "there is no new master")
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    server.wait_for_answers(100)
    assert_all_succeeded(load.end())


def test_a_restart_behind_a_socket_refuses_nothing(make_server, start_load):
    """E4: the socket of the README's unit, which systemd keeps (sd_listen_fds(3))."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        activate = f'exec 3<&{listener.fileno()}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
        server = make_server()
        server.port = listener.getsockname()[1]

        def start():
            return server.start(
                behind=["bash", "-c", activate, "bash"], pass_fds=[listener.fileno()]
            )

        start().fill(1000)
        load = start_load(server, 16)
        for _ in range(2):
            server.wait_for_answers(100)
            assert server.stop() == 0
            start()
        server.wait_for_answers(100)
        assert_all_succeeded(load.end())


def test_sigterm_ends_a_worker_that_cannot_end_itself(server):
    """E4: sooner than a platform kills everything, 30 seconds after it (Heroku)."""
    os.kill(server.workers()[0], signal.SIGSTOP)
    assert server.stop(timeout=20) == 0


def test_a_killed_worker_takes_nobody_along(server, start_load):
    """N1: the others go on, and the master makes a new one."""
    server.fill(1000)
    load = start_load(server, 32)
    server.wait_for_answers(100)
    killed = server.workers()[0]
    os.kill(killed, signal.SIGKILL)
    server.wait_for_log(f"Worker (pid:{killed})")
    server.wait_for_answers(100)
    found = load.end()
    assert_whole(server)
    assert set(found["statuses"]) == {200}
    assert set(found["failures"]) <= {"unanswered", "cut"}
    assert sum(found["failures"].values()) < 32  # Its own clients, at that moment.
    assert not lost(found, server.sql("SELECT * FROM ticket"))
    assert len(server.workers()) == 2
    assert killed not in server.workers()


def test_eight_workers_start_on_a_fresh_file(make_server, full, tmp_path):
    """And on a file of an older start; none fails, none finds it locked."""
    for turn in range(20 if full else 1):
        url = f"sqlite:///{tmp_path}/fresh-{turn}.db"
        for _ in range(2):
            server = make_server(WEB_CONCURRENCY="8", DATABASE_URL=url).start()
            replies = together(16, lambda number, server=server: server.post())
            assert {reply.status for reply in replies} == {201}
            workers = server.workers()
            assert len(workers) == 8
            assert server.stop() == 0
            assert server.log.count("Booting worker") == 8
            assert "locked" not in server.log
            assert "Traceback" not in server.log


def test_several_services_start_at_once_on_a_fresh_file(make_server):
    servers = [make_server() for _ in range(4)]
    for server in servers:
        server.start(wait=False)
    for server in servers:
        server.wait()
        assert server.post().status == 201
        assert "locked" not in server.log
