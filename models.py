"""The ticket: its table, and the verbs that change or find one."""

import functools

import peewee
from peewee import SQL, Check, Model, TextField
from playhouse.migrate import SchemaMigrator, migrate

from database import AUTOINCREMENT, DEFAULT_NOW, NOW, database, keep_versions, open_database

STATUSES = ("ai_resolved", "pending_agent", "closed")
DESCRIPTION_MAX = 10_000  # characters, as the other two
CATEGORY_MAX = 100
RESPONSE_MAX = 50_000
CONFIDENCE_THRESHOLD = 0.7
# A change of one of these is a new version of the ticket.
WATCHED = (
    *("user_description", "category", "ai_suggested_response"),
    *("confidence_score", "status", "created_at"),
)
ID_MAX = 2**63 - 1
CHUNK = 50  # rows read at a time: a page of large tickets ends long before its limit


def _length(column, maximum):
    return Check(f"length({column}) BETWEEN 1 AND {maximum}")


def _timestamp(column):
    return TextField(constraints=[DEFAULT_NOW, Check(f"{column} LIKE '____-__-__T__:__:__.___Z'")])


class Ticket(Model):
    """A support ticket: what the classifier said of it and what people made of it.

    `version` counts the writes of the row and is its entity tag; it is never shown in a body.
    """

    id = peewee.BigAutoField(constraints=[AUTOINCREMENT])
    user_description = TextField(constraints=[_length("user_description", DESCRIPTION_MAX)])
    category = TextField(null=True, constraints=[_length("category", CATEGORY_MAX)])
    ai_suggested_response = TextField(
        null=True, constraints=[_length("ai_suggested_response", RESPONSE_MAX)]
    )
    confidence_score = peewee.DoubleField(
        null=True, constraints=[Check("confidence_score BETWEEN 0 AND 1")]
    )
    status = TextField(constraints=[Check(f"status IN {STATUSES}")])
    created_at = _timestamp("created_at")
    updated_at = _timestamp("updated_at")
    version = peewee.BigIntegerField(constraints=[SQL("DEFAULT 1"), Check("version > 0")])
    updated_by = TextField(null=True)
    idempotency_key = TextField(null=True, unique=True)

    class Meta:
        database = database
        table_name = "ticket"
        indexes = ((("status", "id"), False),)

    @classmethod
    def patch(cls, ticket_id, changes, caller=None, match=None, none_match=None):
        """Write `changes` (a dict of columns) to one ticket and return it as a dict, or None.

        `caller` is the name of whoever asks, or None. The version of the ticket must be one of
        `match` and none of `none_match`: lists of int, "*" for any version, None for no
        condition. None is returned where no row was written.
        """
        if ticket_id > ID_MAX:
            return None
        if none_match == "*":
            match, none_match = [], None
        changes = {**changes, "updated_by": caller}
        columns = tuple(name for name in cls._meta.sorted_field_names if name in changes)
        counts = [None if each in (None, "*") else len(each) for each in (match, none_match)]
        sql = _patch_sql(database.obj, columns, *counts)
        tags = [*(match if counts[0] else ()), *(none_match or ())]
        return _first(database.write(sql, [*(changes[name] for name in columns), ticket_id, *tags]))

    @classmethod
    def add(cls, values, caller=None, key=None):
        """Insert a ticket, its status decided by its confidence, and return it as a dict.

        None is returned, and nothing inserted, where there is a ticket with this idempotency key.
        """
        confidence = values.get("confidence_score") or 0
        status = "ai_resolved" if confidence >= CONFIDENCE_THRESHOLD else "pending_agent"
        query = cls.insert(**values, status=status, updated_by=caller, idempotency_key=key)
        query = query.on_conflict(action="NOTHING", conflict_target=[cls.idempotency_key])
        return _first(database.write(*query.returning(*cls._meta.sorted_fields).sql()))

    @classmethod
    def find(cls, ticket_id):
        """Return one ticket as a dict, or None."""
        if ticket_id > ID_MAX:
            return None
        return _first(database.read(cls.select().where(cls.id == ticket_id)))

    @classmethod
    def find_by_key(cls, key):
        """Return the ticket that was filed with this idempotency key as a dict, or None."""
        return _first(database.read(cls.select().where(cls.idempotency_key == key)))

    @classmethod
    def page(cls, limit, status=None, before=None, after=None):
        """Yield tickets as dicts, newest first below `before`, or oldest first above `after`.

        They are read CHUNK by CHUNK, at most one more than `limit`, to know whether more follow.
        """
        query = cls.select() if status is None else cls.select().where(cls.status == status)
        return _walk(query.limit(min(limit + 1, CHUNK)), cls.id, before, after)

    @classmethod
    def history(cls, ticket, limit, before=None):
        """Yield the versions of a ticket (a dict) below `before`, newest first, as dicts."""
        if before is None or ticket["version"] < before:
            yield ticket
            before = ticket["version"]
        query = TicketVersion.select().where(TicketVersion.ticket_id == ticket["id"])
        yield from _walk(query.limit(min(limit + 1, CHUNK)), TicketVersion.version, before)

    @classmethod
    def clock(cls):
        """Return the database's time as a timestamp, having read the table."""
        return database.read(cls.select(NOW.alias("now"), peewee.fn.MAX(cls.id)))[0]["now"]


