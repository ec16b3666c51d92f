"""How gunicorn runs ticketsvc; its defaults stand where this says nothing.

PORT keeps gunicorn's own meaning, and so does WEB_CONCURRENCY, but for its default.
"""

import contextlib
import gc
import ipaddress
import logging
import os
import resource
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from http import HTTPStatus

from gunicorn import util
from gunicorn.glogging import Logger
from gunicorn.http import errors
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import _DEFER, ThreadWorker

import ticketsvc
from database import is_readable

settings = ticketsvc.read_settings(os.environ)
workers, loglevel = settings["WORKERS"], settings["LOG_LEVEL"]
# Slow clients hold one for SILENCE seconds each. A thread that waits costs only its memory.
threads = 64
keepalive = 5  # seconds
# A connection needs one descriptor, and a thread up to four for those of its database connection.
_, descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
worker_connections = max(threads + 1, min(1000, descriptors - 4 * threads))
# No header of a client's becomes SCRIPT_NAME or PATH_INFO.
forwarder_headers = ""
# The application is made once, before there are workers: it creates the table
# and converts the file to WAL.
preload_app = True
graceful_timeout = 8  # seconds: longer than the longest wait for the database
# The control socket lies at one path for every gunicorn of a user.
control_socket_disable = True
# A heartbeat file on a slow disk would stall the workers.
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None

PREFIX = os.environ.get("SCRIPT_NAME", "").rstrip("/")
NEXT_REQUEST = 0.02  # seconds that a thread waits for the next request of its connection
SILENCE = 2  # seconds that a client may be silent within a request
REQUEST_TIME = 10  # seconds for a whole request, and then for the whole answer
DRAINED = 4 * 1024 * 1024  # bytes of a body that are read before a close, which else resets
SLOW_CLIENT = "Socket error processing request."  # How gthread logs an answer not taken in time.
# What gunicorn refuses by itself; everything else that it refuses is a 400.
REFUSALS = {
    errors.LimitRequestLine: (414, "Request line is too long"),
    errors.LimitRequestHeaders: (431, "Request headers are too large"),
    errors.ExpectationFailed: (417, "Expect must be 100-continue"),
    errors.UnsupportedTransferCoding: (501, "Transfer-Encoding must be chunked"),
}
REFUSAL = (
    "HTTP/1.1 {} {}\r\nDate: {}\r\nConnection: close\r\nCache-Control: no-cache\r\n"
    "Content-Type: application/json\r\nContent-Length: {}\r\nX-Request-ID: {}\r\n\r\n{}"
)


class SlowClient(errors.NoMoreData, TimeoutError):
    """A client that was silent within a request, or that took too long for all of it."""


class TimedUnreader(SocketUnreader):
    """The incoming bytes of a connection, which have to arrive in time."""

    def chunk(self, size_hint=None):
        remaining = self.deadline - time.monotonic()
        try:
            self.sock.settimeout(max(0.001, min(SILENCE, remaining)))
            return super().chunk(size_hint)
        except TimeoutError as error:
            raise SlowClient from error
        finally:
            self.sock.settimeout(REQUEST_TIME)


