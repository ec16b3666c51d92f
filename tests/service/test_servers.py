"""The application runs under other servers than the Procfile's: it needs WSGI and
nothing else.
"""

import json

import pytest

from tests.helpers.contract import (
    DESCRIPTION,
    JSON,
    TICKETS,
    assert_version,
    no_such_path,
    once,
)

pytestmark = once

# The commands as they are typed in the repository's root, with the virtual environment
# active.
FLASK = "flask --app ticketsvc run --port {port}"
GUNICORN = 'python -m gunicorn "ticketsvc:create_app()" --bind 127.0.0.1:{port}'
WSGIREF = """python -c '
import sys
sys.modules["gunicorn"] = None
import ticketsvc
from wsgiref.simple_server import make_server
make_server("127.0.0.1", {port}, ticketsvc.create_app()).serve_forever()
'"""
HEADERS = {"Content-Type": JSON}


@pytest.fixture
def start(make_server):
    """Return a function that starts the application by a command."""
    return lambda command: make_server(command).start()


def assert_serves(server):
    """File, change and read a ticket, and miss a path: N1, N5, O2, P2, C2, G1."""
    filed = server.post({"user_description": DESCRIPTION, "confidence_score": 0.9})
    assert (filed.status, filed.headers["Location"]) == (201, f"{TICKETS}/1")
    assert filed.json["status"] == "ai_resolved"
    tag = {"If-Match": filed.headers["ETag"]}
    written = server.patch(1, {"status": "closed"}, headers=tag)
    assert written.status == 200
    assert_version(written, 2)
    assert written.json["status"] == "closed"
    assert server.patch(1, {"status": "closed"}, headers=tag).status == 412
    read = server.get(1)
    assert (read.status, read.json) == (200, written.json)
    missed = server.request("GET", "/nowhere")
    assert missed.status == 404
    assert missed.body == b'{"error": "No such path: /nowhere"}\n'
    for reply in (filed, written, read, missed):
        assert reply.headers["Content-Type"] == JSON
        assert len(reply.headers.get_all("Date")) == 1
    assert "Traceback" not in server.log


def chunks(body):
    """Give the body in pieces, which has http.client send it chunked."""
    text = json.dumps(body).encode()
    yield from (text[:5], text[5:])


def test_serve_under_flask_run(start):
    """E1: a client that keeps its end open waits for nothing."""
    assert_serves(start(FLASK))


def test_read_a_chunked_body_under_flask_run(start):
    """E1: which ends with its last chunk, and has the limit of any other."""
    server = start(FLASK)
    server.post()
    written = server.patch(1, chunks({"status": "closed"}), headers=HEADERS)
    assert (written.status, written.json["status"]) == (200, "closed")
    large = chunks({"category": "x" * 2**20})
    assert server.patch(1, large, headers=HEADERS).status == 413


def test_serve_under_python_m_gunicorn(start):
    """N1: with gunicorn.conf.py, found in the folder that it is started from."""
    server = start(GUNICORN)
    assert_serves(server)
    assert server.raw(b"nonsense\r\n\r\n").endswith(
        b'{"error": "Request is not valid HTTP"}\n'
    )
    assert server.stop() == 0


def test_serve_under_the_standard_library(start):
    """N1: where gunicorn is not installed.

    It is here: that it cannot be imported is the one thing that is pretended.
    """
    assert_serves(start(WSGIREF))


@pytest.mark.parametrize("command", [FLASK, GUNICORN], ids=["flask", "gunicorn"])
def test_name_the_path_that_does_not_exist(start, command):
    """N5: as the client sent it, decoded, without the query; also the absolute form."""
    server = start(command)
    paths = {
        "/api/v1/tickets/1/": "/api/v1/tickets/1/",
        "/a%2Fb%0Ac?d": "/a/b\nc",
        "/Gr%C3%B6%C3%9Fe": "/Größe",
        "/" + "x" * 300: "/" + "x" * 199,
        "http://localhost/absolute%20form?x": "/absolute form",
        "http://localhost:80/absolute": "/absolute",
    }
    for path, shown in paths.items():
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        status, _, body = server.raw(head.encode()).partition(b"\r\n\r\n")
        assert status.split()[1] == b"404"
        assert json.loads(body) == {"error": no_such_path(shown)}


@pytest.mark.parametrize("command", [FLASK, WSGIREF], ids=["flask", "wsgiref"])
def test_refuse_an_untrusted_host(start, command):
    """E10: a request without a Host, with two, with another."""
    server = start(command)
    for lines in (
        "",
        "Host:\r\n",
        "Host: evil.example\r\n",
        "Host: localhost\r\nHost: evil.example\r\n",
    ):
        head = f"GET {TICKETS} HTTP/1.0\r\n{lines}\r\n"
        assert b" 400 " in server.raw(head.encode()).partition(b"\r\n")[0]
    head = f"GET {TICKETS} HTTP/1.0\r\nHost: LOCALHOST:1\r\n\r\n"
    assert b" 200 " in server.raw(head.encode()).partition(b"\r\n")[0]
