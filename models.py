"""The ticket: its tables, and the verbs that change or find one."""

import functools
import itertools
from dataclasses import dataclass

import peewee
from peewee import SQL, Check, Model, TextField, fn

from database import (
    AUTOINCREMENT,
    DEFAULT_NOW,
    NOW,
    WRITING_LOCK,
    Group,
    backend,
    database,
    in_order,
    prepare_database,
    select_database,
)
from upgrade import Trigger, bring_up_to_date

STATUSES = ("ai_resolved", "pending_agent", "closed")
DESCRIPTION_MAX = 10_000  # characters, like the next two
CATEGORY_MAX = 100
RESPONSE_MAX = 50_000
CONFIDENCE_THRESHOLD = 0.7
ID_MAX = 2**63 - 1
CHUNK = 50  # rows read at a time: a page of large tickets ends long before its limit


def _check_length(column, maximum):
    return Check(f"length({column}) BETWEEN 1 AND {maximum}")


def _timestamp(column):
    has_format = Check(f"{column} LIKE '____-__-__T__:__:__.___Z'")
    return TextField(constraints=[DEFAULT_NOW, has_format])


class Ticket(Model):
    """A support ticket: what the classifier said of it and what people made of it.

    `version` counts the writes of the row; the entity tag begins with it.
    """

    id = peewee.BigAutoField(constraints=[AUTOINCREMENT])
    user_description = TextField(
        constraints=[_check_length("user_description", DESCRIPTION_MAX)]
    )
    category = TextField(
        null=True, constraints=[_check_length("category", CATEGORY_MAX)]
    )
    ai_suggested_response = TextField(
        null=True, constraints=[_check_length("ai_suggested_response", RESPONSE_MAX)]
    )
    confidence_score = peewee.DoubleField(
        null=True, constraints=[Check("confidence_score BETWEEN 0 AND 1")]
    )
    status = TextField(constraints=[Check(f"status IN {STATUSES}")])
    created_at = _timestamp("created_at")
    updated_at = _timestamp("updated_at")
    version = peewee.BigIntegerField(
        constraints=[SQL("DEFAULT 1"), Check("version > 0")]
    )
    updated_by = TextField(null=True)
    idempotency_key = TextField(null=True, unique=True)

    class Meta:
        database = database
        table_name = "ticket"
        indexes = ((("status", "id"), False),)

    @classmethod
    def patch(cls, ticket_id, changes, caller=None, match=None, none_match=None):
        """Write `changes` (a dict of columns) to one ticket and return it as a dict.

        `caller` is the name of whoever asks, or None. The entity tag of the ticket must
        be one of `match` and none of `none_match`: lists of str, "*" for any tag, None
        for no condition. Return None if no row was written.
        """
        nothing_matches = match == [] or none_match == "*"
        if ticket_id > ID_MAX or nothing_matches:
            return None
        required = [] if match is None or match == "*" else match
        excluded = [] if none_match is None else none_match

        values = {**changes, "updated_by": caller}
        columns = tuple(name for name in cls._meta.sorted_field_names if name in values)
        sql = _patch_sql(database.obj, columns, len(required), len(excluded))
        params = [values[name] for name in columns] + [ticket_id]
        params += required + excluded
        return _first(backend.write(sql, params))

    @classmethod
    def add(cls, values, caller=None, key=None):
        """Insert a ticket, its status decided by its confidence; return it as a dict.

        If there is a ticket with this idempotency key, insert nothing and return None.
        """
        confidence = values.get("confidence_score") or 0
        is_resolved = confidence >= CONFIDENCE_THRESHOLD
        row = {
            **values,
            "status": "ai_resolved" if is_resolved else "pending_agent",
            "updated_by": caller,
        }
        if key is None:
            query = cls.insert(row)
        else:
            query = cls._insert_once({**row, "idempotency_key": key}, key)
        query = query.returning(*cls._meta.sorted_fields)
        return _first(backend.write(*query.sql()))

    @classmethod
    def _insert_once(cls, row, key):
        """Return the query that inserts a row unless there is a ticket with its key.

        ON CONFLICT alone would use up an id. It is needed for two transactions of
        PostgreSQL at the same moment, which do not see each other's rows.
        """
        with_key = cls.select(SQL("1")).where(cls.idempotency_key == key)
        values = [peewee.Value(value, converter=False) for value in row.values()]
        new_row = peewee.Select(columns=values).where(~fn.EXISTS(with_key))
        fields = [cls._meta.fields[name] for name in row]
        return cls.insert_from(new_row, fields).on_conflict(
            action="NOTHING", conflict_target=[cls.idempotency_key]
        )

    @classmethod
    def find(cls, ticket_id):
        """Return one ticket as a dict, or None."""
        if ticket_id > ID_MAX:
            return None
        return _first(backend.read(cls.select().where(cls.id == ticket_id)))

    @classmethod
    def find_by_key(cls, key):
        """Return the ticket filed with this idempotency key as a dict, or None."""
        return _first(backend.read(cls.select().where(cls.idempotency_key == key)))

    @classmethod
    def page(cls, limit, status=None, before=None, after=None):
        """Yield tickets as dicts.

        They come newest first below `before`, or oldest first above `after`. They are
        read in chunks, as they are taken: the caller takes `limit` of them, and one
        more to know whether more follow.
        """
        group = None if status is None else Group(cls.status, status)
        return _walk(cls.select(), cls.id, limit, before, after, group)

    @classmethod
    def history(cls, ticket, limit, before=None):
        """Yield the versions of a ticket (a dict), newest first, below `before`.

        They are read in chunks, as they are taken, like the tickets of page().
        """
        if before is None or ticket["version"] < before:
            yield ticket
            before = ticket["version"]
        query = TicketVersion.select().where(
            TicketVersion.ticket_id == ticket["id"],
            TicketVersion.version > 0,
        )
        yield from _walk(query, TicketVersion.version, limit, before)

    @classmethod
    def newest(cls):
        """Return the greatest ids as a Cursor, when no lower one can come any more.

        Raise database.Busy if a transaction writes for too long.
        """
        ticket_id = cls.select(fn.MAX(cls.id))
        # The newest ticket may be gone; the row that it has left knows its id.
        known_id = TicketVersion.select(fn.MAX(TicketVersion.ticket_id))
        version_id = TicketVersion.select(fn.MAX(TicketVersion.id))
        query = peewee.Select(
            columns=[
                ticket_id.alias("ticket_id"),
                known_id.alias("known_id"),
                version_id.alias("version_id"),
            ]
        )
        [row] = backend.read_settled(query.bind(database))
        newest_id = max(row["ticket_id"] or 0, row["known_id"] or 0)
        return Cursor(newest_id, row["version_id"] or 0)

    @classmethod
    def changes(cls, since, newest, limit):
        """Yield (cursor, ticket) for at most `limit` changes between two Cursors.

        First come the versions, then the new tickets, each in the order of their ids.
        A ticket is a dict as it is now, with `filed`, or with `deleted` if it is gone.
        The cursor is where a follower goes on after this ticket.
        """
        changes = cls._changes(since, newest, min(limit, CHUNK))
        return itertools.islice(changes, limit)

    @classmethod
    def _changes(cls, since, newest, size):
        """Yield all changes between two Cursors, reading `size` of them at a time."""
        ticket_id = since.ticket_id
        version_id = since.version_id
        query = TicketVersion.select(TicketVersion.id, TicketVersion.ticket_id)
        while version_id < newest.version_id:
            rows = _chunk(query, version_id, newest.version_id, size)
            # Read after the rows, so that none can be pruned in between unnoticed.
            if version_id < Pruned.last_version_id():
                ticket_id = 0  # Every ticket is shown again.
            if not rows:
                break

            tickets = cls._as_followed([row["ticket_id"] for row in rows])
            for row in rows:
                version_id = row["id"]
                gone = {"id": row["ticket_id"], "deleted": True}
                yield Cursor(ticket_id, version_id), tickets.get(row["ticket_id"], gone)

        query = cls.select(cls.id)
        while ticket_id < newest.ticket_id:
            rows = _chunk(query, ticket_id, newest.ticket_id, size)
            if not rows:
                return

            tickets = cls._as_followed([row["id"] for row in rows])
            for found_id, ticket in sorted(tickets.items()):
                yield Cursor(found_id, newest.version_id), ticket
            ticket_id = rows[-1]["id"]

    @classmethod
    def _as_followed(cls, ticket_ids):
        """Return the tickets with these ids, {id: dict}, with what was filed."""
        wanted = sorted(set(ticket_ids))
        sql = _FOLLOWED.format(
            columns=", ".join(f"ticket.{name}" for name in cls._meta.columns),
            ids=", ".join([database.param] * len(wanted)),
        )
        query = peewee.RawQuery(sql, wanted).bind(database)
        tickets = {}
        for ticket in backend.read(query):
            ticket["filed"] = None
            if ticket["version"] == 1:
                ticket["filed"] = {
                    "category": ticket["category"],
                    "ai_suggested_response": ticket["ai_suggested_response"],
                }
            elif ticket["first_version"] is not None:
                ticket["filed"] = {
                    "category": ticket["filed_category"],
                    "ai_suggested_response": ticket["filed_response"],
                }
            tickets[ticket["id"]] = ticket
        return tickets

    @classmethod
    def clock(cls):
        """Return the database's time as a timestamp, having read the table."""
        query = cls.select(NOW.alias("now"), fn.MAX(cls.id))
        return backend.read(query)[0]["now"]

    @classmethod
    def find_written(cls, since, name, after, last):
        """Return what revert() needs to know of the tickets written from `since` on.

        `since` is a timestamp, `name` the token's that wrote them, or None for any;
        the ids are those above `after`, up to `last`. Each dict has the `id`, `version`
        and `updated_by` of a ticket, its `first_version` that was written so, and the
        id of the row of the version before that (`previous_id`, None if there is none).
        `is_latest` says whether the present version was written so, `is_same` whether
        the ticket is as it was in the version before.
        """
        is_by = "TRUE" if name is None else f"updated_by = {database.param}"
        is_same = " AND ".join(
            f"(ticket.{column} = previous.{column}"
            f" OR (ticket.{column} IS NULL AND previous.{column} IS NULL))"
            for column in _CONTENT
        )
        sql = _WRITTEN.format(param=database.param, is_by=is_by, is_same=is_same)
        params = [after, last, since]
        if name is not None:
            params.append(name)
        return backend.read(peewee.RawQuery(sql, params).bind(database))

    @classmethod
    def revert(cls, found):
        """Give tickets back what they had in an earlier version.

        `found` are dicts that find_written() returned.

        A ticket that has changed since is left alone. Return the ids of the others.
        """
        previous = TicketVersion.alias()
        pairs = [(row["previous_id"], row["version"]) for row in found]
        # Both databases name the columns of VALUES column1 and column2.
        expected = peewee.ValuesList(pairs).alias("expected")
        values = {name: getattr(previous, name) for name in _CONTENT}
        query = (
            cls.update(
                **values,
                updated_at=NOW,
                version=cls.version + 1,
                updated_by=REVERTER,
            )
            .from_(expected, previous)
            .where(
                previous.id == expected.c.column1,
                previous.ticket_id == cls.id,
                cls.version == expected.c.column2,
            )
            .returning(cls.id)
        )
        return {row["id"] for row in backend.write(*query.sql())}

    @classmethod
    def erase(cls, ticket_ids):
        """Delete tickets with their versions; return the ids of those found.

        A trigger deletes the versions. An older version of the service had none: what a
        ticket left that was deleted by hand at that time is deleted here.
        """
        query = cls.delete().where(cls.id.in_(ticket_ids)).returning(cls.id)
        erased = [row["id"] for row in backend.write(*query.sql())]
        left = TicketVersion.delete().where(
            TicketVersion.ticket_id.in_(ticket_ids),
            TicketVersion.version > 0,
            ~fn.EXISTS(cls.select(SQL("1")).where(cls.id == TicketVersion.ticket_id)),
        )
        backend.write(*left.returning(TicketVersion.id).sql())
        return erased

    @classmethod
    def find_unknown(cls, ticket_ids):
        """Return those ids that no ticket has and none has had."""
        queries = [
            cls.select(cls.id).where(cls.id.in_(ticket_ids)),
            TicketVersion.select(TicketVersion.ticket_id.alias("id")).where(
                TicketVersion.ticket_id.in_(ticket_ids)
            ),
        ]
        known = {row["id"] for query in queries for row in backend.read(query)}
        return [ticket_id for ticket_id in ticket_ids if ticket_id not in known]


