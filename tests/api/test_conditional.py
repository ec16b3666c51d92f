"""Conditional requests (RFC 9110): C1 to C4."""

import re
import time

import pytest

from tests.helpers.contract import (
    CHANGED,
    TICKETS,
    TIMESTAMP,
    assert_error,
    assert_version,
    entity_tag,
    once,
)


@pytest.fixture
def url(ticket):
    return f"{TICKETS}/{ticket['id']}"


@pytest.fixture
def tag(ticket):
    """The entity tag of the ticket as it was filed."""
    return entity_tag(1, ticket)


@pytest.fixture
def filled(tag):
    """Return a function that puts the tag, and its time, into a conditional header."""
    time = tag.strip('"').removeprefix("1-")
    return lambda value: value.replace("TAG", tag).replace("TIME", time)


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


def test_etag_changes_with_every_write(client, url):
    """C1, V1: by its version too, so two writes in one millisecond have two tags."""
    for version in range(2, 102):
        assert_version(client.patch(url, json={"status": "closed"}), version)


def test_etag_is_the_version_with_its_time(client):
    """C1: of each answer with one ticket, and as the contract shows it."""
    created = client.post(TICKETS, json={"user_description": "x"})
    url = created.headers["Location"]
    assert re.fullmatch(f'"1-{TIMESTAMP}"', created.headers["ETag"])
    assert_version(created, 1)
    assert_version(client.get(url), 1)
    assert_version(client.patch(url, json={"status": "closed"}), 2)
    assert_version(client.get(url), 2)


def test_a_ticket_restored_to_the_state_it_had_has_the_tag_it_had(client, url, sql):
    """C1: and one that is written again gets another than it had after the backup."""
    filed = client.get(url)
    assert close(client, url, filed.headers["ETag"]).status_code == 200
    patched = client.get(url)
    time.sleep(0.002)  # The clock has milliseconds.

    restore(sql, filed.json)
    assert client.get(url).headers["ETag"] == filed.headers["ETag"]
    again = client.patch(url, json={"category": "a colleague's"})
    assert_version(again, 2)
    assert again.headers["ETag"] != patched.headers["ETag"]


def literal(value):
    """Return a value as a literal of SQL."""
    return "NULL" if value is None else repr(value)


def restore(sql, ticket):
    """Put a ticket back as it was at version 1, as the restore of a backup does."""
    sql("DELETE FROM ticket")
    columns = [*ticket, "version"]
    values = [literal(value) for value in ticket.values()]
    sql(f"INSERT INTO ticket ({', '.join(columns)}) VALUES ({', '.join(values)}, 1)")


@pytest.mark.parametrize(
    ("method", "name", "status"),
    [
        pytest.param("PATCH", "If-Match", 412, id="C2-If-Match"),
        pytest.param("PATCH", "If-None-Match", 200, id="C4-If-None-Match"),
        pytest.param("GET", "If-Match", 412, id="C2-GET-If-Match"),
        pytest.param("GET", "If-None-Match", 200, id="C3-GET-If-None-Match"),
    ],
)
def test_a_tag_from_before_a_restore_matches_nothing(
    client, url, sql, method, name, status
):
    """C1: though the same version number is given out again."""
    filed = client.get(url).json
    old = client.patch(url, json={"category": "lost"}).headers["ETag"]
    time.sleep(0.002)  # The clock has milliseconds.
    restore(sql, filed)
    new = client.patch(url, json={"category": "a colleague's"})
    assert_version(new, 2)

    body = {"json": {"category": "mine"}} if method == "PATCH" else {}
    response = client.open(url, method=method, headers={name: old}, **body)
    assert response.status_code == status
    if status == 412:
        assert_error(response, 412, CHANGED)
        assert client.get(url).json == new.json


@pytest.mark.parametrize(
    "if_match",
    ["TAG", '"7", TAG', 'TAG,"2"', "W/TAG, TAG", "*", " * ", " TAG "],
    ids=lambda if_match: f"C2-{if_match}",
)
def test_patch_applies_where_a_tag_matches(client, url, filled, if_match):
    assert close(client, url, filled(if_match)).status_code == 200