class worker_class(ThreadWorker):
    """gunicorn's gthread, in which a thread keeps a busy connection and drops a slow one."""

    closer = ThreadPoolExecutor(threads)  # Its threads are made where they are needed.

    def wait_for_and_dispatch_events(self, timeout):
        """Survive that there is no descriptor or no thread for a connection."""
        try:
            super().wait_for_and_dispatch_events(timeout)
        except (OSError, RuntimeError) as error:
            self.log.error("No room for a connection: %s", error)
            self.nr_conns -= isinstance(error, RuntimeError)  # The next free thread closes it.
            time.sleep(0.05)

    def handle(self, conn):
        """Serve the requests of a connection for as long as they follow each other at once."""
        is_new = not conn.initialized and not conn.data_ready
        if is_new and not is_readable(conn.sock, NEXT_REQUEST):
            return _DEFER  # A silent client waits at the poller, not at a thread.
        conn.init()
        if not isinstance(conn.parser.unreader, TimedUnreader):
            conn.parser.unreader = TimedUnreader(conn.sock)
        while True:
            conn.parser.unreader.deadline = time.monotonic() + REQUEST_TIME
            kept = super().handle(conn)
            free = self.alive and self.nr_conns <= threads  # No connection waits for a thread.
            if not (kept and free and is_readable(conn.sock, NEXT_REQUEST)):
                return kept

    def handle_request(self, req, conn):
        """Have sendall() give up where the client does not take the answer in time."""
        conn.sock.settimeout(REQUEST_TIME)
        # gunicorn compares letters only, and takes /helpdeskapi for a path below /helpdesk.
        if not f"{req.path}/".startswith(f"{PREFIX}/"):
            req.path = f"{PREFIX}/nowhere"
        # WSGI joins what is sent twice with a comma, which a key may hold, but no space.
        if sum(name == "IDEMPOTENCY-KEY" for name, _ in req.headers) > 1:
            req.headers.append(("IDEMPOTENCY-KEY", " "))
        return super().handle_request(req, conn)

    def finish_request(self, conn, fs):
        """Close a connection off this thread, which accepts the others: it may take seconds."""
        if fs.cancelled() or fs.exception() or fs.result():
            return super().finish_request(conn, fs)
        self.closer.submit(util.close_graceful, conn.sock, SILENCE, DRAINED)
        self.nr_conns -= 1

    def handle_error(self, req, client, addr, exc):
        """Answer what never reached the application, in JSON in place of HTML."""
        if isinstance(exc, errors.ParseException):
            status, message = REFUSALS.get(type(exc), (400, "Request is not valid HTTP"))
            self.log.warning("Refused: %s", type(exc).__name__)  # Its text may hold a token.
        else:
            status, message = 500, "Internal server error"
            self.log.exception("Request failed outside the application")
        request_id, body = secrets.token_hex(16), f'{{"error": "{message}"}}\n'
        fields = status, HTTPStatus(status).phrase, util.http_date(), len(body), request_id, body
        with contextlib.suppress(OSError):
            client.sendall(REFUSAL.format(*fields).encode())
        self.log.line(f"- - {status} {len(body)} 0.0 {addr[0] if addr else '-'} - {request_id}")


class logger_class(Logger):
    """gunicorn's log, but for its access log, which costs ten times as much."""

    def access(self, resp, req, environ, request_time):
        """Log a request of the application; one of a health check only in detail."""
        path, seconds = environ["RAW_URI"].partition("?")[0], request_time.total_seconds()
        remote = environ["REMOTE_ADDR"]
        if not remote or remote in self.cfg.forwarded_allow_ips:  # A proxy that is trusted.
            forwarded = environ.get("HTTP_X_FORWARDED_FOR", remote).rpartition(",")[2]
            remote = forwarded.replace(" ", "") or "-"
        what = f"{req.method} {path} {resp.status[:3]} {resp.sent} {seconds * 1000:.1f}"
        who = f"{environ.get('REMOTE_USER', '-')} {dict(resp.headers).get('X-Request-ID', '-')}"
        level = logging.DEBUG if path.endswith("/api/health") else logging.INFO
        self.line(f"{what} {remote} {who}", level)

    def line(self, text, level=logging.INFO):
        """Write a line on stdout, after the time."""
        if self.error_log.isEnabledFor(level):
            now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")[:23]
            with contextlib.suppress(OSError):  # A full disk fails no request.
                os.write(1, f"{now}Z {text}\n".encode("ascii", "backslashreplace"))

    def exception(self, msg, *args, **kwargs):
        """Log a client that does not take its answer in one line, without a traceback."""
        if msg == SLOW_CLIENT:
            return self.info(msg)
        super().exception(msg, *args, **kwargs)


def when_ready(server):
    """Warn where anybody may change tickets, and leave shared what the workers have in common."""
    gc.freeze()  # The garbage collector would write to its pages.
    names = [listener.sock.getsockname() for listener in server.LISTENERS]
    hosts = [ipaddress.ip_address(name[0]) for name in names if isinstance(name, tuple)]
    exposed = ", ".join(str(host) for host in hosts if not host.is_loopback)
    if exposed and not settings["TOKENS"]:
        server.log.warning("Listening on %s without a token: anybody can change tickets", exposed)
