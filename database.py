"""How a statement reaches the disk: SQLite or PostgreSQL, behind the same few methods.

`database.read(query)` and `database.write(sql, params)` return rows as dicts, and raise an
exception of Peewee's within about TIMEOUT seconds. Nothing here knows what a ticket is.
"""

import fcntl
import os
import select
import sqlite3
import threading
import time
from concurrent.futures import Future, TimeoutError
from contextlib import contextmanager, suppress
from functools import partial
from queue import Empty, LifoQueue
from urllib.parse import quote, urlsplit

import peewee
from peewee import OperationalError
from playhouse import db_url

TIMEOUT = 5  # seconds, the longest that a request waits for the database
POLL = 0.0002  # seconds between two attempts to take the write lock of the file
# Where more than CROWD writes of a process wait, a new one waits for MOMENT seconds at most.
CROWD, MOMENT = 16, 0.5
# FULL syncs the write-ahead log before a commit is acknowledged. Every thread has a
# connection with a page cache of its own, kept at 256 KiB since the system caches the file too.
PRAGMAS = {"journal_mode": "wal", "synchronous": "full", "cache_size": -256}

PSYCOPG = "psycopg[binary]==3.3.9"
# Whatever the defaults of the server are, an acknowledged write is on disk, and an UPDATE that
# waited sees the row as it has become. A locked row holds a connection for no more than a second.
SESSION = (
    f"-c statement_timeout={TIMEOUT}s -c lock_timeout=1s "
    r"-c synchronous_commit=on -c default_transaction_isolation=read\ committed"
)
SERVER_TIMEOUTS = {"connect_timeout": 3, "keepalives_idle": 60, "tcp_user_timeout": 10_000}
POOL_TIMEOUT = 2  # seconds, the longest that a request waits for a connection of the pool

URL_ADVICE = (
    "must be sqlite:///tickets.db, with four slashes for an absolute path and without ? and #, "
    "or postgres://user:password@host:port/database, with / in the password as %2F and @ as %40"
)

database = peewee.DatabaseProxy()


class Dialect(peewee.ColumnBase):
    """SQL in which SQLite and PostgreSQL differ."""

    def __init__(self, sqlite, postgresql):
        self.sqlite, self.postgresql = sqlite, postgresql

    def __sql__(self, ctx):
        return ctx.literal(self.sqlite if database.param == "?" else self.postgresql)


# Timestamps are text in both. 'now' is one instant for a whole statement of SQLite
# (sqlite.org/lang_datefunc.html), as now() is in PostgreSQL, so that those of a new row are
# equal; clock_timestamp() is the time after an UPDATE has waited for another to change the row.
_TO_TEXT = """to_char({}() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"""
_SQLITE_NOW = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
NOW = Dialect(_SQLITE_NOW, _TO_TEXT.format("clock_timestamp"))
DEFAULT_NOW = Dialect(f"DEFAULT ({_SQLITE_NOW})", f"DEFAULT {_TO_TEXT.format('now')}")
# Keeps the id of a deleted row from being given out again (sqlite.org/autoinc.html).
AUTOINCREMENT = Dialect("AUTOINCREMENT", "")


def rows_of(cursor):
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