class TicketVersion(Model):
    """What a ticket was before a write; triggers fill the table.

    A column that it shares with Ticket is part of the history. A row with version 0 is
    a mark: it holds no text, and tells whoever follows that the ticket was deleted, or
    was inserted again under its old id.
    """

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

    @classmethod
    def prune(cls, before, after, last):
        """Delete versions that were replaced before a time; return their number.

        The ids are those above `after`, up to `last`. The first version of each ticket
        stays, and so does the newest row of the table: its id is not given out again.
        The others leave their greatest id in Pruned.
        """
        first = cls.alias()
        first_version = first.select(fn.MIN(first.version)).where(
            first.ticket_id == cls.ticket_id, first.version > 0
        )
        newest = cls.alias()
        newest_id = newest.select(fn.MAX(newest.id))
        # A version was replaced at the moment at which the next one was written.
        following = cls.alias()
        next_written = (
            following.select(following.updated_at)
            .where(
                following.ticket_id == cls.ticket_id, following.version > cls.version
            )
            .order_by(following.version)
            .limit(1)
        )
        present_written = Ticket.select(Ticket.updated_at).where(
            Ticket.id == cls.ticket_id
        )
        query = (
            cls.delete()
            .where(
                cls.id > after,
                cls.id <= last,
                cls.id < newest_id,
                cls.version > first_version,
                fn.COALESCE(next_written, present_written) < before,
            )
            .returning(cls.id)
        )
        return len(backend.write(*query.sql()))


