"""What tests and benchmark share: the service on a real port, its load, and how to look past it."""

import contextlib
import http.client
import json
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from peewee import PostgresqlDatabase, SqliteDatabase
from playhouse import db_url

from database import database, rows_of

ROOT = Path(__file__).resolve().parent.parent
# The Procfile's command; Server says where it listens.
SERVICE = (ROOT / "Procfile").read_text().removeprefix("web: ").strip() + " --bind {bind}"
TICKETS = "/api/v1/tickets"
POSTGRESQL = os.environ.get("TICKETSVC_TEST_POSTGRESQL")
DESCRIPTION = "The export button does nothing"
# For a test that says the same whatever the database is.
once = pytest.mark.database("sqlite")


def connect(url):
    """Return a database of Peewee's own kind, past everything the service adds."""
    kind = SqliteDatabase if url.startswith("sqlite") else PostgresqlDatabase
    options = {} if kind is SqliteDatabase else {"prefer_psycopg3": True}
    return kind(**db_url.parse(url, True, True), **options)


def execute(other, statement):
    """Run a statement on a connection past the service; return its rows as dicts."""
    cursor = other.execute_sql(statement)
    return rows_of(cursor) if cursor.description else []


def run_sql(url, statement):
    """Run a statement on a connection of its own; return its rows as dicts."""
    with contextlib.closing(connect(url)) as other:
        return execute(other, statement)


@contextmanager
def postgresql_database(options=""):
    """Make a database beside the one that the environment names; give its URL, and drop it."""
    name = f"ticketsvc_test_{secrets.token_hex(8)}"
    run_sql(POSTGRESQL, f"CREATE DATABASE {name} {options}")
    try:
        yield urlsplit(POSTGRESQL)._replace(path=f"/{name}").geturl()
    finally:
        run_sql(POSTGRESQL, f"DROP DATABASE {name} WITH (FORCE)")


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


def wait_for(condition, what, timeout=60):
    """Return what `condition()` returns once that is true; fail when it is not in time."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, f"after {timeout} s: {what}"
        time.sleep(0.02)
    return found


def result(load):
    """Wait for a load to end; return what it printed, its ticket ids as integers."""
    with load:
        found = json.loads(load.communicate(timeout=300)[0])
    for name in ("sent", "acknowledged", "statuses"):
        found[name] = {int(key): value for key, value in found[name].items()}
    return found


def end(load):
    """Have a load send no more; return its result."""
    load.terminate()
    return result(load)


def assert_all_succeeded(found):
    """Every request of a load was answered, and with 200."""
    assert set(found["statuses"]) == {200}
    assert found["failures"] == {}


def assert_whole(server):
    """SQLite finds nothing wrong with the file."""
    assert server.sql("PRAGMA integrity_check") == [{"integrity_check": "ok"}]


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
    """A server on a port of its own of 127.0.0.1: the service, or whatever `command` starts.

    {port} and {bind} in the command stand for where it is to listen.
    """

    def __init__(self, folder, environ, command=SERVICE, cwd=ROOT, prefix=""):
        self.port = free_port(self)
        self.log_path = folder / f"server-{self.port}.log"
        self.environ = {"WEB_CONCURRENCY": "2", **environ}
        self.command, self.cwd = command, cwd
        self.health = f"{prefix}/api/health"
        self.process, self.loads = None, []

    def start(self, wait=True, bind=None, behind=(), stderr=None, pass_fds=()):
        """Run the command, `behind` another one; wait until it answers."""
        bind = bind or f"127.0.0.1:{self.port}"
        command = shlex.split(self.command.format(port=self.port, bind=bind))
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with self.log_path.open("ab") as log, open(stderr or os.devnull, "ab") as errors:
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
            wait_for(lambda: sum(map(accepts, self.workers())) == wanted, "there are fewer workers")

    def wait_for_log(self, text):
        """Return when `text` stands in the log."""
        wait_for(lambda: text in self.log, f"no {text!r} in the log")

    def wait_for_answers(self, count=1):
        """Return when so many more PATCHes have been answered."""
        wanted = self.log.count(" PATCH /") + count
        wait_for(lambda: self.log.count(" PATCH /") >= wanted, "no PATCH is answered")

    def stop(self, timeout=60):
        """Ask the master to end and return its exit code; kill what has not ended by then."""
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
        """Give a list that grows by one each time that the service closes an idle connection.

        It does so after 5 seconds, and on a busy machine as late as what is compared with it.
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

    def cpu(self):
        """Return the CPU seconds of all its processes."""
        ticks = 0
        for pid in (self.process.pid, *self.workers()):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory(self):
        """Return the proportional set size of all its processes, in MiB."""
        total = 0
        for pid in (self.process.pid, *self.workers()):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(re.search(r"^Pss:\s+(\d+)", rollup, re.MULTILINE)[1])
        return total / 1024

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
            f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) "
            "INSERT INTO ticket (user_description, status) SELECT 'n ' || i, "
            "CASE i - i / 3 * 3 WHEN 0 THEN 'closed' ELSE 'pending_agent' END FROM n",
        )
        return self

    def load(self, clients, tickets=1000, seconds=120, once=False):
        """Start tests/load.py against the service and return its process, for result() or end()."""
        arguments = ["--port", self.port, "--clients", clients, "--seconds", seconds]
        arguments += ["--tickets", tickets, *(["--once"] if once else [])]
        command = [sys.executable, ROOT / "tests" / "load.py", *map(str, arguments)]
        self.loads.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return self.loads[-1]

    def connect(self, timeout=30):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def request(self, method, path, body=None, headers=None, timeout=30, connection=None):
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

    def raw(self, data, timeout=20, shutdown=False):
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


def free_port(owner=sys):
    """Return a port that no other process gets while its owner lives: it is bound already.

    A server may still listen on it (socket(7), SO_REUSEADDR).
    """
    probe = socket.socket()
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
    weakref.finalize(owner, os.close, probe.detach())
    return port


def accepts(pid):
    """Whether a worker has booted: its poller knows a listener beside the queue of callbacks."""
    folder = Path(f"/proc/{pid}/fdinfo")
    with contextlib.suppress(OSError):
        return any(file.read_text().count("tfd:") > 1 for file in folder.iterdir())
    return False


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
