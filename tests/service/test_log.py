"""The log: a line for each request on stdout, and its id everywhere: E5, E2."""

import json
import re
from contextlib import closing
from http.client import HTTPConnection
from ipaddress import ip_address, ip_network
from urllib.parse import unquote, urlsplit

import pytest

from tests.helpers.contract import DESCRIPTION, README, ROOT, TICKETS, TIMESTAMP, once
from tests.helpers.timing import wait_for

pytestmark = once

LINE = re.compile(
    rf"^{TIMESTAMP} (?P<method>\S+) (?P<path>\S+) (?P<status>\d+) (?P<bytes>\d+) "
    r"(?P<milliseconds>\d+\.\d) (?P<remote>\S+) (?P<user>\S+) (?P<id>\S+)$",
    re.MULTILINE,
)


def lines(server, count=1):
    """Return the access log since the start, health left out, as dicts, when it has
    `count`.

    A line is written when the answer has been sent.
    """

    def find():
        found = [match.groupdict() for match in LINE.finditer(server.log)]
        return [line for line in found if line["path"] != "/api/health"]

    wait_for(lambda: len(find()) >= count, "there are fewer lines")
    return find()


def test_each_request_is_one_line(server):
    """E5: of each kind."""
    server.post(headers={"X-Request-ID": "post-1"})
    server.patch(1, {"status": "closed"}, headers={"X-Request-ID": "patch-1"})
    server.patch(1, {"status": "open"}, headers={"X-Request-ID": "patch-2"})
    server.patch(9, {"status": "closed"}, headers={"X-Request-ID": "patch-3"})
    reply = server.request(
        "GET", f"{TICKETS}?limit=1", headers={"X-Request-ID": "list-1"}
    )
    server.request("HEAD", f"{TICKETS}/1", headers={"X-Request-ID": "head-1"})
    server.request("DELETE", "/nowhere%0a%20x", headers={"X-Request-ID": "404-1"})
    found = [
        (line["method"], line["path"], line["status"], line["remote"], line["id"])
        for line in lines(server, 7)
    ]
    # Written after the answer, by two processes: the order is not that of the requests.
    assert sorted(found, key=lambda line: line[-1]) == [
        ("DELETE", "/nowhere%0a%20x", "404", "127.0.0.1", "404-1"),
        ("HEAD", f"{TICKETS}/1", "200", "127.0.0.1", "head-1"),
        ("GET", TICKETS, "200", "127.0.0.1", "list-1"),
        ("PATCH", f"{TICKETS}/1", "200", "127.0.0.1", "patch-1"),
        ("PATCH", f"{TICKETS}/1", "400", "127.0.0.1", "patch-2"),
        ("PATCH", f"{TICKETS}/9", "500", "127.0.0.1", "patch-3"),
        ("POST", TICKETS, "201", "127.0.0.1", "post-1"),
    ]
    sizes = {line["id"]: int(line["bytes"]) for line in lines(server)}
    assert sizes["list-1"] == len(reply.body)
    assert sizes["head-1"] == 0
    assert "[WARNING] [patch-3] PATCH of ticket 9, which does not exist\n" in server.log
    assert "Traceback" not in server.log


def test_what_gunicorn_refuses_is_one_line_too(server):
    """E5: with the id that the answer has."""
    received = server.raw(b"GET / HTTP/9.9\r\n\r\n").decode()
    request_id = re.search("X-Request-ID: (.*)\r\n", received)[1]
    assert [(line["status"], line["id"]) for line in lines(server)] == [
        ("400", request_id)
    ]


@pytest.mark.database("sqlite", "postgresql")
def test_a_failure_is_logged_once_with_its_request(server, sql):
    """P10, E5: a traceback, and the id in the record's first line."""
    server.post()
    sql("DROP TABLE ticket")
    assert (
        server.patch(1, {"status": "closed"}, headers={"X-Request-ID": "why-1"}).status
        == 500
    )
    assert (
        server.request("GET", "/api/health", headers={"X-Request-ID": "why-2"}).status
        == 503
    )
    for request_id in ("why-1", "why-2"):
        server.wait_for_log(f"[{request_id}]")
    for request_id, message in (
        ("why-1", "PATCH /api/v1/tickets/1 failed: "),
        ("why-2", "Data"),
    ):
        assert server.log.count(f"[ERROR] [{request_id}] {message}") == 1
    assert "Traceback" in server.log


def test_a_failure_outside_the_application_is_logged_too(make_server):
    """P10, N1: with its traceback; len() stands for an application that is none."""
    server = make_server("gunicorn builtins:len --bind {bind}").start(wait=False)
    server.wait_for_log("Booting worker")
    received = server.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 500 ")
    assert received.endswith(b'{"error": "Internal server error"}\n')
    server.wait_for_log("Request failed outside the application\nTraceback ")
    assert [line["status"] for line in lines(server)] == ["500"]


def test_the_log_has_no_token_and_no_body(make_server):
    """E2, at the level that says most."""
    server = make_server(TICKETSVC_TOKENS="s3cret", TICKETSVC_LOG_LEVEL="debug").start()
    good = {"Authorization": "Bearer s3cret"}
    bad = {"Authorization": "Bearer wr0ng"}
    body = {"user_description": DESCRIPTION, "category": None}
    assert server.post(body, headers=good).status == 201
    assert server.post({**body, "category": 7}, headers=good).status == 400
    assert server.post(body, headers=bad).status == 401
    assert server.request("GET", f"{TICKETS}?token=s3cret", headers=bad).status == 401
    assert len(lines(server, 4)) == 4
    for secret in ("s3cret", "wr0ng", DESCRIPTION):
        assert secret not in server.log


