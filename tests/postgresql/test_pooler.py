"""The service behind PgBouncer, where each transaction may have another session."""

import time
from collections import Counter
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from database import backend
from tests.helpers.contract import TICKETS
from tests.helpers.databases import close_connections, connect, execute
from tests.helpers.pooler import pgbouncer
from tests.helpers.timing import together
from ticketsvc import create_app

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


@pytest.mark.parametrize("ignored", ["", "options"], ids=["plain", "options-ignored"])
@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_every_patch_writes_what_was_sent(
    two_services, tmp_path, database_url, sql, full, mode, ignored
):
    """P1, P2: each of two services writes a field of its own only."""
    # In session mode each connection of the service has one of the pooler's three.
    settings = {}
    if mode == "session":
        settings = {"WEB_CONCURRENCY": "1", "TICKETSVC_POOL_SIZE": "1"}
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
                reply = service.patch(
                    ticket_id, {field: sent[field]}, connection=connection
                )
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


@pytest.fixture
def unsafe_defaults(sql, database_url):
    """Defaults of the database under which the service would break its promises."""
    database = urlsplit(database_url).path[1:]
    defaults = {
        "statement_timeout": "0",
        "lock_timeout": "0",
        "synchronous_commit": "off",
        "default_transaction_isolation": "'repeatable read'",
    }
    for name, value in defaults.items():
        sql(f"ALTER DATABASE {database} SET {name} = {value}")
    yield
    for name in defaults:
        sql(f"ALTER DATABASE {database} RESET {name}")


@pytest.fixture
def app_behind_pooler(unsafe_defaults, tmp_path, database_url):
    """The application in this process, its transactions on one session of a pooler."""
    with pgbouncer(tmp_path, database_url, size=1) as url:
        yield create_app({"DATABASE_URL": url, "TICKETSVC_POOL_SIZE": "2"})
        close_connections()


def test_a_transaction_has_its_own_settings(app_behind_pooler):
    """E4, E7."""
    wanted = {
        "statement_timeout": "5s",
        "lock_timeout": "1s",
        "synchronous_commit": "on",
        "transaction_isolation": "read committed",
    }
    found = {name: backend.write(f"SHOW {name}", [])[0][name] for name in wanted}
    assert found == wanted


def test_a_locked_row_is_a_500_in_about_a_second(app_behind_pooler, database_url, sql):
    """E7: the lock timeout, which is no session's."""
    client = app_behind_pooler.test_client()
    client.post(TICKETS, json={"user_description": "x"})
    with closing(connect(database_url)) as other, other.transaction() as transaction:
        execute(other, "SELECT * FROM ticket FOR UPDATE")
        started = time.monotonic()
        response = client.patch(f"{TICKETS}/1", json={"status": "closed"})
        assert time.monotonic() - started < 4
        transaction.rollback()
    assert response.status_code == 500
