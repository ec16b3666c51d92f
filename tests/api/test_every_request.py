"""What holds for every request: E1 to E4, E11, N1, N2, N5."""

import gzip
import hmac
import time

import pytest

from tests.helpers.contract import (
    BAD_TOKEN,
    JSON,
    MIB,
    NO_TOKEN,
    NOT_JSON,
    TICKETS,
    TOO_LARGE,
    assert_error,
    no_such_path,
    once,
)

pytestmark = once

NOT_UTF_8 = "it is not UTF-8"


def send(client, body, method="PATCH", content_type=JSON):
    path = f"{TICKETS}/1" if method == "PATCH" else TICKETS
    return client.open(path, method=method, data=body, content_type=content_type)


EXPECTING_NAME = "Expecting property name enclosed in double quotes"
DEEP = "it is nested too deeply"


@pytest.mark.parametrize("method", ["PATCH", "POST"])
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(b"{", f"{EXPECTING_NAME} at line 1, column 2", id="E1-broken"),
        pytest.param(b" ", "Expecting value at line 1, column 2", id="E1-blank"),
        pytest.param(
            b"{'status': 'closed'}",
            f"{EXPECTING_NAME} at line 1, column 2",
            id="E1-quotes",
        ),
        pytest.param(
            b'{"status": "closed"} x', "Extra data at line 1, column 22", id="E1-extra"
        ),
        pytest.param(
            b'{"status": 1 "category": 2}',
            "Expecting ',' delimiter at line 1, column 14",
            id="E1-comma",
        ),
        pytest.param(
            b'{"status" "closed"}',
            "Expecting ':' delimiter at line 1, column 11",
            id="E1-colon",
        ),
        pytest.param(
            b'{\r\n  "status": closed\r\n}',
            "Expecting value at line 2, column 13",
            id="E1-second-line",
        ),
        pytest.param(
            '{"category": "ß🙂" "x"}'.encode(),
            "Expecting ',' delimiter at line 1, column 19",
            id="E1-characters-not-bytes",
        ),
        pytest.param(
            b'{"x": "a\nb"}',
            "Invalid control character at line 1, column 9",
            id="E1-control-character",
        ),
        pytest.param(
            b'{"x": "a', "Unterminated string starting at line 1, column 7", id="E1-end"
        ),
        pytest.param(
            b'{"x": "\\x"}', "Invalid \\escape at line 1, column 8", id="E1-escape"
        ),
        pytest.param(b'{"status": "clo\xffsed"}', NOT_UTF_8, id="E1-invalid-utf-8"),
        pytest.param(
            b'{"category": "\xed\xa0\x80"}', NOT_UTF_8, id="E1-surrogate-in-utf-8"
        ),
        pytest.param('{"x": "\xe9"}'.encode("latin-1"), NOT_UTF_8, id="E1-latin-1"),
        pytest.param(
            '{"status": "closed"}'.encode("utf-16"), NOT_UTF_8, id="E1-utf-16"
        ),
        pytest.param(
            b'\xef\xbb\xbf{"status": "closed"}',
            "it begins with a byte order mark",
            id="E1-byte-order-mark",
        ),
        pytest.param(b'{"x": NaN}', "it contains NaN", id="E1-NaN"),
        pytest.param(b"NaN", "it contains NaN", id="E1-NaN-alone"),
        pytest.param(b'{"x": [Infinity]}', "it contains Infinity", id="E1-Infinity"),
        pytest.param(b'{"x": -Infinity}', "it contains -Infinity", id="E1--Infinity"),
        pytest.param(
            b'{"status": "closed", "status": "closed"}',
            '"status" is given twice',
            id="E1-twice",
        ),
        pytest.param(b'{"": 1, "": 1, "": 2}', '"" is given twice', id="E1-thrice"),
        pytest.param(
            b'{"x": [{"a": {"k": 1, "\\u006b": 2}}]}',
            '"k" is given twice',
            id="E1-twice-nested",
        ),
        pytest.param(
            b'[{"k": 1, "k": 2}]', '"k" is given twice', id="E1-twice-in-a-list"
        ),
        pytest.param(
            '{"Größe\\"": 1, "Größe\\"": 2}'.encode(),
            '"Größe\\"" is given twice',
            id="E1-twice-as-JSON",
        ),
        pytest.param(
            b'{"\\ud800": 1, "\\ud800": 2}',
            r'"\ud800" is given twice',
            id="E1-twice-unpaired-surrogate",
        ),
        pytest.param(
            b'{"%s": 1, "%s": 2}' % ((b"k" * 98,) * 2),
            f'"{"k" * 98}" is given twice',
            id="E1-twice-100-characters",
        ),
        pytest.param(
            b'{"%s": 1, "%s": 2}' % ((b"k" * 99,) * 2),
            f'"{"k" * 99} is given twice',
            id="E1-twice-101-characters",
        ),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, DEEP, id="E1-deep-list"),
        pytest.param(
            b'{"a":' * 100_000 + b"1" + b"}" * 100_000, DEEP, id="E1-deep-object"
        ),
    ],
)
def test_a_body_that_is_no_json_is_refused_with_a_reason(
    client, ticket, method, body, reason
):
    assert_error(send(client, body, method), 400, f"{NOT_JSON}: {reason}")


