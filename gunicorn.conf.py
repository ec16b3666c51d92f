"""How gunicorn runs ticketsvc: settings, a worker class, a logger class, hooks.

PORT keeps its meaning to gunicorn; WEB_CONCURRENCY too, except for its default.
"""

# gunicorn promises its settings and its hooks: they are documented. It does not promise
# the following names, which this file uses too. tests/service/test_gunicorn_border.py
# checks this list against the installed gunicorn.
#
# gthread._DEFER: to let a silent connection wait at the poller
# ThreadWorker.alive: to release the connections of a worker that stops
# ThreadWorker.enqueue_req: to know since when a connection waits for a thread
# ThreadWorker.finish_request: to close connections in threads of their own
# ThreadWorker.handle: to limit the time for a request, and keep a busy connection
# ThreadWorker.handle_error: to answer a refused request in JSON
# ThreadWorker.keepalived_conns: to count idle connections
# ThreadWorker.log: to log what goes wrong outside the application
# ThreadWorker.nr_conns: to see whether connections wait for a thread
# ThreadWorker.pending_conns: to count silent connections
# ThreadWorker.pid: to tell a worker from the master
# ThreadWorker.wait_for_and_dispatch_events: to survive a lack of descriptors or threads
# TConn.data_ready: to tell a connection that was silent from a new one
# TConn.init: to have the parser before the first request
# TConn.initialized: to tell a new connection from a kept one
# TConn.parser: to replace its unreader
# TConn.sock: to wait for data
# Parser.unreader: to replace it by one with a deadline
# SocketUnreader.chunk: to read with a deadline
# SocketUnreader.sock: to set timeouts
# Request.method: to log it
# Request.path: to check its prefix
# Request.unreader: to set the timeout for the response
# Response.headers: to log the id of the request
# Response.sent: to log the size of the response
# Response.status: to log it
# environ.RAW_URI: to log the path as the client sent it
# Logger.access: to write one line for each request
# Logger.cfg: to know the trusted proxies
# Logger.error: to log that there is no room for a connection
# Logger.error_log: to know the level of the log
# Logger.exception: to log a client's timeout without a traceback
# Logger.info: to log a client's timeout
# Logger.warning: to log a refused request
# Arbiter.LISTENERS: to warn of an open port
# TCPSocket.sock: to know the address of a port
# util.close_graceful: to close a connection without resetting it
# util.http_date: to date the response to a refused request
# errors.ExpectationFailed: to answer it with 417
# errors.LimitRequestHeaders: to answer it with 431
# errors.LimitRequestLine: to answer it with 414
# errors.NoMoreData: to close a connection quietly
# errors.ParseException: to tell a refused request from a failure
# errors.UnsupportedTransferCoding: to answer it with 501

import contextlib
import functools
import gc
import ipaddress
import logging
import os
import re
import resource
import secrets
import signal
import sys
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
from database import backend, is_readable

settings = ticketsvc.read_settings(os.environ)
ticketsvc.gunicorn_conf_is_read = True  # Else create_app() warns.

# Settings of gunicorn

workers = settings["WORKERS"]
loglevel = settings["LOG_LEVEL"]

# A slow client holds a thread for REQUEST_TIME at most, or CROWD_REQUEST_TIME. A
# waiting thread costs only its memory.
threads = 64
keepalive = 5  # seconds

# A connection needs one descriptor, and the database connection of a thread up to four.
# More than 10,240 are of no use, and macOS refuses to set an unlimited number.
_, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
descriptors = min(hard_limit, 10240)
resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard_limit))
worker_connections = max(threads + 1, min(1000, descriptors - 4 * threads))

# No request header may set SCRIPT_NAME or PATH_INFO.
forwarder_headers = ""

# The application is made once, before the workers are forked: it creates the tables
# and converts the file to WAL.
preload_app = True

graceful_timeout = 8  # seconds: longer than the longest wait for the database

# The control socket would have the same path for every gunicorn of a user.
control_socket_disable = True

