"""The ticket table and the verbs that change or find a ticket.

Everything in which SQLite and PostgreSQL differ lives here and only here.
"""

import fcntl
import functools
import importlib.util
import os
import select
import sqlite3
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from peewee import (
    SQL,
    BigAutoField,
    BigIntegerField,
    Check,
    DatabaseError,
    DatabaseProxy,
    DoubleField,
    IntegrityError,
    Model,
    Node,
    OperationalError,
    PeeweeException,
    ProgrammingError,
    SqliteDatabase,
    TextField,
    Value,
    fn,
)
from playhouse import db_url
from playhouse.cockroachdb import PooledCockroachDatabase
from playhouse.pool import MaxConnectionsExceeded, PooledPostgresqlDatabase

STATUSES = ("ai_resolved", "pending_agent", "closed")
DESCRIPTION_MAX = 10_000
CATEGORY_MAX = 100
RESPONSE_MAX = 50_000
CONFIDENCE_THRESHOLD = 0.7
ID_MAX = 2**63 - 1
WRITE_TIMEOUT = 5  # seconds, the longest a write waits for its turn and for the file
BUSY_TIMEOUT = 0.25  # seconds, after which a write lets others try, and queues again
# FULL syncs the write-ahead log before a commit is acknowledged. Every thread has a
# connection with a page cache of its own, kept at 256 KiB since the system caches the file too.
PRAGMAS = {"journal_mode": "wal", "synchronous": "full", "cache_size": -256}

POOL_SIZE = 8  # connections of a process to PostgreSQL; `?max_connections=` in the URL overrides
POSTGRESQL_OPTIONS = {
    "prefer_psycopg3": True,
    "max_connections": POOL_SIZE,
    "timeout": WRITE_TIMEOUT,  # seconds, the longest a request waits for a connection
    "stale_timeout": 300,  # seconds, after which a connection is made anew
    "connect_timeout": 3,  # seconds
    # As with SQLite, an acknowledged write is on disk, whatever the server's default is.
    "options": f"-c statement_timeout={WRITE_TIMEOUT}s -c synchronous_commit=on",
}
PSYCOPG = "psycopg[binary]==3.3.9"

database = DatabaseProxy()


class PerDatabase(Node):
    """SQL in which SQLite and PostgreSQL, with those that speak like it, differ."""

    def __init__(self, sqlite, postgresql):
        self.sqlite, self.postgresql = sqlite, postgresql

    def __sql__(self, ctx):
        on_sqlite = isinstance(database.obj, SqliteDatabase)
        return ctx.literal(self.sqlite if on_sqlite else self.postgresql)


# Timestamps are text in both. 'now' is one instant for a whole statement of SQLite
# (sqlite.org/lang_datefunc.html), as now() is in PostgreSQL, so that those of a new row are
# equal; clock_timestamp() also counts the time that an UPDATE has waited for the row.
_TO_TEXT = """to_char({}() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"""
_SQLITE_NOW = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
NOW = PerDatabase(_SQLITE_NOW, _TO_TEXT.format("clock_timestamp"))
DEFAULT_NOW = PerDatabase(f"DEFAULT ({_SQLITE_NOW})", f"DEFAULT {_TO_TEXT.format('now')}")
# Keeps the id of a deleted row from being given out again (sqlite.org/autoinc.html).
AUTOINCREMENT = PerDatabase("AUTOINCREMENT", "")


def is_busy(error):
    """Whether SQLite gave up waiting for another writer (SQLITE_BUSY)."""
    return "database is locked" in str(error)


class Write:
    """A statement on its way to the disk; `rows` is None until it is there."""

    def __init__(self, sql, params):
        self.sql, self.params, self.rows = sql, params, None
        self.called = threading.Lock()
        self.called.acquire()


