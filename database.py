"""How a statement reaches the disk: SQLite or PostgreSQL, behind the same few methods.

`backend.read(query)` and `backend.write(sql, params)` return rows as dicts, and raise
an exception within about TIMEOUT seconds. `database` is the Peewee database that the
models build their SQL for. Nothing in this module names a table.
"""

import fcntl
import os
import re
import select
import sqlite3
import threading
import time
from collections import deque
from concurrent.futures import Future, TimeoutError
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlsplit

import peewee
from peewee import OperationalError

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.rows import dict_row
except ImportError:  # The driver is needed for PostgreSQL only.
    psycopg = None

TIMEOUT = 5  # seconds, the longest that a request waits for the database
# The longest that an operator's command waits for a lock, and for a reader of the log.
OPERATOR_TIMEOUT = 60  # seconds
READER_TIMEOUT = 10  # seconds

URL_ADVICE = (
    "must be sqlite:///tickets.db, with four slashes for an absolute path and without "
    "? and #, or postgres://user:password@host:port/database, with / in the password "
    "as %2F, @ as %40 and % as %25"
)

# A host of a URL: a name or an address, perhaps with a port.
HOST = re.compile(r"(?:[^\[\]:]*|\[[0-9A-Fa-f:.%]+\])(?::[0-9]+)?")

database = peewee.DatabaseProxy()
backend = peewee.Proxy()
# What reading and writing raise, whichever database it is.
DATABASE_ERRORS = (peewee.PeeweeException, sqlite3.Error)
if psycopg is not None:
    DATABASE_ERRORS += (psycopg.Error,)


class Dialect(peewee.ColumnBase):
    """SQL in which SQLite and PostgreSQL differ."""

    def __init__(self, sqlite, postgresql):
        self.sqlite = sqlite
        self.postgresql = postgresql

    def __str__(self):
        return self.sqlite if is_sqlite() else self.postgresql

    def __sql__(self, ctx):
        return ctx.literal(str(self))


def is_sqlite():
    """Return whether the open database is SQLite."""
    return isinstance(database.obj, peewee.SqliteDatabase)


# Timestamps are text in both. 'now' is one instant for a whole statement of SQLite
# (sqlite.org/lang_datefunc.html), as now() is in PostgreSQL, so that both timestamps of
# a new row are equal; clock_timestamp() is the time after an UPDATE has waited for
# another transaction to change the row.
_TO_TEXT = """to_char({}() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"""
_SQLITE_NOW = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
NOW = Dialect(_SQLITE_NOW, _TO_TEXT.format("clock_timestamp"))
DEFAULT_NOW = Dialect(f"DEFAULT ({_SQLITE_NOW})", f"DEFAULT {_TO_TEXT.format('now')}")
# Keeps the id of a deleted row from being given out again (sqlite.org/autoinc.html).
AUTOINCREMENT = Dialect("AUTOINCREMENT", "")


@dataclass
class Group:
    """The rows with one value of a column, which is the first one of an index."""

    column: peewee.Field
    value: object


def in_order(query, column, is_ascending, bound=None, group=None):
    """Return a query ordered by a column, beyond `bound`, of the rows of a group.

    It walks the index on the column, or the one on the group's column and this one.
    """
    if group is None or is_sqlite():
        if group is not None:
            query = query.where(group.column == group.value)
        if bound is not None:
            query = query.where(column > bound if is_ascending else column < bound)
        return query.order_by(column.asc() if is_ascending else column.desc())

    # With an equation, PostgreSQL may walk the primary key instead, in the hope that a
    # row of the group comes soon: of 10,000,000 tickets that took seconds.
    key = peewee.Tuple(group.column, column)
    if is_ascending:
        query = query.where(group.column <= group.value)
        beyond = group.column >= group.value
        if bound is not None:
            beyond = key > (group.value, bound)
        return query.where(beyond).order_by(group.column.asc(), column.asc())

    query = query.where(group.column >= group.value)
    beyond = group.column <= group.value
    if bound is not None:
        beyond = key < (group.value, bound)
    return query.where(beyond).order_by(group.column.desc(), column.desc())


def rows_of(cursor):
    """Return all rows of a cursor as dicts."""
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def is_readable(file, seconds):
    """Return whether a socket has something to read, now or within so many seconds."""
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def one_line(error):
    """Return the text of an exception without its line ends."""
    return " ".join(str(error).split())


# --- SQLite ---------------------------------------------------------------------------

