"""POST /api/v1/tickets: O1 to O4."""

import re

import pytest

from tests.helpers.contract import INVALID, JSON, TICKETS, TIMESTAMP, assert_error, once

NOT_A_NUMBER = ["Not a valid number."]
OUT_OF_RANGE = ["Must be greater than or equal to 0 and less than or equal to 1."]
NOT_FINITE = ["Special numeric values (nan or infinity) are not permitted."]


def test_create_answers_with_the_complete_ticket(client):
    """O1, O2, N1, N3."""
    response = client.post(TICKETS, json={"user_description": "Mir fehlt ein Knopf"})
    body = response.json
    assert response.status_code == 201
    assert response.headers["Location"] == f"{TICKETS}/{body['id']}"
    assert list(body) == [
        "id",
        "user_description",
        "category",
        "ai_suggested_response",
        "confidence_score",
        "status",
        "created_at",
        "updated_at",
    ]
    assert re.fullmatch(TIMESTAMP, body["created_at"])
    assert body["updated_at"] == body["created_at"]
    assert (
        body["category"]
        is body["ai_suggested_response"]
        is body["confidence_score"]
        is None
    )
    assert client.get(response.headers["Location"]).json == body


def test_create_takes_what_the_classifier_found(client, row):
    """O1."""
    values = {
        "user_description": "x" * 10_000,
        "category": "c" * 100,
        "ai_suggested_response": "r" * 50_000,
        "confidence_score": 0.123456789012345,
    }
    body = client.post(TICKETS, json=values).json
    stored = row(body["id"])
    assert {name: body[name] for name in values} == values
    assert {name: stored[name] for name in values} == values


def test_create_takes_null_where_no_classifier_has_run(client):
    """O1."""
    optional = dict.fromkeys(["category", "ai_suggested_response", "confidence_score"])
    body = client.post(TICKETS, json={"user_description": "x", **optional}).json
    assert {name: body[name] for name in optional} == optional


@pytest.mark.parametrize(
    ("confidence", "status"),
    [
        pytest.param(None, "pending_agent", id="O3-null"),
        pytest.param(0, "pending_agent", id="O3-0"),
        pytest.param(0.6999, "pending_agent", id="O3-below"),
        pytest.param(0.7, "ai_resolved", id="O3-at"),
        pytest.param(1, "ai_resolved", id="O3-1"),
    ],
)
def test_create_decides_the_status_by_confidence(client, confidence, status):
    values = {
        "user_description": "x",
        "confidence_score": confidence,
        "status": "closed",
    }
    assert client.post(TICKETS, json=values).json["status"] == status


@once
@pytest.mark.parametrize(
    ("values", "fields"),
    [
        pytest.param(
            {"user_description": None},
            {"user_description": ["Field may not be null."]},
            id="O4-null",
        ),
        pytest.param(
            {"user_description": "x" * 10_001},
            {"user_description": ["Length must be between 1 and 10000."]},
            id="O4-max+1",
        ),
        pytest.param(
            {"user_description": "\n"},
            {"user_description": ["May not be white space only."]},
            id="O4-blank",
        ),
        pytest.param(
            {"user_description": "a\0"},
            {"user_description": ["May not contain NUL or unpaired surrogates."]},
            id="O4-nul",
        ),
        pytest.param(
            {"category": 1}, {"category": ["Not a valid string."]}, id="O4-category"
        ),
        pytest.param(
            {"confidence_score": "0.5"},
            {"confidence_score": NOT_A_NUMBER},
            id="O4-text",
        ),
        pytest.param(
            {"confidence_score": True}, {"confidence_score": NOT_A_NUMBER}, id="O4-true"
        ),
        pytest.param(
            {"confidence_score": 1.01}, {"confidence_score": OUT_OF_RANGE}, id="O4-1.01"
        ),
        pytest.param(
            {"confidence_score": -0.1}, {"confidence_score": OUT_OF_RANGE}, id="O4--0.1"
        ),
    ],
)
def test_create_names_a_bad_field_and_stores_nothing(client, values, fields):
    response = client.post(TICKETS, json={"user_description": "x", **values})
    assert_error(response, 400, INVALID, fields)
    assert client.get(TICKETS).json == []


@once
def test_create_refuses_a_number_past_all_floats(client):
    """O4."""
    body = '{"user_description": "x", "confidence_score": 1e999}'
    response = client.post(TICKETS, data=body, content_type=JSON)
    assert_error(response, 400, INVALID, {"confidence_score": NOT_FINITE})


def test_create_takes_minus_zero_for_zero(client):
    """O4: JSON has -0.0, and not every database keeps its sign."""
    body = '{"user_description": "x", "confidence_score": -0.0}'
    response = client.post(TICKETS, data=body, content_type=JSON)
    assert '"confidence_score": 0.0,' in response.get_data(as_text=True)


@once
@pytest.mark.parametrize(
    "request_options",
    [{}, {"json": {}}, {"json": {"category": "x"}}],
    ids=lambda o: f"O4-{o}",
)
def test_create_needs_a_description(client, request_options):
    fields = {"user_description": ["Missing data for required field."]}
    assert_error(client.post(TICKETS, **request_options), 400, INVALID, fields)


@once
def test_create_refuses_another_media_type(client):
    """O4, P12."""
    response = client.post(
        TICKETS, data="user_description=x", content_type="text/plain"
    )
    assert response.status_code == 415
    assert "Accept-Patch" in response.headers


def test_create_never_gives_an_id_out_again(client, sql):
    """The table: ids never reused."""
    first = client.post(TICKETS, json={"user_description": "x"}).json["id"]
    sql("DELETE FROM ticket")
    assert client.post(TICKETS, json={"user_description": "x"}).json["id"] > first
