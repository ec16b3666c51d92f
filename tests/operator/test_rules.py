"""D1, D2: a database of an older version follows the models, whatever they say now."""

import sqlite3
from contextlib import closing

import pytest
from peewee import SQL, DatabaseError

import models
import upgrade
from tests.helpers.contract import DESCRIPTION, TICKETS
from tests.helpers.databases import close_connections, start
from ticketsvc import create_app

SHAPE = {
    "sqlite": ["SELECT type, name, sql FROM sqlite_master"],
    "postgresql": [
        "SELECT relname, attname, format_type(atttypid, atttypmod), attnotnull, "
        "pg_get_expr(adbin, adrelid) AS value FROM pg_attribute "
        "JOIN pg_class ON pg_class.oid = attrelid "
        "LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum "
        "WHERE relnamespace = 'public'::regnamespace "
        "AND attnum > 0 AND NOT attisdropped",
        "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'",
        "SELECT conname, pg_get_constraintdef(oid) AS definition FROM pg_constraint "
        "WHERE connamespace = 'public'::regnamespace",
        "SELECT pg_get_triggerdef(oid) AS definition, "
        "pg_get_functiondef(tgfoid) AS function FROM pg_trigger WHERE NOT tgisinternal",
    ],
}
RULES = {
    "category": ("BETWEEN 1 AND 100", "BETWEEN 1 AND 200"),
    "status": ("'closed')", "'closed', 'waiting')"),
}


@pytest.fixture
def shape(sql, kind):
    """Return a function that describes the whole database."""
    return lambda: [sorted(map(str, sql(query))) for query in SHAPE[kind]]


@pytest.fixture
def changed_rules(monkeypatch):
    """Return a function that replaces texts in the CHECK of columns."""

    def change(rules):
        for name, (old, new) in rules.items():
            field = models.Ticket._meta.fields[name]
            [rule] = field.constraints
            assert old in rule.sql
            monkeypatch.setattr(field, "constraints", [SQL(rule.sql.replace(old, new))])

    return change


def file_tickets(sql, count=3):
    for number in range(1, count + 1):
        sql(
            "INSERT INTO ticket (user_description, category, status) "
            f"VALUES ('{DESCRIPTION}', 'n {number}', 'closed')"
        )
    sql("UPDATE ticket SET category = 'changed' WHERE id = 2")
    sql(f"DELETE FROM ticket WHERE id = {count}")


def test_widen_rules_of_an_old_database(database_url, sql, shape, changed_rules):
    """D1: it is then like a new one, with its rows, and takes what the rules allow."""
    start(database_url)
    file_tickets(sql)
    rows = [sql("SELECT * FROM ticket"), sql("SELECT * FROM ticket_version")]
    changed_rules(RULES)
    start(database_url)
    assert [sql("SELECT * FROM ticket"), sql("SELECT * FROM ticket_version")] == rows
    sql(f"UPDATE ticket SET category = '{'x' * 200}', status = 'waiting' WHERE id = 1")
    sql("INSERT INTO ticket (user_description, status) VALUES ('x', 'waiting')")
    assert [row["id"] for row in sql("SELECT id FROM ticket ORDER BY id")] == [1, 2, 4]

    upgraded = shape()
    sql("DROP TABLE ticket")
    sql("DROP TABLE ticket_version")
    start(database_url)
    assert shape() == upgraded


def test_name_a_row_that_breaks_a_narrowed_rule(
    database_url, sql, shape, changed_rules
):
    """D1: the start ends with one line, and nothing is changed."""
    start(database_url)
    file_tickets(sql)
    before = shape()
    changed_rules({"category": ("AND 100", "AND 5")})
    rule = r"CHECK \(length\(category\) BETWEEN 1 AND 5\)"
    with pytest.raises(SystemExit, match=f"row 2 of the table ticket breaks {rule}$"):
        create_app({"DATABASE_URL": database_url})
    close_connections()
    assert shape() == before


def test_name_a_row_without_a_value_that_is_needed_now(database_url, sql, monkeypatch):
    """D1: NOT NULL is a rule too."""
    start(database_url)
    file_tickets(sql)
    sql("UPDATE ticket SET category = NULL WHERE id = 2")
    monkeypatch.setattr(models.Ticket._meta.fields["category"], "null", False)
    with pytest.raises(SystemExit, match="row 2 of the table ticket breaks category"):
        create_app({"DATABASE_URL": database_url})
    close_connections()


def test_name_a_row_that_is_not_unique_now(database_url, sql, shape, monkeypatch):
    """D1: UNIQUE is a rule too."""
    start(database_url)
    file_tickets(sql)
    sql("UPDATE ticket SET category = 'same'")
    before = shape()
    monkeypatch.setattr(models.Ticket._meta.fields["category"], "unique", True)
    line = "row [12] of the table ticket breaks category UNIQUE$"
    with pytest.raises(SystemExit, match=line):
        create_app({"DATABASE_URL": database_url})
    close_connections()
    assert shape() == before


def test_refuse_a_column_that_this_version_does_not_know(database_url, sql, shape):
    """D1: a newer version made it, and dropping it would lose what it holds."""
    start(database_url)
    sql("ALTER TABLE ticket ADD COLUMN newer TEXT")
    before = shape()
    with pytest.raises(SystemExit, match="the table ticket has a column newer"):
        create_app({"DATABASE_URL": database_url})
    close_connections()
    assert shape() == before