class QueuedSqliteDatabase(SqliteDatabase):
    """SQLite whose writers queue, the first of them committing for all behind it.

    SQLite's own busy handler sleeps and polls, so that under load some writers starve, and each
    commit waits for the disk alone. Here the threads of a process stand in a queue; the one in
    front waits for the other processes of the service in flock(2), then writes for all that stand
    there, with one sync. The busy handler is left to writers outside the service.
    """

    def __init__(self, database, **options):
        super().__init__(database, **options)
        self._queue = []
        self._queue_lock = threading.Lock()
        self._queue_file = None

    def write(self, sql, params):
        """Run a statement and return its rows when it is on disk.

        Raises OperationalError where it could not be committed, after WRITE_TIMEOUT at the
        latest; then nothing is written.
        """
        deadline = time.monotonic() + WRITE_TIMEOUT
        write = Write(sql, params)
        with self._queue_lock:
            self._queue.append(write)
            in_front = self._queue[0] is write
        if not in_front:
            write.called.acquire()
        if write.rows is None:
            try:
                self._commit_queue(deadline)
            finally:
                self._leave_queue(write)
        return write.rows

    def _commit_queue(self, deadline):
        count = None
        while time.monotonic() < deadline:
            writes = self._queue[:count]
            try:
                with self._alone():
                    found = self._retry(self._transaction, writes)
            except Exception as error:
                if not is_busy(error):
                    if len(writes) == 1:
                        raise
                    count = 1  # The fault may be that of one behind.
            else:
                for write, rows in zip(writes, found, strict=True):
                    write.rows = rows
                return
        raise OperationalError(f"database is locked, for {WRITE_TIMEOUT} s by another program")

    def _leave_queue(self, leader):
        """Call those whose statement is on disk, and the next to stand in front."""
        with self._queue_lock:
            self._queue.remove(leader)
            called = [write for write in self._queue if write.rows is not None]
            self._queue = [write for write in self._queue if write.rows is None]
            called += self._queue[:1]
        for write in called:
            write.called.release()

    def _transaction(self, writes):
        execute = super().execute_sql
        if len(writes) == 1:  # SQLite commits it when its last row has been read.
            return [execute(writes[0].sql, writes[0].params).fetchall()]
        execute("BEGIN IMMEDIATE")
        rows = [execute(write.sql, write.params).fetchall() for write in writes]
        execute("COMMIT")
        return rows

    @contextmanager
    def _alone(self):
        """Keep the other processes of the service from writing."""
        if self._queue_file is None:
            # A file of its own, since closing the database's would drop
            # SQLite's locks on it (sqlite.org/howtocorrupt.html, 2.2).
            self._queue_file = os.open(f"{self.database}-queue", os.O_CREAT | os.O_RDWR)
        fcntl.flock(self._queue_file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._queue_file, fcntl.LOCK_UN)

    def _retry(self, work, *arguments):
        """Do the work, if need be again on a new connection.

        A connection opened while the file could not be written or read stays
        as it is when the file has long been mended.
        """
        for again in (True, False):
            try:
                return work(*arguments)
            except BaseException as error:
                self.close()  # With it ends a transaction that was begun.
                if not again or is_busy(error) or not isinstance(error, DatabaseError):
                    raise

    def execute_sql(self, sql, params=None):
        """Run a statement that only reads."""
        return self._retry(super().execute_sql, sql, params)

    def release(self):
        """Keep the connection of this thread: to close the last one deletes the log."""

    def prepare(self, model):
        """Create the table of `model` where it is missing, with no other process at it."""
        with self._alone():
            try:
                self.create_tables([model])
                model.get_or_none()  # Fails where there is another table of this name.
            finally:
                self.close()
        # Processes that share a descriptor share its lock, so none may cross the fork.
        os.close(self._queue_file)
        self._queue_file = None


