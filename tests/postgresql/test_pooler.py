"""The service behind PgBouncer, where each transaction may have another session."""

import time
from collections import Counter
from contextlib import closing

import pytest

from tests.helpers import together
from tests.postgresql.pooler import pgbouncer

pytestmark = pytest.mark.database("postgresql")

CLIENTS = 16
FIELDS = ("category", "ai_suggested_response")


@pytest.fixture
def two_services(make_server):
    """Return a function that starts two services on a URL."""

    def start(url, **settings):
        services = [make_server(DATABASE_URL=url, **settings) for _ in range(2)]
        for service in services:
            service.start()
        return services

    return start


@pytest.mark.parametrize("ignored", ["options"], ids=["options-ignored"])
@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_every_patch_writes_what_was_sent(
    two_services, tmp_path, database_url, sql, full, mode, ignored
):
    """P1, P2: each of two services writes a field of its own, and none that the other writes."""
    # In session mode each connection of the service has one of the pooler's three.
    settings = {"session": {"WEB_CONCURRENCY": "1", "TICKETSVC_POOL_SIZE": "1"}}.get(mode, {})
    seconds = 10 if full else 3

    def patch(number):
        """Send PATCHes until the time is over, and note what the answers say."""
        service = services[number % 2]
        field = FIELDS[number % 2]
        end = time.monotonic() + seconds
        count = 0
        with closing(service.connect()) as connection:
            while time.monotonic() < end:
                count += 1
                ticket_id = number + 1 + CLIENTS * (count % 5)
                sent = dict.fromkeys(FIELDS) | {field: f"{field} {count}"}
                reply = service.patch(ticket_id, {field: sent[field]}, connection=connection)
                outcome = str(reply.status)
                if reply.status == 200:
                    last[ticket_id] = sent
                    shown = {name: reply.json[name] for name in FIELDS}
                    outcome = "200" if shown == sent else "200, with another field"
                outcomes[outcome] += 1

    last = {}
    outcomes = Counter()
    with pgbouncer(tmp_path, database_url, mode, ignored=ignored) as url:
        services = two_services(url, **settings)
        services[0].fill(5 * CLIENTS)
        together(CLIENTS, patch)
        for service in services:
            service.stop()

    assert set(outcomes) == {"200"}, outcomes
    rows = sql("SELECT id, category, ai_suggested_response FROM ticket")
    assert {row.pop("id"): row for row in rows} == last
