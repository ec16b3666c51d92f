"""Reading tickets: G1, L1 to L4; health: H1."""

import re
import time
from datetime import datetime, timezone

import pytest

from tests.helpers.contract import INVALID, NOT_A_STATUS, TICKETS, assert_error, once
from tests.helpers.statements import record_statements

NOT_AN_INTEGER = ["Not a valid integer."]
LIMIT = ["Must be greater than or equal to 1 and less than or equal to 1000."]
BEFORE = [f"Must be greater than or equal to 1 and less than or equal to {2**63 - 1}."]
UNKNOWN = ["Unknown field."]
TOGETHER = ["May not be sent together with before."]


@pytest.fixture
def seven(client):
    """Seven tickets, the odd ones ai_resolved."""
    for number in range(1, 8):
        values = {"user_description": f"n {number}", "confidence_score": number % 2}
        client.post(TICKETS, json=values)


def ids(response):
    return [ticket["id"] for ticket in response.json]


def follow(client, url):
    """Return the ids of every page from `url` on, following Link."""
    pages = []
    while url:
        response = client.get(url)
        pages.append(ids(response))
        match = re.fullmatch('<(.+)>; rel="next"', response.headers.get("Link", ""))
        url = match and match[1]
    return pages


def test_get_answers_with_the_ticket(client, ticket):
    """G1."""
    response = client.get(f"{TICKETS}/{ticket['id']}")
    assert response.status_code == 200
    assert response.json == ticket


@pytest.mark.parametrize("ticket_id", ["99", "0", str(2**63), "9" * 30, "9" * 5000])
def test_get_of_an_unknown_ticket_is_a_404(client, ticket_id):
    """G1."""
    assert_error(client.get(f"{TICKETS}/{ticket_id}"), 404, "Ticket not found")


def test_list_is_empty_at_first(client):
    """L1."""
    response = client.get(TICKETS)
    assert response.get_data(as_text=True) == "[]\n"
    assert "Link" not in response.headers


def test_list_is_a_bare_array_newest_first(client, seven):
    """L1."""
    response = client.get(TICKETS)
    assert ids(response) == [7, 6, 5, 4, 3, 2, 1]
    assert response.json[0] == client.get(f"{TICKETS}/7").json


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        pytest.param("status=ai_resolved", [7, 5, 3, 1], id="L2-status"),
        pytest.param("status=closed", [], id="L2-status-without-tickets"),
        pytest.param("limit=2", [7, 6], id="L2-limit"),
        pytest.param("limit=1000", [7, 6, 5, 4, 3, 2, 1], id="L2-limit-max"),
        pytest.param("before=3", [2, 1], id="L2-before"),
        pytest.param(f"before={2**63 - 1}", [7, 6, 5, 4, 3, 2, 1], id="L2-before-max"),
        pytest.param("before=1", [], id="L2-before-first"),
        pytest.param("status=pending_agent&limit=1&before=6", [4], id="L2-all"),
        pytest.param("after=0", [1, 2, 3, 4, 5, 6, 7], id="L2-after-0"),
        pytest.param("after=5", [6, 7], id="L2-after"),
        pytest.param(f"after={2**63 - 1}", [], id="L2-after-max"),
        pytest.param("status=pending_agent&limit=1&after=2", [4], id="L2-after-all"),
    ],
)
def test_list_narrows_by_the_query(client, seven, query, expected):
    assert ids(client.get(f"{TICKETS}?{query}")) == expected