class Pool:
    """What Peewee's connection pool needs so that no request waits for a server that is silent."""

    _failed_at = 0

    def connect(self, reuse_if_open=False):
        """Take a connection from the pool, or wait until one is given back."""
        self._state.asked_at = time.monotonic()
        try:
            return super().connect(reuse_if_open)
        except MaxConnectionsExceeded as error:
            raise OperationalError(str(error)) from error

    def _connect(self):
        # Peewee makes one connection at a time. Whoever waited while an
        # attempt failed need not wait for another.
        if self._failed_at > self._state.asked_at:
            raise OperationalError("the server did not answer the request in front")
        try:
            connection = super()._connect()
        except MaxConnectionsExceeded:
            raise
        except Exception:
            self._failed_at = time.monotonic()
            raise
        if "wait" not in vars(connection):
            # The server's own timeout says nothing when the server does not.
            connection.wait = functools.partial(connection.wait, timeout=WRITE_TIMEOUT + 1)
        return connection

    def _is_closed(self, connection):
        if connection.closed:
            return True
        # An idle connection has nothing to be read but its end.
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def execute_sql(self, sql, params=None):
        """Run a statement; a connection on which one failed goes back to no pool."""
        try:
            return super().execute_sql(sql, params)
        except DatabaseError:
            self.manual_close()
            raise

    def write(self, sql, params):
        """Run a statement and return its rows, committed."""
        return self.execute_sql(sql, params).fetchall()

    def release(self):
        """Give the connection of this thread back to the pool."""
        self.close()

    def prepare(self, model):
        """Create the table of `model` where it is missing; other hosts may be at it too."""
        try:
            try:
                self.create_tables([model])
            except (IntegrityError, ProgrammingError):
                # CREATE … IF NOT EXISTS fails where another is just being committed.
                self.create_tables([model])
            model.get_or_none()  # Fails where there is another table of this name.
        finally:
            self.close_all()


class PostgresqlPool(Pool, PooledPostgresqlDatabase):
    """PostgreSQL."""


class CockroachPool(Pool, PooledCockroachDatabase):
    """CockroachDB, which speaks like PostgreSQL."""


db_url.register_database(QueuedSqliteDatabase, "sqlite")
db_url.register_database(PostgresqlPool, "postgres", "postgresql")
db_url.register_database(CockroachPool, "cockroachdb")


def _length(column, maximum):
    return Check(f"length({column}) BETWEEN 1 AND {maximum}")


def _timestamp(column):
    return TextField(
        constraints=[
            DEFAULT_NOW,
            Check(f"{column} LIKE '____-__-__T__:__:__.___Z'"),
        ]
    )


class Ticket(Model):
    """A support ticket: what the classifier said of it and what people made of it.

    `version` counts the writes of the row and is its entity tag; it is never shown in a body.
    """

    id = BigAutoField(constraints=[AUTOINCREMENT])
    user_description = TextField(constraints=[_length("user_description", DESCRIPTION_MAX)])
    category = TextField(null=True, constraints=[_length("category", CATEGORY_MAX)])
    ai_suggested_response = TextField(
        null=True, constraints=[_length("ai_suggested_response", RESPONSE_MAX)]
    )
    confidence_score = DoubleField(
        null=True, constraints=[Check("confidence_score BETWEEN 0 AND 1")]
    )
    status = TextField(constraints=[Check(f"status IN {STATUSES}")])
    created_at = _timestamp("created_at")
    updated_at = _timestamp("updated_at")
    version = BigIntegerField(constraints=[SQL("DEFAULT 1"), Check("version > 0")])

    class Meta:
        database = database
        table_name = "ticket"
        indexes = ((("status", "id"), False),)

    @classmethod
    def patch(cls, ticket_id, changes, versions=None):
        """Write `changes` (a dict of columns) to one ticket and return it as a dict, or None.

        With `versions` (a list of int) the row must still have one of them. None means that no
        row was written: there is no such ticket, or its version is another.
        """
        if ticket_id > ID_MAX:
            return None
        sql, template = _compile_patch(
            frozenset(changes), None if versions is None else len(versions)
        )
        values = {"id": ticket_id, **changes, **dict(enumerate(versions or ()))}
        params = [values[p.name] if isinstance(p, Placeholder) else p for p in template]
        return _only_row(database.write(sql, params))

    @classmethod
    def add(cls, values):
        """Insert a ticket, its status decided by its confidence, and return it as a dict."""
        confidence = values.get("confidence_score")
        sure = confidence is not None and confidence >= CONFIDENCE_THRESHOLD
        status = "ai_resolved" if sure else "pending_agent"
        query = cls.insert(**values, status=status).returning(*cls._meta.sorted_fields)
        return _only_row(database.write(*query.sql()))

    @classmethod
    def find(cls, ticket_id):
        """Return one ticket as a dict, or None."""
        if ticket_id > ID_MAX:
            return None
        return cls.select().where(cls.id == ticket_id).dicts().first()

    @classmethod
    def page(cls, limit, status=None, before=None):
        """Return at most `limit` tickets as dicts, newest first, of ids below `before`."""
        query = cls.select().order_by(cls.id.desc()).limit(limit).dicts()
        if status is not None:
            query = query.where(cls.status == status)
        if before is not None:
            query = query.where(cls.id < before)
        return list(query)

    @classmethod
    def clock(cls):
        """Return the database's time as a timestamp, having read the table."""
        return cls.select(NOW, fn.MAX(cls.id)).scalar()


