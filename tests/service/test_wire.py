"""Bytes on a socket of the started service: the contract's answer, as JSON, and a quiet
log.
"""

import contextlib
import json
import re
import socket

import pytest

from tests.helpers.contract import (
    BAD_KEY,
    DESCRIPTION,
    JSON,
    JSON_TYPE,
    MIB,
    NOT_JSON,
    TICKETS,
    TOO_LARGE,
    assert_version,
)
from tests.helpers.server import Server

TOO_DEEP = f"{NOT_JSON}: it is nested too deeply"
NOT_HTTP = "Request is not valid HTTP"
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


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
    print(service.log[-3000:])  # Shown where the test has failed.
    assert "Traceback" not in service.log


def message(method, path, body=b"", *headers, version="HTTP/1.1"):
    """Return a request as bytes, asking for the connection to be closed after it."""
    lines = [
        f"{method} {path} {version}",
        "Host: localhost",
        "Connection: close",
        *headers,
    ]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def split(received):
    """Return status, headers (names in lower case) and body of a response."""
    head, _, body = received.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return (
        int(status_line.split()[1]),
        {name.lower(): headers[name] for name in headers},
        body,
    )


CHUNKED = "Transfer-Encoding: chunked"
FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        pytest.param(b'{"x": "' + b"x" * 2 * MIB + b'"}', 413, TOO_LARGE, id="2-MiB"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, 400, TOO_DEEP, id="deep"),
    ],
)
def test_a_bad_body_gets_the_answer_of_the_contract(service, body, status, sentence):
    """E1, N1, N2."""
    received = service.raw(message("PATCH", f"{TICKETS}/1", body, JSON_TYPE))
    answered, headers, body = split(received)
    assert answered == status
    assert headers["content-type"] == JSON
    assert json.loads(body) == {"error": sentence}
    assert body.endswith(b"}\n")
    assert_version(service.get(1), 1)


@pytest.mark.parametrize(
    ("data", "status", "sentence"),
    [
        pytest.param(b"nonsense\r\n\r\n", 400, NOT_HTTP, id="no-request-line"),
        pytest.param(b"GET / HTTP/9.9\r\n\r\n", 400, NOT_HTTP, id="version"),
        pytest.param(GET + b"bad header\r\n\r\n", 400, NOT_HTTP, id="header"),
        pytest.param(
            GET + b"X: " + b"x" * 9000 + b"\r\n\r\n",
            431,
            "Request headers are too large",
            id="long-header",
        ),
        pytest.param(
            b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n",
            414,
            "Request line is too long",
            id="long-path",
        ),
        pytest.param(
            GET + b"Expect: a-miracle\r\n\r\n",
            417,
            "Expect must be 100-continue",
            id="expect",
        ),
        pytest.param(
            GET + b"Transfer-Encoding: xchunked\r\n\r\n",
            501,
            "Transfer-Encoding must be chunked",
            id="transfer-encoding",
        ),
    ],
)
def test_what_gunicorn_refuses_itself_is_json_too(service, data, status, sentence):
    """N1, N2."""
    answered, headers, body = split(service.raw(data))
    assert answered == status
    assert headers["content-type"] == JSON
    assert (headers["connection"], headers["cache-control"]) == ("close", "no-cache")
    assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"])
    assert json.loads(body) == {"error": sentence}
    assert body.endswith(b"}\n")


def test_every_answer_has_one_date_and_its_length(service):
    """C1, C3: make_conditional sets a Date of its own, gunicorn another."""
    for request in (message("GET", f"{TICKETS}/1"), message("GET", "/api/health")):
        received = service.raw(request)
        assert received.lower().count(b"\r\ndate:") == 1
        assert int(split(received)[1]["content-length"]) == len(split(received)[2])


