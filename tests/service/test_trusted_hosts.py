"""Which names of this host are served: E10, told by the Host of a request."""

import json
import re

import pytest

from tests.helpers.contract import JSON, TICKETS, assert_error, once
from tests.helpers.server import Server, exit_line

pytestmark = once

ADVICE = ": set TICKETSVC_TOKENS or TICKETSVC_TRUSTED_HOSTS"
OPEN_PATHS = ("/api/health", "/api/openapi.json")
TOKEN = "Authorization: Bearer s3cret"


def start(tmp_path_factory, **settings):
    """Start a service on a file of its own."""
    folder = tmp_path_factory.mktemp("hosts")
    url = f"sqlite:///{folder}/tickets.db"
    return Server(folder, {"DATABASE_URL": url, "WEB_CONCURRENCY": "1", **settings})


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A service without tokens."""
    service = start(tmp_path_factory).start()
    yield service
    service.kill()
    assert "Traceback" not in service.log


def ask(service, *headers, method="GET", path=TICKETS):
    """Send a request with these header lines; return its status and its sentence."""
    lines = [f"{method} {path} HTTP/1.1", "Connection: close", *headers, "", ""]
    head, _, body = service.raw("\r\n".join(lines).encode("latin-1")).partition(
        b"\r\n\r\n"
    )
    status = int(head.split()[1])
    answer = json.loads(body) if body else None
    return status, answer["error"] if status >= 400 and answer else None


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8000",
        "localhost:",
        "localhost:1",
        "localhost:65535",
        "LOCALHOST:8000",
        "LocalHost",
        "127.0.0.1",
        "127.0.0.1:8000",
        "127.0.0.0",
        "127.255.255.255:80",
        "127.9.8.7",
        "[::1]",
        "[::1]:8000",
        "  localhost  ",
    ],
    ids=lambda host: f"E10-{host}",
)
def test_a_name_of_this_host_is_served(service, host):
    assert ask(service, f"Host: {host}") == (200, None)


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("evil.example", "evil.example"),
        ("evil.example:8000", "evil.example"),
        ("localhost.evil.example", "localhost.evil.example"),
        ("localhost.", "localhost."),
        ("localhosts", "localhosts"),
        ("xlocalhost", "xlocalhost"),
        ("127.0.0.1.evil.example", "127.0.0.1.evil.example"),
        ("127.0.0.1.nip.io:8000", "127.0.0.1.nip.io"),
        ("128.0.0.1", "128.0.0.1"),
        ("126.255.255.255", "126.255.255.255"),
        ("127.1", "127.1"),
        ("127.0.0.1.1", "127.0.0.1.1"),
        ("127.0.0.256", "127.0.0.256"),
        ("0127.0.0.1", "0127.0.0.1"),
        ("0x7f.0.0.1", "0x7f.0.0.1"),
        ("2130706433", "2130706433"),
        ("0.0.0.0", "0.0.0.0"),
        ("10.0.0.1", "10.0.0.1"),
        ("[::2]", "[::2]"),
        ("[::1", "[:"),
        ("[::ffff:127.0.0.1]", "[::ffff:127.0.0.1]"),
        ("localhost:80:80", "localhost:80"),
        ("localhost:x", "localhost:x"),
        ("localhost, evil.example", "localhost, evil.example"),
        ("evil.example@localhost", "evil.example@localhost"),
        ("localhost/evil.example", "localhost/evil.example"),
        ("*", "*"),
        ("x" * 300, "x" * 100),
    ],
    ids=lambda value: f"E10-{value[:30]}",
)
def test_another_name_is_refused(service, host, shown):
    sentence = f"Host {shown} is not trusted{ADVICE}"
    assert ask(service, f"Host: {host}") == (400, sentence)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([], id="E10-none"),
        pytest.param(["Host:"], id="E10-empty"),
        pytest.param(["Host:  "], id="E10-blank"),
        pytest.param(["Host: :8000"], id="E10-port-alone"),
        pytest.param(
            ["Host: evil.example", "X-Forwarded-Host: localhost"], id="E10-forwarded"
        ),
        pytest.param(
            ["Host: evil.example", "Forwarded: host=localhost"], id="E10-Forwarded"
        ),
        pytest.param(["Host: evil.example", TOKEN], id="E10-token-where-none-is-set"),
    ],
)
def test_a_request_without_one_good_host_is_refused(service, headers):
    status, sentence = ask(service, *headers)
    assert status == 400
    assert re.fullmatch(rf"Host( \S+)? is not trusted{ADVICE}", sentence)


@pytest.mark.parametrize("second", ["localhost", "evil.example"])
def test_a_request_with_two_hosts_is_refused(service, second):
    """E10: by gunicorn itself (RFC 9112, section 3.2)."""
    found = ask(service, "Host: localhost", f"Host: {second}")
    assert found == (400, "Request is not valid HTTP")


@pytest.mark.parametrize("second", ["localhost", "evil.example"])
def test_two_hosts_that_a_server_joins_are_refused(app, second):
    """E10."""
    client = app.test_client()
    response = client.get(TICKETS, headers={"Host": f"localhost,{second}"})
    shown = f"Host localhost,{second}"
    assert_error(response, 400, f"{shown} is not trusted{ADVICE}")


@pytest.mark.parametrize("path", OPEN_PATHS, ids=lambda path: f"E10-{path}")
@pytest.mark.parametrize("headers", [["Host: evil.example"], ["Host:"], []])
def test_the_open_paths_are_served_by_any_name(service, path, headers):
    assert ask(service, *headers, path=path)[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        pytest.param("GET", "/nowhere", [], id="E3-404"),
        pytest.param("GET", "/api/health/", [], id="E3-404-of-an-open-path"),
        pytest.param("DELETE", TICKETS, [], id="E3-405"),
        pytest.param("OPTIONS", TICKETS, [], id="E3-OPTIONS"),
        pytest.param("POST", TICKETS, ["Content-Length: 9999999"], id="E3-413"),
        pytest.param("POST", TICKETS, ["Content-Encoding: gzip"], id="E3-415"),
        pytest.param("PATCH", f"{TICKETS}/9", [f"Content-Type: {JSON}"], id="E3-400"),
        pytest.param("GET", f"{TICKETS}?x=1", [], id="E3-400-of-a-query"),
    ],
)
def test_the_host_is_looked_at_first(service, method, path, headers):
    """E10."""
    found = ask(service, "Host: evil.example", *headers, method=method, path=path)
    assert found == (400, f"Host evil.example is not trusted{ADVICE}")


def test_a_refused_post_files_nothing(service):
    """E10."""
    body = json.dumps({"user_description": "from a web page"})
    headers = {"Host": "evil.example", "Content-Type": JSON}
    reply = service.request("POST", TICKETS, body, headers)
    assert (reply.status, reply.headers["Cache-Control"]) == (400, "no-cache")
    assert service.request("GET", TICKETS).json == []


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A service with a token."""
    service = start(tmp_path_factory, TICKETSVC_TOKENS="s3cret").start()
    yield service
    service.kill()