class GroupCommitDatabase(peewee.SqliteDatabase):
    """SQLite, where the writes of a process that wait at the same time are one transaction.

    The thread of the first one leads: it takes the write lock, runs the statements of all,
    commits them with one sync, and has the next one lead. It tries to lock every POLL seconds,
    since SQLite's own busy handler sleeps longer each time, and under load some processes never
    get the lock. Each thread reads on a connection of its own; the leader uses the one that writes.
    """

    LEAD = object()  # In place of rows: this thread is the next that commits.
    # STRICT came with 3.37; an older SQLite stores text in a number's column.
    strict_tables = sqlite3.sqlite_version_info >= (3, 37)

    def __init__(self, path):
        self.path = os.path.abspath(path)
        # Without mode=rw a connection makes an empty file where the one it knew is gone.
        uri = f"file:{quote(self.path)}?mode=rw"
        options = {"uri": True, "pragmas": PRAGMAS, "returning_clause": True}
        super().__init__(uri, timeout=TIMEOUT, **options)
        options |= {"thread_safe": False, "check_same_thread": False}
        self._writer = peewee.SqliteDatabase(uri, timeout=0, **options)
        self._lock, self._led, self._waiting = threading.Lock(), False, []

    def prepare(self, create):
        """Make the file and call `create` in a transaction, also while other services do."""
        with open(self.path, "ab") as file:
            self._file = os.fstat(file.fileno())
            # Two that convert a new file to WAL fail at once, whatever the timeout is.
            fcntl.flock(file, fcntl.LOCK_EX)
            with self.connection_context(), self.atomic("IMMEDIATE"):
                create()

    def _check_file(self):
        """Raise OperationalError where the path names another file than at the start, or none."""
        with suppress(OSError):
            if os.path.samestat(os.stat(self.path), self._file):
                return
        raise OperationalError(f"{self.path} was deleted or replaced: put it back or restart")

    def read(self, query):
        """Return the rows of a SELECT."""
        self._check_file()
        return rows_of(self.execute_sql(*query.sql()))

    def write(self, sql, params):
        """Run a statement once, and return its rows when they are on disk.

        After an exception nothing is written; only where COMMIT itself failed, at the sync, or
        the file was moved at that moment, it is not known.
        """
        deadline, future = time.monotonic() + TIMEOUT, Future()
        with self._lock:
            leads, self._led = not self._led, True
            if not leads:
                self._waiting.append((future, sql, params))
        if not leads:
            # Reading goes on: not all threads may wait here.
            timeout = TIMEOUT if len(self._waiting) <= CROWD else MOMENT
            try:
                rows = future.result(timeout)
            except TimeoutError:
                if future.cancel():
                    raise OperationalError(f"database is locked, for {timeout} s") from None
                rows = future.result()  # It is being committed.
            if rows is not self.LEAD:
                return rows
            future = Future()
        self._lead((future, sql, params), deadline)
        return future.result()

    def _lead(self, own, deadline):
        own[0].set_running_or_notify_cancel()
        group = [own]
        try:
            self._begin(deadline)
            group += self._take()
            self._commit(group)
        except BaseException as error:
            for future, _, _ in group:
                if not future.done():
                    future.set_exception(error)
            self._writer.close()
        finally:
            with self._lock:
                heir, _, _ = next(self._take(), (None, None, None))
                self._led = heir is not None
            if heir:
                heir.set_result(self.LEAD)

    def _take(self):
        """Yield the writes that wait, without those that were given up."""
        while self._waiting:
            waiting = self._waiting.pop(0)
            if waiting[0].set_running_or_notify_cancel():
                yield waiting

    def _begin(self, deadline):
        """Take the write lock. Nothing has been run yet, so this may be tried again."""
        while True:
            try:
                self._check_file()  # To connect would already write the log into another file.
                self._writer.connect(reuse_if_open=True)
                return self._writer.execute_sql("BEGIN IMMEDIATE")
            except OperationalError as error:
                if "database is locked" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(POLL)

    def _commit(self, group):
        """Run the statements and commit; one that fails does so alone.

        What ends the transaction fails all of them (sqlite.org/lang_transaction.html, 3.1).
        """
        connection, done = self._writer.connection(), []
        for future, sql, params in group:
            try:
                with peewee.__exception_wrapper__:
                    done.append((future, rows_of(connection.execute(sql, params))))
            except Exception as error:
                if not connection.in_transaction:
                    raise
                future.set_exception(error)
        self._check_file()
        with peewee.__exception_wrapper__:
            connection.execute("COMMIT")
        self._check_file()
        if len(done) < len(group):
            self._writer.close()  # One that was opened while the file was read-only stays so.
        for future, rows in done:
            future.set_result(rows)


def keep_versions(table, versions, columns, watched):
    """Have a trigger copy some columns of a row into `versions` when one of `watched` changes.

    A change that does not set `version`, as one by hand, is given the next version, the time and
    no name.
    """
    kept, old = ", ".join(columns), ", ".join(f"OLD.{name}" for name in columns)
    insert = f"INSERT INTO {versions} ({table}_id, {kept}) VALUES (OLD.id, {old})"
    update = f"UPDATE OF {', '.join(watched)} ON {table}"
    sqlite = (
        f"CREATE TRIGGER IF NOT EXISTS {versions}_kept AFTER {update} BEGIN {insert}; "
        f"UPDATE {table} SET version = OLD.version + 1, updated_at = {NOW.sqlite}, "
        "updated_by = NULL WHERE id = OLD.id AND NEW.version = OLD.version; END"
    )
    postgresql = (
        f"DO $do$ BEGIN IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgname = '{versions}_kept' "
        f"AND tgrelid = '{table}'::regclass) THEN CREATE OR REPLACE FUNCTION {versions}_kept() "
        f"RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {insert}; IF NEW.version = OLD.version THEN "
        f"NEW.version := OLD.version + 1; NEW.updated_at := {NOW.postgresql}; "
        f"NEW.updated_by := NULL; END IF; RETURN NEW; END $$; CREATE TRIGGER {versions}_kept "
        f"BEFORE {update} FOR EACH ROW EXECUTE FUNCTION {versions}_kept(); END IF; END $do$"
    )
    database.execute(Dialect(sqlite, postgresql))