@pytest.mark.parametrize(
    "chunks", [b"zz\r\n", b"5\r\nabc", b"-1\r\n\r\n", b"5\r\nabcdefgh\r\n"]
)
def test_a_malformed_chunk_is_a_400(service, chunks):
    """E1."""
    head = message("PATCH", f"{TICKETS}/1", b"", JSON_TYPE, CHUNKED)
    answered, _, body = split(service.raw(head + chunks + b"\r\n0\r\n\r\n"))
    assert answered == 400
    assert list(json.loads(body)) == ["error"]


@pytest.mark.parametrize(
    ("size", "status"), [(MIB, 200), (MIB + 1, 413), (2 * MIB, 413)]
)
def test_a_chunked_body_has_the_same_limit(service, size, status):
    """E1: without a Content-Length, and cut off at the limit it would still be JSON."""
    ticket = service.post().json
    head = message("PATCH", f"{TICKETS}/{ticket['id']}", b"", JSON_TYPE, CHUNKED)
    body = b'{"status": "closed"}'.ljust(size)
    chunks = [body[start : start + 0x8000] for start in range(0, size, 0x8000)]
    chunked = b"".join(
        b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in [*chunks, b""]
    )
    assert split(service.raw(head + chunked))[0] == status


def test_an_endless_chunked_body_is_refused_on_its_way(service):
    """E1: as soon as it is past the limit, and the connection is drained for a bounded
    time.
    """
    head = message("PATCH", f"{TICKETS}/1", b"", JSON_TYPE, CHUNKED)
    received = b""
    with socket.create_connection(("127.0.0.1", service.port), 10) as connection:
        connection.sendall(head)
        with contextlib.suppress(OSError):
            for _ in range(1000):
                connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
            raise AssertionError("64 MiB were taken")
        with contextlib.suppress(OSError):
            while data := connection.recv(65536):
                received += data
    assert received.startswith(b"HTTP/1.1 413 ") or not received
    assert_version(service.get(1), 1)


def test_a_length_over_the_limit_is_refused_without_a_byte_of_the_body(service):
    """E1: from the headers alone."""
    request = message(
        "PATCH", f"{TICKETS}/1", b"", JSON_TYPE, f"Content-Length: {MIB + 1}"
    )
    assert statuses(service.raw(request)) == [413]


@pytest.mark.parametrize(
    "arrived", ["", '{"status": "closed"}'], ids=["nothing", "an-object"]
)
def test_a_body_cut_short_writes_nothing(service, arrived):
    """E1, P3: what did arrive would be a good body, or none at all."""
    length = f"Content-Length: {len(arrived) + 9}"
    request = (
        message("PATCH", f"{TICKETS}/1", b"", JSON_TYPE, length) + arrived.encode()
    )
    answered, _, body = split(service.raw(request, shutdown=True))
    assert answered == 400
    assert json.loads(body) == {
        "error": "Request body is shorter than its Content-Length"
    }
    assert_version(service.get(1), 1)


CHANGE = b'{"status": "closed"}'
LENGTH = f"Content-Length: {len(CHANGE)}"