POLL = 0.0002  # seconds between two attempts to take the write lock of the file
# If more than CROWD writes of a process wait, a new one waits for CROWD_TIMEOUT only:
# a thread that waits to write cannot read.
CROWD = 16
CROWD_TIMEOUT = 0.5  # seconds
PRAGMAS = {
    "journal_mode": "wal",
    # The write-ahead log is synced before a commit is acknowledged.
    "synchronous": "full",
    # KiB of page cache for a connection; the operating system caches the file too.
    "cache_size": -256,
    # While there are connections, only Checkpointer copies the log into the database.
    "wal_autocheckpoint": 0,
    # Bytes that the log keeps when it begins anew, after a long reader let it grow.
    "journal_size_limit": 16 * 1024 * 1024,
}
# A process copies the log into the database after it has added about LOG_SIZE bytes,
# or when it has written nothing for QUIET_TIME.
LOG_SIZE = 4 * 1024 * 1024
QUIET_TIME = 1  # seconds
COMMIT_SIZE = 8 * 1024  # bytes: pages that the writes of a commit share
ROW_SIZE = 4 * 1024  # bytes: the page of a write's own row
CHECKPOINT_POLL = 0.001  # seconds between two attempts to take the write lock
PROGRESS_STEPS = 100_000  # SQLite instructions between two reports of progress
# For the connections of manage.py:
OPERATOR_PRAGMAS = {
    **PRAGMAS,
    # What is deleted is overwritten.
    "secure_delete": "on",
}


def _open_file(path, mode):
    """Return a connection to a file as it is, without any pragma."""
    return sqlite3.connect(
        f"file:{quote(os.path.abspath(path))}?{mode}",
        timeout=OPERATOR_TIMEOUT,
        isolation_level=None,
        check_same_thread=False,
        uri=True,
    )


def _run_with_progress(connection, sql, params, report):
    """Run a statement of SQLite and call `report` meanwhile; return its rows.

    An exception in `report` ends the statement with sqlite3.OperationalError.
    """
    connection.set_progress_handler(report, PROGRESS_STEPS)
    return connection.execute(sql, params).fetchall()


class Write:
    """A statement that waits to be committed."""

    # An outcome in place of rows: the thread of this write is now the leader.
    PROMOTED = object()

    def __init__(self, sql, params):
        self.sql = sql
        self.params = params
        self.deadline = time.monotonic() + TIMEOUT
        self.outcome = Future()  # Its rows, PROMOTED or an exception.

    def log_size(self):
        """Return about how many bytes it adds to the log, its old version included."""
        texts = [value for value in self.params if isinstance(value, str)]
        return ROW_SIZE + 2 * sum(map(len, texts))

    def claim(self):
        """Take it for a commit; return False if its own thread has given it up."""
        return self.outcome.set_running_or_notify_cancel()


def run_when_unlocked(connection, sql, check_file, deadline, pause):
    """Run a statement that takes the write lock, trying again until `deadline`.

    It is tried every `pause` seconds, on a connection without a busy timeout.

    SQLite's own busy handler sleeps longer each time, and under load some processes
    then never get the lock.
    """
    while True:
        try:
            # Before connecting, which would write a log into another file.
            check_file()
            connection.connect(reuse_if_open=True)
            connection.execute_sql(sql)
            return
        except OperationalError as error:
            is_locked = "database is locked" in str(error)
            if not is_locked or time.monotonic() > deadline:
                raise
        time.sleep(pause)