def is_readable(file, seconds):
    """Whether there is something to read from a socket, or will be within so many seconds."""
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


class PooledDatabase(peewee.PostgresqlDatabase):
    """PostgreSQL, with a pool whose waits are bounded, also where the server is silent.

    Peewee's own pool connects one thread at a time, under a lock that returning a connection
    needs too.
    """

    def __init__(self, size, options="", **parameters):
        session = {"options": f"{options} {SESSION}", "encoding": "utf8", "prefer_psycopg3": True}
        super().__init__(**SERVER_TIMEOUTS | parameters | session)
        self._idle, self._open = LifoQueue(), set()
        for _ in range(size):
            self._idle.put(None)  # Room for a connection.

    def prepare(self, create):
        """Call `create` in a transaction, one service at a time."""
        with self.connection_context(), self.atomic():
            if self.execute_sql("SHOW server_encoding").fetchone() != ("UTF8",):
                raise ValueError("its encoding must be UTF8")
            # CREATE … IF NOT EXISTS fails where another is just being committed, and an index of a
            # large table takes time. But other sessions queue behind an ALTER TABLE that waits.
            self.execute_sql("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
            self.execute_sql("SELECT pg_advisory_xact_lock(8237); SET LOCAL lock_timeout = '1s'")
            create()

    def read(self, query):
        """Return the rows of a SELECT."""
        with self._connected() as connection:
            return rows_of(connection.execute(*query.sql()))

    def write(self, sql, params):
        """Run a statement once, and return its rows when they are on disk.

        COMMIT is sent when the statement has been answered. A server that was silent and goes
        on runs what it has received, behind newer writes, but finds no COMMIT.
        """
        with self._connected() as connection:
            with connection.pipeline():
                connection.execute("BEGIN")
                cursor = connection.execute(sql, params)
            rows = rows_of(cursor)
            connection.execute("COMMIT")
            return rows

    @contextmanager
    def _connected(self):
        connection = self._take(time.monotonic() + POOL_TIMEOUT)
        try:
            with peewee.__exception_wrapper__:
                yield connection
        except BaseException:
            self._open.remove(connection)
            connection.close()
            connection = None
            raise
        finally:
            self._idle.put(connection)

    def _take(self, deadline):
        """Return an idle connection, or a new one where there is room for it."""
        while True:
            try:
                connection = self._idle.get(timeout=max(0, deadline - time.monotonic()))
            except Empty:
                raise OperationalError("no connection was free in time") from None
            try:
                # An idle connection has nothing to be read, unless the server has closed it.
                if connection and not is_readable(connection, 0):
                    return connection
                self._open.discard(connection)
                with peewee.__exception_wrapper__:
                    connection = self._connect()
            except Exception:
                threading.Timer(1, self._idle.put, [None]).start()
                if not self._open:  # Otherwise the request waits for one that is open.
                    raise
                continue
            # The server's own timeout says nothing when the server is silent.
            connection.wait = partial(connection.wait, timeout=TIMEOUT + 1)
            self._open.add(connection)
            return connection


def open_database(url, pool_size, create):
    """Make `database` the one that `url` names, and call `create` in a transaction of it.

    To be called once, before there are worker processes: no connection may cross a fork.
    Raises ValueError with a sentence for the operator, in which no password stands.
    """
    if url.startswith("sqlite") and sqlite3.sqlite_version_info < (3, 35, 0):
        raise ValueError(f"needs SQLite 3.35 or newer, this Python has {sqlite3.sqlite_version}")
    found = None
    with suppress(ValueError, TypeError):  # Their text may hold a part of the password.
        parts = urlsplit(url)
        path = parts.path.removeprefix("/")
        if parts.scheme == "sqlite" and url == f"sqlite:///{path}" and path not in ("", ":memory:"):
            found = GroupCommitDatabase(path)
        elif parts.scheme in ("postgres", "postgresql") and parts.hostname is not None and path:
            found = PooledDatabase(pool_size, **db_url.parse(url, True, True))
    if not found:
        raise ValueError(URL_ADVICE)
    if isinstance(found, PooledDatabase) and not peewee.psycopg:
        raise ValueError(f"needs a driver, add it with: pip install '{PSYCOPG}'")
    database.initialize(found)
    try:
        found.prepare(create)
    except (peewee.PeeweeException, OSError, TypeError, ValueError) as error:
        raise ValueError(f"cannot be used: {' '.join(str(error).split())}") from error