class Pruned(Model):
    """The greatest id of a version that was deleted, in one row that a trigger writes.

    Versions tell which tickets have changed: a follower whose cursor is below this id
    has to be shown all tickets again. The versions of a ticket that is gone do not
    count, since it has left a mark.
    """

    id = peewee.IntegerField(primary_key=True, constraints=[Check("id = 1")])
    version_id = peewee.BigIntegerField()

    class Meta:
        database = database
        table_name = "pruned"

    @classmethod
    def last_version_id(cls):
        """Return the id, or 0 if no version was deleted."""
        row = _first(backend.read(cls.select(cls.version_id)))
        return row["version_id"] if row is not None else 0


@dataclass(frozen=True)
class Cursor:
    """How far a follower has read: the greatest id of a ticket, and that of a version.

    A ticket gets an id when it is filed, and a version when it is changed or deleted.
    """

    ticket_id: int
    version_id: int

    def __str__(self):
        return f"{self.ticket_id}-{self.version_id}"


MODELS = (Ticket, TicketVersion, Pruned)

_OWN_COLUMNS = ("id", "ticket_id")
_KEPT = [name for name in TicketVersion._meta.columns if name not in _OWN_COLUMNS]
# What people and classifiers say of a ticket: what revert() writes.
_CONTENT = [
    name for name in _KEPT if name not in ("version", "updated_at", "updated_by")
]
REVERTER = "revert"  # who has written such a version
_KEEP_OLD_ROW = f"""
        INSERT INTO ticket_version (ticket_id, {", ".join(_KEPT)})
        VALUES (OLD.id, {", ".join(f"OLD.{name}" for name in _KEPT)});
"""
_FIXED_ID = "the id of a ticket cannot be changed"
# What changes a row past the service does not set `version`: the row is given the next
# one, the time, and no name.
KEEP_VERSION = Trigger(
    name="ticket_version_kept",
    table="ticket",
    sqlite=f"""\
CREATE TRIGGER ticket_version_kept
AFTER UPDATE ON ticket
BEGIN
    SELECT RAISE(ABORT, '{_FIXED_ID}') WHERE NEW.id <> OLD.id;
    {_KEEP_OLD_ROW.strip()}
    UPDATE ticket
    SET version = OLD.version + 1, updated_at = {NOW.sqlite}, updated_by = NULL
    WHERE id = NEW.id AND NEW.version = OLD.version;
END""",
    postgresql="""\
CREATE TRIGGER ticket_version_kept
BEFORE UPDATE ON ticket
FOR EACH ROW EXECUTE FUNCTION ticket_version_kept()""",
    function=f"""
BEGIN
    IF NEW.id <> OLD.id THEN
        RAISE EXCEPTION '{_FIXED_ID}';
    END IF;
    {_KEEP_OLD_ROW.strip()}
    IF NEW.version = OLD.version THEN
        NEW.version := OLD.version + 1;
        NEW.updated_at := {NOW.postgresql};
        NEW.updated_by := NULL;
    END IF;
    RETURN NEW;
END
""",
)
MARK_COLUMNS = "ticket_id, version, status, updated_at"
# The mark comes first, so that SQLite does not give the greatest id out again.
_LEAVE_MARK = f"""
    INSERT INTO ticket_version ({MARK_COLUMNS})
    VALUES (OLD.id, 0, 'deleted', {{now}});
    DELETE FROM ticket_version WHERE ticket_id = OLD.id AND version > 0;
"""
_MARK_RETURN = f"""
    INSERT INTO ticket_version ({MARK_COLUMNS})
        VALUES (NEW.id, 0, 'returned', {{now}});
"""
LEAVE_MARK = Trigger(
    name="ticket_deleted",
    table="ticket",
    sqlite=f"""\
CREATE TRIGGER ticket_deleted
AFTER DELETE ON ticket
BEGIN
    {_LEAVE_MARK.strip().format(now=NOW.sqlite)}
END""",
    postgresql="""\
CREATE TRIGGER ticket_deleted
AFTER DELETE ON ticket
FOR EACH ROW EXECUTE FUNCTION ticket_deleted()""",
    function=f"""
BEGIN
    {_LEAVE_MARK.strip().format(now=NOW.postgresql)}
    RETURN NULL;
END
""",
)
# A follower may have passed an id that is inserted by hand: that of a deleted ticket,
# or one below the greatest. Only a new row of ticket_version tells so. On PostgreSQL,
# an id that was drawn may be below the greatest too, but it is above all that were
# drawn before its statement. An id that was chosen above all of them moves the
# sequence: otherwise followers would pass the ids that are drawn next.
_SEQUENCE = "pg_get_serial_sequence(TG_RELID::regclass::text, 'id')::regclass"
_LAST_DRAWN_ID = f"coalesce(pg_sequence_last_value({_SEQUENCE}), 0)"
_WAS_THERE = "EXISTS (SELECT 1 FROM ticket_version WHERE ticket_id = NEW.id)"
MARK_RETURN = Trigger(
    name="ticket_returned",
    table="ticket",
    sqlite=f"""\
CREATE TRIGGER ticket_returned
AFTER INSERT ON ticket
WHEN {_WAS_THERE} OR NEW.id < (SELECT max(id) FROM ticket)
BEGIN
    {_MARK_RETURN.strip().format(now=NOW.sqlite)}
END""",
    postgresql="""\
CREATE TRIGGER ticket_returned
AFTER INSERT ON ticket
FOR EACH ROW EXECUTE FUNCTION ticket_returned()""",
    function=f"""
DECLARE
    drawn_before bigint := current_setting('ticketsvc.drawn_before');
BEGIN
    IF {_WAS_THERE} OR NEW.id <= drawn_before THEN
        {_MARK_RETURN.strip().format(now=NOW.postgresql)}
    END IF;
    IF NEW.id > {_LAST_DRAWN_ID} THEN
        PERFORM setval({_SEQUENCE}, NEW.id);
    END IF;
    RETURN NULL;
END
""",
)
# Ids are not committed in the order in which PostgreSQL gives them out. A statement
# takes this lock before it draws one; see PostgresqlBackend.read_settled(). It also
# notes for MARK_RETURN, until its transaction ends, which ids were drawn before.
SHOW_WRITING = Trigger(
    name="ticket_writing",
    table="ticket",
    sqlite=None,
    postgresql="""\
CREATE TRIGGER ticket_writing
BEFORE INSERT OR UPDATE OR DELETE ON ticket
FOR EACH STATEMENT EXECUTE FUNCTION ticket_writing()""",
    function=f"""
BEGIN
    PERFORM pg_advisory_xact_lock_shared({WRITING_LOCK});
    IF TG_OP = 'INSERT' THEN
        PERFORM set_config('ticketsvc.drawn_before', {_LAST_DRAWN_ID}::text, true);
    END IF;
    RETURN NULL;
END
""",
)
_NOTE_PRUNED = """
    INSERT INTO pruned (id, version_id) VALUES (1, OLD.id)
        ON CONFLICT (id)
        DO UPDATE SET version_id = {greatest}(pruned.version_id, OLD.id);
"""
_IS_PRUNED = (
    "OLD.version > 0 AND EXISTS (SELECT 1 FROM ticket WHERE id = OLD.ticket_id)"
)
NOTE_PRUNED = Trigger(
    name="ticket_version_pruned",
    table="ticket_version",
    sqlite=f"""\
CREATE TRIGGER ticket_version_pruned
AFTER DELETE ON ticket_version
WHEN {_IS_PRUNED}
BEGIN
    {_NOTE_PRUNED.strip().format(greatest="max")}
END""",
    postgresql="""\
CREATE TRIGGER ticket_version_pruned
AFTER DELETE ON ticket_version
FOR EACH ROW EXECUTE FUNCTION ticket_version_pruned()""",
    function=f"""
BEGIN
    IF {_IS_PRUNED} THEN
        {_NOTE_PRUNED.strip().format(greatest="greatest")}
    END IF;
    RETURN NULL;
END
""",
)
TRIGGERS = (KEEP_VERSION, LEAVE_MARK, MARK_RETURN, SHOW_WRITING, NOTE_PRUNED)


