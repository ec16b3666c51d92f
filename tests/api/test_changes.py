"""The feed of changes, with one follower and nobody else: F1, F2, F4 and V3's mark."""

import re

import pytest

from models import Cursor, Ticket
from tests.helpers.contract import DESCRIPTION, INVALID, TICKETS, assert_error, once
from tests.helpers.follower import CHANGES, ids, link, pages
from tests.helpers.statements import record_statements

LINK = re.compile(r'<(/api/v1/changes\?since=[0-9-]+)((?:&limit=\d+)?)>; rel="next"')
FIELDS = [
    "id",
    "user_description",
    "category",
    "ai_suggested_response",
    "confidence_score",
    "status",
    "created_at",
    "updated_at",
    "version",
    "updated_by",
    "filed",
]
FILED = {"category": "bug", "ai_suggested_response": "Try another browser."}
NOT_A_CURSOR = {"since": ["Not a valid cursor."]}
NOT_OF_THIS_DATABASE = {"since": ["Not a cursor of this database."]}


@pytest.fixture
def add(client):
    """Return a function that files so many tickets."""

    def file(count):
        for number in range(count):
            client.post(TICKETS, json={"user_description": f"n {number}"})

    return file


@pytest.fixture
def following(client, ticket):
    """Return a function that answers what is new since its last call.

    Its first call begins behind the ticket.
    """
    path = pages(client)[1]

    def follow():
        nonlocal path
        response = client.get(path)
        path = link(response)
        return response.json

    return follow


def test_a_ticket_is_shown_as_it_is_now(client, ticket):
    """F1: the eight fields, then the version, who wrote it, and what was filed."""
    now = client.patch(f"{TICKETS}/{ticket['id']}", json={"category": "billing"}).json
    response = client.get(CHANGES)
    assert [list(each) for each in response.json] == [FIELDS]
    expected = {**now, "version": 2, "updated_by": None, "filed": FILED}
    assert response.json == [expected]


def test_a_new_ticket_is_as_it_was_filed(client, ticket):
    """F1."""
    expected = {**ticket, "version": 1, "updated_by": None, "filed": FILED}
    assert client.get(CHANGES).json == [expected]


def test_what_was_filed_stays_through_later_changes(client, ticket):
    """F1."""
    url = f"{TICKETS}/{ticket['id']}"
    client.patch(url, json={"category": "billing"})
    client.patch(url, json={"category": "account", "ai_suggested_response": "Done."})
    [found] = client.get(CHANGES).json
    assert found["filed"] == FILED
    assert (found["category"], found["version"]) == ("account", 3)


def test_a_ticket_that_was_filed_without_a_category_says_so(client, add):
    """F1: null in `filed` is what the classifier gave it."""
    add(1)
    client.patch(f"{TICKETS}/1", json={"category": "billing"})
    [found] = client.get(CHANGES).json
    assert found["filed"] == {"category": None, "ai_suggested_response": None}


def test_filed_is_null_without_the_first_version(client, ticket, sql):
    """F1: also in a database that is older than the history."""
    url = f"{TICKETS}/{ticket['id']}"
    client.patch(url, json={"category": "billing"})
    client.patch(url, json={"category": "account"})
    sql("DELETE FROM ticket_version WHERE version = 1")
    [found] = client.get(CHANGES).json
    assert found["filed"] is None


def test_nothing_new_is_an_empty_array_with_a_link(client, ticket, following):
    """F1, F2."""
    assert following() == []
    assert following() == []


def test_an_empty_database_has_a_link_that_goes_on(client, add):
    """F1, F2."""
    response = client.get(CHANGES)
    assert response.get_data(as_text=True) == "[]\n"
    add(2)
    assert ids(client.get(link(response))) == [1, 2]


def test_a_change_is_new_once(client, ticket, following):
    """F1."""
    client.patch(f"{TICKETS}/{ticket['id']}", json={"status": "closed"})
    assert [each["status"] for each in following()] == ["closed"]
    assert following() == []