@pytest.mark.parametrize(
    "headers", [["Host: evil.example"], ["Host:"], []], ids=["other", "empty", "none"]
)
def test_with_a_token_set_any_host_is_served(guarded, headers):
    """E10, E2: the token is still needed."""
    assert ask(guarded, *headers, TOKEN)[0] == 200
    assert ask(guarded, *headers)[0] == 401


@pytest.mark.parametrize("tokens", [{}, {"TICKETSVC_TOKENS": "s3cret"}])
def test_trusted_hosts_take_the_place_of_both_rules(tmp_path_factory, tokens):
    """E10, E3: with tokens and without; the Host comes before the token."""
    hosts = "Tickets.example.org, 192.0.2.7,[2001:db8::1],::2"
    service = start(tmp_path_factory, TICKETSVC_TRUSTED_HOSTS=hosts, **tokens).start()
    try:
        for host in (
            "tickets.example.org",
            "TICKETS.example.ORG:8000",
            "192.0.2.7:80",
            "[2001:db8::1]",
            "[2001:DB8::1]:8000",
            "[::2]",
        ):
            assert ask(service, f"Host: {host}", TOKEN) == (200, None)
            assert ask(service, f"Host: {host}")[0] == (401 if tokens else 200)
        for host in ("localhost", "127.0.0.1", "[::1]", "example.org", "*"):
            refused = (400, f"Host {host} is not trusted")
            assert ask(service, f"Host: {host}:80") == refused
            assert ask(service, f"Host: {host}", TOKEN) == refused
        assert ask(service) == (400, "Host is not trusted")
        for path in OPEN_PATHS:
            assert ask(service, "Host: evil.example", path=path)[0] == 200
    finally:
        service.kill()


@pytest.mark.parametrize("hosts", ["*", "localhost,*"])
def test_a_star_trusts_any_host(tmp_path_factory, hosts):
    """E10."""
    service = start(tmp_path_factory, TICKETSVC_TRUSTED_HOSTS=hosts).start()
    try:
        for headers in (["Host: evil.example"], ["Host: [::7]:1"], ["Host:"], []):
            assert ask(service, *headers) == (200, None)
    finally:
        service.kill()


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        ",",
        "a,,b",
        "a b",
        "localhost:8000",
        "127.0.0.1:8000",
        "abc.de:8000",
        "[::1]:8000",
        "[::1",
        "::1]",
        "http://localhost",
        "*.example.org",
        "…",
        "a,\nb",
    ],
    ids=lambda value: f"E10-{value!a}",
)
def test_a_bad_list_of_hosts_stops_the_start(tmp_path, value):
    url = f"sqlite:///{tmp_path}/tickets.db"
    line = exit_line(TICKETSVC_TRUSTED_HOSTS=value, DATABASE_URL=url)
    advice = "names or addresses of hosts without ports, or *, separated by single"
    assert line == f"TICKETSVC_TRUSTED_HOSTS must be {advice} commas\n"
