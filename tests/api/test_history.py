"""The versions of a ticket: V1 to V4."""

import time

import pytest
from marshmallow import fields
from marshmallow.validate import OneOf

from schemas import ticket_patch_schema
from tests.helpers.contract import TICKETS, assert_error, assert_version, once

FIELDS = [
    "version",
    "status",
    "category",
    "ai_suggested_response",
    "updated_at",
    "updated_by",
]


@pytest.fixture
def url(ticket):
    return f"{TICKETS}/{ticket['id']}"


def versions(response):
    return [each["version"] for each in response.json]


def test_history_shows_every_version_newest_first(client, url, ticket):
    """V1: down to the ticket as it was filed."""
    first = client.patch(url, json={"category": "billing"}).json
    second = client.patch(
        url, json={"status": "closed", "ai_suggested_response": "Done."}
    ).json
    response = client.get(f"{url}/history")
    assert response.status_code == 200
    assert [list(each) for each in response.json] == [FIELDS] * 3
    tickets = zip((3, 2, 1), (second, first, ticket), strict=True)
    expected = [
        {**each, "version": version, "updated_by": None} for version, each in tickets
    ]
    assert response.json == [{name: each[name] for name in FIELDS} for each in expected]
    assert_version(client.get(url), 3)


def test_history_of_a_new_ticket_is_its_present_version(client, url):
    """V1."""
    assert versions(client.get(f"{url}/history")) == [1]


def another(field, present):
    """Return a value other than the present one that a field of a schema takes."""
    for validator in field.validators:
        if isinstance(validator, OneOf):
            return next(each for each in validator.choices if each != present)
    values = {fields.String: "another", fields.Integer: 7, fields.Float: 0.7}
    if isinstance(field, fields.Boolean):
        return not present
    return next(value for kind, value in values.items() if isinstance(field, kind))


@pytest.mark.parametrize("name", ticket_patch_schema.fields)
def test_a_patch_of_one_field_keeps_the_version_before_it(client, url, ticket, name):
    """V1, V2: whatever can be patched has a history, from the first PATCH on."""
    before = client.get(f"{url}/history").json
    value = another(ticket_patch_schema.fields[name], ticket[name])
    assert client.patch(url, json={name: value}).status_code == 200
    history = client.get(f"{url}/history").json
    assert (history[0]["version"], history[0][name]) == (2, value)
    assert history[1:] == before
    assert history[1][name] == ticket[name]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        pytest.param({"status": "open"}, {}, 400, id="V2-invalid"),
        pytest.param({"status": "closed"}, {"If-Match": '"7"'}, 412, id="V2-If-Match"),
        pytest.param(
            {"status": "closed"}, {"If-None-Match": "*"}, 412, id="V2-If-None-Match"
        ),
    ],
)
def test_a_refused_patch_leaves_no_version(client, url, body, headers, status):
    assert client.patch(url, json=body, headers=headers).status_code == status
    assert versions(client.get(f"{url}/history")) == [1]


def test_a_failed_patch_leaves_no_version(client, url, sql, on_sqlite):
    """V2: the row and its version are one transaction."""
    if on_sqlite:
        sql(
            "CREATE TRIGGER unlucky AFTER UPDATE ON ticket "
            "WHEN NEW.category = 'unlucky' "
            "BEGIN SELECT RAISE(ABORT, 'unlucky'); END"
        )
    else:
        sql("ALTER TABLE ticket ADD CHECK (category <> 'unlucky')")
    assert client.patch(url, json={"category": "unlucky"}).status_code == 500
    assert versions(client.get(f"{url}/history")) == [1]
    assert client.patch(url, json={"category": "lucky"}).status_code == 200
    assert versions(client.get(f"{url}/history")) == [2, 1]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("category", "by hand"),
        ("user_description", "by hand"),
        ("ai_suggested_response", "by hand"),
        ("status", "closed"),
        ("confidence_score", 0.5),
        ("created_at", "2020-01-01T00:00:00.000Z"),
    ],
)
def test_a_change_past_the_service_is_a_version(client, url, sql, column, value):
    """V3: with the old values kept, the next version, the time and nobody's name."""
    before = client.get(url)
    time.sleep(0.002)  # The clock has milliseconds.
    sql(f"UPDATE ticket SET {column} = {value!r}")
    after = client.get(url)
    assert_version(after, 2)
    assert after.json == {
        **before.json,
        column: value,
        "updated_at": after.json["updated_at"],
    }
    assert after.json["updated_at"] > before.json["updated_at"]
    history = client.get(f"{url}/history").json
    assert [each["version"] for each in history] == [2, 1]
    assert history[1]["category"] == before.json["category"]
    assert_version(client.patch(url, json={"status": "closed"}), 3)