def test_a_ticket_is_once_in_a_page(client, ticket, following):
    """F1: however often it was changed."""
    for number in range(120):
        values = {"category": f"n {number}"}
        client.patch(f"{TICKETS}/{ticket['id']}", json=values)
    assert [each["category"] for each in following()] == ["n 119"]


def test_a_page_is_in_the_order_of_its_ids(client, add):
    """F1: not in that of the changes."""
    add(4)
    path = pages(client)[1]
    for ticket_id in (3, 1, 2):
        client.patch(f"{TICKETS}/{ticket_id}", json={"status": "closed"})
    add(1)
    assert pages(client, path)[0] == [[1, 2, 3, 5]]


def test_a_deleted_ticket_is_named(client, ticket, following, sql):
    """F1, V3: its mark has no text, and its history is gone."""
    url = f"{TICKETS}/{ticket['id']}"
    client.patch(url, json={"category": "billing"})
    following()
    sql("DELETE FROM ticket")
    assert following() == [{"id": ticket["id"], "deleted": True}]
    [mark] = sql("SELECT * FROM ticket_version")
    assert (mark["ticket_id"], mark["version"]) == (ticket["id"], 0)
    assert mark["category"] is mark["ai_suggested_response"] is None
    assert_error(client.get(f"{url}/history"), 404, "Ticket not found")


def test_a_ticket_that_was_filed_and_deleted_since_is_named(client, following, sql):
    """F1."""
    client.post(TICKETS, json={"user_description": DESCRIPTION})
    sql("DELETE FROM ticket WHERE id = 2")
    assert following() == [{"id": 2, "deleted": True}]
    assert following() == []


def test_a_follower_goes_on_when_the_newest_ticket_is_gone(client, following, sql):
    """F2, F3: its cursor is above every ticket."""
    client.post(TICKETS, json={"user_description": DESCRIPTION})
    following()
    sql("DELETE FROM ticket")
    assert [each["id"] for each in following()] == [1, 2]
    client.post(TICKETS, json={"user_description": DESCRIPTION})
    assert [each["id"] for each in following()] == [3]


def test_a_ticket_that_is_inserted_again_is_named(client, ticket, following, sql):
    """F3, V1: by hand, under the id that a follower has passed."""
    sql("DELETE FROM ticket")
    following()
    sql("INSERT INTO ticket (id, user_description, status) VALUES (1, 'x', 'closed')")
    assert [each["user_description"] for each in following()] == ["x"]
    history = client.get(f"{TICKETS}/1/history").json
    assert [each["version"] for each in history] == [1]


def test_rows_that_are_gone_when_they_are_read_are_no_changes(app):
    """F3: erased between the look at the greatest ids and the reading."""
    assert list(Ticket.changes(Cursor(0, 0), Cursor(9, 9), 100)) == []


def test_a_ticket_inserted_far_above_the_others_hides_none(add, following, sql):
    """F3: what is filed after it has an id above it."""
    sql("INSERT INTO ticket (id, user_description, status) VALUES (90, 'x', 'closed')")
    assert [each["id"] for each in following()] == [90]
    add(2)
    assert [each["id"] for each in following()] == [91, 92]


def test_a_ticket_inserted_below_the_cursor_is_named(client, add, following, sql):
    """F3: by hand, with an id that was left out before."""
    insert = (
        "INSERT INTO ticket (id, user_description, status) VALUES ({}, 'x', 'closed')"
    )
    sql(insert.format(100))
    following()
    sql(insert.format(50))
    assert [each["id"] for each in following()] == [50]


def test_tickets_that_are_filed_at_once_leave_no_mark(app, sql):
    """F3: an id that was drawn is told apart from one that was chosen."""
    insert = "INSERT INTO ticket (user_description, status) VALUES {}"
    for _ in range(2):
        sql(insert.format("('x', 'closed'), ('y', 'closed'), ('z', 'closed')"))
    assert len(sql("SELECT id FROM ticket")) == 6
    assert sql("SELECT id FROM ticket_version") == []