def statuses(received):
    """Return the status of every response in what was received."""
    return [
        int(status)
        for status in re.findall(rb"^HTTP/1\.[01] (\d{3}) ", received, re.MULTILINE)
    ]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param([LENGTH, LENGTH], CHANGE, id="the-same-length-twice"),
        pytest.param([LENGTH, "Content-Length: 5"], CHANGE, id="two-lengths"),
        pytest.param(["Content-Length: 5, 5"], b"12345", id="a-list-of-lengths"),
        pytest.param(["Content-Length: +5"], b"12345", id="a-signed-length"),
        pytest.param(["Content-Length: 0x5"], b"12345", id="a-hexadecimal-length"),
        pytest.param([LENGTH, CHUNKED], b"0\r\n\r\n", id="length-and-chunked"),
        pytest.param([CHUNKED, LENGTH], b"0\r\n\r\n", id="chunked-and-length"),
        pytest.param([CHUNKED, CHUNKED], b"0\r\n\r\n", id="chunked-twice"),
        pytest.param(
            ["Transfer-Encoding : chunked"], b"0\r\n\r\n", id="space-before-colon"
        ),
        pytest.param(["X: 1\n" + CHUNKED], b"0\r\n\r\n", id="bare-line-feed"),
        pytest.param(["X: 1\r\n folded"], CHANGE, id="folded-header"),
    ],
)
def test_a_smuggling_shape_is_refused_and_the_connection_closed(service, headers, body):
    """N1: what follows the doubtful request is never read as another one."""
    head = "\r\n".join(
        [f"PATCH {TICKETS}/1 HTTP/1.1", "Host: localhost", JSON_TYPE, *headers, "", ""]
    )
    following = message("PATCH", f"{TICKETS}/1", CHANGE, JSON_TYPE)
    received = service.raw(head.encode() + body + following)
    assert statuses(received) in ([400], [501])
    assert list(json.loads(split(received)[2])) == ["error"]
    assert_version(service.get(1), 1)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param(
            [f"X-{number}: x" for number in range(200)], 431, id="200-headers"
        ),
        pytest.param(["X: " + "x" * 2**20], 431, id="1-MiB-header"),
        pytest.param(
            [f"X-{number}: {'x' * 8000}" for number in range(90)], 200, id="all-allowed"
        ),
    ],
)
def test_a_header_bomb_is_refused(service, headers, status):
    """N1."""
    assert statuses(service.raw(message("GET", f"{TICKETS}/1", b"", *headers))) == [
        status
    ]


@pytest.mark.parametrize(
    "path",
    [
        "%00",
        "1%00",
        "%2F",
        "%2f1",
        "1%2F",
        "..%2F1",
        "%0a1",
        "%D9%A3",
        "%ff",
        "1;x",
        "1%20",
    ],
)
@pytest.mark.parametrize("method", ["GET", "PATCH"])
def test_an_escaped_path_is_not_found(service, path, method):
    """P14, N5."""
    body = CHANGE if method == "PATCH" else b""
    received = service.raw(message(method, f"{TICKETS}/{path}", body, JSON_TYPE))
    assert statuses(received) == [404]
    assert list(json.loads(split(received)[2])) == ["error"]


def test_http_1_0_is_served_and_closed(service):
    ticket = service.post().json
    request = message(
        "PATCH", f"{TICKETS}/{ticket['id']}", CHANGE, JSON_TYPE, version="HTTP/1.0"
    )
    status, headers, body = split(
        service.raw(request.replace(b"Connection: close\r\n", b""))
    )
    assert (status, headers["connection"]) == (200, "close")
    assert json.loads(body)["status"] == "closed"


def test_pipelined_requests_are_answered_in_order(service):
    ticket = service.post().json
    path = f"{TICKETS}/{ticket['id']}"
    names = ["one", "two", "three"]
    requests = [
        message("PATCH", path, json.dumps({"category": name}).encode(), JSON_TYPE)
        for name in names
    ]
    first = b"".join(requests[:2]).replace(b"Connection: close\r\n", b"")
    received = service.raw(first + requests[2])
    assert statuses(received) == [200, 200, 200]
    assert re.findall(rb'"category": "(\w+)"', received) == [b"one", b"two", b"three"]


def test_expect_100_continue_is_honoured(service):
    """RFC 9110, section 10.1.1."""
    ticket = service.post().json
    request = message(
        "PATCH", f"{TICKETS}/{ticket['id']}", CHANGE, JSON_TYPE, "Expect: 100-continue"
    )
    assert statuses(service.raw(request)) == [100, 200]


def test_an_override_of_the_method_is_ignored(service):
    override = "X-HTTP-Method-Override: PATCH"
    for path in (f"{TICKETS}/1", f"{TICKETS}/1?_method=PATCH"):
        assert statuses(
            service.raw(message("POST", path, CHANGE, JSON_TYPE, override))
        ) == [405]
    assert_version(service.get(1), 1)


