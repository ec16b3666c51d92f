"""Bytes on a socket of the started service: the contract's answer, as JSON, and a quiet log."""

import json

import pytest

from tests.conftest import DESCRIPTION, TICKETS, Server

MIB = 1024 * 1024
NOT_JSON = "Request body is not valid JSON"
NOT_FOUND = "The requested URL was not found on the server. If you entered the URL manually"
UNSTORABLE = {"category": ["May not contain NUL or unpaired surrogates."]}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """One service for the whole module, with one ticket."""
    folder = tmp_path_factory.mktemp("wire")
    service = Server(folder, {"DATABASE_URL": f"sqlite:///{folder}/tickets.db"}).start()
    service.post({"user_description": DESCRIPTION})
    yield service
    service.kill()


@pytest.fixture(autouse=True)
def quiet_log(service):
    """Whatever a client sends, the log has no traceback of it."""
    yield
    assert "Traceback" not in service.log


def message(method, path, body=b"", *headers, version="HTTP/1.1"):
    """Return a request as bytes, asking for the connection to be closed after it."""
    lines = [f"{method} {path} {version}", "Host: localhost", "Connection: close", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def split(received):
    """Return the status, the headers (names in lower case) and the body of a response."""
    head, _, body = received.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return int(status_line.split()[1]), {name.lower(): headers[name] for name in headers}, body


JSON_TYPE = "Content-Type: application/json"
CHUNKED = "Transfer-Encoding: chunked"
PATCHES = [
    pytest.param(b'{"status": "closed"}', "Content-Type: text/plain", 415, None, id="wrong-type"),
    pytest.param(b'{"status": "closed"}', "X-Nothing: 1", 415, None, id="no-type"),
    pytest.param(b'{"status": ', JSON_TYPE, 400, NOT_JSON, id="broken"),
    pytest.param(b'{"x": "' + b"x" * 2 * MIB + b'"}', JSON_TYPE, 413, None, id="2-MiB"),
    pytest.param(b"[" * 100_000 + b"]" * 100_000, JSON_TYPE, 400, NOT_JSON, id="deep"),
    pytest.param(b'{"category": NaN}', JSON_TYPE, 400, NOT_JSON, id="NaN"),
    pytest.param(b'{"category": "a\\u0000"}', JSON_TYPE, 400, UNSTORABLE, id="nul"),
    pytest.param(b'{"category": "\\ud83d"}', JSON_TYPE, 400, UNSTORABLE, id="surrogate"),
]


@pytest.mark.parametrize(("body", "header", "status", "expected"), PATCHES)
def test_a_bad_body_gets_the_answer_of_the_contract(service, body, header, status, expected):
    """E1, P12, N1, N2."""
    received = service.raw(message("PATCH", f"{TICKETS}/1", body, header))
    answered, headers, body = split(received)
    assert answered == status
    assert headers["content-type"] == "application/json"
    answer = json.loads(body)
    assert body.endswith(b"}\n")
    assert expected in (None, answer["error"], answer.get("fields"))
    assert service.get(1).headers["ETag"] == '"1"'


@pytest.mark.parametrize(
    ("ticket_id", "status"),
    [
        pytest.param("9" * 30, 500, id="P9-thirty-digits"),
        pytest.param("%D9%A3", 404, id="P14-arabic"),
        pytest.param("1%00", 404, id="P14-nul"),
        pytest.param("1%2F", 404, id="P14-slash"),
        pytest.param("%0a1", 404, id="P14-newline"),
        pytest.param("%ff", 404, id="P14-no-utf-8"),
    ],
)
def test_a_strange_id_gets_the_answer_of_the_contract(service, ticket_id, status):
    request = message("PATCH", f"{TICKETS}/{ticket_id}", b'{"status": "closed"}', JSON_TYPE)
    answered, headers, body = split(service.raw(request))
    assert answered == status
    assert headers["content-type"] == "application/json"
    assert list(json.loads(body)) == ["error"]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(b"nonsense\r\n\r\n", 400, id="no-request-line"),
        pytest.param(b"GET / HTTP/9.9\r\n\r\n", 400, id="version"),
        pytest.param(b"GET / HTTP/1.1\r\nbad header\r\n\r\n", 400, id="header"),
        pytest.param(b"GET / HTTP/1.1\r\nX: " + b"x" * 9000 + b"\r\n\r\n", 431, id="long-header"),
        pytest.param(b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n", 414, id="long-path"),
    ],
)
def test_what_gunicorn_refuses_itself_is_json_too(service, data, status):
    """N1, N2."""
    answered, headers, body = split(service.raw(data))
    assert answered == status
    assert headers["content-type"] == "application/json"
    assert list(json.loads(body)) == ["error"]
    assert body.endswith(b"}\n")


def test_every_answer_has_one_date_and_its_length(service):
    """C1, C3: make_conditional sets a Date of its own, gunicorn another."""
    for request in (message("GET", f"{TICKETS}/1"), message("GET", "/api/health")):
        received = service.raw(request)
        assert received.lower().count(b"\r\ndate:") == 1
        assert int(split(received)[1]["content-length"]) == len(split(received)[2])


@pytest.mark.parametrize("chunks", [b"zz\r\n", b"5\r\nabc", b"-1\r\n\r\n", b"5\r\nabcdefgh\r\n"])
def test_a_malformed_chunk_is_a_400(service, chunks):
    """E1."""
    head = message("PATCH", f"{TICKETS}/1", b"", JSON_TYPE, CHUNKED)
    answered, _, body = split(service.raw(head + chunks + b"\r\n0\r\n\r\n", timeout=2))
    assert answered == 400
    assert list(json.loads(body)) == ["error"]


@pytest.mark.parametrize(("size", "status"), [(MIB, 200), (MIB + 1, 413), (2 * MIB, 413)])
def test_a_chunked_body_has_the_same_limit(service, size, status):
    """E1: without a Content-Length, and cut off at the limit it would still be JSON."""
    ticket = service.post().json
    head = message("PATCH", f"{TICKETS}/{ticket['id']}", b"", JSON_TYPE, CHUNKED)
    body = b'{"status": "closed"}'.ljust(size)
    chunks = [body[start : start + 0x8000] for start in range(0, size, 0x8000)]
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in [*chunks, b""])
    assert split(service.raw(head + chunked))[0] == status


def test_a_body_cut_short_writes_nothing(service):
    """E1: what did arrive would be a good body by itself."""
    request = message("PATCH", f"{TICKETS}/1", b'{"status": "closed"}' + b" " * 9, JSON_TYPE)
    answered, _, body = split(service.raw(request[:-9], shutdown=True))
    assert answered == 400
    assert json.loads(body) == {"error": "Request body is shorter than its Content-Length"}
    assert service.get(1).headers["ETag"] == '"1"'