def test_a_statement_that_sets_the_version_is_left_as_it_is(client, url, sql):
    """V3: as the service's own, and those of a version of it that knows no history."""
    sql(
        "UPDATE ticket SET category = 'x', version = 7, "
        "updated_at = '2020-01-01T00:00:00.000Z'"
    )
    ticket = client.get(url)
    assert_version(ticket, 7)
    assert ticket.json["updated_at"] == "2020-01-01T00:00:00.000Z"
    assert versions(client.get(f"{url}/history")) == [7, 1]


def test_a_change_of_many_rows_keeps_each(client, url, sql):
    """V3."""
    client.post(TICKETS, json={"user_description": "x"})
    sql("UPDATE ticket SET status = 'closed'")
    for ticket_id in (1, 2):
        assert versions(client.get(f"{TICKETS}/{ticket_id}/history")) == [2, 1]


@pytest.mark.parametrize(
    ("query", "pages"),
    [
        pytest.param("limit=3", [[7, 6, 5], [4, 3, 2], [1]], id="V4-limit"),
        pytest.param("limit=7", [[7, 6, 5, 4, 3, 2, 1]], id="V4-one-page"),
        pytest.param("limit=1", [[n] for n in range(7, 0, -1)], id="V4-one-each"),
        pytest.param("before=7", [[6, 5, 4, 3, 2, 1]], id="V4-before-present"),
        pytest.param(
            "limit=1&before=7",
            [[n] for n in range(6, 0, -1)],
            id="V4-one-below-the-present",
        ),
        pytest.param("limit=2&before=5", [[4, 3], [2, 1]], id="V4-before"),
        pytest.param("before=8", [[7, 6, 5, 4, 3, 2, 1]], id="V4-before-next"),
        pytest.param("before=1", [[]], id="V4-before-first"),
    ],
)
def test_history_is_whole_when_followed(client, url, query, pages):
    for number in range(6):
        client.patch(url, json={"category": f"n {number}"})
    found, following = [], f"{url}/history?{query}"
    while following and len(found) < 10:
        response = client.get(following)
        found.append(versions(response))
        following = response.headers.get("Link", "").partition(">")[0].removeprefix("<")
    assert found == pages


@once
@pytest.mark.parametrize("ticket_id", [1, 99])
@pytest.mark.parametrize(
    ("query", "field"),
    [
        pytest.param("after=1", "after", id="V4-after"),
        pytest.param("status=closed", "status", id="V4-status"),
        pytest.param("limit=0", "limit", id="V4-limit"),
        pytest.param("before=x", "before", id="V4-before"),
        pytest.param("before=1&before=2", "before", id="V4-twice"),
    ],
)
def test_history_names_a_bad_parameter(client, ticket, ticket_id, query, field):
    """V4: also for an unknown ticket."""
    response = client.get(f"{TICKETS}/{ticket_id}/history?{query}")
    assert response.status_code == 400
    assert list(response.json["fields"]) == [field]


@pytest.mark.parametrize("ticket_id", ["99", "9" * 30])
def test_history_of_an_unknown_ticket_is_a_404(client, ticket_id):
    """V4, G1."""
    assert_error(client.get(f"{TICKETS}/{ticket_id}/history"), 404, "Ticket not found")


class TestNames:
    """E2, V1: with named tokens."""

    @pytest.fixture
    def settings(self):
        return {"TICKETSVC_TOKENS": "alice:s3cret, bob:pa55, nameless"}

    def test_history_says_who_wrote_a_version(self, client, sql):
        """E2: and the body of the ticket does not."""
        alice, bob, nameless = (
            {"Authorization": f"Bearer {token}"}
            for token in ("s3cret", "pa55", "nameless")
        )
        client.post(TICKETS, json={"user_description": "x"}, headers=alice)
        for headers in (bob, nameless, alice):
            ticket = client.patch(
                f"{TICKETS}/1", json={"status": "closed"}, headers=headers
            ).json
        assert "updated_by" not in ticket
        sql("UPDATE ticket SET category = 'by hand'")
        history = client.get(f"{TICKETS}/1/history", headers=bob).json
        assert [each["updated_by"] for each in history] == [
            None,
            "alice",
            None,
            "bob",
            "alice",
        ]