@pytest.mark.parametrize(
    "media_type", ["text/plain", "multipart/form-data; boundary=x", FORM, None]
)
def test_a_form_of_a_browser_changes_nothing(service, media_type):
    """P12: what a page may send to another origin without asking first (Fetch, section
    4.10).
    """
    before = len(service.request("GET", TICKETS).json)
    body = json.dumps({"user_description": "from another site"}).encode()
    headers = ["Origin: http://evil.example", "Sec-Fetch-Site: cross-site"]
    headers += [f"Content-Type: {media_type}"] if media_type else []
    assert statuses(service.raw(message("POST", TICKETS, body, *headers))) == [415]
    assert len(service.request("GET", TICKETS).json) == before


@pytest.mark.parametrize("method", ["OPTIONS", "GET", "PATCH", "POST"])
def test_no_other_origin_is_let_in(service, method):
    """A preflight is answered without CORS headers, so that the browser gives up."""
    headers = ["Origin: http://evil.example", "Access-Control-Request-Method: PATCH"]
    received = service.raw(message(method, f"{TICKETS}/1", b"", *headers))
    assert b"access-control" not in received.lower()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    url = f"sqlite:///{folder}/tickets.db"
    service = Server(folder, {"DATABASE_URL": url, "TICKETSVC_TOKENS": "s3cret"})
    yield service.start()
    service.kill()
    assert "Traceback" not in service.log


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param([b"Authorization: Bearer s3cret"], 200, id="E2-good"),
        pytest.param([b"Authorization: Bearer \xff\xfe\x80"], 401, id="E2-no-text"),
        pytest.param([b"Authorization: Bearer s3cret"] * 2, 401, id="E2-twice"),
        pytest.param(
            [b"Authorization: Bearer x", b"Authorization: Bearer s3cret"],
            401,
            id="E2-two",
        ),
        pytest.param([b"Authorization: Bearer " + b"x" * 8000], 401, id="E2-long"),
        pytest.param([b"Proxy-Authorization: Bearer s3cret"], 401, id="E2-proxy"),
        pytest.param([b"Authorization_: Bearer s3cret"], 401, id="E2-underscore"),
    ],
)
def test_a_strange_authorization_is_refused(guarded, headers, status):
    lines = [
        f"GET {TICKETS} HTTP/1.1".encode(),
        b"Host: x",
        b"Connection: close",
        *headers,
        b"",
        b"",
    ]
    received = guarded.raw(b"\r\n".join(lines))
    assert statuses(received) == [status]


def test_a_key_sent_twice_is_refused(service):
    """O5: WSGI joins both with a comma."""
    connection = service.connect()
    connection.putrequest("POST", TICKETS)
    body = b'{"user_description": "x"}'
    for name, value in [
        ("Content-Type", JSON),
        ("Content-Length", str(len(body))),
        ("Idempotency-Key", "k"),
        ("Idempotency-Key", "k"),
    ]:
        connection.putheader(name, value)
    connection.endheaders(body)
    response = connection.getresponse()
    assert response.status == 400
    assert json.loads(response.read()) == {"error": BAD_KEY}
    connection.close()


def test_a_list_over_two_header_lines_is_one_list(service):
    """RFC 9110, section 5.3."""
    ticket = service.post()
    ticket_id = ticket.json["id"]
    tag = ticket.headers["ETag"]
    body = b'{"status": "closed"}'
    head = (
        f"PATCH {TICKETS}/{ticket_id} HTTP/1.1\r\nHost: localhost\r\n"
        "Connection: close\r\n"
        "Content-Type: application/json\r\n"
        f'Content-Length: {len(body)}\r\nIf-Match: "7"\r\nIf-Match: {tag}\r\n\r\n'
    )
    assert service.raw(head.encode() + body).startswith(b"HTTP/1.1 200 ")