# As text, because Peewee takes longer to build it than SQLite to run it.
_FOLLOWED = """
SELECT
    {columns},
    filed.version AS first_version,
    filed.category AS filed_category,
    filed.ai_suggested_response AS filed_response
FROM ticket
LEFT JOIN ticket_version AS filed ON filed.ticket_id = ticket.id AND filed.version = 1
WHERE ticket.id IN ({ids})
"""

_WRITTEN = """
WITH every_version AS (
    SELECT ticket_id, version, updated_at, updated_by
    FROM ticket_version
    WHERE version > 0
    UNION ALL
    SELECT id, version, updated_at, updated_by
    FROM ticket
),
written AS (
    SELECT ticket_id, min(version) AS first_version, max(version) AS last_version
    FROM every_version
    WHERE ticket_id > {param} AND ticket_id <= {param} AND updated_at >= {param}
        AND {is_by}
    GROUP BY ticket_id
)
SELECT
    ticket.id,
    ticket.version,
    ticket.updated_by,
    written.first_version,
    previous.id AS previous_id,
    written.last_version = ticket.version AS is_latest,
    {is_same} AS is_same
FROM written
JOIN ticket ON ticket.id = written.ticket_id
LEFT JOIN ticket_version AS previous
    ON previous.ticket_id = ticket.id
    AND previous.version = written.first_version - 1
    AND written.first_version > 1
ORDER BY ticket.id
"""

