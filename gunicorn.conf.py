"""How gunicorn runs ticketsvc; its defaults stand where this says nothing.

PORT and WEB_CONCURRENCY keep gunicorn's own meaning.
"""

import ipaddress
import json
import os
import socket
from http import HTTPStatus

import gunicorn.util

worker_class = "gthread"
threads = 64
# The application is made once, before there are workers: it creates the table
# and converts the file to WAL.
preload_app = True
# Longer than the longest wait for the database, shorter than a platform's patience.
graceful_timeout = 8
# The control socket lies at one path for every gunicorn of a user.
control_socket_disable = True
# A heartbeat file on a slow disk would stall the workers.
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None


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


def when_ready(server):
    """Warn where anybody on the network may change tickets."""
    hosts = [
        listener.sock.getsockname()[0]
        for listener in server.LISTENERS
        if listener.sock.family != socket.AF_UNIX
    ]
    exposed = [host for host in hosts if not ipaddress.ip_address(host).is_loopback]
    if exposed and not server.app.wsgi().config["TOKENS"]:
        server.log.warning(
            "Listening on %s without a token: anybody who reaches it can change tickets. "
            "Set TICKETSVC_TOKENS, or bind 127.0.0.1.",
            ", ".join(exposed),
        )
