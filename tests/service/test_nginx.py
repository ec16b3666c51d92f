"""The service below a prefix, behind a real nginx that is set up as the README says:
N7, E5, E2.
"""

import getpass
import http.client
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.helpers.contract import (
    DESCRIPTION,
    JSON,
    NO_TOKEN,
    TICKETS,
    TOO_LARGE,
    assert_version,
    no_such_path,
    once,
)
from tests.helpers.readme import blocks

pytestmark = once

PREFIX = "/helpdesk"
BELOW = f"{PREFIX}{TICKETS}"
(LOCATION,) = blocks("nginx")
HEADERS = [
    "SCRIPT_NAME",
    "Script-Name",
    "X-Script-Name",
    "X-Forwarded-Prefix",
    "PATH_INFO",
]
TOKEN = {"Authorization": "Bearer s3cret"}
LARGE = b'{"category": "%s"}' % (b"x" * 1_500_000)
# Everything that nginx writes lies in its folder. Only a master that is root may say
# whose its workers are, and theirs would be another's than the folder.
CONFIGURATION = """
{user}
pid nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{
        listen 127.0.0.1:{port};
        {location}
    }}
}}
"""


def follow(server, path):
    """Return the pages from `path` to the one without a Link."""
    pages = []
    while path and len(pages) < 20:
        reply = server.request("GET", path)
        assert reply.status == 200
        pages.append(reply.json)
        found = re.fullmatch(
            '<(.*)>; rel="next"', reply.headers.get("Link", '<>; rel="next"')
        )
        path = found[1]
    return pages


@pytest.fixture
def service(make_server):
    """The running service, below the prefix."""
    return make_server(prefix=PREFIX, SCRIPT_NAME=PREFIX).start()


@pytest.fixture
def nginx(service, make_server, tmp_path):
    """The running nginx in front of the service."""
    if not shutil.which("nginx"):
        pytest.skip("needs nginx(8)")
    folder = tmp_path / "nginx"
    folder.mkdir()
    command = f"nginx -p {folder} -c nginx.conf -e stderr -g 'daemon off;'"
    nginx = make_server(command, prefix=PREFIX)
    location = LOCATION.replace("127.0.0.1:8000", f"127.0.0.1:{service.port}")
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
    text = CONFIGURATION.format(user=user, port=nginx.port, location=location)
    (folder / "nginx.conf").write_text(text)
    return nginx.start()


@pytest.fixture
def file(nginx):
    """File a ticket through nginx."""
    return lambda: nginx.request("POST", BELOW, {"user_description": DESCRIPTION})


def test_follow_location(nginx, file):
    """N7: to the ticket that was filed."""
    filed = file()
    assert (filed.status, filed.headers["Location"]) == (201, f"{BELOW}/1")
    reply = nginx.request("GET", filed.headers["Location"])
    assert (reply.status, reply.json) == (200, filed.json)


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("?limit=3", [[7, 6, 5], [4, 3, 2], [1]]),
        ("?limit=3&status=pending_agent&after=0", [[1, 2, 3], [4, 5, 6], [7]]),
    ],
    ids=["before", "after"],
)
def test_follow_link_to_the_end(nginx, file, query, ids):
    """N7, L3: over several pages, each of them below the prefix."""
    for _ in range(7):
        assert file().status == 201
    pages = follow(nginx, f"{BELOW}{query}")
    assert [[ticket["id"] for ticket in page] for page in pages] == ids


def test_follow_link_through_the_history(nginx, file):
    """N7, V4."""
    file()
    for number in range(4):
        body = {"category": f"n {number}"}
        assert nginx.request("PATCH", f"{BELOW}/1", body).status == 200
    pages = follow(nginx, f"{BELOW}/1/history?limit=2")
    assert [[each["version"] for each in page] for page in pages] == [
        [5, 4],
        [3, 2],
        [1],
    ]


def test_patch_with_the_tag(nginx, file):
    """C2: the tag is as strong behind nginx as before it."""
    tag = {"If-Match": file().headers["ETag"]}
    written = nginx.request("PATCH", f"{BELOW}/1", {"status": "closed"}, tag)
    stale = nginx.request("PATCH", f"{BELOW}/1", {"status": "ai_resolved"}, tag)
    assert written.status == 200
    assert_version(written, 2)
    assert (stale.status, list(stale.json)) == (412, ["error"])
    assert nginx.request("GET", f"{BELOW}/1").json == written.json


