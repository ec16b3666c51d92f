"""The ticket table and the verbs that change or find a ticket.

Everything that concerns SQLite alone lives here and only here.
"""

import fcntl
import functools
import os
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
    Model,
    OperationalError,
    PeeweeException,
    SqliteDatabase,
    TextField,
    Value,
    fn,
)
from playhouse import db_url

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

# In SQLite's date functions 'now' is one instant for the whole statement
# (sqlite.org/lang_datefunc.html), so both timestamps of a new row are equal.
NOW = SQL("strftime('%Y-%m-%dT%H:%M:%fZ', 'now')")

database = DatabaseProxy()


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
            except DatabaseError as error:
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
            except DatabaseError as error:
                self.close()  # With it ends a transaction that was begun.
                if is_busy(error) or not again:
                    raise

    def execute_sql(self, sql, params=None):
        """Run a statement that only reads."""
        return self._retry(super().execute_sql, sql, params)

    def create(self, model):
        """Create the table of `model` where it is missing, with no other process at it."""
        with self._alone(), self.connection_context():
            self.create_tables([model])
        # Processes that share a descriptor share its lock, so none may cross the fork.
        os.close(self._queue_file)
        self._queue_file = None


db_url.register_database(QueuedSqliteDatabase, "sqlite")


def _length(column, maximum):
    return Check(f"length({column}) BETWEEN 1 AND {maximum}")


def _timestamp(column):
    return TextField(
        constraints=[
            SQL(f"DEFAULT ({NOW.sql})"),
            Check(f"{column} LIKE '____-__-__T__:__:__.___Z'"),
        ]
    )


class Ticket(Model):
    """A support ticket: what the classifier said of it and what people made of it.

    `version` counts the writes of the row and is its entity tag; it is never shown in a body.
    """

    # AUTOINCREMENT keeps the id of a deleted row from being given out again
    # (sqlite.org/autoinc.html).
    id = BigAutoField(constraints=[SQL("AUTOINCREMENT")])
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
        # STRICT came with 3.37; an older SQLite would store text in a number's column.
        strict_tables = sqlite3.sqlite_version_info >= (3, 37, 0)

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
    parts = urlsplit(url)
    if parts.scheme != "sqlite":
        raise ValueError("the scheme must be sqlite, as in sqlite:///tickets.db")
    if parts.netloc or parts.path in ("", "/", "/:memory:"):
        raise ValueError(
            "must name a file after three slashes, sqlite:///tickets.db, "
            "or four for an absolute path, sqlite:////srv/tickets.db"
        )
    if sqlite3.sqlite_version_info < (3, 35, 0):
        raise ValueError(
            f"needs SQLite 3.35 or newer for RETURNING, this Python has {sqlite3.sqlite_version}"
        )
    path = Path(parts.path[1:])
    if not path.parent.is_dir():
        raise ValueError(f"the folder {path.parent} does not exist, create it first")
    try:
        database.initialize(
            db_url.connect(
                url,
                timeout=BUSY_TIMEOUT,
                returning_clause=True,
                pragmas=PRAGMAS,
            )
        )
        _compile_patch.cache_clear()  # Statements differ from one kind of database to another.
        database.create(Ticket)
        Ticket.find(0)  # Fails where the file has another table of this name.
        database.close()
    except (PeeweeException, OSError, TypeError) as error:
        raise ValueError(f"{path} cannot be used ({error}), name another file") from error
