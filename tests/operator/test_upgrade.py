"""A database of an older version: a start brings it up to date and changes nothing
else.
"""

import json
import random
import time
from collections import Counter
from contextlib import closing
from itertools import count

import pytest

from tests.helpers.contract import TICKETS, assert_version, entity_tag
from tests.helpers.databases import connect, drop_tables, execute, start
from tests.helpers.processes import needs_strace, strace
from tests.helpers.timing import together, wait_for

# What is in 0672aee_*.sql: each version with its ticket.
OLD = [
    (
        2,
        {
            "id": 1,
            "user_description": "Größe der Rechnung ist falsch – 12 € zu viel",
            "category": "billing",
            "ai_suggested_response": "Bitte prüfen Sie „Konto“.",
            "confidence_score": 0.93,
            "status": "closed",
            "created_at": "2026-11-24T10:35:30.916Z",
            "updated_at": "2026-11-24T10:35:30.975Z",
        },
    ),
    (
        4,
        {
            "id": 2,
            "user_description": "It's broken:\n\tнажал «Экспорт», ничего",
            "category": "Überweisung",
            "ai_suggested_response": "Попробуйте ещё раз.",
            "confidence_score": 0.42,
            "status": "pending_agent",
            "created_at": "2026-11-24T10:35:30.929Z",
            "updated_at": "2026-11-24T10:35:31.004Z",
        },
    ),
    (
        1,
        {
            "id": 3,
            "user_description": "ログインできません 🙈",
            "category": None,
            "ai_suggested_response": None,
            "confidence_score": None,
            "status": "pending_agent",
            "created_at": "2026-11-24T10:35:30.940Z",
            "updated_at": "2026-11-24T10:35:30.940Z",
        },
    ),
    (
        1,
        {
            "id": 4,
            "user_description": '100 % of \\ and " kept',
            "category": "other",
            "ai_suggested_response": "OK",
            "confidence_score": 0.7,
            "status": "ai_resolved",
            "created_at": "2026-11-24T10:35:30.952Z",
            "updated_at": "2026-11-24T10:35:30.952Z",
        },
    ),
]
each_old_ticket = pytest.mark.parametrize(
    ("version", "ticket"), OLD, ids=["1", "2", "3", "4"]
)

SHAPE = {
    "sqlite": ["SELECT type, name, sql FROM sqlite_master"],
    "postgresql": [
        "SELECT table_name, column_name, data_type, is_nullable, column_default "
        "FROM information_schema.columns WHERE table_schema = 'public'",
        "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'",
        "SELECT conname, pg_get_constraintdef(oid) AS definition FROM pg_constraint "
        "WHERE connamespace = 'public'::regnamespace",
        "SELECT pg_get_triggerdef(oid) AS definition, "
        "pg_get_functiondef(tgfoid) AS function "
        "FROM pg_trigger",
    ],
}
# What changes where something is made anew, though it looks the same.
IDENTITY = {
    "sqlite": ["PRAGMA schema_version", "SELECT * FROM sqlite_master"],
    "postgresql": [
        "SELECT oid, xmin::text AS made FROM pg_trigger",
        "SELECT oid, xmin::text AS made FROM pg_proc "
        "WHERE pronamespace = quote_ident(current_schema())::regnamespace",
        "SELECT oid, relfilenode FROM pg_class "
        "WHERE relnamespace = quote_ident(current_schema())::regnamespace",
        "SELECT attrelid, attnum, xmin::text AS made FROM pg_attribute "
        "WHERE attrelid IN ('ticket'::regclass, 'ticket_version'::regclass)",
    ],
}
ROWS = ["SELECT * FROM ticket", "SELECT * FROM ticket_version"]


@pytest.fixture
def database_url(database_url, load_old):
    """Each test begins with a database of an older version."""
    return load_old(database_url)


