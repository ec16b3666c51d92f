"""How gunicorn runs ticketsvc; its defaults stand where this says nothing.

PORT and WEB_CONCURRENCY keep gunicorn's own meaning.
"""

import contextlib
import gc
import ipaddress
import json
import logging
import os
import socket
import struct
import threading
import uuid
from datetime import datetime, timezone
from http import HTTPStatus

import gunicorn.glogging
import gunicorn.util

import ticketsvc

worker_class = "gthread"
loglevel = ticketsvc.read_settings(os.environ)["LOG_LEVEL"]
# More than the careless clients of a bad day: each holds a thread for CLIENT_PATIENCE.
# Threads are made as they are needed, and one that waits costs only its memory.
threads = 64
keepalive = 5
# The application is made once, before there are workers: it creates the table
# and converts the file to WAL.
preload_app = True
# Longer than the longest wait for the database, shorter than a platform's patience.
graceful_timeout = 8
# The control socket lies at one path for every gunicorn of a user.
control_socket_disable = True
# A heartbeat file on a slow disk would stall the workers.
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None


CLIENT_PATIENCE = 2  # seconds without a byte, half-way through a request or a response
FIRST_BYTE_PATIENCE = 30  # seconds, while a silent connection is the kernel's affair alone
SLOW_CLIENT = "Socket error processing request."  # How gunicorn's gthread worker logs it.


def log_request(method, path, status, size, milliseconds, remote, request_id):
    """Write one line on stdout: the time, then what is given; size in bytes."""
    if not error_log.isEnabledFor(logging.INFO):
        return
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
    line = f"{now}Z {method} {path} {status} {size} {milliseconds:.1f} {remote} {request_id}\n"
    with contextlib.suppress(OSError):  # A full disk must not spoil the answer.
        os.write(1, line.encode("ascii", "backslashreplace"))


class logger_class(gunicorn.glogging.Logger):
    """gunicorn's log, but for its access log, which costs ten times as much."""

    def access(self, resp, req, environ, request_time):
        """Log a request of the application; write_error() logs those that did not reach it."""
        request_id = dict(resp.headers).get("X-Request-ID")
        if request_id is not None:
            path = environ["RAW_URI"].partition("?")[0]
            milliseconds = request_time.total_seconds() * 1000
            remote = environ["REMOTE_ADDR"] or "-"
            log_request(
                req.method, path, resp.status[:3], resp.sent, milliseconds, remote, request_id
            )


def write_error(sock, status_int, reason, mesg):
    """Answer a request that never reached the application with JSON, not gunicorn's HTML."""
    phrase, request_id = HTTPStatus(status_int).phrase, uuid.uuid4().hex
    body = json.dumps({"error": mesg or phrase}, ensure_ascii=False).encode() + b"\n"
    head = (
        f"HTTP/1.1 {status_int} {phrase}\r\n"
        "Connection: close\r\n"
        "Content-Type: application/json\r\n"
        f"X-Request-ID: {request_id}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    gunicorn.util.write_nonblock(sock, head.encode() + body)
    remote = sock.getpeername()[0] if sock.family != socket.AF_UNIX else "-"
    log_request("-", "-", status_int, len(body), 0, remote, request_id)


gunicorn.util.write_error = write_error


def close_graceful(sock):
    """Wait for the client's end of a connection, but not on the thread that accepts the others.

    gunicorn's gthread worker waits there, up to two seconds for each client that stays.
    """
    threading.Thread(target=wait_and_close, args=[sock], daemon=True).start()


wait_and_close = gunicorn.util.close_graceful
gunicorn.util.close_graceful = close_graceful


def quieten_slow_client(record):
    """Log a client that was cut off for its silence in one line, not with a traceback."""
    if record.msg == SLOW_CLIENT and record.exc_info:
        record.msg, record.exc_info = f"{SLOW_CLIENT} {record.exc_info[1]}", None
        record.levelno, record.levelname = logging.INFO, "INFO"
    return error_log.isEnabledFor(record.levelno)


error_log = logging.getLogger("gunicorn.error")
error_log.addFilter(quieten_slow_client)


def pre_fork(server, worker):
    """Take what is loaded out of the garbage collector's sight, and leave the pages shared."""
    gc.freeze()


def when_ready(server):
    """Set how long clients may be silent, and warn where anybody may change tickets."""
    sockets = [listener.sock for listener in server.LISTENERS]
    patience = struct.pack("ll", CLIENT_PATIENCE, 0)
    for listener in sockets:
        # Accepted connections inherit these from the listening socket (socket(7), tcp(7)).
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        if listener.family != socket.AF_UNIX and hasattr(socket, "TCP_DEFER_ACCEPT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, FIRST_BYTE_PATIENCE)
    hosts = [s.getsockname()[0] for s in sockets if s.family != socket.AF_UNIX]
    exposed = [host for host in hosts if not ipaddress.ip_address(host).is_loopback]
    if exposed and not server.app.wsgi().config["TOKENS"]:
        server.log.warning(
            "Listening on %s without a token: anybody who reaches it can change tickets. "
            "Set TICKETSVC_TOKENS, or bind 127.0.0.1.",
            ", ".join(exposed),
        )
