"""What tests and benchmark share: the service on a real port, its load, and how to look past it."""

import contextlib
import http.client
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from peewee import PostgresqlDatabase, SqliteDatabase
from playhouse import db_url

from database import database

ROOT = Path(__file__).resolve().parent.parent
TICKETS = "/api/v1/tickets"
POSTGRESQL = os.environ.get("TICKETSVC_TEST_POSTGRESQL")
DESCRIPTION = "The export button does nothing"


def connect(url):
    """Return a database of Peewee's own kind, past everything the service adds."""
    kind = SqliteDatabase if url.startswith("sqlite") else PostgresqlDatabase
    options = {} if kind is SqliteDatabase else {"prefer_psycopg3": True}
    return kind(**db_url.parse(url, True, True), **options)


def close_connections():
    """Close what this thread and the pool have open; the application may open it again."""
    database.close()
    for connection in list(getattr(database, "_open", ())):
        connection.close()


def assert_error(response, status, message, fields=None):
    """Pin the whole shape of an error: N1, N2."""
    assert response.status_code == status
    assert response.content_type == "application/json"
    body = {"error": message} | ({} if fields is None else {"fields": fields})
    assert response.get_data(as_text=True) == json.dumps(body, ensure_ascii=False) + "\n"


class Reply:
    """What a server answered: status, headers, body; `json` where the body is."""

    def __init__(self, response, body):
        self.status, self.headers, self.body = response.status, response.headers, body

    @property
    def json(self):
        return json.loads(self.body)


def result(load):
    """Wait for a load to end; return what it printed, its ticket ids as integers."""
    with load:
        found = json.loads(load.communicate(timeout=300)[0])
    for name in ("sent", "acknowledged", "statuses"):
        found[name] = {int(key): value for key, value in found[name].items()}
    return found


def lost(acknowledged, sent, rows):
    """Return the tickets that hold neither what was acknowledged last nor what was sent after it.

    `rows` are those of the table; a ticket that was never acknowledged may hold anything sent.
    """
    stored = {row["id"]: int((row["category"] or "n 0").removeprefix("n ")) for row in rows}
    return [
        (ticket_id, acknowledged.get(ticket_id, 0), stored[ticket_id], last)
        for ticket_id, last in sent.items()
        if not acknowledged.get(ticket_id, 0) <= stored[ticket_id] <= last
    ]


class Server:
    """The service as its Procfile starts it, on a port of its own of 127.0.0.1."""

    def __init__(self, folder, environ):
        self.port = free_port()
        self.log_path = folder / f"server-{self.port}.log"
        self.environ = {"WEB_CONCURRENCY": "2", **environ}
        self.process = None

    def start(self, wait=True, bind=None, prefix=(), stderr=None):
        """Run the Procfile's command, behind `prefix`; wait until it answers."""
        command = (ROOT / "Procfile").read_text().removeprefix("web: ").strip()
        inherited = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        with self.log_path.open("ab") as log, open(stderr or os.devnull, "ab") as errors:
            self.process = subprocess.Popen(
                [*prefix, *shlex.split(command), "--bind", bind or f"127.0.0.1:{self.port}"],
                cwd=ROOT,
                env={**inherited, **self.environ},
                stdout=log,
                stderr=errors if stderr else subprocess.STDOUT,
                start_new_session=True,
            )
        if wait:
            self.wait()
        return self

    def wait(self):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the service ended at its start:\n{self.log}")
            with contextlib.suppress(OSError):
                healthy = self.request("GET", "/api/health", timeout=2).status == 200
                if healthy and len(self.workers()) == self.concurrency:
                    return
            time.sleep(0.02)
        raise AssertionError(f"the service does not answer:\n{self.log}")

    def wait_for_log(self, text, timeout=10):
        """Return when `text` stands in the log."""
        deadline = time.monotonic() + timeout
        while text not in self.log:
            assert time.monotonic() < deadline, f"no {text!r} in the log:\n{self.log}"
            time.sleep(0.02)

    def wait_for_answers(self):
        """Return when a PATCH that was sent from now on, or shortly before, has been answered."""
        seen, deadline = self.log.count(" PATCH /"), time.monotonic() + 10
        while self.log.count(" PATCH /") <= seen:
            assert time.monotonic() < deadline, f"no PATCH is answered:\n{self.log}"
            time.sleep(0.02)

    def stop(self, timeout=15):
        """Ask the master to end and return its exit code; kill what has not ended by then."""
        if self.process is None:
            return None
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

    def workers(self):
        """Return the process ids of the workers."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    @property
    def concurrency(self):
        return int(self.environ["WEB_CONCURRENCY"])

    @property
    def log(self):
        return self.log_path.read_text(errors="replace")

    def fill(self, count):
        """Add tickets past the service; return it."""
        other = connect(self.environ["DATABASE_URL"])
        other.execute_sql(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
            f"WHERE i < {count}) INSERT INTO ticket (user_description, status) "
            "SELECT 'n ' || i, 'closed' FROM n",
        )
        other.close()
        return self

    @property
    def path(self):
        """The path of the database file."""
        return self.environ["DATABASE_URL"].removeprefix("sqlite:///")

    def load(self, clients, seconds, tickets=1000, *options):
        """Start tests/load.py against the service and return its process."""
        arguments = ["--port", self.port, "--clients", clients, "--seconds", seconds]
        arguments += ["--tickets", tickets, *options]
        return subprocess.Popen(
            [sys.executable, ROOT / "tests" / "load.py", *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
        )

    def connect(self, timeout=10):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def request(self, method, path, body=None, headers=None, timeout=10, connection=None):
        """Send one request, a dict as JSON; without a connection, on one of its own."""
        headers = dict(headers or {})
        if isinstance(body, dict):
            body = json.dumps(body)
            headers.setdefault("Content-Type", "application/json")
        own = connection or self.connect(timeout)
        try:
            own.request(method, path, body, headers)
            response = own.getresponse()
            return Reply(response, response.read())
        finally:
            if connection is None:
                own.close()

    def post(self, body=None, **options):
        return self.request("POST", TICKETS, body or {"user_description": DESCRIPTION}, **options)

    def patch(self, ticket_id, body, **options):
        return self.request("PATCH", f"{TICKETS}/{ticket_id}", body, **options)

    def get(self, ticket_id, **options):
        return self.request("GET", f"{TICKETS}/{ticket_id}", **options)

    def raw(self, data, timeout=5, shutdown=False):
        """Send bytes as they are, then an end of input if asked to; return all that comes back."""
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


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_line(first="", **environ):
    """Make the application in a process of its own and return what it printed, having failed."""
    command = [sys.executable, "-c", f"{first}import ticketsvc; ticketsvc.create_app()"]
    process = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert process.returncode == 1
    assert process.stdout == ""
    return process.stderr


def together(count, work):
    """Run work(0) … work(count - 1) at the same moment and return what they return, in order."""
    barrier = threading.Barrier(count, timeout=30)

    def run(number):
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))
