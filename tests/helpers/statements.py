"""The statements that the libraries below the service are given."""

import sqlite3

import psycopg

from database import BEGIN


def record_statements(monkeypatch):
    """Return a list that gets each statement from now on: its text and parameters.

    What begins and ends its transaction on PostgreSQL is left out.

    Connections of SQLite that are open already are left alone.
    """
    found = []

    class Cursor(sqlite3.Cursor):
        def execute(self, sql, params=()):
            found.append((sql, params))
            return super().execute(sql, params)

    class Connection(sqlite3.Connection):
        def cursor(self):
            return super().cursor(Cursor)

        def execute(self, sql, params=()):
            return self.cursor().execute(sql, params)

    connect = sqlite3.connect
    execute = psycopg.Cursor.execute

    def connect_recorded(*arguments, **options):
        return connect(*arguments, factory=Connection, **options)

    def execute_recorded(self, sql, params=None, **options):
        statement = sql.removeprefix(BEGIN).removesuffix("; COMMIT")
        found.append((statement, params or ()))
        return execute(self, sql, params, **options)

    monkeypatch.setattr(sqlite3, "connect", connect_recorded)
    monkeypatch.setattr(psycopg.Cursor, "execute", execute_recorded)
    return found