@pytest.mark.parametrize("method", ["PATCH", "POST"])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"[]", id="E1-list"),
        pytest.param(b'"status"', id="E1-string"),
        pytest.param(b"1", id="E1-number"),
        pytest.param(b"null", id="E1-null"),
        pytest.param(b"false", id="E1-false"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(client, ticket, method, body):
    assert_error(send(client, body, method), 400, "Request body must be a JSON object")


def test_one_key_in_two_objects_is_not_given_twice(client, ticket):
    """E1."""
    body = b'{"status": "closed", "x": {"status": 1}, "y": [{"status": 1}, {"a": 1}]}'
    assert send(client, body).status_code == 200


def test_a_repeated_key_behind_many_others_is_found_soon(client, ticket):
    """E1: the time grows with the keys, not with their square."""
    keys = [f'"{number}": 0' for number in range(80_000)]
    body = f"{{{', '.join([*keys, keys[-1]])}}}"
    started = time.monotonic()
    response = send(client, body)
    assert time.monotonic() - started < 10
    assert_error(response, 400, f'{NOT_JSON}: "79999" is given twice')


BODY = b'{"user_description": "x", "status": "closed"}'
GZIP = {"Content-Encoding": "gzip"}


@pytest.mark.parametrize("method", ["PATCH", "POST"])
@pytest.mark.parametrize("content_type", [JSON, "text/plain", None])
@pytest.mark.parametrize(
    "coding",
    [
        pytest.param("gzip", id="E11-gzip"),
        pytest.param("GZip", id="E11-case"),
        pytest.param("br", id="E11-br"),
        pytest.param("deflate", id="E11-deflate"),
        pytest.param("x", id="E11-unknown"),
        pytest.param("identity, gzip", id="E11-second"),
        pytest.param("gzip, identity", id="E11-first"),
        pytest.param("identity;q=1", id="E11-parameter"),
        pytest.param("*", id="E11-star"),
    ],
)
def test_a_body_with_another_coding_is_refused(
    client, ticket, method, content_type, coding
):
    """E3: before its media type; and nothing is stored."""
    path = f"{TICKETS}/1" if method == "PATCH" else TICKETS
    headers = {"Content-Encoding": coding}
    for body in (gzip.compress(BODY), BODY, b"{"):
        response = client.open(
            path, method=method, data=body, content_type=content_type, headers=headers
        )
        assert_error(response, 415, "Content-Encoding must be identity")
        assert response.headers.getlist("Accept-Encoding") == ["identity"]
        assert "Accept-Patch" in response.headers
    assert client.get(TICKETS).json == [ticket]


@pytest.mark.parametrize(("method", "status"), [("PATCH", 200), ("POST", 201)])
@pytest.mark.parametrize("coding", ["identity", "Identity", "IDENTITY", "", " "])
def test_a_body_with_no_other_coding_is_taken(client, ticket, method, status, coding):
    """E11."""
    path = f"{TICKETS}/1" if method == "PATCH" else TICKETS
    headers = {"Content-Encoding": coding, "Content-Type": JSON}
    response = client.open(path, method=method, data=BODY, headers=headers)
    assert response.status_code == status
    assert "Accept-Encoding" not in response.headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PATCH", f"{TICKETS}/1", 400),
        ("POST", TICKETS, 400),
        ("GET", f"{TICKETS}/1", 200),
        ("HEAD", f"{TICKETS}/1", 200),
        ("GET", TICKETS, 200),
        ("OPTIONS", f"{TICKETS}/1", 200),
        ("DELETE", f"{TICKETS}/1", 405),
        ("PUT", TICKETS, 405),
        ("GET", "/nowhere", 404),
    ],
    ids=lambda value: f"E11-{value}",
)
def test_without_a_body_its_coding_is_ignored(client, ticket, method, path, status):
    """E11: the 400 is that of no body."""
    response = client.open(path, method=method, headers=GZIP)
    assert response.status_code == status


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", f"{TICKETS}/1", 200),
        ("HEAD", f"{TICKETS}/1", 200),
        ("GET", TICKETS, 200),
        ("OPTIONS", f"{TICKETS}/1", 200),
        ("DELETE", f"{TICKETS}/1", 405),
        ("PUT", TICKETS, 405),
        ("PATCH", "/nowhere", 404),
    ],
    ids=lambda value: f"E11-{value}",
)
def test_a_body_that_nobody_reads_may_have_any_coding(
    client, ticket, method, path, status
):
    """E3, E11: RFC 9110, section 9.3.1: a body of a GET has no meaning."""
    response = client.open(path, method=method, data=BODY, headers=GZIP)
    assert response.status_code == status


