"""A page of one status costs little, wherever its tickets are among all others: L4."""

import json

import pytest

from database import backend, database
from tests.helpers.contract import TICKETS

pytestmark = pytest.mark.database("postgresql")

COUNT = 20_000
PENDING = COUNT // 20  # the newest ones
CHUNK = 50


@pytest.fixture
def queue(client, sql):
    """A test client of the application, whose newest tickets are pending."""
    sql(
        f"""
        INSERT INTO ticket (user_description, status)
        SELECT 'n ' || i,
            CASE WHEN i > {COUNT - PENDING} THEN 'pending_agent' ELSE 'closed' END
        FROM generate_series(1, {COUNT}) AS i
        """
    )
    sql("ANALYZE ticket")
    return client


@pytest.fixture
def queries(monkeypatch):
    """The queries that the application has read."""
    found = []
    read = backend.obj.read
    monkeypatch.setattr(
        backend.obj, "read", lambda query: found.append(query.sql()) or read(query)
    )
    return found


def nodes_of(plan):
    """Yield a node of a plan and those below it."""
    yield plan
    for below in plan.get("Plans", []):
        yield from nodes_of(below)


@pytest.mark.parametrize(
    "page",
    [
        "?status=pending_agent",
        "?status=pending_agent&after=0",
        f"?status=pending_agent&after={COUNT - PENDING // 2}",
        f"?status=pending_agent&before={COUNT - PENDING // 2}",
        "?status=pending_agent&before=100",
        "?status=closed",
        "?status=closed&after=0",
        f"?status=closed&after={COUNT // 2}",
        f"?status=closed&before={COUNT // 2}",
        "?status=ai_resolved",
        "?status=ai_resolved&after=0",
    ],
)
def test_a_page_reads_no_more_rows_than_it_shows(queue, queries, page):
    """L4: by the plan that the server chooses, and what it then reads."""
    status = page.partition("status=")[2].partition("&")[0]
    response = queue.get(f"{TICKETS}{page}&limit=49")
    assert {ticket["status"] for ticket in response.json} <= {status}

    [(sql, params)] = queries
    explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}"
    [[plan]] = database.execute_sql(explain, params).fetchall()
    if isinstance(plan, str):
        plan = json.loads(plan)
    for node in nodes_of(plan[0]["Plan"]):
        read = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        assert read <= CHUNK
        assert node.get("Rows Removed by Index Recheck", 0) == 0


@pytest.mark.parametrize("page", ["", "&after=0"], ids=["newest-first", "oldest-first"])
def test_all_pages_together_have_each_ticket_once(queue, page):
    """L2, L3."""
    first = COUNT - PENDING + 1
    path = f"{TICKETS}?status=pending_agent&limit=300{page}"
    found = []
    while path:
        response = queue.get(path)
        found += [ticket["id"] for ticket in response.json]
        link = response.headers.get("Link", "")
        path = link.partition("<")[2].partition(">")[0]
    wanted = list(range(first, COUNT + 1))
    assert found == (wanted if page else wanted[::-1])