# A heartbeat file on a slow disk would stall the workers.
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None

# Constants of this file

PREFIX = os.environ.get("SCRIPT_NAME", "").rstrip("/")

NEXT_REQUEST = 0.02  # seconds that a thread waits for the next request on a connection
SILENCE = 2  # seconds that a client may be silent within a request
REQUEST_TIME = 10  # seconds for a whole request, and then for its whole response

# While connections wait for a thread, a request has less time, and its own wait for a
# thread counts. So a slow client that has waited is cut off almost at once, while a
# request that has arrived meanwhile is served.
CROWD_REQUEST_TIME = 1  # seconds
LEAST_TIME = 0.05  # seconds that a request has after its wait for a thread
CROWD_CHECK = 0.25  # seconds after which a thread that reads looks for a crowd again

RETRY = 0.05  # seconds without accepting when there was no descriptor or no thread

# Bytes that are read before a close: closing with unread bytes resets the connection.
DRAINED = 4 * 1024 * 1024

# Characters in a line of the log
LONGEST_PATH = 200
LONGEST_ADDRESS = 64

# How a request is answered that gunicorn refuses before the application sees it.
NOT_HTTP = (400, "Request is not valid HTTP")
REFUSALS = {
    errors.LimitRequestLine: (414, "Request line is too long"),
    errors.LimitRequestHeaders: (431, "Request headers are too large"),
    errors.ExpectationFailed: (417, "Expect must be 100-continue"),
    errors.UnsupportedTransferCoding: (501, "Transfer-Encoding must be chunked"),
}


class SlowClient(errors.NoMoreData, TimeoutError):
    """A client was silent within a request, or took too long for the whole of it.

    While the head is read, gunicorn closes the connection on NoMoreData. While the body
    is read, the application answers TimeoutError with 408.
    """


class TimedUnreader(SocketUnreader):
    """Read from a connection, with a timeout for each read and a deadline for all."""

    def __init__(self, sock, is_crowded):
        super().__init__(sock)
        self.is_crowded = is_crowded  # A function without arguments

        # For each request: when its wait for a thread began, and when the wait ended.
        self.arrival = None
        self.start = None

    def begin_request(self, arrival):
        """Begin to read the next request, which has waited since `arrival`."""
        self.arrival = arrival
        self.start = time.monotonic()

    def deadline(self):
        """Return when the request must have been read; a crowd brings it forward."""
        seconds = CROWD_REQUEST_TIME if self.is_crowded() else REQUEST_TIME
        return max(self.arrival + seconds, self.start + LEAST_TIME)

    def chunk(self, *args):
        """Return the next bytes, or raise SlowClient if they do not arrive in time.

        gunicorn passes a size since 27.0, and nothing before.
        """
        silent_until = time.monotonic() + SILENCE
        while True:
            now = time.monotonic()
            remaining = min(silent_until, self.deadline()) - now
            is_late = remaining <= 0
            # What has arrived before the deadline is read after it too, but not for
            # ever: a client could send a byte each millisecond.
            if is_late and now > self.start + CROWD_REQUEST_TIME:
                raise SlowClient

            # A timeout of 0 would make the socket non-blocking.
            timeout = max(0.001, min(remaining, CROWD_CHECK))
            try:
                self.sock.settimeout(timeout)
                return super().chunk(*args)
            except TimeoutError:
                if is_late:
                    raise SlowClient from None
                # Otherwise a crowd may have come: look at the deadline again.
            finally:
                self.sock.settimeout(REQUEST_TIME)


