"""The service, or any other server, as a process on a port of its own."""

import contextlib
import http.client
import json
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import weakref
from contextlib import contextmanager
from logging.handlers import BufferingHandler
from pathlib import Path

import pytest

from tests.helpers.contract import DESCRIPTION, JSON, ROOT, TICKETS
from tests.helpers.databases import close_connections, run_sql
from tests.helpers.timing import wait_for
from ticketsvc import create_app

# The Procfile's command; Server says where it listens.
SERVICE = (ROOT / "Procfile").read_text().removeprefix(
    "web: "
).strip() + " --bind {bind}"


class Reply:
    """What a server answered: status, headers, body; `json` where the body is."""

    def __init__(self, response, body):
        self.status = response.status
        self.headers = response.headers
        self.body = body

    @property
    def json(self):
        return json.loads(self.body)


class Server:
    """A server on a port of its own of 127.0.0.1: the service, or whatever `command`
    starts.

    {port} and {bind} in the command stand for where it is to listen.
    """

    def __init__(self, folder, environ, command=SERVICE, cwd=ROOT, prefix=""):
        self.port = free_port(self)
        self.log_path = folder / f"server-{self.port}.log"
        self.environ = {"WEB_CONCURRENCY": "2", **environ}
        self.command = command
        self.cwd = cwd
        self.health = f"{prefix}/api/health"
        self.process = None

    def start(self, wait=True, bind=None, behind=(), stderr=None, pass_fds=()):
        """Run the command, `behind` another one; wait until it answers."""
        bind = bind or f"127.0.0.1:{self.port}"
        command = shlex.split(self.command.format(port=self.port, bind=bind))
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with (
            self.log_path.open("ab") as log,
            open(stderr or os.devnull, "ab") as errors,
        ):
            self.process = subprocess.Popen(
                [*behind, *command],
                cwd=self.cwd,
                env={"PATH": path, "TZ": os.environ.get("TZ", ""), **self.environ},
                stdout=log,
                stderr=errors if stderr else subprocess.STDOUT,
                start_new_session=True,
                pass_fds=pass_fds,
            )
        if wait:
            self.wait()
        return self

    def wait(self):
        """Return when it answers, and has its workers."""

        def answers():
            assert self.process.poll() is None, f"it ended at its start:\n{self.log}"
            with contextlib.suppress(OSError, http.client.HTTPException):
                return self.request("GET", self.health, timeout=2).status == 200

        wait_for(answers, "the server does not answer")
        if self.command == SERVICE:
            wanted = int(self.environ["WEB_CONCURRENCY"])
            wait_for(
                lambda: sum(map(accepts, self.workers())) == wanted,
                "there are fewer workers",
            )

    def wait_for_log(self, text):
        """Return when `text` stands in the log."""
        wait_for(lambda: text in self.log, f"no {text!r} in the log")

    def wait_for_answers(self, count=1):
        """Return when so many more PATCHes have been answered."""
        wanted = self.log.count(" PATCH /") + count
        wait_for(lambda: self.log.count(" PATCH /") >= wanted, "no PATCH is answered")

    def stop(self, timeout=60):
        """Ask the master to end and return its exit code; kill what has not ended by
        then.
        """
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        finally:
            self.kill()

    def kill(self):
        """End every process of the service at once, as a power cut would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @contextmanager
    def clock(self):
        """Give a list that grows by one each time that the service closes an idle
        connection.

        It does so after 5 seconds, and on a busy machine as late as what is compared
        with it.
        """
        ticks, over = [], threading.Event()

        def tick():
            while not over.is_set():
                ticks.append(self.raw(b"", timeout=60))

        thread = threading.Thread(target=tick)
        thread.start()
        try:
            yield ticks
        finally:
            over.set()
            thread.join()

    def workers(self):
        """Return the process ids of the workers."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    @property
    def log(self):
        return self.log_path.read_text(errors="replace")

    @property
    def path(self):
        """The path of the database file."""
        return self.environ["DATABASE_URL"].removeprefix("sqlite:///")

    def sql(self, statement):
        """Run a statement past the service; return its rows as dicts."""
        return run_sql(self.environ["DATABASE_URL"], statement)

    def fill(self, count):
        """Add tickets past the service, every third one closed; return it."""
        self.sql(
            f"""
            WITH RECURSIVE n(i) AS (
                SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}
            )
            INSERT INTO ticket (user_description, status)
            SELECT
                'n ' || i,
                CASE i - i / 3 * 3 WHEN 0 THEN 'closed' ELSE 'pending_agent' END
            FROM n
            """
        )
        return self

    def connect(self, timeout=30):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def request(
        self, method, path, body=None, headers=None, timeout=30, connection=None
    ):
        """Send one request, a dict as JSON; without a connection, on one of its own."""
        headers = dict(headers or {})
        if isinstance(body, dict):
            body = json.dumps(body)
            headers.setdefault("Content-Type", JSON)
        own = connection or self.connect(timeout)
        try:
            own.request(method, path, body, headers)
            response = own.getresponse()
            return Reply(response, response.read())
        finally:
            if connection is None:
                own.close()

    def post(self, body=None, **options):
        return self.request(
            "POST", TICKETS, body or {"user_description": DESCRIPTION}, **options
        )

    def patch(self, ticket_id, body, **options):
        return self.request("PATCH", f"{TICKETS}/{ticket_id}", body, **options)

    def get(self, ticket_id, **options):
        return self.request("GET", f"{TICKETS}/{ticket_id}", **options)

    def raw(self, data, timeout=20, shutdown=False):
        """Send bytes as they are, then an end of input if asked to; return all that
        comes back.
        """
        received = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout) as connection:
            # A server that has answered may refuse the rest of what is being sent.
            with contextlib.suppress(OSError):
                connection.sendall(data)
                if shutdown:
                    connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError):
                while chunk := connection.recv(65536):
                    received += chunk
        return received


def free_port(owner=sys):
    """Return a port that no other process gets while its owner lives: it is bound
    already.

    A server may still listen on it (socket(7), SO_REUSEADDR).
    """
    probe = socket.socket()
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
    weakref.finalize(owner, os.close, probe.detach())
    return port


def accepts(pid):
    """Whether a worker has booted: its poller knows a listener beside the queue of
    callbacks.
    """
    folder = Path(f"/proc/{pid}/fdinfo")
    with contextlib.suppress(OSError):
        return any(file.read_text().count("tfd:") > 1 for file in folder.iterdir())
    return False


def exit_line(**environ):
    """Make the application and return what the process would print, having failed."""
    logged = BufferingHandler(1000)
    logger = logging.getLogger("ticketsvc")
    logger.addHandler(logged)
    try:
        with pytest.raises(SystemExit) as exited:
            create_app(environ)
    finally:
        logger.removeHandler(logged)
        close_connections()

    assert isinstance(exited.value.code, str)  # Its exit status is then 1.
    lines = [logged.format(record) for record in logged.buffer]
    return "".join(f"{line}\n" for line in [*lines, exited.value.code])


def start_line(first="", **environ):
    """Make the application in a process of its own and return what it printed, having
    failed.
    """
    command = [sys.executable, "-c", f"{first}import ticketsvc; ticketsvc.create_app()"]
    process = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True
    )
    assert process.returncode == 1
    assert process.stdout == ""
    return process.stderr
