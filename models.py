"""The ticket table and the verbs that change or find a ticket.

Everything that concerns SQLite alone lives here and only here.
"""

import sqlite3
from pathlib import Path
from urllib.parse import urlsplit

from peewee import (
    SQL,
    BigAutoField,
    BigIntegerField,
    Check,
    DatabaseProxy,
    DoubleField,
    Model,
    PeeweeException,
    TextField,
    fn,
)
from playhouse import db_url

STATUSES = ("ai_resolved", "pending_agent", "closed")
DESCRIPTION_MAX = 10_000
CATEGORY_MAX = 100
RESPONSE_MAX = 50_000
CONFIDENCE_THRESHOLD = 0.7
ID_MAX = 2**63 - 1
BUSY_TIMEOUT = 5  # seconds

# In SQLite's date functions 'now' is one instant for the whole statement
# (sqlite.org/lang_datefunc.html), so both timestamps of a new row are equal.
NOW = SQL("strftime('%Y-%m-%dT%H:%M:%fZ', 'now')")

database = DatabaseProxy()


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
        condition = cls.id == ticket_id
        if versions is not None:
            condition &= cls.version.in_(versions)
        return cls._write_one(
            ticket_id,
            cls.update(**changes, updated_at=NOW, version=cls.version + 1).where(condition),
        )

    @classmethod
    def add(cls, values):
        """Insert a ticket, its status decided by its confidence, and return it as a dict."""
        confidence = values.get("confidence_score")
        sure = confidence is not None and confidence >= CONFIDENCE_THRESHOLD
        status = "ai_resolved" if sure else "pending_agent"
        return cls._write_one(1, cls.insert(**values, status=status))

    @classmethod
    def _write_one(cls, ticket_id, query):
        # The statement is committed when its last row has been read, hence list().
        if ticket_id > ID_MAX:
            return None
        rows = list(query.returning(*cls._meta.sorted_fields).dicts().execute())
        return rows[0] if rows else None

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
                pragmas={"journal_mode": "wal", "synchronous": "full"},
            )
        )
        with database.connection_context():
            database.create_tables([Ticket])
            Ticket.find(0)  # Fails where the file has another table of this name.
    except (PeeweeException, TypeError) as error:
        raise ValueError(f"{path} cannot be used ({error}), name another file") from error
