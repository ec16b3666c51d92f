"""The table states its own rules: a write past the service cannot break them."""

import pytest
from peewee import DatabaseError

INSERT = "INSERT INTO ticket (user_description, status) VALUES ('x', 'closed')"


@pytest.fixture
def existing(app, sql):
    sql(INSERT)


@pytest.mark.parametrize(
    "assignment",
    [
        "status = 'open'",
        "status = NULL",
        "user_description = NULL",
        "user_description = ''",
        "category = ''",
        "category = CAST(x'00ff' AS blob)",
        "ai_suggested_response = ''",
        "confidence_score = 1.1",
        "confidence_score = -0.1",
        "confidence_score = 'high'",
        "created_at = NULL",
        "created_at = 'yesterday'",
        "updated_at = NULL, version = 2",
        "updated_at = 1764000000, version = 2",
        "version = NULL",
        "version = 0",
    ],
)
def test_a_shell_cannot_write_what_breaks_a_rule(existing, sql, assignment):
    with pytest.raises(DatabaseError):
        sql(f"UPDATE ticket SET {assignment}")


@pytest.mark.parametrize(
    ("column", "maximum"),
    [
        ("user_description", 10_000),
        ("category", 100),
        ("ai_suggested_response", 50_000),
    ],
)
def test_a_shell_cannot_write_a_longer_text(existing, sql, column, maximum):
    sql(f"UPDATE ticket SET {column} = '{'x' * maximum}'")
    with pytest.raises(DatabaseError):
        sql(f"UPDATE ticket SET {column} = '{'x' * (maximum + 1)}'")


def test_a_shell_gets_the_defaults(existing, sql):
    """N3: the database's own clock, the same instant in both columns."""
    row = sql("SELECT * FROM ticket")[0]
    assert row["created_at"] == row["updated_at"]
    assert row["version"] == 1


def test_the_file_is_in_wal_mode(existing, sql, on_sqlite):
    """E4."""
    if on_sqlite:
        assert sql("PRAGMA journal_mode") == [{"journal_mode": "wal"}]
