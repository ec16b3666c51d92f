"""Databases seen past the service, and the place where its connections are closed."""

import os
import secrets
from contextlib import closing, contextmanager
from urllib.parse import urlsplit

from peewee import PostgresqlDatabase, SqliteDatabase
from playhouse import db_url

from database import backend
from ticketsvc import create_app

POSTGRESQL = os.environ.get("TICKETSVC_TEST_POSTGRESQL")
# In pg_stat_activity: the other sessions in this database, and those that wait.
OTHERS = "datname = current_database() AND pid <> pg_backend_pid()"
WAITING = (
    f"SELECT pid FROM pg_stat_activity WHERE {OTHERS} AND wait_event_type = 'Lock'"
)


def connect(url):
    """Return a database of Peewee's own kind, past everything the service adds."""
    parameters = db_url.parse(url, unquote_user=True, unquote_password=True)
    if url.startswith("sqlite"):
        return SqliteDatabase(**parameters)
    return PostgresqlDatabase(**parameters, prefer_psycopg3=True)


def execute(other, statement, params=None):
    """Run a statement on a connection past the service; return its rows as dicts."""
    cursor = other.execute_sql(statement, params)
    if not cursor.description:
        return []
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def run_sql(url, statement):
    """Run a statement on a connection of its own; return its rows as dicts."""
    with closing(connect(url)) as other:
        return execute(other, statement)


def drop_tables(execute):
    """Leave an empty database, by a function that runs a statement."""
    execute("DROP TABLE IF EXISTS ticket")
    execute("DROP TABLE IF EXISTS ticket_version")


@contextmanager
def postgresql_database(options=""):
    """Make a database beside the one of the environment; give its URL, and drop it."""
    name = f"ticketsvc_test_{secrets.token_hex(8)}"
    run_sql(POSTGRESQL, f"CREATE DATABASE {name} {options}")
    try:
        yield urlsplit(POSTGRESQL)._replace(path=f"/{name}").geturl()
    finally:
        run_sql(POSTGRESQL, f"DROP DATABASE {name} WITH (FORCE)")


def close_connections():
    """Close every connection of the application in this process."""
    if backend.obj is not None:
        backend.close()


def start(url):
    """Make the application, as a start does, and close its connections."""
    create_app({"DATABASE_URL": url})
    close_connections()


def assert_whole(server):
    """SQLite finds nothing wrong with the file of a server."""
    assert server.sql("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
