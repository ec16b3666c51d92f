"""How gunicorn runs ticketsvc; its defaults stand where this says nothing.

PORT and WEB_CONCURRENCY keep gunicorn's own meaning.
"""

import gc
import ipaddress
import json
import logging
import os
import socket
import struct
import threading
from http import HTTPStatus

import gunicorn.util

worker_class = "gthread"
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


def write_error(sock, status_int, reason, mesg):
    """Answer a request that never reached the application with JSON, not gunicorn's HTML."""
    phrase = HTTPStatus(status_int).phrase
    body = json.dumps({"error": mesg or phrase}, ensure_ascii=False).encode() + b"\n"
    head = (
        f"HTTP/1.1 {status_int} {phrase}\r\n"
        "Connection: close\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    gunicorn.util.write_nonblock(sock, head.encode() + body)


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
    return True


logging.getLogger("gunicorn.error").addFilter(quieten_slow_client)


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