class worker_class(ThreadWorker):
    """gunicorn's gthread, which does not wait for slow clients.

    A connection keeps its thread while it sends one request after another. If it is
    too slow within one, it is closed.
    """

    # Closes connections, which may take SILENCE seconds each. It starts its threads
    # when they are needed.
    closer = ThreadPoolExecutor(threads)

    def wait_for_and_dispatch_events(self, timeout):
        """Survive when there is no descriptor or no thread for a connection."""
        try:
            super().wait_for_and_dispatch_events(timeout)
        except OSError as error:
            # No descriptor: accept() failed, so the connection waits in the backlog.
            self.pause_after(error)
        except RuntimeError as error:
            # No new thread: the connection is in the pool's queue, and a free thread
            # will serve it, but finish_request() will not be called to count it down.
            self.nr_conns -= 1
            self.pause_after(error)

    def pause_after(self, error):
        """Log the error, and leave other threads time to free what is missing."""
        self.log.error("No room for a connection: %s", error)
        time.sleep(RETRY)

    def enqueue_req(self, conn):
        """Let a connection wait for a thread, and its time begin."""
        conn.arrival = time.monotonic()
        super().enqueue_req(conn)

    def is_crowded(self):
        """Return whether more connections want a thread than this worker has.

        Idle connections wait at the poller and want none.
        """
        idle = len(self.keepalived_conns) + len(self.pending_conns)
        return self.nr_conns - idle > threads

    def handle(self, conn):
        """Serve the requests of a connection while they follow each other at once.

        Return whether the connection is kept open, or _DEFER if it is still silent.
        """
        is_new = not conn.initialized and not conn.data_ready
        if is_new and not is_readable(conn.sock, NEXT_REQUEST):
            # A silent client waits at the poller. gunicorn itself would hold the thread
            # for 5 seconds first.
            return _DEFER

        conn.init()
        if not isinstance(conn.parser.unreader, TimedUnreader):
            conn.parser.unreader = TimedUnreader(conn.sock, self.is_crowded)

        is_kept = self.serve_one(conn, conn.arrival)
        while is_kept and self.may_keep_thread(conn):
            is_kept = self.serve_one(conn, time.monotonic())
        return is_kept

    def serve_one(self, conn, arrival):
        """Serve one request, and return whether the connection is kept open."""
        conn.parser.unreader.begin_request(arrival)
        return super().handle(conn)

    def may_keep_thread(self, conn):
        """Return whether the next request is there, and no other connection waits."""
        if not self.alive or self.is_crowded():
            return False
        return is_readable(conn.sock, NEXT_REQUEST)

    def finish_request(self, conn, fs):
        """Close a connection in another thread: it may take seconds.

        This runs in the thread that accepts connections; `fs` is handle()'s Future.
        """
        has_failed = fs.cancelled() or fs.exception() is not None
        if has_failed or fs.result():
            super().finish_request(conn, fs)
            return

        self.closer.submit(self.close, conn.sock, time.monotonic() + SILENCE)
        self.nr_conns -= 1

    def close(self, sock, deadline):
        """Close a connection when the client has closed its side, or at the deadline.

        The wait for a thread counts, so that few closed connections pile up in a crowd.
        """
        remaining = deadline - time.monotonic()
        util.close_graceful(sock, max(0, remaining), DRAINED)

    def handle_error(self, req, client, addr, exc):
        """Answer a request that gunicorn refuses or that fails: in JSON, not HTML.

        `client` is the socket, `addr` the address of the client ("" on a Unix socket).
        """
        if isinstance(exc, errors.ParseException):
            status, message = REFUSALS.get(type(exc), NOT_HTTP)
            # Not the text of the exception: it may contain a token.
            self.log.warning("Refused: %s", type(exc).__name__)
        else:
            status = 500
            message = "Internal server error"
            self.log.exception("Request failed outside the application")

        request_id = secrets.token_hex(16)
        body = f'{{"error": "{message}"}}\n'
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            f"Date: {util.http_date()}",
            "Connection: close",
            "Cache-Control: no-cache",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            f"X-Request-ID: {request_id}",
            "",
            body,
        ]
        with contextlib.suppress(OSError):  # The client may be gone.
            client.sendall("\r\n".join(lines).encode())

        address = addr[0] if addr else "-"
        self.log.line(f"- - {status} {len(body)} 0.0 {address} - {request_id}")


def log_field(text, longest):
    """Return a text from a request as one field of a log line.

    A field has no white space and no control characters, so that no text can add a
    field or a line.
    """
    visible = re.sub("[^!-~]", "?", text)
    if len(visible) > longest:
        visible = f"{visible[: longest - 3]}..."
    return visible or "-"


