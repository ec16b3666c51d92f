"""The id of a request: E5."""

import re

import pytest

from tests.helpers.contract import TICKETS, once

pytestmark = once


@pytest.mark.parametrize(
    "given", ["import-7.3_B", "x", "a" * 128, "00000000-0000-0000-0000-000000000000"]
)
def test_a_valid_request_id_is_taken_over(client, given):
    """E5."""
    response = client.get("/api/health", headers={"X-Request-ID": given})
    assert response.headers["X-Request-ID"] == given


@pytest.mark.parametrize(
    "given", [None, "", "a" * 129, "a b", "a,b", "a\tb", "<b>", "\xe9", "a/b", "a\x00"]
)
def test_another_request_id_is_made_anew(client, given):
    """E5."""
    headers = {} if given is None else {"X-Request-ID": given}
    ids = {
        client.get("/api/health", headers=headers).headers["X-Request-ID"]
        for _ in range(3)
    }
    assert len(ids) == 3
    assert given not in ids
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", TICKETS, 200),
        ("GET", f"{TICKETS}/9", 404),
        ("PUT", TICKETS, 405),
        ("GET", "/nowhere", 404),
        ("PATCH", f"{TICKETS}/9", 400),
        ("OPTIONS", TICKETS, 200),
    ],
)
def test_every_answer_has_a_request_id(client, method, path, status):
    """E5: the errors too."""
    response = client.open(path, method=method, headers={"X-Request-ID": "mine"})
    assert response.status_code == status
    assert response.headers["X-Request-ID"] == "mine"