@once
@pytest.mark.parametrize(
    ("query", "fields"),
    [
        pytest.param("status=open", {"status": NOT_A_STATUS}, id="L2-status"),
        pytest.param("status=", {"status": NOT_A_STATUS}, id="L2-status-empty"),
        pytest.param(
            "status=closed&status=ai_resolved",
            {"status": ["Not a valid string."]},
            id="L2-twice",
        ),
        pytest.param("limit=0", {"limit": LIMIT}, id="L2-limit-0"),
        pytest.param("limit=1001", {"limit": LIMIT}, id="L2-limit-max+1"),
        pytest.param("limit=-1", {"limit": NOT_AN_INTEGER}, id="L2-limit-negative"),
        pytest.param("limit=", {"limit": NOT_AN_INTEGER}, id="L2-limit-empty"),
        pytest.param("limit=1.0", {"limit": NOT_AN_INTEGER}, id="L2-limit-fraction"),
        pytest.param("limit=1_0", {"limit": NOT_AN_INTEGER}, id="L2-limit-underscore"),
        pytest.param("limit=%D9%A3", {"limit": NOT_AN_INTEGER}, id="L2-limit-arabic"),
        pytest.param("limit=+1", {"limit": NOT_AN_INTEGER}, id="L2-limit-space"),
        pytest.param(
            f"limit={'9' * 5000}", {"limit": NOT_AN_INTEGER}, id="L2-limit-huge"
        ),
        pytest.param("before=0", {"before": BEFORE}, id="L2-before-0"),
        pytest.param(f"before={2**63}", {"before": BEFORE}, id="L2-before-max+1"),
        pytest.param("before=x", {"before": NOT_AN_INTEGER}, id="L2-before-text"),
        pytest.param("after=-1", {"after": NOT_AN_INTEGER}, id="L2-after-negative"),
        pytest.param("before=3&after=1", {"after": TOGETHER}, id="L2-after-and-before"),
        pytest.param("category=bug", {"category": UNKNOWN}, id="L2-category"),
        pytest.param("stauts=closed", {"stauts": UNKNOWN}, id="L2-misspelt"),
        pytest.param("limit=1&limit=1", {"limit": NOT_AN_INTEGER}, id="L2-limit-twice"),
        pytest.param(
            "limit=x&before=y",
            {"limit": NOT_AN_INTEGER, "before": NOT_AN_INTEGER},
            id="L2-two",
        ),
    ],
)
def test_list_names_a_bad_value(client, query, fields):
    assert_error(client.get(f"{TICKETS}?{query}"), 400, INVALID, fields)


def test_list_has_100_tickets_by_default(client, sql):
    """L2, L3."""
    values = ", ".join(["('x', 'closed')"] * 101)
    sql(f"INSERT INTO ticket (user_description, status) VALUES {values}")
    assert follow(client, TICKETS) == [list(range(101, 1, -1)), [1]]


def test_list_links_to_the_whole_next_query(client, seven):
    """L3."""
    response = client.get(f"{TICKETS}?limit=2&status=ai_resolved")
    link = f'<{TICKETS}?limit=2&status=ai_resolved&before=5>; rel="next"'
    assert response.headers["Link"] == link


@pytest.mark.parametrize(
    ("query", "pages"),
    [
        pytest.param("limit=3", [[7, 6, 5], [4, 3, 2], [1]], id="L3-rest"),
        pytest.param("limit=2&status=ai_resolved", [[7, 5], [3, 1]], id="L3-even"),
        pytest.param("after=0&limit=3", [[1, 2, 3], [4, 5, 6], [7]], id="L2-L3-after"),
        pytest.param(
            "after=2&limit=2&status=ai_resolved", [[3, 5], [7]], id="L2-L3-after-status"
        ),
        pytest.param("limit=7", [[7, 6, 5, 4, 3, 2, 1]], id="L3-one-page"),
    ],
)
def test_list_is_whole_when_followed(client, seven, query, pages):
    assert follow(client, f"{TICKETS}?{query}") == pages


LARGE = {
    "user_description": "\U0001f642" * 10_000,
    "category": "c" * 100,
    "ai_suggested_response": "\u20ac" * 50_000,
}


def test_a_page_of_large_tickets_ends_early(client, sql):
    """L3: at about 8 MiB, and the rest follows."""
    for _ in range(70):
        client.post(TICKETS, json=LARGE)
    response = client.get(f"{TICKETS}?limit=1000")
    assert 7 * 2**20 < len(response.data) < 8.5 * 2**20
    assert "Link" in response.headers
    pages = follow(client, f"{TICKETS}?limit=1000")
    assert len(pages) == 2
    assert [ticket_id for page in pages for ticket_id in page] == list(range(70, 0, -1))
    assert [id for page in follow(client, f"{TICKETS}?after=0") for id in page] == list(
        range(1, 71)
    )


@pytest.fixture(autouse=True)
def statements(monkeypatch):
    """The statements that are run, by the service and past it."""
    return record_statements(monkeypatch)


def test_a_page_reads_no_more_than_it_needs(client, seven, statements, on_sqlite):
    """L3, L4: the limit stands in the statement; one more row says if more follow."""
    statements.clear()
    client.get(f"{TICKETS}?limit=2&status=ai_resolved&before=7")
    client.get(f"{TICKETS}?limit=1000&after=2")
    client.get(f"{TICKETS}/1/history?limit=3")
    limited = [each for each in statements if "LIMIT" in each[0]]
    limits = [sql.rpartition("LIMIT")[2].strip() for sql, _ in limited]
    assert limits == ["?" if on_sqlite else "%s"] * 3
    assert [params[-1] for _, params in limited] == [3, 50, 4]