def test_a_change_by_hand_is_named(client, ticket, following, sql):
    """F3, V3: whichever of its columns it changes."""
    sql("UPDATE ticket SET user_description = 'x'")
    [found] = following()
    assert (found["user_description"], found["version"]) == ("x", 2)
    sql("INSERT INTO ticket (user_description, status) VALUES ('y', 'closed')")
    assert [each["user_description"] for each in following()] == ["y"]


def test_what_was_rolled_back_is_not_shown(client, ticket, following):
    """F1: a refused request leaves nothing."""
    client.patch(f"{TICKETS}/1", json={"status": "open"})
    client.post(TICKETS, json={})
    assert following() == []


def test_pages_go_on_while_tickets_are_filed_and_deleted(client, add, sql):
    """F3: between two pages."""
    add(4)
    first = client.get(f"{CHANGES}?limit=2")
    assert ids(first) == [1, 2]
    sql("DELETE FROM ticket WHERE id IN (1, 3)")
    add(1)
    sql("DELETE FROM ticket WHERE id = 5")
    found, _ = pages(client, link(first))
    assert found == [[1, 3], [4, 5]]


def test_pages_of_one_change_reach_the_end(client, add):
    """F1, F2: a ticket may come twice."""
    add(3)
    path = pages(client, f"{CHANGES}?limit=1")[1]
    for ticket_id in (2, 2, 1):
        client.patch(f"{TICKETS}/{ticket_id}", json={"status": "closed"})
    add(1)
    assert pages(client, path)[0] == [[2], [2], [1], [4]]


def test_versions_may_be_deleted_below_and_above_a_cursor(client, ticket, sql):
    """F2, F3: all but the newest one."""
    url = f"{TICKETS}/{ticket['id']}"
    for number in range(5):
        client.patch(url, json={"category": f"n {number}"})
    path = pages(client)[1]
    for number in range(5, 10):
        client.patch(url, json={"category": f"n {number}"})
    sql("DELETE FROM ticket_version WHERE version BETWEEN 2 AND 9")
    [found] = client.get(path).json
    assert (found["category"], found["filed"]) == ("n 9", FILED)


def test_the_first_page_has_100_changes(client, sql):
    """L2, F4."""
    values = ", ".join(["('x', 'closed')"] * 150)
    sql(f"INSERT INTO ticket (user_description, status) VALUES {values}")
    found, _ = pages(client)
    assert [len(page) for page in found] == [100, 50]