# The entity tag of a ticket: also after a restore, when versions are given out again,
# no two states share one.
_TAG = SQL("(version || '-' || updated_at)")


def entity_tag(ticket):
    """Return the entity tag of a ticket (a dict), without its quotes."""
    return f"{ticket['version']}-{ticket['updated_at']}"


def _first(rows):
    return rows[0] if rows else None


def _chunk(query, after, last, size):
    """Return at most `size` rows by their ids, from above `after` up to `last`."""
    column = query.model.id
    chunk = query.where(column > after, column <= last).order_by(column)
    return backend.read(chunk.limit(size))


def _walk(query, column, limit, before=None, after=None, group=None):
    """Yield all rows in the order of a column: upwards from `after`, else downwards.

    `group` is the Group that they belong to, or None for any. They are read in chunks,
    as they are taken: the caller takes `limit` of them, and one more.
    """
    is_ascending = after is not None
    bound = after if is_ascending else before
    size = min(limit + 1, CHUNK)

    while True:
        chunk = in_order(query, column, is_ascending, bound, group).limit(size)
        rows = backend.read(chunk)
        yield from rows
        if len(rows) < size:
            return
        bound = rows[-1][column.name]


@functools.lru_cache(maxsize=256)
def _patch_sql(database, columns, match_count, none_match_count):
    """Return the text of the UPDATE for a PATCH of these columns in this database.

    It is cached, because Peewee takes longer to build it than SQLite to run it; the
    database is only a part of the key, since the text depends on its kind.

    The values that Peewee is given here are placeholders: Ticket.patch() passes the
    real ones in the same order, which is the columns in the order of the model, the id,
    the tags to match, those not to match.
    """
    assignments = dict.fromkeys(columns, "")
    condition = Ticket.id == 0
    if match_count > 0:
        condition &= _TAG.in_([""] * match_count)
    if none_match_count > 0:
        condition &= _TAG.not_in([""] * none_match_count)

    query = (
        Ticket.update(**assignments, updated_at=NOW, version=SQL("version + 1"))
        .where(condition)
        .returning(*Ticket._meta.sorted_fields)
    )
    sql, _ = query.sql()
    return sql


def prepare(url, pool_size):
    """Open the database that `url` names, and bring it up to date.

    Return whether a new file was made. Raise ValueError with a sentence for the
    operator.
    """
    select_database(url, pool_size)
    return prepare_selected()


def prepare_selected():
    """Bring the database up to date that select_database() has chosen, as prepare()."""
    return prepare_database(_upgrade)


def _upgrade():
    for model in MODELS:
        model._meta.strict_tables = backend.strict_tables
    bring_up_to_date(MODELS, TRIGGERS)
