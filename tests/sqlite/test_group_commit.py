"""Writes that wait at the same moment are committed together, and fail alone: E4, E7,
P10.
"""

import threading

import pytest

from models import Ticket
from tests.helpers.contract import TICKETS
from tests.helpers.load import assert_all_succeeded, lost
from tests.helpers.processes import SYNCS, attached
from tests.helpers.timing import together

pytestmark = pytest.mark.database("sqlite")


def test_writes_that_wait_share_a_sync(make_server, holder, tmp_path):
    """E7: fewer syncs than writes, where another program holds the lock meanwhile."""
    server = make_server(WEB_CONCURRENCY="1").start().fill(12)
    assert server.patch(1, {"category": "warm"}).status == 200
    trace = tmp_path / "trace"
    with attached(server.workers(), f"trace={SYNCS}", outputs=[trace]):
        holder.execute("BEGIN IMMEDIATE")
        release = threading.Timer(1, holder.execute, ["ROLLBACK"])
        release.start()
        replies = together(
            12, lambda number: server.patch(number + 1, {"category": "x"})
        )
        release.join()
    assert {reply.status for reply in replies} == {200}
    syncs = [line for line in trace.read_text().splitlines() if "sync(" in line]
    assert 1 <= len(syncs) < 12


@pytest.mark.parametrize("workers", ["2", "8"])
def test_a_load_of_many_clients_loses_nothing(
    make_server, start_load, full, sql, workers
):
    """E4, E7: 64 of them, and the processes compete for the lock of the file."""
    server = make_server(WEB_CONCURRENCY=workers).start().fill(1000)
    found = start_load(server, 64, 1000, 20 if full else 2).result()
    assert_all_succeeded(found)
    assert not lost(found, sql("SELECT * FROM ticket"))


def test_every_answer_was_committed_before_it(server, sql):
    """E4: another connection sees the row as soon as the answer is there."""
    server.fill(16)

    def write(number):
        seen = []
        for turn in range(20):
            server.patch(number + 1, {"category": f"n {turn}"})
            seen.append(
                server.request("GET", f"{TICKETS}/{number + 1}").json["category"]
            )
        return seen

    for seen in together(8, write):
        assert seen == [f"n {turn}" for turn in range(20)]
    assert len(sql("SELECT * FROM ticket_version")) == 160


def test_a_write_that_breaks_a_rule_takes_no_other_along(server, sql):
    """P10: a rule that only the table knows; those committed together with it are not
    harmed.
    """
    server.fill(16)
    sql(
        "CREATE TRIGGER unlucky BEFORE UPDATE ON ticket WHEN NEW.id = 13 "
        "BEGIN SELECT RAISE(ABORT, 'unlucky'); END"
    )
    for _ in range(10):
        replies = together(
            16, lambda number: server.patch(number + 1, {"category": "x"})
        )
        assert [reply.status for reply in replies] == [200] * 12 + [500] + [200] * 3
    assert server.log.count("failed: unlucky") == 10


def test_a_write_that_cannot_be_bound_leaves_no_transaction_open(app, sql):
    """E4: nothing that another thread was told is written may hang in it."""
    client = app.test_client()
    body = {"user_description": "x"}
    ids = [client.post(TICKETS, json=body).json["id"] for _ in range(16)]

    def write(number):
        if number % 4 == 0:
            # No request gets that far with an unpaired surrogate.
            with pytest.raises(UnicodeEncodeError):
                Ticket.patch(ids[number], {"category": "\ud800"})
        else:
            url = f"{TICKETS}/{ids[number]}"
            body = {"category": f"n {turn}"}
            assert app.test_client().patch(url, json=body).status_code == 200

    for turn in range(50):
        together(16, write)
        rows = sql("SELECT category FROM ticket ORDER BY id")
        expected = [None if number % 4 == 0 else f"n {turn}" for number in range(16)]
        assert [row["category"] for row in rows] == expected
