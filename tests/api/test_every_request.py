"""What holds for every request: E1 to E4, N1, N2, N5."""

import hmac

import pytest

from tests.helpers.contract import (
    JSON,
    MIB,
    NO_SUCH_PATH,
    NOT_JSON,
    TICKETS,
    TOO_LARGE,
    UNAUTHORIZED,
    assert_error,
    once,
)

pytestmark = once

NOT_AN_OBJECT = "Request body must be a JSON object"


def send(client, body, method="PATCH", content_type=JSON):
    path = f"{TICKETS}/1" if method == "PATCH" else TICKETS
    return client.open(path, method=method, data=body, content_type=content_type)


@pytest.mark.parametrize("method", ["PATCH", "POST"])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(b"{", NOT_JSON, id="E1-broken"),
        pytest.param(b" ", NOT_JSON, id="E1-blank"),
        pytest.param(b"{'status': 'closed'}", NOT_JSON, id="E1-quotes"),
        pytest.param(b'{"status": "closed"} x', NOT_JSON, id="E1-trailing"),
        pytest.param(b'{"status": "clo\xffsed"}', NOT_JSON, id="E1-invalid-utf-8"),
        pytest.param(
            b'{"category": "\xed\xa0\x80"}', NOT_JSON, id="E1-surrogate-in-utf-8"
        ),
        pytest.param('{"status": "closed"}'.encode("utf-16"), NOT_JSON, id="E1-utf-16"),
        pytest.param(
            b'\xef\xbb\xbf{"status": "closed"}', NOT_JSON, id="E1-byte-order-mark"
        ),
        pytest.param(b'{"x": NaN}', NOT_JSON, id="E1-NaN"),
        pytest.param(b'{"x": Infinity}', NOT_JSON, id="E1-Infinity"),
        pytest.param(b'{"x": -Infinity}', NOT_JSON, id="E1--Infinity"),
        pytest.param(b'{"x": "a\nb"}', NOT_JSON, id="E1-control-character"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, NOT_JSON, id="E1-deep-list"),
        pytest.param(
            b'{"a":' * 100_000 + b"1" + b"}" * 100_000, NOT_JSON, id="E1-deep-object"
        ),
        pytest.param(b"[]", NOT_AN_OBJECT, id="E1-list"),
        pytest.param(b'"status"', NOT_AN_OBJECT, id="E1-string"),
        pytest.param(b"1", NOT_AN_OBJECT, id="E1-number"),
        pytest.param(b"null", NOT_AN_OBJECT, id="E1-null"),
        pytest.param(b"false", NOT_AN_OBJECT, id="E1-false"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(
    client, ticket, method, body, message
):
    assert_error(send(client, body, method), 400, message)


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
    "path", ["/", "/api", "/api/v1/tickets/", "//api/health", "/static/x"]
)
def test_an_unknown_path_is_a_json_404(client, path):
    """N2, N5."""
    response = client.get(path, base_url="http://localhost")
    assert_error(response, 404, NO_SUCH_PATH)


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
            "Bearer",
            "Bearer ",
            "Bearer wrong",
            "Bearer firs",
            "Bearer firstly",
            "Bearer FIRST",
            "Bearer alice:s3cret",
            "Bearer alice",
            "Bearer first,Bearer first",
            "Basic first",
            "first",
            "Bearer \xff\xfe",
        ],
        ids=lambda value: f"E2-{value!a}",
    )
    def test_another_token_does_not(self, client, authorization):
        headers = {} if authorization is None else {"Authorization": authorization}
        response = client.get(TICKETS, headers=headers)
        assert_error(response, 401, UNAUTHORIZED)
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
        assert_error(response, 401, UNAUTHORIZED)

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