class Checkpointer:
    """A thread that copies the write-ahead log into the database while nobody commits.

    Before SQLite 3.51.3, a checkpoint that begins while another connection's commit
    restarts the log can lose commits or break the file (sqlite.org/wal.html, "the
    WAL-reset bug"). So SQLite's automatic checkpoints are off, and this thread holds
    the write lock during its own. The lock is that of an empty transaction on a second
    connection: beside one that writes, the log could not be copied to its end.
    """

    def __init__(self, check_file, make_database):
        self._check_file = check_file
        self._locker = make_database(timeout=0)
        self._copier = make_database(timeout=0)

        self._thread = None
        self._is_closing = False
        self._wakeup = threading.Event()

        # Bytes, about. Only the leader changes the first, only the thread the second.
        self._added = 0
        self._copied = 0

    def add(self, size):
        """Note that the leader has added about `size` bytes to the log."""
        self._added += size
        # Added before the comparison: if the thread has just copied everything, either
        # this sees it, or the thread sees what was added.
        was_empty = self._added - size == self._copied
        if was_empty or self._added - self._copied >= LOG_SIZE:
            self._wakeup.set()
        if self._thread is None:
            self._start()

    def _start(self):
        thread = threading.Thread(target=self._run, name="checkpointer", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return  # There is no room for a thread: the next write tries again.
        self._thread = thread

    def close(self):
        """End the thread, and close its connections."""
        if self._thread is not None:
            self._is_closing = True
            self._wakeup.set()
            self._thread.join()
            self._is_closing = False
            self._thread = None
        self._close_connections()

    def _run(self):
        while not self._is_closing:
            self._wakeup.wait()
            self._wakeup.clear()
            self._wait_until_due()
            if not self._is_closing:
                self._checkpoint()

    def _wait_until_due(self):
        """Return when the log is long, or when nothing was added for QUIET_TIME."""
        while self._added - self._copied < LOG_SIZE and not self._is_closing:
            added = self._added
            self._wakeup.wait(QUIET_TIME)
            self._wakeup.clear()
            if self._added == added:
                return

    def _checkpoint(self):
        """Copy the log; after a failure, or beside a reader, try again later."""
        added = self._added
        try:
            is_complete = self.copy_log(TIMEOUT)
        except Exception:
            # The disk is full or the file was moved: the writes fail too, and log it.
            is_complete = False

        if is_complete:
            self._copied = added
        else:
            time.sleep(QUIET_TIME)
        if self._added > self._copied:
            self._wakeup.set()

    def copy_log(self, seconds):
        """Copy the log into the database, as far as no reader needs it.

        Wait so many seconds for the write lock. Return whether all was copied.
        """
        deadline = time.monotonic() + seconds
        try:
            run_when_unlocked(
                self._locker,
                "BEGIN IMMEDIATE",
                self._check_file,
                deadline,
                CHECKPOINT_POLL,
            )
            self._copier.connect(reuse_if_open=True)
            cursor = self._copier.execute_sql("PRAGMA wal_checkpoint(PASSIVE)")
            [(is_busy, in_log, copied)] = cursor.fetchall()
            self._locker.execute_sql("ROLLBACK")
        except BaseException:
            self._close_connections()
            raise
        return not is_busy and in_log == copied

    def _close_connections(self):
        self._copier.close()
        self._locker.close()


class SqliteBackend:
    """SQLite with group commit: writes that wait at the same time share one commit.

    One thread is the leader. It takes the write lock, claims every write that waits,
    runs them, commits with one sync, and promotes the thread of the next write that
    waits. A thread that writes while there is no leader becomes the leader itself, so
    that a single client pays for no switch of threads.

    Reads use connections of their own, and go on while writes wait.
    """

    # Without STRICT, SQLite accepts text in a numeric column. It came with 3.37.
    strict_tables = sqlite3.sqlite_version_info >= (3, 37)
    backup_advice = None
    restore_advice = None

    def __init__(self, path, pragmas=PRAGMAS):
        self.path = os.path.abspath(path)
        self.pragmas = pragmas
        self.name = self.path
        self.host = "this host"

        self._file = None  # The result of stat() at the start, from prepare() on.
        self.database = self._make_database(TIMEOUT)
        self._idle_readers = deque()

        self._writer = self._make_database(timeout=0)
        # Held to change _has_leader, and to add to _waiting if there is a leader.
        self._lock = threading.Lock()
        self._has_leader = False
        self._waiting = deque()  # Only the leader takes writes out of it.

        self._checkpointer = Checkpointer(self._check_file, self._make_database)

    def _make_database(self, timeout):
        # Without mode=rw, SQLite makes an empty file if the one it knew is gone.
        return peewee.SqliteDatabase(
            f"file:{quote(self.path)}?mode=rw",
            uri=True,
            pragmas=self.pragmas,
            returning_clause=True,
            timeout=timeout,
            thread_safe=False,
            check_same_thread=False,
        )

    def prepare(self, upgrade):
        """Make the file if there is none, and call `upgrade` in a transaction.

        Other services may do the same at this moment. Return whether the file is new.
        """
        with open(self.path, "ab") as file:
            # If two connections convert a new file to WAL, one of them fails at once,
            # whatever its timeout is.
            fcntl.flock(file, fcntl.LOCK_EX)
            self._file = os.fstat(file.fileno())
            with self.database.connection_context(), self.database.atomic("IMMEDIATE"):
                upgrade()
        return self._file.st_size == 0

    def close(self):
        """Close the connections of this process."""
        self._checkpointer.close()
        self.database.close()
        self._writer.close()
        while self._idle_readers:
            self._idle_readers.pop().close()

    def read(self, query):
        """Return the rows of a SELECT."""
        self._check_file()
        with self._reader() as reader:
            return rows_of(reader.execute_sql(*query.sql()))

    def read_settled(self, query):
        """Return the rows of a SELECT of greatest ids; see PostgresqlBackend.

        SQLite gives out ids under the write lock: their order is that of the commits.
        """
        return self.read(query)

    @contextmanager
    def _reader(self):
        """Give a connection that no other thread uses meanwhile."""
        try:
            reader = self._idle_readers.pop()
        except IndexError:
            reader = self._make_database(TIMEOUT)

        try:
            yield reader
        except BaseException:
            reader.close()
            raise
        self._idle_readers.append(reader)

    def write(self, sql, params):
        """Run a statement once, and return its rows when they are on disk.

        If it raises, nothing was written, unless COMMIT itself failed or the file was
        moved at that moment: then the outcome is unknown.
        """
        write = Write(sql, params)
        with self._lock:
            is_leader = not self._has_leader
            if is_leader:
                self._has_leader = True
            else:
                self._waiting.append(write)

        if not is_leader:
            rows = self._wait_for(write)
            if rows is not Write.PROMOTED:
                return rows
            write.outcome = Future()

        self._lead(write)
        return write.outcome.result()

    def _wait_for(self, write):
        """Return the outcome of a write, or give it up if it waits for too long."""
        timeout = TIMEOUT if len(self._waiting) <= CROWD else CROWD_TIMEOUT
        try:
            return write.outcome.result(timeout)
        except TimeoutError:
            if write.outcome.cancel():
                raise OperationalError(f"database is locked, for {timeout} s") from None
        # A leader has claimed it at this moment, to commit it or to promote its thread.
        return write.outcome.result()

    def _lead(self, own):
        """Commit the leader's own write and all that wait, then promote the next."""
        own.claim()
        group = [own]
        try:
            run_when_unlocked(
                self._writer, "BEGIN IMMEDIATE", self._check_file, own.deadline, POLL
            )
            group.extend(self._claim_waiting())
            self._commit(group)
        except BaseException as error:
            for write in group:
                if not write.outcome.done():
                    write.outcome.set_exception(error)
            self._writer.close()  # This ends its transaction.
        finally:
            self._promote_next()

    def _promote_next(self):
        with self._lock:
            following = next(self._claim_waiting(), None)
            self._has_leader = following is not None
        if following is not None:
            following.outcome.set_result(Write.PROMOTED)

    def _claim_waiting(self):
        """Yield the writes that wait, oldest first, but none that was given up."""
        while self._waiting:
            write = self._waiting.popleft()
            if write.claim():
                yield write

    def _commit(self, group):
        """Run the statements and commit them. A statement that fails does so alone.

        What ends the transaction fails all (sqlite.org/lang_transaction.html, 3.1).
        """
        connection = self._writer.connection()
        written = []
        for write in group:
            try:
                rows = rows_of(connection.execute(write.sql, write.params))
            except Exception as error:
                if not connection.in_transaction:
                    raise
                write.outcome.set_exception(error)
            else:
                written.append((write, rows))

        self._check_file()
        connection.execute("COMMIT")
        self._check_file()

        if len(written) < len(group):
            # A statement may have failed because the file was read-only when the
            # connection was opened, which then stays so: the next write opens another.
            self._writer.close()
        for write, rows in written:
            write.outcome.set_result(rows)
        self._checkpointer.add(COMMIT_SIZE + sum(write.log_size() for write in group))

    def has_table(self, table):
        """Return whether the file is there and has a table."""
        if not os.path.exists(self.path):
            return False
        with closing(_open_file(self.path, "mode=ro")) as connection:
            find = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
            return connection.execute(find, [table]).fetchone() is not None

    def remove_if_empty(self, tables):
        """Delete the file, unless a service has started and written to it."""
        with self.database.connection_context():
            self._run_when_unlocked(self.database, "BEGIN IMMEDIATE")
            for table in tables:
                found = self.database.execute_sql(f"SELECT 1 FROM {table} LIMIT 1")
                if found.fetchall():
                    return
            file = os.path.realpath(self.path)
            for suffix in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    os.unlink(f"{file}{suffix}")

    def back_up(self, path, table, progress):
        """Write a consistent copy into the empty file at `path`, and check it.

        The database is neither changed nor brought up to date. `progress` is called
        with the bytes that are written and those that are expected. Return the number
        of rows that `table` has in the copy.
        """
        with closing(_open_file(self.path, "mode=rw")) as connection:
            ((size,),) = connection.execute(
                "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
            )
            _run_with_progress(
                connection,
                "VACUUM INTO ?",
                [path],
                lambda: progress(os.path.getsize(path), size),
            )

        with closing(_open_file(path, "mode=ro&immutable=1")) as copy:
            check = _run_with_progress(copy, "PRAGMA integrity_check", (), lambda: None)
            if check != [("ok",)]:
                raise ValueError(f"the database is damaged: {check[0][0]}")
            return copy.execute(f"SELECT count(*) FROM {table}").fetchone()[0]

    def check_backup(self, path, table):
        """Raise ValueError unless `path` is an intact database file with this table."""
        if os.path.exists(self.path) and os.path.samefile(path, self.path):
            raise ValueError(f"{path} is the database itself")
        for suffix in ("-wal", "-journal"):
            log = f"{os.path.realpath(path)}{suffix}"
            if os.path.exists(log) and os.path.getsize(log) > 0:
                raise ValueError(
                    f"{path} is no backup, but a database with changes in {log}: "
                    "back that database up first"
                )

        # If the file were not said to be immutable, one in WAL mode would get a log.
        with closing(_open_file(path, "mode=ro&immutable=1")) as backup:
            try:
                (found,) = backup.execute("PRAGMA integrity_check").fetchone()
                backup.execute(f"SELECT count(*) FROM {table}")
            except sqlite3.Error as error:
                raise ValueError(f"{path} cannot be restored: {error}") from error
        if found != "ok":
            raise ValueError(f"{path} cannot be restored: {found}")

    def restore(self, path, replace):
        """Attach the file at `path` as `backup`; call `replace` in a transaction."""
        execute = self.database.execute_sql
        uri = f"file:{quote(os.path.abspath(path))}?mode=ro&immutable=1"
        with self.database.connection_context(), self.database.manual_commit():
            execute("ATTACH ? AS backup", [uri])
            self._run_when_unlocked(self.database, "BEGIN IMMEDIATE")
            try:
                replace()
                execute("COMMIT")
            except BaseException:
                # Closing does not end a transaction while one of its cursors is in use.
                self.database.connection().rollback()
                raise

    def overwrite_deleted(self, tables):
        """Write the whole file anew, then empty the log; return what else has copies.

        Raise OperationalError if a reader keeps the log from being emptied.
        """
        with self.database.connection_context():
            self._run_when_unlocked(self.database, "VACUUM")

        if not self.empty_log(READER_TIMEOUT):
            raise OperationalError(f"a reader keeps {self.path}-wal from being emptied")
        return "backups"

    def _run_when_unlocked(self, connection, sql):
        """Run a statement that needs the write lock, tried again until it has it."""
        connection.execute_sql("PRAGMA busy_timeout = 0")
        deadline = time.monotonic() + OPERATOR_TIMEOUT
        run_when_unlocked(connection, sql, self._check_file, deadline, POLL)

    def empty_log(self, seconds):
        """Leave nothing in the log that was in it before; return whether it is so.

        First the log is copied, beside an empty transaction of this process, so that no
        checkpoint meets a commit (sqlite.org/wal.html, "the WAL-reset bug"). Then a
        write of its own begins the log anew, and cuts the rest of it off because its
        journal_size_limit is 0.
        """
        self._checkpointer.close()  # Its thread would use the same connections.
        deadline = time.monotonic() + seconds
        while not self._try_to_empty_log():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def _try_to_empty_log(self):
        self._checkpointer.copy_log(OPERATOR_TIMEOUT)

        with closing(self._make_database(timeout=0)) as writer:
            writer.execute_sql("PRAGMA journal_size_limit = 0")
            self._run_when_unlocked(writer, "BEGIN IMMEDIATE")
            # Each time that the log begins anew, its header changes.
            header = self._log_header()
            ((version,),) = writer.execute_sql("PRAGMA user_version").fetchall()
            writer.execute_sql(f"PRAGMA user_version = {version}")
            writer.execute_sql("COMMIT")
            return self._log_header() != header

    def _log_header(self):
        # SQLite keeps the log beside the file, not beside a symbolic link to it.
        with open(f"{os.path.realpath(self.path)}-wal", "rb") as log:
            return log.read(32)

    def _check_file(self):
        """Raise OperationalError unless the path still names the file of the start."""
        try:
            found = os.stat(self.path)
        except OSError:
            found = None
        if found is None or not os.path.samestat(found, self._file):
            raise OperationalError(
                f"{self.path} was deleted or replaced: put it back or restart"
            )


# --- PostgreSQL -----------------------------------------------------------------------

PSYCOPG = "psycopg[binary]==3.3.9"
# Whatever the defaults of the server are, an acknowledged write is on disk, and an
# UPDATE that waited sees the row as it has become. A locked row holds a connection for
# no more than a second. The settings end with the transaction: behind a pooler the next
# one may have another session, and PgBouncer refuses startup options.
BEGIN = f"""
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL statement_timeout = '{TIMEOUT}s';
SET LOCAL lock_timeout = '1s';
SET LOCAL synchronous_commit = on;
"""
# A parameter of the URL takes the place of its default here.
DEFAULTS = {
    "connect_timeout": 3,  # seconds, for each host and address
    "keepalives_idle": 60,  # seconds
    "tcp_user_timeout": 10_000,  # milliseconds
}
GRACE = 0.5  # seconds after the deadline, for the server to report its own timeout
# The longest that a write waits for other writes of its process: a thread that waits to
# write cannot read.
WRITE_ROOM_TIMEOUT = 2  # seconds
RETRY_TIME = 1  # seconds, after a connection could not be made


if psycopg is not None:

    class TimedConnection(psycopg.Connection):
        """A connection that does not wait for the server after a deadline.

        The server's own timeout says nothing while the server is silent.
        """

        deadline = float("inf")

        def wait(self, generator, *args, **options):
            remaining = self.deadline - time.monotonic()
            options["timeout"] = max(0.001, remaining)
            try:
                return super().wait(generator, *args, **options)
            except psycopg.OperationalError as error:
                is_from_server = error.sqlstate is not None
                if is_from_server or time.monotonic() < self.deadline:
                    raise
                raise OperationalError("the server did not answer in time") from error


class Session:
    """A connection to PostgreSQL, and the cursor for its statements.

    A ClientCursor sends several statements as one string, in one round trip.
    """

    def __init__(self, parameters):
        self.connection = TimedConnection.connect(
            autocommit=True,
            # Behind a pooler, prepared statements of two clients share their names.
            prepare_threshold=None,
            cursor_factory=psycopg.ClientCursor,
            row_factory=dict_row,
            **parameters,
        )
        self._cursor = self.connection.cursor()

    def read(self, sql, params):
        """Return the rows of a SELECT, in a transaction of its own."""
        self._cursor.execute(f"{BEGIN}{sql}; COMMIT", params)
        # The last result is that of COMMIT, the one before it that of the SELECT.
        return self._cursor.set_result(-2).fetchall()

    def begin(self, sql, params):
        """Begin a transaction, and return the rows of its first statement."""
        self._cursor.execute(f"{BEGIN}{sql}", params)
        return self._cursor.set_result(-1).fetchall()

    def commit(self):
        self.connection.commit()

    def is_stale(self):
        """Return whether the server has sent something to this idle connection.

        Nearly always that is the end of it. To replace one by mistake costs little.
        """
        return is_readable(self.connection, 0)

    def close(self):
        self.connection.close()


class FairSemaphore:
    """A semaphore that lets waiting threads through in the order of their arrival.

    With threading.Semaphore a thread that comes at the right moment overtakes those
    that wait: under load some of them wait until their timeout.
    """

    def __init__(self, value):
        self._lock = threading.Lock()  # Guards the two below.
        self._value = value
        self._waiting = deque()  # Futures; the result of one says that it is its turn.

    def acquire(self, timeout):
        """Wait for a turn, so many seconds; return whether it came."""
        with self._lock:
            if self._value > 0:
                self._value -= 1
                return True
            turn = Future()
            self._waiting.append(turn)

        try:
            turn.result(timeout)
        except TimeoutError:
            return not turn.cancel()  # It may have come at this moment.
        return True

    def release(self):
        """Give the turn to the thread that waits for the longest time."""
        with self._lock:
            while self._waiting:
                turn = self._waiting.popleft()
                if turn.set_running_or_notify_cancel():
                    turn.set_result(None)
                    return
            self._value += 1


class Pool:
    """At most `size` sessions, each of them idle or used by one thread.

    Peewee's own pool makes one at a time, under a lock that returning one needs too.
    Here each is made in a thread of its own, since neither a name server nor a list of
    hosts has a deadline; who waits takes whichever is idle first.
    """

    def __init__(self, size, make_session):
        self._size = size
        self._make_session = make_session

        self._changed = threading.Condition()  # Guards all that follow.
        self._is_closed = False
        self._idle = []  # sessions, the one used last at the end
        self._open = set()  # sessions, idle or in use
        self._connecting = 0  # threads that make a session
        self._waiting = 0  # threads that wait for a session
        self._failures = 0  # attempts that have failed so far
        self._last_failure = None  # an exception; None after a success
        self._retry_at = 0.0  # No attempt begins before this time.

    @contextmanager
    def session(self, deadline):
        """Give a session that no other thread uses meanwhile.

        Raise OperationalError if none is idle at the deadline, or earlier if there is
        none at all and a new one cannot be made.
        """
        session = self._take(deadline)
        while session.is_stale():
            self._discard(session)
            session = self._take(deadline)

        try:
            session.connection.deadline = deadline + GRACE
            yield session
        except BaseException:
            self._discard(session)
            raise
        self._give_back(session)

    def close(self):
        """Close all sessions, also those in use and those that are being made."""
        with self._changed:
            self._is_closed = True
            self._idle.clear()
            sessions = list(self._open)
        for session in sessions:
            self._discard(session)

    def _give_back(self, session):
        with self._changed:
            if session in self._open:  # The pool was not closed meanwhile.
                self._idle.append(session)
                self._changed.notify()

    def _discard(self, session):
        """Close a session, and leave its room to another one."""
        with self._changed:
            self._open.discard(session)
            self._changed.notify()
        session.close()

    def _take(self, deadline):
        with self._changed:
            if self._idle:
                return self._idle.pop()

            self._waiting += 1
            try:
                return self._wait_for_session(deadline)
            finally:
                self._waiting -= 1

    def _wait_for_session(self, deadline):
        failures = self._failures
        while True:
            if self._idle:
                return self._idle.pop()

            self._start_connecting()
            has_none = not self._open and self._connecting == 0
            if has_none and self._failures > failures:
                sentence = f"no connection: {one_line(self._last_failure)}"
                raise OperationalError(sentence) from self._last_failure

            now = time.monotonic()
            if now >= deadline:
                raise OperationalError(self._describe_wait()) from self._last_failure
            until = deadline
            if now < self._retry_at:
                until = min(deadline, self._retry_at)
            self._changed.wait(until - now)

    def _describe_wait(self):
        sentence = "no connection was free in time"
        if self._last_failure is not None:
            sentence += f", and a new one failed: {one_line(self._last_failure)}"
        elif self._connecting > 0:
            sentence += ", and nobody answers a new one"
        return sentence

    def _start_connecting(self):
        """Start a thread that makes a session, if there is room and somebody for it."""
        has_room = len(self._open) + self._connecting < self._size
        is_wanted = self._connecting < self._waiting
        if not has_room or not is_wanted or time.monotonic() < self._retry_at:
            return
        try:
            threading.Thread(target=self._connect, daemon=True).start()
        except RuntimeError as error:  # There are too many threads.
            self._note_failure(error)
        else:
            self._connecting += 1

    def _connect(self):
        """Make a session; the thread of each attempt runs this."""
        session = None
        failure = None
        try:
            session = self._make_session()
        except Exception as error:
            failure = error

        with self._changed:
            self._connecting -= 1
            is_wanted = session is not None and not self._is_closed
            if failure is not None:
                self._note_failure(failure)
            elif is_wanted:
                self._last_failure = None
                self._open.add(session)
                self._idle.append(session)
                self._changed.notify()
        if session is not None and not is_wanted:
            session.close()

    def _note_failure(self, error):
        self._failures += 1
        self._last_failure = error
        self._retry_at = time.monotonic() + RETRY_TIME
        self._changed.notify_all()


# A start holds this advisory lock while it brings the database up to date.
START_LOCK = 8237
# A transaction that writes to a table of the service holds this advisory lock, shared,
# from before it draws any id until it has ended.
WRITING_LOCK = 8238
WRITERS = """
SELECT virtualtransaction AS writer
FROM pg_locks
WHERE locktype = 'advisory' AND classid = 0 AND objid = %s AND objsubid = 1
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
SETTLE_TIMEOUT = 1  # seconds, the longest wait for the transactions that write
SETTLE_POLL = 0.005  # seconds between two looks at them, at first


class Busy(Exception):
    """A transaction has been writing for longer than SETTLE_TIMEOUT."""


class PostgresqlBackend:
    """PostgreSQL, with a pool of connections for each process.

    A request has one deadline, for its connection and for its statement.
    """

    strict_tables = False  # STRICT is SQLite's; PostgreSQL always checks types.
    # What manage.py says in place of a backup and of a restore.
    backup_advice = (
        "PostgreSQL is backed up with pg_dump: "
        'pg_dump --clean --if-exists --file=tickets.sql "$DATABASE_URL"'
    )
    restore_advice = (
        "PostgreSQL is restored with psql: psql --single-transaction "
        '--set=ON_ERROR_STOP=1 --file=tickets.sql "$DATABASE_URL"'
    )

    def __init__(self, size, parameters):
        """Take the parameters of a connection by their names in libpq."""
        self._size = size
        self._parameters = {**DEFAULTS, **parameters, "client_encoding": "utf8"}
        self.name = parameters["dbname"]
        self.host = parameters["host"]

        options = {**self._parameters, "prepare_threshold": None}
        del options["dbname"]
        self.database = peewee.PostgresqlDatabase(
            self.name,
            isolation_level="READ COMMITTED",
            prefer_psycopg3=True,
            **options,
        )
        self._pool = self._make_pool()
        # Writes leave a connection to the reads, but not the only one.
        self._room_to_write = FairSemaphore(max(1, size - 1))

    def _make_pool(self):
        return Pool(self._size, lambda: Session(self._parameters))

    def prepare(self, upgrade):
        """Call `upgrade` in a transaction, one service at a time.

        Return False: no new file is made.
        """
        with self.database.connection_context(), self.database.atomic():
            execute = self.database.execute_sql
            if execute("SHOW server_encoding").fetchone() != ("UTF8",):
                raise ValueError("its encoding must be UTF8")

            # Another start may be making the same tables, and an index of a large table
            # takes time: wait for both. For a table wait no longer than a second, since
            # other sessions queue behind an ALTER TABLE that waits.
            execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
            execute(f"SELECT pg_advisory_xact_lock({START_LOCK})")
            execute("SET LOCAL lock_timeout = '1s'")
            upgrade()
        return False

    def has_table(self, table):
        """Return whether the database has a table, or raise ValueError."""
        try:
            with self.database.connection_context():
                return self.database.table_exists(table)
        except peewee.PeeweeException as error:
            raise ValueError(f"cannot be used: {one_line(error)}") from error

    def overwrite_deleted(self, tables):
        """Let the server reuse the space of deleted rows; return what has copies."""
        with self.database.connection_context():
            execute = self.database.execute_sql
            # VACUUM cannot run in a transaction, so that SET LOCAL is of no use.
            execute("SET statement_timeout = 0; SET lock_timeout = 0")
            try:
                execute(f"VACUUM {', '.join(tables)}")
            finally:
                execute("RESET statement_timeout; RESET lock_timeout")
        return "backups, replicas, the server's log and unused space of its pages"

    def close(self):
        """Close the connections of this process. A later statement opens new ones."""
        self.database.close()
        self._pool.close()
        self._pool = self._make_pool()

    def read(self, query):
        """Return the rows of a SELECT."""
        sql, params = query.sql()
        with self._pool.session(time.monotonic() + TIMEOUT) as session:
            return session.read(sql, params)

    def read_settled(self, query):
        """Return the rows of a SELECT of greatest ids, when all lower ids are settled.

        Ids are not committed in the order in which they are drawn. Whoever has drawn a
        lower id and not committed it when the SELECT ran, holds WRITING_LOCK after it;
        so it is enough to wait until these transactions have ended. Raise Busy after
        SETTLE_TIMEOUT.

        Taking the lock exclusively would be shorter, but writes queue behind the wait:
        while 12 followers waited for one open transaction, an UPDATE took 1,000 ms in
        the median and one of three failed, here 4 ms as without followers. Beside 8
        writers that paused and rolled back, neither missed any of 20,000 changes, a
        plain read 1,127; the longest wait was 82 ms here, and 25 ms with that lock.
        """
        rows = self.read(query)
        deadline = time.monotonic() + SETTLE_TIMEOUT
        pause = SETTLE_POLL
        unsettled = self._writers()
        while unsettled:  # Those that were writing, and have not ended.
            if time.monotonic() > deadline:
                raise Busy
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
            writers = self._writers()
            # PREPARE TRANSACTION gives the holder another name, which begins with -1.
            prepared = {writer for writer in writers if writer.startswith("-1/")}
            unsettled = (unsettled & writers) | prepared
        return rows

    def _writers(self):
        """Return the set of the transactions that are writing now."""
        with self._pool.session(time.monotonic() + TIMEOUT) as session:
            rows = session.read(WRITERS, [WRITING_LOCK])
        return {row["writer"] for row in rows}

    def write(self, sql, params):
        """Run a statement once, and return its rows when they are on disk.

        COMMIT is sent when the statement has been answered. A server that was silent
        and goes on runs what it has received, behind newer writes, but finds no COMMIT.
        """
        deadline = time.monotonic() + TIMEOUT
        if not self._room_to_write.acquire(timeout=WRITE_ROOM_TIMEOUT):
            raise OperationalError("other writes took too long")
        try:
            with self._pool.session(deadline) as session:
                rows = session.begin(sql, params)
                session.commit()
                return rows
        finally:
            self._room_to_write.release()


# --- Either of them -------------------------------------------------------------------


def select_database(url, pool_size, pragmas=PRAGMAS):
    """Choose the database that `url` names, without opening it."""
    found = _backend_of(url, pool_size, pragmas)
    database.initialize(found.database)
    backend.initialize(found)


def prepare_database(upgrade):
    """Open the database that was chosen, and call `upgrade` in a transaction of it.

    To be called once, before there are worker processes: no connection may cross a
    fork. Return whether a new file was made. Raise ValueError with a sentence for the
    operator, which does not contain the password.
    """
    try:
        return backend.prepare(upgrade)
    except (peewee.PeeweeException, OSError, TypeError, ValueError) as error:
        raise ValueError(f"cannot be used: {one_line(error)}") from error


def _backend_of(url, pool_size, pragmas):
    """Return the backend for a URL, or raise ValueError with a sentence."""
    if url.startswith("sqlite") and sqlite3.sqlite_version_info < (3, 35, 0):
        version = sqlite3.sqlite_version
        raise ValueError(f"needs SQLite 3.35 or newer, this Python has {version}")

    try:
        parts = urlsplit(url)
    except ValueError:  # Its text may hold a part of the password, also below.
        raise ValueError(URL_ADVICE) from None

    path = parts.path.removeprefix("/")
    if url == f"sqlite:///{path}" and path not in ("", ":memory:"):
        return SqliteBackend(path, pragmas)
    if parts.scheme in ("postgres", "postgresql") and parts.netloc and path:
        if psycopg is None:
            raise ValueError(f"needs a driver, add it with: pip install '{PSYCOPG}'")
        return PostgresqlBackend(pool_size, _postgresql_parameters(parts))
    raise ValueError(URL_ADVICE)


def _postgresql_parameters(parts):
    """Return what libpq reads in a URL (a result of urlsplit), several hosts included.

    Raise ValueError with a sentence, which does not contain the password.
    """
    user, at, hosts = parts.netloc.rpartition("@")
    # With @ or / in the password, libpq takes a part of it for the name of a host or of
    # the database, which its messages show.
    has_hosts = all(HOST.fullmatch(host) for host in hosts.split(","))
    if not has_hosts or "@" in parts.path:
        raise ValueError(URL_ADVICE)

    netloc = f"{user.replace('@', '%40')}{at}{hosts}"
    try:
        parameters = conninfo_to_dict(parts._replace(netloc=netloc).geturl())
    except psycopg.Error:
        name = _unknown_parameter(parts.query)
        if name is None:
            raise ValueError(URL_ADVICE) from None
        sentence = f'has an invalid connection option "{name}": it {URL_ADVICE}'
        raise ValueError(sentence) from None

    if "host" not in parameters:
        raise ValueError(URL_ADVICE)
    return parameters


def _unknown_parameter(query):
    """Return the first name in the query of a URL that libpq does not know, or None."""
    if "@" in query:  # It may be a part of a password with ? in it.
        return None
    known = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()}
    for name, _ in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            return name
    return None