def test_keep_the_request_id_of_the_caller(nginx, service):
    """E5: in the answer and in the log."""
    reply = nginx.request("GET", BELOW, headers={"X-Request-ID": "import-7.3"})
    assert reply.headers.get_all("X-Request-ID") == ["import-7.3"]
    service.wait_for_log(" import-7.3\n")


@pytest.mark.parametrize(
    "given", [{}, {"X-Forwarded-For": "192.0.2.7"}], ids=["none", "one"]
)
def test_log_the_address_of_the_caller(nginx, service, given):
    """E5: the one that nginx has seen, 127.0.0.2 here, not one that the client has put
    up.
    """
    source = ("127.0.0.2", 0)
    connection = http.client.HTTPConnection("127.0.0.1", nginx.port, 10, source)
    headers = {"X-Request-ID": "from-afar", **given}
    nginx.request("GET", BELOW, headers=headers, connection=connection)
    connection.close()
    service.wait_for_log(" 127.0.0.2 - from-afar\n")


class TestLargeBodies:
    """E1, E2: the answer arrives though the body behind it is not wanted."""

    @pytest.fixture
    def settings(self):
        return {"TICKETSVC_TOKENS": "s3cret"}

    @pytest.mark.parametrize(
        ("headers", "status", "message"),
        [
            pytest.param(TOKEN, 413, TOO_LARGE, id="E1"),
            pytest.param({}, 401, NO_TOKEN, id="E2"),
        ],
    )
    def test_answer_a_large_body_each_time(self, nginx, headers, status, message):
        """Sixteen at once; a 502 would be nginx's own."""
        headers = {"Content-Type": JSON, **headers}

        def send(number):
            reply = nginx.request("PATCH", f"{BELOW}/1", LARGE, headers)
            return reply.status, reply.headers["Content-Type"], reply.body.decode()

        with ThreadPoolExecutor(16) as pool:
            replies = list(pool.map(send, range(40)))
        expected = (status, JSON, f'{{"error": "{message}"}}\n')
        assert [reply for reply in replies if reply != expected] == []


@pytest.mark.parametrize("prefix", ["", PREFIX], ids=["without", "below"])
def test_take_no_prefix_from_a_client(make_server, prefix):
    """N7: whatever header of its own names one."""
    service = make_server(prefix=prefix, SCRIPT_NAME=prefix).start()
    path, body = f"{prefix}{TICKETS}", {"user_description": DESCRIPTION}
    for number, header in enumerate(HEADERS, 1):
        filed = service.request("POST", path, body, {header: "/zzz"})
        assert (filed.status, filed.headers["Location"]) == (201, f"{path}/{number}"), (
            header
        )
    for header in HEADERS:
        listed = service.request("GET", f"{path}?limit=1", headers={header: "/zzz"})
        assert (listed.status, listed.json) == (200, [filed.json]), header
        assert listed.headers["Link"] == f'<{path}?limit=1&before={number}>; rel="next"'


def test_refuse_a_path_that_is_not_below_the_prefix(service):
    """N5, N7: also where a header of the client's names another prefix."""
    for path in (
        "/",
        TICKETS,
        "/api/health",
        f"/x{BELOW}",
        f"/{BELOW}",
        "/HELPDESK/api/health",
    ):
        for headers in ({}, {"SCRIPT_NAME": "/api"}, {"SCRIPT_NAME": ""}):
            reply = service.request("GET", path, headers=headers)
            expected = (404, {"error": no_such_path(path)})
            assert (reply.status, reply.json) == expected
            assert reply.headers["Content-Type"] == JSON
    assert "Traceback" not in service.log


def test_refuse_in_the_name_of_the_request(service):
    """E5, N6: with the id of the caller, in the answer and in the log; a HEAD without a
    body.
    """
    expected = f'{{"error": "{no_such_path(TICKETS)}"}}\n'
    for method, size in (("GET", len(expected)), ("HEAD", 0)):
        reply = service.request(
            method, TICKETS, headers={"X-Request-ID": f"lost-{method}"}
        )
        assert (reply.status, len(reply.body)) == (404, size)
        assert reply.headers["X-Request-ID"] == f"lost-{method}"
        assert len(reply.headers.get_all("Date")) == 1
        service.wait_for_log(f" {method} {TICKETS} 404 {size} ")


def test_refuse_what_only_begins_like_the_prefix(service):
    """N7: gunicorn itself compares letters."""
    reply = service.request("GET", "/helpdeskapi/health")
    assert (reply.status, reply.json) == (
        404,
        {"error": no_such_path("/helpdeskapi/health")},
    )
