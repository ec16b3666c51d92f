"""Conditional requests (RFC 9110): C1 to C4."""

import pytest

from tests.helpers.contract import CHANGED, TICKETS, assert_error, once


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


def test_etag_changes_with_every_write(client, url):
    """C1, V1: it is the version, so two writes in one millisecond have two tags."""
    answers = [client.patch(url, json={"status": "closed"}) for _ in range(100)]
    assert [each.headers["ETag"] for each in answers] == [
        f'"{n}"' for n in range(2, 102)
    ]


@pytest.mark.parametrize(
    "if_match",
    ['"1"', '"7", "1"', '"1","2"', 'W/"1", "1"', "*", ' "1" '],
    ids=lambda if_match: f"C2-{if_match}",
)
def test_patch_applies_where_a_tag_matches(client, url, if_match):
    assert close(client, url, if_match).status_code == 200


@pytest.mark.parametrize(
    "if_match",
    [
        '"2"',
        '"0", "2"',
        'W/"1"',
        'W/"1", "2"',
        '"abc"',
        '""',
        '"*"',
        '"1\xa0"',
        '"01"',
        '"²"',
        '"١"',
        f'"{2**63}"',
        f'"{2**63 - 1}"',
        f'"{10**30}"',
        '"-1"',
        '"+1"',
        '"1.0"',
    ],
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


@pytest.mark.parametrize(
    "if_match", ["*", '"1"'], ids=lambda if_match: f"C2-{if_match}"
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


@pytest.mark.parametrize(
    "if_match", ["*", '"1"', '"9", "1"'], ids=lambda value: f"C2-{value}"
)
def test_get_with_an_if_match_that_holds_goes_on(client, url, if_match):
    """RFC 9110, section 13.2.2: If-None-Match is looked at after it."""
    assert client.get(url, headers={"If-Match": if_match}).status_code == 200
    headers = {"If-Match": if_match, "If-None-Match": '"1"'}
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
    assert client.get(url).headers["ETag"] == '"1"'


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
    [", ".join(f'"{n}"' for n in range(100)), '"7" , ,"1"', '\t"1"'],
    ids=["100", "empty", "tab"],
)
def test_a_list_of_at_most_100_tags_is_taken(client, url, value):
    """C2."""
    assert close(client, url, value).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({"If-None-Match": '"1"'}, 412, id="C4-same"),
        pytest.param({"If-None-Match": '"7", "1"'}, 412, id="C4-one-of-two"),
        pytest.param({"If-None-Match": 'W/"1"'}, 412, id="C4-weak"),
        pytest.param({"If-None-Match": "*"}, 412, id="C4-any"),
        pytest.param({"If-None-Match": '"2"'}, 200, id="C4-other"),
        pytest.param({"If-None-Match": '"01", "x"'}, 200, id="C4-no-version"),
        pytest.param(
            {"If-Match": '"1"', "If-None-Match": '"2"'}, 200, id="C4-both-hold"
        ),
        pytest.param(
            {"If-Match": '"1"', "If-None-Match": '"1"'}, 412, id="C4-none-match-fails"
        ),
        pytest.param(
            {"If-Match": '"2"', "If-None-Match": '"3"'}, 412, id="C4-match-fails"
        ),
        pytest.param(
            {"If-Match": "*", "If-None-Match": "*"}, 412, id="C4-any-and-none"
        ),
    ],
)
def test_patch_with_if_none_match(client, url, row, ticket, headers, status):
    before = row(ticket["id"])
    response = client.patch(url, json={"status": "closed"}, headers=headers)
    assert response.status_code == status
    if status == 412:
        assert_error(response, 412, CHANGED)
        assert row(ticket["id"]) == before


@pytest.mark.parametrize("value", ["*", '"1"'], ids=lambda value: f"C4-P9-{value}")
def test_if_none_match_on_an_unknown_ticket_stays_a_500(client, value):
    headers = {"If-None-Match": value}
    response = client.patch(f"{TICKETS}/99", json={"status": "closed"}, headers=headers)
    assert_error(response, 500, "Internal server error")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param(
            {"If-Match": '"1"', "If-None-Match": '"2"'}, 200, id="C3-both-hold"
        ),
        pytest.param(
            {"If-Match": '"2"', "If-None-Match": '"1"'}, 412, id="C3-match-first"
        ),
        pytest.param({"If-Match": 'W/"1"'}, 412, id="C3-weak-never-matches"),
        pytest.param({"If-None-Match": '"01"'}, 200, id="C3-character-by-character"),
    ],
)
def test_get_with_conditions(client, url, headers, status):
    assert client.get(url, headers=headers).status_code == status