def test_the_size_comes_before_the_coding(client, ticket):
    """E3, E11."""
    path = f"{TICKETS}/1"
    assert client.patch(path, data=padded(MIB), headers=GZIP).status_code == 415
    assert client.patch(path, data=padded(MIB + 1), headers=GZIP).status_code == 413


def padded(size):
    """Return a good body of `size` bytes."""
    start, end = b'{"user_description": "x", "status": "closed", "pad": "', b'"}'
    return start + b"x" * (size - len(start) - len(end)) + end


@pytest.mark.parametrize(("method", "status"), [("PATCH", 200), ("POST", 201)])
def test_a_body_of_1_mib_is_taken(client, ticket, method, status):
    """E1."""
    assert send(client, padded(MIB), method).status_code == status


@pytest.mark.parametrize("method", ["PATCH", "POST"])
def test_a_body_over_1_mib_is_refused(client, ticket, method):
    """E1."""
    assert_error(send(client, padded(MIB + 1), method), 413, TOO_LARGE)


def test_too_large_comes_before_the_media_type(client, ticket):
    """E3."""
    assert send(client, padded(MIB + 1), content_type="text/plain").status_code == 413
    assert send(client, b"{", content_type="text/plain").status_code == 415


def test_a_wrong_path_or_method_comes_before_the_body(client, ticket):
    """E3, N5."""
    large = padded(MIB + 1)
    assert client.patch("/api/v1/tickets/x", data=large).status_code == 404
    assert client.put(f"{TICKETS}/1", data=large).status_code == 405


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        pytest.param("/", "/", id="N5-root"),
        pytest.param("/api", "/api", id="N5-api"),
        pytest.param("/api/v1/tickets/", "/api/v1/tickets/", id="N5-slash"),
        pytest.param("/api/v1/tickets/1/", "/api/v1/tickets/1/", id="N5-ticket-slash"),
        pytest.param("//api/health", "//api/health", id="N5-two-slashes"),
        pytest.param("/api/v1//tickets", "/api/v1//tickets", id="N5-inner-slashes"),
        pytest.param("/API/V1/Tickets", "/API/V1/Tickets", id="N5-case"),
        pytest.param("/x?limit=1", "/x", id="N5-query"),
        pytest.param("/x?", "/x", id="N5-empty-query"),
        pytest.param("/x%3Fy?z", "/x?y", id="N5-encoded-question-mark"),
        pytest.param("/a%20b%2Fc", "/a b/c", id="N5-encoded"),
        pytest.param("/a+b", "/a+b", id="N5-plus"),
        pytest.param("/%25", "/%", id="N5-percent"),
        pytest.param("/%zz%", "/%zz%", id="N5-malformed"),
        pytest.param("/Gr%C3%B6%C3%9Fe%20%F0%9F%99%82", "/Größe 🙂", id="N5-UTF-8"),
        pytest.param("/%ff", "/\ufffd", id="N5-not-UTF-8"),
        pytest.param("/a%0Ab%00%1b%22", '/a\nb\0\x1b"', id="N5-control-characters"),
        pytest.param("/" + "x" * 199, "/" + "x" * 199, id="N5-200-characters"),
        pytest.param("/" + "x" * 200, "/" + "x" * 199, id="N5-201-characters"),
        pytest.param("/" + "x" * 299, "/" + "x" * 199, id="N5-300-characters"),
        pytest.param("/" + "%C3%9F" * 300, "/" + "ß" * 199, id="N5-300-encoded"),
        pytest.param("/static/x", "/static/x", id="N5-static"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "PATCH"])