def test_the_line_of_a_request_names_the_token(make_server):
    """E2: by its name, and only where it has one."""
    server = make_server(TICKETSVC_TOKENS="alice:s3cret,nameless").start()
    for token in ("s3cret", "nameless", "wr0ng"):
        server.request("GET", TICKETS, headers={"Authorization": f"Bearer {token}"})
    found = {(line["status"], line["user"]) for line in lines(server, 3)}
    assert found == {("200", "alice"), ("200", "-"), ("401", "-")}


@pytest.mark.parametrize("trusted", ["127.0.0.1", "127.0.0.2", "127.0.0.0/31"])
def test_an_address_that_a_client_claims_is_not_logged(make_server, trusted):
    """E5: X-Forwarded-For is a proxy's to say, one that gunicorn trusts, and its last
    address.
    """
    server = make_server(FORWARDED_ALLOW_IPS=trusted).start()
    for source in ("127.0.0.1", "127.0.0.2"):
        connection = HTTPConnection("127.0.0.1", server.port, 30, (source, 0))
        headers = {
            "X-Forwarded-For": "192.0.2.7, 192.0.2.8",
            "X-Request-ID": f"from-{source}",
        }
        server.request("GET", TICKETS, headers=headers, connection=connection)
        connection.close()
        is_trusted = ip_address(source) in ip_network(trusted)
        remote = "192.0.2.8" if is_trusted else source
        server.wait_for_log(f" {remote} - from-{source}\n")


@pytest.mark.parametrize(
    "header",
    ["Authorization Bearer s3cret", "Authorization : Bearer s3cret", "X: s3cret\x01"],
)
def test_a_malformed_header_is_logged_without_its_text(make_server, header):
    """E2: it may hold a token."""
    server = make_server(TICKETSVC_TOKENS="s3cret").start()
    received = server.raw(
        f"GET {TICKETS} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n\r\n".encode()
    )
    assert b" 400 " in received.splitlines()[0]
    [line] = lines(server)
    assert (line["status"], line["remote"]) == ("400", "127.0.0.1")
    assert "[WARNING] Refused: InvalidHeader" in server.log
    assert "s3cret" not in server.log
    assert b"s3cret" not in received


@pytest.mark.database("sqlite", "postgresql")
def test_the_start_names_the_version_and_the_database(server, on_sqlite):
    """E8: without a password."""
    url = urlsplit(server.environ["DATABASE_URL"])
    name = (
        f"{server.path}, this host" if on_sqlite else f"{url.path[1:]}, {url.hostname}"
    )
    version = json.loads((ROOT / "openapi.json").read_text())["info"]["version"]
    assert f"[INFO] [-] ticketsvc {version} on {name}" in server.log
    password = url.password and unquote(url.password)
    assert password is None or password not in server.log


@pytest.mark.parametrize(("level", "count"), [("debug", 1), ("info", 0)])
def test_health_requests_are_logged_in_detail_only(make_server, level, count):
    server = make_server(TICKETSVC_LOG_LEVEL=level).start()
    headers = {"X-Request-ID": "watch-1"}
    assert server.request("GET", "/api/health", headers=headers).status == 200
    server.get(1)
    assert len(lines(server)) == 1
    if count:
        server.wait_for_log(" watch-1\n")
    assert server.log.count("GET /api/health 200") >= count
    assert server.log.count("watch-1") == count


@pytest.mark.parametrize(
    ("level", "requests", "warnings", "errors"),
    [("debug", 2, 1, 1), ("INFO", 2, 1, 1), ("warning", 0, 1, 1), ("error", 0, 0, 1)],
)
def test_the_level_decides_what_is_logged(
    make_server, app, sql, level, requests, warnings, errors
):
    server = make_server(TICKETSVC_LOG_LEVEL=level).start()
    server.patch(9, {"status": "closed"})
    sql("DROP TABLE ticket")
    server.patch(9, {"status": "closed"})
    assert len(lines(server, requests)) == requests
    assert server.log.count("does not exist") >= warnings
    assert server.log.count("[WARNING]") == warnings
    assert server.log.count("[ERROR]") == errors
    assert ("Starting gunicorn" in server.log) == (requests > 0)


def test_requests_go_to_stdout_and_the_rest_to_stderr(make_server, tmp_path):
    server = make_server()
    server.start(stderr=tmp_path / "stderr")
    server.patch(9, {"status": "closed"})
    assert len(lines(server)) == 1
    assert set(server.log.splitlines()) == {
        match[0] for match in LINE.finditer(server.log)
    }
    assert "does not exist" in (tmp_path / "stderr").read_text()


def test_a_full_stdout_spoils_no_answer(make_server, tmp_path):
    """/dev/full is a disk without room."""
    server = make_server()
    server.log_path.symlink_to("/dev/full")
    server.start(stderr=tmp_path / "stderr")
    with closing(server.connect()) as connection:  # It is kept.
        for _ in range(3):
            assert server.post(connection=connection).status == 201
    assert server.stop() == 0
    assert "Traceback" not in (tmp_path / "stderr").read_text()


def test_the_log_of_the_readme_is_real():
    """The line that the README shows has the form of those here."""
    assert LINE.search(README)