class Placeholder:
    """Stands for a value in a statement that is compiled before the value is known."""

    def __init__(self, name):
        self.name = name


@functools.lru_cache(maxsize=64)
def _compile_patch(names, version_count):
    """Return the SQL of a PATCH of the columns `names`, and its parameters with placeholders.

    Peewee takes 20 times as long to compile the statement as SQLite to run it, and orders the
    columns in its own way and adds parameters of its own, so that a value's place is only known
    by its placeholder.
    """

    def value(name):
        return Value(Placeholder(name), converter=False)

    condition = Ticket.id == value("id")
    if version_count is not None:
        condition &= Ticket.version.in_([value(number) for number in range(version_count)])
    changes = {name: value(name) for name in names}
    query = Ticket.update(**changes, updated_at=NOW, version=Ticket.version + 1).where(condition)
    return query.returning(*Ticket._meta.sorted_fields).sql()


def _only_row(rows):
    return dict(zip(Ticket._meta.sorted_field_names, rows[0], strict=True)) if rows else None


def prepare(url):
    """Open the database named by `url`, create its table, and close it again.

    To be called once, before worker processes exist: a connection must not cross a fork, and
    several processes that convert a new file to WAL at once fail with "database is locked".
    Raises ValueError, with a sentence for the operator, where the database cannot be used.
    """
    scheme = urlsplit(url).scheme
    if scheme == "sqlite":
        options = _sqlite_options(url)
    elif scheme in ("postgres", "postgresql", "cockroachdb"):
        if not importlib.util.find_spec("psycopg"):
            raise ValueError(f"needs a driver, add it with: pip install '{PSYCOPG}'")
        options = {**POSTGRESQL_OPTIONS, **db_url.parse(url, True, True)}
    else:
        raise ValueError("the scheme must be sqlite or postgres, as in sqlite:///tickets.db")
    try:
        database.initialize(db_url.connect(url, **options))
        # STRICT came with 3.37; an older SQLite stores text in a number's column.
        Ticket._meta.strict_tables = scheme == "sqlite" and sqlite3.sqlite_version_info >= (3, 37)
        _compile_patch.cache_clear()  # Statements differ from one kind of database to another.
        database.prepare(Ticket)
    except (PeeweeException, OSError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the database cannot be used ({reason})") from error


def _sqlite_options(url):
    parts = urlsplit(url)
    if parts.netloc or parts.path in ("", "/", "/:memory:"):
        raise ValueError(
            "must name a file after three slashes, sqlite:///tickets.db, "
            "or four for an absolute path, sqlite:////srv/tickets.db"
        )
    if sqlite3.sqlite_version_info < (3, 35, 0):
        raise ValueError(
            f"needs SQLite 3.35 or newer for RETURNING, this Python has {sqlite3.sqlite_version}"
        )
    folder = Path(parts.path[1:]).parent
    if not folder.is_dir():
        raise ValueError(f"the folder {folder} does not exist, create it first")
    return {"timeout": BUSY_TIMEOUT, "returning_clause": True, "pragmas": PRAGMAS}
