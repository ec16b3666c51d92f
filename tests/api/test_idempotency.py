"""Retries of a POST: O5."""

import pytest

from tests.helpers.contract import BAD_KEY, TICKETS, assert_error, once

BODY = {"user_description": "x", "confidence_score": 0.5}
OTHER = "Idempotency-Key was used for another ticket"


def post(client, key, body=BODY, **options):
    return client.post(TICKETS, json=body, headers={"Idempotency-Key": key}, **options)


@pytest.mark.parametrize(
    "key", ["a", "k" * 255, '!"#$%&;:<=>?@[]^_`{|}~', "import-7/3"]
)
def test_the_second_request_with_a_key_answers_the_same_ticket(client, key):
    """O5."""
    first, second = post(client, key), post(client, key)
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json == second.json
    assert first.headers["Location"] == second.headers["Location"]
    assert first.headers["ETag"] == second.headers["ETag"]
    assert len(client.get(TICKETS).json) == 1


def test_a_repeat_uses_up_no_id(client):
    """O5: nor does a key that was used for another ticket."""
    for _ in range(50):
        assert post(client, "k").json["id"] == 1
        assert post(client, "k", {"user_description": "y"}).status_code == 422
    assert post(client, "other").json["id"] == 2
    assert client.post(TICKETS, json=BODY).json["id"] == 3


def test_a_retry_answers_the_ticket_as_it_is_now(client):
    """O5."""
    post(client, "k")
    patched = client.patch(f"{TICKETS}/1", json={"status": "closed"})
    again = post(client, "k")
    assert (again.status_code, again.json) == (200, patched.json)
    assert again.headers["ETag"] == patched.headers["ETag"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param({**BODY, "category": "other"}, 200, id="O5-category"),
        pytest.param({**BODY, "user_description": "y"}, 422, id="O5-description"),
        pytest.param({**BODY, "confidence_score": 0.6}, 422, id="O5-confidence"),
        pytest.param({**BODY, "confidence_score": None}, 422, id="O5-null"),
        pytest.param({"user_description": "x"}, 422, id="O5-missing"),
    ],
)
def test_a_key_belongs_to_one_description_and_confidence(client, body, status):
    post(client, "k")
    response = post(client, "k", body)
    assert response.status_code == status
    if status == 422:
        assert_error(response, 422, OTHER)
    assert len(client.get(TICKETS).json) == 1


def test_null_and_no_confidence_are_the_same(client):
    """O5."""
    post(client, "k", {"user_description": "x"})
    body = {"user_description": "x", "confidence_score": None}
    assert post(client, "k", body).status_code == 200


@once
@pytest.mark.parametrize(
    "key", ["", " ", "k" * 256, "a b", "a\tb", "a,b", "\xe9", "\x7f", "k,", ",", "k, k"]
)
def test_a_bad_key_is_named(client, key):
    """O5."""
    assert_error(post(client, key), 400, BAD_KEY)
    assert client.get(TICKETS).json == []


@once
def test_the_media_type_comes_before_the_key(client):
    """O5, E3."""
    headers = {"Idempotency-Key": "a b"}
    response = client.post(
        TICKETS, data="x", content_type="text/plain", headers=headers
    )
    assert response.status_code == 415


def test_a_refused_request_leaves_its_key_unused(client):
    """O5."""
    assert post(client, "k", {"category": "x"}).status_code == 400
    assert post(client, "k").status_code == 201


def test_requests_without_a_key_are_all_filed(client):
    """O5: null is no key."""
    for _ in range(3):
        assert client.post(TICKETS, json=BODY).status_code == 201
    assert len(client.get(TICKETS).json) == 3


class TestTokens:
    """E2: keys are the same for all tokens."""

    @pytest.fixture
    def settings(self):
        return {"TICKETSVC_TOKENS": "one,two"}

    def test_a_key_is_the_same_for_all_tokens(self, client):
        """O5."""
        statuses = [
            client.post(
                TICKETS,
                json=BODY,
                headers={"Idempotency-Key": "k", "Authorization": f"Bearer {token}"},
            ).status_code
            for token in ("one", "two")
        ]
        assert statuses == [201, 200]