class TicketVersion(Model):
    """What a ticket was before it was written to; a trigger fills the table, nothing changes it."""

    id = peewee.BigAutoField()
    ticket_id = peewee.BigIntegerField()
    version = peewee.BigIntegerField()
    status = TextField()
    category = TextField(null=True)
    ai_suggested_response = TextField(null=True)
    updated_at = TextField()
    updated_by = TextField(null=True)

    class Meta:
        database = database
        table_name = "ticket_version"
        indexes = ((("ticket_id", "version"), False),)


def _first(rows):
    return rows[0] if rows else None


def _walk(query, column, before, after=None):
    """Yield the rows of a query in the order of a column, reading its LIMIT of them at a time."""
    bound, order = (before, column.desc()) if after is None else (after, column.asc())
    query = query.order_by(order)
    while True:
        beyond = column < bound if after is None else column > bound
        rows = database.read(query if bound is None else query.where(beyond))
        yield from rows
        if len(rows) < query._limit:
            return
        bound = rows[-1][column.name]


@functools.lru_cache(maxsize=256)
def _patch_sql(dialect, columns, match_count, none_match_count):
    """Return the text of the UPDATE of a PATCH of these columns.

    Peewee takes longer to build it than SQLite to run it. Its parameters are the values in the
    order of `columns`, which is the model's, then the id, then the versions.
    """
    condition = Ticket.id == 0
    if match_count is not None:
        condition &= Ticket.version.in_([0] * match_count)
    if none_match_count:
        condition &= Ticket.version.not_in([0] * none_match_count)
    changes = dict.fromkeys(columns, "")
    query = Ticket.update(**changes, updated_at=NOW, version=SQL("version + 1"))
    return query.where(condition).returning(*Ticket._meta.sorted_fields).sql()[0]


def prepare(url, pool_size):
    """Open the database that `url` names, and create in it what is missing."""
    open_database(url, pool_size, _create)


def _create():
    """Create what is missing in a new database, or in one of an older version."""
    migrator = SchemaMigrator.from_database(database)
    for meta in (Ticket._meta, TicketVersion._meta):
        table, meta.strict_tables = meta.table_name, getattr(database.obj, "strict_tables", False)
        if database.table_exists(table):
            present = {column.name for column in database.get_columns(table)}
            missing = [field for field in meta.sorted_fields if field.name not in present]
            migrate(*(migrator.add_column(table, field.name, field) for field in missing))
        # PostgreSQL's CREATE INDEX IF NOT EXISTS waits for whoever writes to the table.
        indexes = {index.name for index in database.get_indexes(table)}
        if not {index._name for index in meta.fields_to_index()} <= indexes:
            database.create_tables([meta.model])
    keep_versions("ticket", "ticket_version", TicketVersion._meta.sorted_field_names[2:], WATCHED)