@pytest.fixture
def look(sql, on_sqlite):
    """Return a function that runs queries, {kind of database: a list}, and sorts what
    they find.
    """

    def run(queries):
        found = [
            sql(query) for query in queries["sqlite" if on_sqlite else "postgresql"]
        ]
        return [sorted(map(str, rows)) for rows in found]

    return run


def as_version(version, ticket):
    """Return a ticket as the history shows it."""
    names = ("status", "category", "ai_suggested_response", "updated_at")
    return {
        "version": version,
        **{name: ticket[name] for name in names},
        "updated_by": None,
    }


def history(service, ticket_id):
    return service.request("GET", f"{TICKETS}/{ticket_id}/history").json


def assert_kept(server):
    """Every old ticket is as it was, with its ETag and no history yet."""
    assert "Traceback" not in server.log
    for version, ticket in OLD:
        reply = server.get(ticket["id"])
        assert (reply.status, reply.headers["ETag"], reply.json) == (
            200,
            entity_tag(version, ticket),
            ticket,
        )
        assert history(server, ticket["id"]) == [as_version(version, ticket)]


def assert_upgraded(server):
    """A PATCH keeps the version before it, a key files one ticket, no id is reused."""
    assert_kept(server)
    for version, ticket in OLD:
        patched = server.patch(ticket["id"], {"category": "ß"}).json
        expected = [as_version(version + 1, patched), as_version(version, ticket)]
        assert history(server, ticket["id"]) == expected
    replies = [server.post(headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert [(reply.status, reply.json["id"]) for reply in replies] == [
        (201, 6),
        (200, 6),
    ]


@each_old_ticket
def test_an_old_ticket_keeps_its_body_and_its_etag(client, version, ticket):
    """N1, C1."""
    response = client.get(f"{TICKETS}/{ticket['id']}")
    assert response.status_code == 200
    assert (
        response.get_data(as_text=True) == json.dumps(ticket, ensure_ascii=False) + "\n"
    )
    assert response.headers["ETag"] == entity_tag(version, ticket)


def test_the_list_shows_every_old_ticket(client):
    """L1."""
    assert client.get(TICKETS).json == [ticket for _, ticket in reversed(OLD)]


@each_old_ticket
def test_an_old_ticket_takes_a_patch_with_its_old_etag(client, version, ticket):
    """P1, C2."""
    url = f"{TICKETS}/{ticket['id']}"
    headers = {"If-Match": entity_tag(version, ticket)}
    response = client.patch(url, json={"category": "Größe"}, headers=headers)
    assert response.status_code == 200
    updated_at = response.json["updated_at"]
    assert response.json == {**ticket, "category": "Größe", "updated_at": updated_at}
    assert updated_at > ticket["updated_at"]
    assert_version(response, version + 1)
    assert client.patch(url, json={"category": "x"}, headers=headers).status_code == 412


@each_old_ticket
def test_an_old_ticket_has_a_history_from_its_next_patch_on(client, version, ticket):
    """V1, V2."""
    url = f"{TICKETS}/{ticket['id']}"
    assert client.get(f"{url}/history").json == [as_version(version, ticket)]
    patched = client.patch(url, json={"ai_suggested_response": "Да."}).json
    expected = [as_version(version + 1, patched), as_version(version, ticket)]
    assert client.get(f"{url}/history").json == expected


@each_old_ticket
def test_a_change_of_an_old_ticket_by_hand_is_a_version(client, sql, version, ticket):
    """V3."""
    url = f"{TICKETS}/{ticket['id']}"
    sql("UPDATE ticket SET status = 'closed', category = 'by hand'")
    changed = client.get(url)
    assert_version(changed, version + 1)
    expected = [as_version(version + 1, changed.json), as_version(version, ticket)]
    assert client.get(f"{url}/history").json == expected


def test_a_key_files_one_ticket_beside_old_ones_without_a_key(client):
    """O5."""
    headers, body = {"Idempotency-Key": "k"}, {"user_description": "x"}
    first, second = (client.post(TICKETS, json=body, headers=headers) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json == second.json
    assert (
        client.post(
            TICKETS, json={"user_description": "y"}, headers=headers
        ).status_code
        == 422
    )
    assert len(client.get(TICKETS).json) == len(OLD) + 1


def test_ids_go_on_where_the_older_version_stopped(client):
    """The table: ids never reused; ticket 5 was deleted before."""
    posted = [
        client.post(TICKETS, json={"user_description": "x"}).json for _ in range(2)
    ]
    assert [ticket["id"] for ticket in posted] == [6, 7]


def test_ids_go_on_above_one_that_was_inserted_by_hand(database_url, sql):
    """F3: a follower that has seen it would pass the ids below it."""
    sql("INSERT INTO ticket (id, user_description, status) VALUES (90, 'x', 'closed')")
    start(database_url)
    sql("INSERT INTO ticket (user_description, status) VALUES ('x', 'closed')")
    assert sql("SELECT max(id) AS greatest FROM ticket") == [{"greatest": 91}]


@pytest.mark.database("postgresql")
@pytest.mark.parametrize("path", ["public, pg_temp", '"my app"'])
def test_a_start_finds_its_tables_in_any_schema(database_url, sql, path):
    """D1: wherever the search_path of the database has it."""

    def identity():
        # On a new connection, which has the search_path.
        with closing(connect(database_url)) as other:
            return [execute(other, query) for query in IDENTITY["postgresql"]]

    [found] = sql("SELECT current_database() AS name")
    sql('CREATE SCHEMA "my app"')
    sql(f"ALTER DATABASE {found['name']} SET search_path = {path}")
    try:
        start(database_url)
        before = identity()
        start(database_url)
        assert identity() == before
    finally:
        sql(f"ALTER DATABASE {found['name']} RESET search_path")
        sql('DROP SCHEMA "my app" CASCADE')


@pytest.mark.database("sqlite")
def test_a_table_may_have_the_name_of_a_trigger(database_url, sql, look):
    """D1: for example an archive of the operator's."""
    sql("CREATE TABLE ticket_deleted (id INTEGER)")
    start(database_url)
    before = look(IDENTITY)
    start(database_url)
    assert look(IDENTITY) == before
    assert "CREATE TABLE ticket_deleted" in str(before)
    assert "CREATE TRIGGER ticket_deleted" in str(before)


class TestNames:
    """E2, V1: with named tokens."""

    @pytest.fixture
    def settings(self):
        return {"TICKETSVC_TOKENS": "alice:s3cret"}

    def test_an_old_version_has_no_name(self, client):
        """V1."""
        headers = {"Authorization": "Bearer s3cret"}
        client.patch(f"{TICKETS}/2", json={"status": "closed"}, headers=headers)
        versions = client.get(f"{TICKETS}/2/history", headers=headers).json
        assert [(each["version"], each["updated_by"]) for each in versions] == [
            (5, "alice"),
            (4, None),
        ]


def test_an_upgraded_database_is_like_a_new_one(database_url, sql, look):
    start(database_url)
    upgraded = look(SHAPE)
    drop_tables(sql)
    start(database_url)
    assert upgraded == look(SHAPE)


def test_a_second_start_changes_nothing(database_url, sql, look):
    start(database_url)
    sql("UPDATE ticket SET category = 'x'")
    before = [look(SHAPE), look(IDENTITY), *map(sql, ROWS)]
    start(database_url)
    assert [look(SHAPE), look(IDENTITY), *map(sql, ROWS)] == before


TRIGGER = "DROP TRIGGER ticket_version_kept"
INDEX = "DROP INDEX ticket_idempotency_key"
DROP = "ALTER TABLE ticket DROP COLUMN"


@pytest.mark.parametrize(
    "statements",
    [
        pytest.param([TRIGGER], id="trigger"),
        pytest.param([INDEX], id="index"),
        pytest.param(["DROP TABLE ticket_version"], id="table"),
        pytest.param([TRIGGER, "DROP TABLE ticket_version"], id="trigger-table"),
        pytest.param([INDEX, f"{DROP} idempotency_key"], id="column"),
        pytest.param(
            [TRIGGER, INDEX, f"{DROP} updated_by", f"{DROP} idempotency_key"],
            id="columns",
        ),
    ],
)
def test_a_start_adds_what_is_missing(database_url, sql, look, on_sqlite, statements):
    drop_tables(sql)
    start(database_url)
    whole = look(SHAPE)
    for statement in statements:
        sql(
            f"{statement} ON ticket"
            if statement == TRIGGER and not on_sqlite
            else statement
        )
    assert look(SHAPE) != whole
    start(database_url)
    assert look(SHAPE) == whole


def test_services_that_start_at_once_on_an_old_database_all_come_up(
    make_server, database_url, load_old, full
):
    """V2: their PATCHes have a version each."""
    for _ in range(5 if full else 1):
        load_old(database_url)
        servers = [make_server(WEB_CONCURRENCY="1").start(wait=False) for _ in range(4)]
        for server in servers:
            server.wait()
            assert_kept(server)
        for version, server in enumerate(servers, 3):
            assert_version(server.patch(1, {"category": "x"}), version)
        assert [each["version"] for each in history(servers[0], 1)] == [6, 5, 4, 3, 2]
        for server in servers:
            server.kill()


def comes_up(server):
    """Whether a start makes the application; False where it is killed before."""

    def ended():
        return server.process.poll() is not None

    wait_for(lambda: ended() or "Listening at" in server.log, "neither up nor killed")
    return not ended()


def test_a_start_killed_at_some_moment_is_finished_by_the_next(
    make_server, database_url, load_old, full
):
    """E4: in the second half of its way to the first worker process."""
    server, began = make_server(WEB_CONCURRENCY="1"), time.monotonic()
    assert comes_up(server.start(wait=False))
    length = time.monotonic() - began
    for _ in range(20 if full else 4):
        server.kill()
        load_old(database_url)
        server.start(wait=False)
        time.sleep(random.uniform(0.5, 1) * length)
        server.kill()
        assert_upgraded(server.start())


def test_a_start_killed_at_a_write_is_finished_by_the_next(make_server, load_old, full):
    """E4: at each write to the file, or to the connection, that a start makes."""
    needs_strace()
    for number in count(1, 1) if full else count(11, 12):
        server = make_server(WEB_CONCURRENCY="1")
        load_old(server.environ["DATABASE_URL"])
        inject = f"inject=pwrite64,sendto:signal=KILL:when={number}"
        if comes_up(
            server.start(wait=False, behind=strace("trace=pwrite64,sendto", inject))
        ):
            break
        assert_upgraded(server.start())
        server.kill()
    assert number > 15  # The start was killed twice or more.


def test_a_column_of_a_newer_version_fails_no_request(app, sql):
    """E4: no prepared statement depends on columns that it does not name."""

    def patch(number):
        client = app.test_client()
        return [
            client.patch(f"{TICKETS}/1", json={"category": "x"}).status_code
            for _ in range(20)
        ]

    together(8, patch)
    sql("ALTER TABLE ticket ADD COLUMN newer TEXT")
    statuses = Counter(status for each in together(8, patch) for status in each)
    sql("ALTER TABLE ticket DROP COLUMN newer")
    assert statuses == {200: 160}


def test_a_start_adds_a_column_to_the_versions(database_url, sql, look, on_sqlite):
    drop_tables(sql)
    start(database_url)
    whole = look(SHAPE)
    sql(TRIGGER if on_sqlite else f"{TRIGGER} ON ticket")
    sql("ALTER TABLE ticket_version DROP COLUMN updated_by")
    start(database_url)
    assert look(SHAPE) == whole