def test_a_page_has_as_many_changes_as_its_limit(client, add):
    """F4, L2."""
    add(7)
    assert pages(client, f"{CHANGES}?limit=3")[0] == [[1, 2, 3], [4, 5, 6], [7]]
    assert pages(client, f"{CHANGES}?limit=1000")[0] == [[1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize("limit", ["", "limit=7"])
def test_the_link_keeps_the_limit_if_it_was_given(client, ticket, limit):
    """F2: also at the end."""
    first = client.get(f"{CHANGES}?{limit}")
    for response in (first, client.get(link(first))):
        query = LINK.fullmatch(response.headers["Link"])[2]
        assert query == (f"&{limit}" if limit else "")


def test_a_page_ends_at_8_mib(client, sql):
    """F4, L3: and none of the tickets is missing; a hot one counts once."""
    sql(
        "INSERT INTO ticket (user_description, ai_suggested_response, status) "
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 99) "
        f"SELECT 'x', '{'€' * 50_000}', 'closed' FROM n"
    )
    first = client.get(CHANGES)
    assert 7 * 2**20 < len(first.data) <= 8 * 2**20 + 1024
    found, path = pages(client)
    assert [ticket_id for page in found for ticket_id in page] == list(range(1, 100))

    for number in range(80):
        client.patch(f"{TICKETS}/7", json={"category": f"n {number}"})
    client.patch(f"{TICKETS}/8", json={"category": "x"})
    assert pages(client, path)[0] == [[7, 8]]


def test_a_page_of_one_large_ticket_is_not_empty(client, ticket, monkeypatch):
    """F2: `[]` means the end."""
    monkeypatch.setattr("ticketsvc.MAX_PAGE", 10)
    client.post(TICKETS, json={"user_description": DESCRIPTION})
    assert pages(client)[0] == [[1], [2]]


def test_a_short_page_reads_few_tickets(client, sql, monkeypatch):
    """F4."""
    statements = record_statements(monkeypatch)
    values = ", ".join(["('x', 'closed')"] * 60)
    sql(f"INSERT INTO ticket (user_description, status) VALUES {values}")
    client.get(f"{CHANGES}?limit=1")
    [(_, params)] = [each for each in statements if "filed_category" in each[0]]
    assert list(params) == [1]


def test_head_is_like_get_without_a_body(client, ticket):
    """N5."""
    response = client.head(CHANGES)
    assert response.status_code == 200
    assert response.data == b""
    assert response.headers["Link"] == client.get(CHANGES).headers["Link"]


def test_the_link_is_below_the_prefix(client, ticket):
    """N7."""
    response = client.get(CHANGES, environ_overrides={"SCRIPT_NAME": "/helpdesk"})
    assert response.headers["Link"].startswith("</helpdesk/api/v1/changes?since=")


@once
@pytest.mark.parametrize(
    ("query", "fields"),
    [
        pytest.param("since=", NOT_A_CURSOR, id="F4-empty"),
        pytest.param("since=1", NOT_A_CURSOR, id="F4-one-number"),
        pytest.param("since=1-", NOT_A_CURSOR, id="F4-half"),
        pytest.param("since=1-1-1", NOT_A_CURSOR, id="F4-three-numbers"),
        pytest.param("since=-1-1", NOT_A_CURSOR, id="F4-negative"),
        pytest.param("since=1-1%0A", NOT_A_CURSOR, id="F4-line-end"),
        pytest.param("since=%D9%A3-1", NOT_A_CURSOR, id="F4-arabic"),
        pytest.param(f"since={2**63}-0", NOT_A_CURSOR, id="F4-ticket-max+1"),
        pytest.param(f"since=0-{2**63}", NOT_A_CURSOR, id="F4-version-max+1"),
        pytest.param(f"since={'9' * 5000}-0", NOT_A_CURSOR, id="F4-huge"),
        pytest.param("since=1-0&since=1-0", NOT_A_CURSOR, id="F4-twice"),
        pytest.param("since=1-1", NOT_OF_THIS_DATABASE, id="F4-version-above"),
        pytest.param("since=2-0", NOT_OF_THIS_DATABASE, id="F4-ticket-above"),
        pytest.param(f"since={2**63 - 1}-0", NOT_OF_THIS_DATABASE, id="F4-ticket-max"),
        pytest.param(
            "limit=0",
            {
                "limit": [
                    "Must be greater than or equal to 1 and less than or equal to 1000."
                ]
            },
            id="F4-L2-limit-0",
        ),
        pytest.param(
            "limit=x", {"limit": ["Not a valid integer."]}, id="F4-L2-limit-text"
        ),
        pytest.param("after=1", {"after": ["Unknown field."]}, id="F4-L2-after"),
        pytest.param(
            "status=closed", {"status": ["Unknown field."]}, id="F4-L2-status"
        ),
        pytest.param(
            "since=x&limit=x",
            {"limit": ["Not a valid integer."], "since": ["Not a valid cursor."]},
            id="F4-L2-two",
        ),
    ],
)
def test_a_bad_value_is_named(client, ticket, query, fields):
    response = client.get(f"{CHANGES}?{query}")
    assert response.json["fields"] == fields
    assert_error(response, 400, INVALID, response.json["fields"])


class TestNames:
    """F1: with TICKETSVC_TOKENS set."""

    @pytest.fixture
    def settings(self):
        return {"TICKETSVC_TOKENS": "alice:s3cret"}

    def test_a_change_says_who_wrote_it(self, client):
        """E2, F1."""
        headers = {"Authorization": "Bearer s3cret"}
        client.post(TICKETS, json={"user_description": "x"}, headers=headers)
        [found] = client.get(CHANGES, headers=headers).json
        assert found["updated_by"] == "alice"

    def test_a_token_is_needed(self, client):
        """E2."""
        assert client.get(CHANGES).status_code == 401
