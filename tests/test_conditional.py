"""Conditional requests (RFC 9110): C1 to C3."""

import pytest

from models import Ticket, database
from tests.conftest import TICKETS, assert_error

CHANGED = "Ticket has changed since it was read"


@pytest.fixture
def url(ticket):
    return f"{TICKETS}/{ticket['id']}"


def close(client, url, if_match):
    return client.patch(url, json={"status": "closed"}, headers={"If-Match": if_match})


def test_every_answer_with_one_ticket_has_its_etag(client):
    """C1."""
    created = client.post(TICKETS, json={"user_description": "x"})
    url = created.headers["Location"]
    read = client.get(url)
    patched = client.patch(url, json={"status": "closed"})
    assert created.headers["ETag"] == read.headers["ETag"]
    assert patched.headers["ETag"] != read.headers["ETag"]
    assert patched.headers["ETag"] == client.get(url).headers["ETag"]
    assert patched.headers["ETag"].startswith('"')


def test_etag_changes_with_every_write(client, url, ticket):
    """C1: in one transaction many of these fall into one millisecond."""
    answers = [client.patch(url, json={"status": "closed"}) for _ in range(100)]
    with database.atomic():
        tickets = [Ticket.patch(ticket["id"], {"status": "closed"}) for _ in range(100)]
    assert len({answer.headers["ETag"] for answer in answers}) == 100
    assert len({ticket["version"] for ticket in tickets}) == 100
    assert len({ticket["updated_at"] for ticket in tickets}) < 100


@pytest.mark.parametrize(
    "if_match",
    ['"1"', '"7", "1"', '"1","2"', 'W/"1", "1"', "*", ' "1" '],
    ids=lambda if_match: f"C2-{if_match}",
)
def test_patch_applies_where_a_tag_matches(client, url, if_match):
    assert close(client, url, if_match).status_code == 200


@pytest.mark.parametrize(
    "if_match",
    ['"2"', '"0", "2"', 'W/"1"', '"abc"', '""', '"*"', '"١"', f'"{10**30}"', '"-1"', "", ",", " "],
    ids=lambda if_match: f"C2-{if_match!a}",
)
def test_patch_writes_nothing_where_no_tag_matches(client, url, row, ticket, if_match):
    before = row(ticket["id"])
    assert_error(close(client, url, if_match.encode().decode("latin-1")), 412, CHANGED)
    assert row(ticket["id"]) == before


def test_patch_with_an_old_tag_is_refused(client, url):
    """C2."""
    etag = client.get(url).headers["ETag"]
    assert close(client, url, etag).status_code == 200
    assert_error(close(client, url, etag), 412, CHANGED)


@pytest.mark.parametrize("if_match", ["*", '"1"'], ids=lambda if_match: f"C2-{if_match}")
def test_patch_of_an_unknown_ticket_stays_a_500(client, if_match):
    """P9, E3: 412 is for a ticket that exists."""
    assert_error(close(client, f"{TICKETS}/99", if_match), 500, "Internal server error")


def test_a_bad_body_comes_before_a_failed_condition(client, url):
    """E3."""
    response = client.patch(url, json={"status": "x"}, headers={"If-Match": '"9"'})
    assert response.status_code == 400


@pytest.mark.parametrize(
    "if_none_match", ['"1"', 'W/"1"', '"8", "1"', "*"], ids=lambda value: f"C3-{value}"
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_get_of_a_known_state_has_no_body(client, url, method, if_none_match):
    response = client.open(url, method=method, headers={"If-None-Match": if_none_match})
    assert response.status_code == 304
    assert response.data == b""
    assert response.headers["ETag"] == '"1"'


def test_get_of_a_changed_ticket_has_it(client, url, ticket):
    """C3."""
    response = client.get(url, headers={"If-None-Match": '"0"'})
    assert response.status_code == 200
    assert response.json == ticket


@pytest.mark.parametrize("if_match", ["*", '"1"', '"9", "1"'], ids=lambda value: f"C2-{value}")
def test_get_with_an_if_match_that_holds_goes_on(client, url, if_match):
    """RFC 9110, section 13.2.2: If-None-Match is looked at after it."""
    assert client.get(url, headers={"If-Match": if_match}).status_code == 200
    headers = {"If-Match": if_match, "If-None-Match": '"1"'}
    assert client.get(url, headers=headers).status_code == 304


def test_get_with_a_failed_if_match_is_refused(client, url):
    """N2: RFC 9110, section 13.1.1, holds for GET too, and the answer is an error's."""
    assert_error(client.get(url, headers={"If-Match": '"9"'}), 412, CHANGED)