@pytest.mark.parametrize(
    "if_match",
    [
        '"1"',
        '"2-TIME"',
        '"0-TIME", "2-TIME"',
        "W/TAG",
        'W/TAG, "2-TIME"',
        '"abc"',
        '""',
        '"*"',
        '"1-TIME\xa0"',
        '"01-TIME"',
        '"+1-TIME"',
        '"-1-TIME"',
        '"²-TIME"',
        '"١-TIME"',
        '"TIME"',
        '"1-"',
        '"1-TIME1"',
        '"1-2020-01-01T00:00:00.000Z"',
        f'"{10**30}-TIME"',
    ],
    ids=lambda if_match: f"C2-{if_match!a}",
)
def test_patch_writes_nothing_where_no_tag_matches(
    client, url, row, ticket, filled, if_match
):
    before = row(ticket["id"])
    sent = filled(if_match).encode().decode("latin-1")
    assert_error(close(client, url, sent), 412, CHANGED)
    assert row(ticket["id"]) == before


def test_patch_with_an_old_tag_is_refused(client, url):
    """C2."""
    etag = client.get(url).headers["ETag"]
    assert close(client, url, etag).status_code == 200
    assert_error(close(client, url, etag), 412, CHANGED)


def test_tags_compare_character_by_character(client, url, tag):
    """C2: the letters of the time too."""
    assert_error(close(client, url, tag.lower()), 412, CHANGED)
    assert close(client, url, tag).status_code == 200


@pytest.mark.parametrize(
    "if_match",
    ["*", '"1"', '"1-2026-11-24T10:32:56.015Z"', 'W/"1"'],
    ids=lambda if_match: f"C2-P9-{if_match}",
)
def test_patch_of_an_unknown_ticket_stays_a_500(client, if_match):
    """P9, E3: 412 is for a ticket that exists."""
    assert_error(close(client, f"{TICKETS}/99", if_match), 500, "Internal server error")


@once
def test_a_bad_body_comes_before_a_failed_condition(client, url):
    """E3."""
    response = client.patch(url, json={"status": "x"}, headers={"If-Match": '"9"'})
    assert response.status_code == 400