def test_an_unknown_path_is_a_json_404_that_names_it(client, method, path, shown):
    """N2: as it was sent, decoded, without the query, cut after 200 characters."""
    options = {"environ_overrides": {"RAW_URI": path}}  # The client would tidy it.
    response = client.open(path, base_url="http://localhost", method=method, **options)
    assert_error(response, 404, no_such_path(shown))


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", f"{TICKETS}/1", "GET, HEAD, OPTIONS, PATCH"),
        ("PUT", f"{TICKETS}/1", "GET, HEAD, OPTIONS, PATCH"),
        ("POST", f"{TICKETS}/1", "GET, HEAD, OPTIONS, PATCH"),
        ("TRACE", f"{TICKETS}/1", "GET, HEAD, OPTIONS, PATCH"),
        ("PATCH", TICKETS, "GET, HEAD, OPTIONS, POST"),
        ("POST", "/api/health", "GET, HEAD, OPTIONS"),
    ],
    ids=lambda value: f"N5-{value}",
)
def test_a_wrong_method_is_a_json_405_with_allow(client, method, path, allow):
    response = client.open(path, method=method)
    assert_error(response, 405, "The method is not allowed for this path")
    assert ", ".join(sorted(response.headers["Allow"].split(", "))) == allow
    assert "Accept-Patch" not in response.headers


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        pytest.param("GET", f"{TICKETS}/1", {}, 200, id="N6-200"),
        pytest.param(
            "GET", f"{TICKETS}/1", {"headers": {"If-None-Match": "*"}}, 304, id="N6-304"
        ),
        pytest.param("GET", f"{TICKETS}?x=1", {}, 400, id="N6-400-of-a-query"),
        pytest.param("PATCH", f"{TICKETS}/1", {"data": "{"}, 415, id="N6-415"),
        pytest.param(
            "PATCH", f"{TICKETS}/9", {"json": {"status": "closed"}}, 500, id="N6-500"
        ),
        pytest.param("GET", "/nowhere", {}, 404, id="N6-404"),
        pytest.param("PUT", TICKETS, {}, 405, id="N6-405"),
        pytest.param("OPTIONS", TICKETS, {}, 200, id="N6-OPTIONS"),
        pytest.param("GET", "/api/openapi.json", {}, 200, id="N6-document"),
    ],
)
def test_every_answer_may_be_kept_but_not_used_unasked(
    client, ticket, method, path, options, status
):
    response = client.open(path, method=method, **options)
    assert response.status_code == status
    assert response.headers.getlist("Cache-Control") == ["no-cache"]