def test_keep_what_the_operator_added(database_url, sql, shape, changed_rules):
    """D1: an index, a trigger and a view of their own."""
    start(database_url)
    sql("CREATE INDEX mine ON ticket (category)")
    sql("CREATE VIEW open_tickets AS SELECT id FROM ticket WHERE status <> 'closed'")
    before = shape()
    changed_rules(RULES)
    start(database_url)
    after = shape()
    assert "mine" in str(after)
    assert sql("SELECT * FROM open_tickets") == []
    assert str(before).count("CREATE INDEX") == str(after).count("CREATE INDEX")
    sql("DROP VIEW open_tickets")


def test_renew_a_trigger_of_an_older_version(database_url, sql, shape, monkeypatch):
    """D2: the trigger keeps what TicketVersion has now."""
    start(database_url)
    whole = shape()
    newer = models.KEEP_VERSION
    older = upgrade.Trigger(
        name=newer.name,
        table="ticket",
        sqlite=newer.sqlite.replace("UPDATE ON", "UPDATE OF status ON"),
        postgresql=newer.postgresql.replace("UPDATE ON", "UPDATE OF status ON"),
        function=newer.function.replace("updated_by := NULL", "status := 'x'"),
    )
    with monkeypatch.context() as patched:
        patched.setattr(models, "TRIGGERS", (older, *models.TRIGGERS[1:]))
        start(database_url)
    assert shape() != whole
    start(database_url)
    assert shape() == whole


@pytest.mark.database("sqlite")
def test_a_start_makes_a_large_table_anew(sqlite_url, changed_rules):
    """D1: 20,000 tickets, each with a version, while an old service goes on writing."""
    start(sqlite_url)
    path = sqlite_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as other:
        other.execute(
            "INSERT INTO ticket (user_description, status) "
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
            "SELECT 'x', 'closed' FROM n LIMIT 20000"
        )
        other.execute("UPDATE ticket SET category = 'y'")
        changed_rules(RULES)
        start(sqlite_url)
        other.execute("UPDATE ticket SET category = 'z' WHERE id = 1")
        [[tickets]] = other.execute("SELECT count(*) FROM ticket")
        [[versions]] = other.execute("SELECT count(*) FROM ticket_version")
        assert (tickets, versions) == (20000, 20001)


@pytest.mark.parametrize(
    "column",
    [name for name in models.Ticket._meta.columns if name not in ("id", "version")],
)
def test_keep_the_old_version_whichever_column_changes(
    client, ticket, row, sql, column
):
    """V3: also if the value stays the same."""
    old = row(ticket["id"])
    sql(f"UPDATE ticket SET {column} = {column}")
    new = row(ticket["id"])
    assert new["version"] == old["version"] + 1
    assert new["updated_by"] is None
    versions = client.get(f"{TICKETS}/{ticket['id']}/history").json
    assert [each["version"] for each in versions] == [2, 1]
    assert versions[1]["updated_at"] == old["updated_at"]


def test_a_statement_that_sets_the_version_is_left_as_it_is(client, ticket, row, sql):
    """V3."""
    old = row(ticket["id"])
    sql("UPDATE ticket SET version = 7, updated_by = 'me', category = 'x'")
    expected = {**old, "version": 7, "updated_by": "me", "category": "x"}
    assert row(ticket["id"]) == expected
    versions = client.get(f"{TICKETS}/{ticket['id']}/history").json
    assert [each["version"] for each in versions] == [7, 1]


def test_a_deleted_ticket_leaves_one_row_without_text(client, ticket, sql):
    """V3: its versions go, and the greatest id is not given out again."""
    for category in ("a", "b"):
        client.patch(f"{TICKETS}/{ticket['id']}", json={"category": category})
    [greatest] = sql("SELECT max(id) AS id FROM ticket_version")
    sql(f"DELETE FROM ticket WHERE id = {ticket['id']}")
    [mark] = sql("SELECT * FROM ticket_version")
    assert mark["id"] > greatest["id"]
    assert mark["ticket_id"] == ticket["id"]
    assert mark["version"] == 0
    assert mark["category"] is None
    assert mark["ai_suggested_response"] is None
    assert client.get(f"{TICKETS}/{ticket['id']}/history").status_code == 404


def test_a_ticket_that_is_inserted_again_has_a_history_of_its_own(client, ticket, sql):
    """V1, V3: the mark of the ticket that is gone is none of its versions."""
    sql(f"DELETE FROM ticket WHERE id = {ticket['id']}")
    sql(
        "INSERT INTO ticket (id, user_description, status) "
        f"VALUES ({ticket['id']}, 'x', 'closed')"
    )
    versions = client.get(f"{TICKETS}/{ticket['id']}/history").json
    assert [each["version"] for each in versions] == [1]


@pytest.mark.database("sqlite")
@pytest.mark.parametrize("level", ["info", "warning"])
def test_a_new_file_is_named_in_the_log(make_server, level):
    """D3: and not at the next start."""
    server = make_server(TICKETSVC_LOG_LEVEL=level).start()
    line = f" New database {server.path}\n"
    assert server.log.count(line) == 1
    server.stop()
    server.start()
    assert server.log.count(line) == 1


def test_the_id_of_a_ticket_cannot_be_changed(ticket, sql, row):
    """V3: its versions and those who follow it would lose it."""
    with pytest.raises(DatabaseError, match="the id of a ticket cannot be changed"):
        sql("UPDATE ticket SET id = 99")
    assert row(ticket["id"])["version"] == 1