@functools.lru_cache(maxsize=256)
def is_trusted(address, networks):
    """Return whether an address is in one of some networks, or these are "*".

    `networks` is a tuple of texts; a single address is a network too.
    """
    if "*" in networks:
        return True
    found = ipaddress.ip_address(address)
    return any(found in ipaddress.ip_network(network) for network in networks)


class logger_class(Logger):
    """gunicorn's log with its own access log: gunicorn's takes 4.4 times the CPU."""

    def access(self, resp, req, environ, request_time):
        """Log a request to the application; a health check at level debug only."""
        path, _, _ = environ["RAW_URI"].partition("?")
        milliseconds = request_time.total_seconds() * 1000
        headers = dict(resp.headers)
        fields = [
            req.method,
            log_field(path, LONGEST_PATH),
            resp.status[:3],
            str(resp.sent),
            f"{milliseconds:.1f}",
            self.remote_address(environ),
            environ.get("REMOTE_USER", "-"),
            headers.get("X-Request-ID", "-"),
        ]

        is_health_check = path.endswith("/api/health")
        level = logging.DEBUG if is_health_check else logging.INFO
        self.line(" ".join(fields), level)

    def remote_address(self, environ):
        """Return the address of the client, which only a trusted proxy may name."""
        address = environ["REMOTE_ADDR"]  # "" on a Unix socket.
        if address and not is_trusted(address, tuple(self.cfg.forwarded_allow_ips)):
            return address

        forwarded = environ.get("HTTP_X_FORWARDED_FOR", address)
        _, _, last = forwarded.rpartition(",")
        return log_field(last.strip(), LONGEST_ADDRESS)

    def line(self, text, level=logging.INFO):
        """Write a line to stdout, after the time."""
        if not self.error_log.isEnabledFor(level):
            return

        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        time_field = now.replace("+00:00", "Z")
        line = f"{time_field} {text}\n".encode("ascii", "backslashreplace")
        with contextlib.suppress(OSError):  # No request fails because the disk is full.
            os.write(1, line)

    def exception(self, msg, *args, **kwargs):
        """Log an exception with its traceback, but a client's timeout in one line.

        gthread logs TimeoutError when a client does not take its response in time.
        """
        if isinstance(sys.exc_info()[1], TimeoutError):
            self.info(msg, *args)
            return
        super().exception(msg, *args, **kwargs)


def pre_request(worker, req):
    """Limit the time for sending the response, and check the prefix of the path."""
    req.unreader.sock.settimeout(REQUEST_TIME)

    # gunicorn only compares letters: /helpdeskapi would be a path below /helpdesk.
    if not f"{req.path}/".startswith(f"{PREFIX}/"):
        req.path = f"{PREFIX}/nowhere"


def post_fork(server, worker):
    """Let a signal end a worker that has no signal handlers of its own yet.

    Until then it has the master's, which queue the signal for a loop that only the
    master runs: the worker would serve until it is killed after graceful_timeout.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


def worker_exit(server, worker):
    """Close the database connections of a worker.

    gunicorn calls this in the master too, for a worker that is gone already.
    """
    if worker.pid == os.getpid():
        backend.close()


def when_ready(server):
    """Prepare for the workers, which are forked after this."""
    gc.freeze()  # The garbage collector would write to the memory that they share.
    warn_of_open_ports(server)


def warn_of_open_ports(server):
    """Log a warning if another host can send requests, and no token is needed."""
    exposed = []
    for listener in server.LISTENERS:
        name = listener.sock.getsockname()
        if not isinstance(name, tuple):  # A Unix socket
            continue
        host = ipaddress.ip_address(name[0])
        if not host.is_loopback:
            exposed.append(str(host))

    if exposed and not settings["TOKENS"]:
        server.log.warning(
            "Listening on %s without a token: anybody can change tickets",
            ", ".join(exposed),
        )