def test_non_ascii_characters_stay_readable(client):
    """N1."""
    response = client.post(TICKETS, json={"user_description": "Straße 退款 🙂"})
    assert "Straße 退款 🙂" in response.data.decode("utf-8")
    assert response.data.endswith(b"}\n")
    assert not response.data.endswith(b"\n\n")


class TestTokens:
    """E2: with TICKETSVC_TOKENS set."""

    @pytest.fixture
    def settings(self):
        return {"TICKETSVC_TOKENS": "first, alice:s3cret,a.b-c_d~e+f/g=="}

    @pytest.mark.parametrize(
        "authorization",
        [
            "Bearer first",
            "bearer first",
            "Bearer  first ",
            "Bearer s3cret",
            "Bearer a.b-c_d~e+f/g==",
        ],
        ids=lambda value: f"E2-{value!a}",
    )
    def test_a_token_lets_in(self, client, authorization):
        assert (
            client.get(TICKETS, headers={"Authorization": authorization}).status_code
            == 200
        )

    @pytest.mark.parametrize(
        "authorization",
        [
            None,
            "",
            " ",
            "Bearer",
            "Bearer ",
            "bearer   ",
            "Basic first",
            "Basic",
            "first",
            "Bearerfirst",
            "Bearer\tfirst",
            "Basic x, Bearer first",
        ],
        ids=lambda value: f"E2-{value!a}",
    )
    def test_a_request_without_a_token_is_told_how_to_send_one(
        self, client, authorization
    ):
        headers = {} if authorization is None else {"Authorization": authorization}
        response = client.get(TICKETS, headers=headers)
        assert_error(response, 401, NO_TOKEN)
        assert response.headers["WWW-Authenticate"] == "Bearer"

    @pytest.mark.parametrize(
        "authorization",
        [
            "Bearer wrong",
            "Bearer firs",
            "Bearer firstly",
            "Bearer FIRST",
            "Bearer alice:s3cret",
            "Bearer alice",
            "Bearer first,Bearer first",
            "bearer wrong",
            "Bearer first first",
            "Bearer \xff\xfe",
        ],
        ids=lambda value: f"E2-{value!a}",
    )
    def test_another_token_does_not(self, client, authorization):
        response = client.get(TICKETS, headers={"Authorization": authorization})
        assert_error(response, 401, BAD_TOKEN)
        assert response.headers["WWW-Authenticate"] == "Bearer"

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", TICKETS),
            ("PATCH", f"{TICKETS}/1"),
            ("POST", TICKETS),
            ("GET", f"{TICKETS}/1/history"),
            ("DELETE", TICKETS),
            ("OPTIONS", TICKETS),
            ("GET", "/nowhere"),
            ("GET", "/api/health/"),
        ],
    )
    def test_without_a_token_nothing_is_looked_at(self, client, method, path):
        """E2, E3: not even the path, the size or the syntax of the body."""
        response = client.open(path, method=method, data=b"{" * (MIB + 1))
        assert_error(response, 401, NO_TOKEN)

    def test_every_token_is_compared_in_constant_time(self, client, monkeypatch):
        """E2: also those behind the one that matches."""
        compared = []
        compare = hmac.compare_digest
        monkeypatch.setattr(
            hmac,
            "compare_digest",
            lambda *pair: compared.append(pair) or compare(*pair),
        )
        client.get(TICKETS, headers={"Authorization": "Bearer first"})
        assert [known for _, known in compared] == [
            b"first",
            b"s3cret",
            b"a.b-c_d~e+f/g==",
        ]

    def test_health_is_open(self, client):
        """E2."""
        assert client.get("/api/health").status_code == 200