@pytest.mark.parametrize(
    ("page", "index", "bounds"),
    [
        pytest.param("", "ticket_pkey", 0, id="L4-first"),
        pytest.param("?before=500", "ticket_pkey", 1, id="L4-before"),
        pytest.param("?after=5", "ticket_pkey", 1, id="L4-after"),
        pytest.param("?status=closed", "ticket_status_id", 1, id="L4-status"),
        pytest.param(
            "?status=closed&before=9", "ticket_status_id", 2, id="L4-status-before"
        ),
        pytest.param(
            "?status=closed&after=9", "ticket_status_id", 2, id="L4-status-after"
        ),
        pytest.param("/1/history", "ticketversion_ticket_id_version", 3, id="V4"),
        pytest.param(
            "/1/history?before=1", "ticketversion_ticket_id_version", 3, id="V4-before"
        ),
    ],
)
def test_a_page_walks_an_index_and_sorts_nothing(
    client, seven, sql, statements, on_sqlite, page, index, bounds
):
    """L4: by the plan of the service's own statement."""
    assert client.get(f"{TICKETS}{page}").status_code == 200
    statement, params = statements[-1]
    if on_sqlite:
        plan = sql(f"EXPLAIN QUERY PLAN {statement}", params)
        [detail] = [row["detail"] for row in plan]  # A second one would sort.
        assert detail.count("?") == bounds
        assert (
            index.replace("ticket_pkey", "INTEGER PRIMARY KEY") in detail or not bounds
        )
    else:
        for kind in ("seqscan", "bitmapscan", "sort"):  # Few rows want no index.
            sql(f"SET enable_{kind} = off")
        plan = sql(f"EXPLAIN {statement}", params)
        details = [row["QUERY PLAN"].strip() for row in plan]
        assert "Limit " in details[0]
        assert re.search(rf"Index Scan (Backward )?using {index} on", details[1])
        assert [each.partition(":")[0] for each in details[2:]] == ["Index Cond"][
            :bounds
        ]


def test_the_database_tells_the_time(client, ticket, statements, on_sqlite):
    """N3, P8, H1: no statement is given a time."""
    statements.clear()
    client.post(TICKETS, json={"user_description": "x"})
    client.patch(f"{TICKETS}/{ticket['id']}", json={"status": "closed"})
    client.get("/api/health")
    given = [value for _, params in statements for value in params]
    assert "closed" in given
    times = [each for each in given if re.search("[0-9]{4}-[0-9]{2}", str(each))]
    assert times == []
    clock = "strftime(" if on_sqlite else "clock_timestamp()"
    updates = [sql for sql, _ in statements if "UPDATE ticket" in sql.replace('"', "")]
    assert [clock in sql for sql in updates] == [True]
    assert clock in statements[-1][0]


def test_times_are_utc(client, ticket):
    """N3: in the time zone of these tests and their database an hour is missing."""
    assert time.timezone == -3600
    now = datetime.now(timezone.utc).timestamp()
    patched = client.patch(f"{TICKETS}/{ticket['id']}", json={"status": "closed"}).json
    health = client.get("/api/health").json
    for text in (ticket["created_at"], patched["updated_at"], health["timestamp"]):
        shown = datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
        assert abs(shown - now) < 1800


@once
@pytest.mark.parametrize(
    ("path", "statuses"),
    [
        (TICKETS, 200),
        (f"{TICKETS}/1", 200),
        (f"{TICKETS}/9", 404),
        ("/api/health", 200),
    ],
    ids=lambda value: f"N5-{value}",
)
def test_head_is_get_without_the_body(client, seven, path, statuses):
    headers = {"X-Request-ID": "same"}
    head, get = client.head(path, headers=headers), client.get(path, headers=headers)
    assert head.status_code == get.status_code == statuses
    assert head.data == b""
    assert {**head.headers, "Date": 0} == {**get.headers, "Date": 0}


def test_health_tells_the_time_of_the_database(client, ticket):
    """H1, N3."""
    response = client.get("/api/health")
    assert response.status_code == 200
    assert list(response.json) == ["status", "timestamp"]
    assert response.json["status"] == "ok"
    assert ticket["created_at"] <= response.json["timestamp"]
    assert len(response.json["timestamp"]) == len(ticket["created_at"])


def test_health_asks_the_table(client, sql, caplog):
    """H1, N2."""
    sql("DROP TABLE ticket")
    assert_error(client.get("/api/health"), 503, "Database unavailable")
    assert [bool(record.exc_info) for record in caplog.records] == [True]