@pytest.mark.parametrize(
    "if_none_match", ["TAG", "W/TAG", '"8", TAG', "*"], ids=lambda value: f"C3-{value}"
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_get_of_a_known_state_has_no_body(
    client, url, tag, filled, method, if_none_match
):
    headers = {"If-None-Match": filled(if_none_match)}
    response = client.open(url, method=method, headers=headers)
    assert response.status_code == 304
    assert response.data == b""
    assert response.headers["ETag"] == tag


def test_get_of_a_changed_ticket_has_it(client, url, ticket):
    """C3."""
    response = client.get(url, headers={"If-None-Match": '"1", "0-x"'})
    assert response.status_code == 200
    assert response.json == ticket


@pytest.mark.parametrize(
    "if_match", ["*", "TAG", '"9", TAG'], ids=lambda value: f"C2-{value}"
)
def test_get_with_an_if_match_that_holds_goes_on(client, url, tag, filled, if_match):
    """RFC 9110, section 13.2.2: If-None-Match is looked at after it."""
    headers = {"If-Match": filled(if_match)}
    assert client.get(url, headers=headers).status_code == 200
    headers["If-None-Match"] = tag
    assert client.get(url, headers=headers).status_code == 304


def test_get_with_a_failed_if_match_is_refused(client, url):
    """N2: RFC 9110, section 13.1.1, holds for GET too, and the answer is an error's."""
    assert_error(client.get(url, headers={"If-Match": '"9"'}), 412, CHANGED)


MALFORMED = [
    "3",
    "",
    " ",
    ",",
    '"1',
    '1"',
    '"1" "2"',
    '"1", 2',
    '*, "1"',
    '"1", *',
    "W/1",
    'w/"1"',
    '"a"b"',
    ", ".join(f'"{n}"' for n in range(101)),
    ", ".join(['"1"'] * 101),
]


@once
@pytest.mark.parametrize("name", ["If-Match", "If-None-Match"])
@pytest.mark.parametrize("method", ["PATCH", "GET"])
@pytest.mark.parametrize("value", MALFORMED, ids=lambda value: f"C2-{value[:12]!a}")
def test_a_value_that_is_no_list_of_tags_is_refused(client, url, name, method, value):
    body = {"json": {"status": "closed"}} if method == "PATCH" else {}
    response = client.open(url, method=method, headers={name: value}, **body)
    assert_error(response, 400, f"{name} must be * or entity tags in double quotes")
    assert_version(client.get(url), 1)


@once
@pytest.mark.parametrize("name", ["If-Match", "If-None-Match"])
def test_a_malformed_condition_comes_before_the_unknown_ticket(client, name):
    """E3: 400 before 500."""
    headers = {name: "3"}
    assert (
        client.patch(
            f"{TICKETS}/9", json={"status": "closed"}, headers=headers
        ).status_code
        == 400
    )
    assert client.get(f"{TICKETS}/9", headers=headers).status_code == 400


@pytest.mark.parametrize(
    "value",
    [", ".join([*(f'"{n}"' for n in range(99)), "TAG"]), '"7" , ,TAG', "\tTAG"],
    ids=["100", "empty", "tab"],
)
def test_a_list_of_at_most_100_tags_is_taken(client, url, filled, value):
    """C2."""
    assert close(client, url, filled(value)).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({"If-None-Match": "TAG"}, 412, id="C4-same"),
        pytest.param({"If-None-Match": '"7", TAG'}, 412, id="C4-one-of-two"),
        pytest.param({"If-None-Match": "W/TAG"}, 412, id="C4-weak"),
        pytest.param({"If-None-Match": "*"}, 412, id="C4-any"),
        pytest.param({"If-None-Match": '"2"'}, 200, id="C4-other"),
        pytest.param({"If-None-Match": '"01-TIME", "1"'}, 200, id="C4-no-version"),
        pytest.param(
            {"If-Match": "TAG", "If-None-Match": '"2"'}, 200, id="C4-both-hold"
        ),
        pytest.param(
            {"If-Match": "TAG", "If-None-Match": "TAG"}, 412, id="C4-none-match-fails"
        ),
        pytest.param(
            {"If-Match": '"2"', "If-None-Match": '"3"'}, 412, id="C4-match-fails"
        ),
        pytest.param(
            {"If-Match": "*", "If-None-Match": "*"}, 412, id="C4-any-and-none"
        ),
    ],
)
def test_patch_with_if_none_match(client, url, row, ticket, filled, headers, status):
    before = row(ticket["id"])
    headers = {name: filled(value) for name, value in headers.items()}
    response = client.patch(url, json={"status": "closed"}, headers=headers)
    assert response.status_code == status
    if status == 412:
        assert_error(response, 412, CHANGED)
        assert row(ticket["id"]) == before


@pytest.mark.parametrize(
    "value", ["*", '"1"', 'W/"1"'], ids=lambda value: f"C4-P9-{value}"
)
def test_if_none_match_on_an_unknown_ticket_stays_a_500(client, value):
    headers = {"If-None-Match": value}
    response = client.patch(f"{TICKETS}/99", json={"status": "closed"}, headers=headers)
    assert_error(response, 500, "Internal server error")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param(
            {"If-Match": "TAG", "If-None-Match": '"2"'}, 200, id="C3-both-hold"
        ),
        pytest.param(
            {"If-Match": '"2"', "If-None-Match": "TAG"}, 412, id="C3-match-first"
        ),
        pytest.param({"If-Match": "W/TAG"}, 412, id="C3-weak-never-matches"),
        pytest.param(
            {"If-None-Match": '"01-TIME"'}, 200, id="C3-character-by-character"
        ),
    ],
)
def test_get_with_conditions(client, url, filled, headers, status):
    headers = {name: filled(value) for name, value in headers.items()}
    assert client.get(url, headers=headers).status_code == status
