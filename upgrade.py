"""How a start brings the database of an older version up to date.

Nothing here lists what older versions had. Empty tables are made from the models, out
of the way of the real ones; the database's own descriptions of both are compared, and
what differs is made anew. Whoever changes a model changes nothing here.
"""

import re
from dataclasses import dataclass

import peewee

from database import database, is_sqlite


@dataclass
class Trigger:
    """A trigger: SQLite's statement, and PostgreSQL's with the body of its function.

    PostgreSQL's function has the name of the trigger. `sqlite` is None if only
    PostgreSQL needs it.
    """

    name: str
    table: str
    sqlite: str | None
    postgresql: str
    function: str


def bring_up_to_date(models, triggers):
    """Make tables, indexes and triggers like those of a new database; keep all rows.

    To be called in a transaction. Raise ValueError with a sentence for the operator if
    a row breaks a rule of its model, or if a table has a column that its model lacks.
    Indexes and triggers that the operator added are kept.
    """
    try:
        if is_sqlite():
            _upgrade_sqlite(models, triggers)
        else:
            # Without a savepoint, PostgreSQL runs no statement after a failure.
            with database.atomic():
                _upgrade_postgresql(models, triggers)
    except peewee.IntegrityError:
        for model in models:
            check_rows(model)
        raise


def _execute(sql, params=()):
    return database.execute_sql(sql, params).fetchall()


def _run(sql):
    database.execute_sql(sql)


def check_columns(model, schema=None):
    """Raise ValueError if the table has a column that its model lacks.

    Such a database was made by a newer version, and dropping the column loses data.
    `schema` is that of an attached database of SQLite.
    """
    table = model._meta.table_name
    for column in database.get_columns(table, schema):
        if column.name not in model._meta.columns:
            raise ValueError(
                f"the table {table} has a column {column.name}, which this version "
                "does not know: start a newer one"
            )


def check_rows(model, schema=None):
    """Raise ValueError, naming a row, if one breaks a rule of a field of its model.

    A rule is NOT NULL, UNIQUE or a CHECK. `schema` is that of an attached database of
    SQLite.
    """
    table = model._meta.table_name
    present = {column.name for column in database.get_columns(table, schema)}
    source = f"{schema}.{table}" if schema else table
    for field in model._meta.sorted_fields:
        name = field.column_name
        if name not in present:
            continue
        conditions = {}
        if not field.null:
            conditions[f"{name} NOT NULL"] = f"{name} IS NULL"
        if field.unique:
            repeated = (
                f"SELECT {name} FROM {source} GROUP BY {name} HAVING count(*) > 1"
            )
            conditions[f"{name} UNIQUE"] = f"{name} IN ({repeated})"
        for constraint in field.constraints or ():
            rule = getattr(constraint, "sql", "")
            if rule.startswith("CHECK "):
                conditions[rule] = f"NOT {rule.removeprefix('CHECK ')}"

        for rule, condition in conditions.items():
            found = _execute(f"SELECT id FROM {source} WHERE {condition} LIMIT 1")
            if found:
                raise ValueError(
                    f"row {found[0][0]} of the table {table} breaks {rule}"
                )


# --- SQLite ---------------------------------------------------------------------------


def _upgrade_sqlite(models, triggers):
    wanted = _new_sqlite_definitions(models, triggers)
    found = _sqlite_definitions(database)

    for model in models:
        table = ("table", model._meta.table_name)
        if table not in found:
            _run(wanted[table])
        elif found[table] != wanted[table]:
            _remake_table(model, wanted[table])

    found = _sqlite_definitions(database)
    for (kind, name), sql in wanted.items():
        if kind == "table" or found.get((kind, name)) == sql:
            continue
        if (kind, name) in found:
            _run(f"DROP {kind} {name}")
        _run(sql)


def _sqlite_definitions(source):
    """Return the SQL that made what is in a Peewee database, by kind and name.

    The kind is table, index, trigger or view. A table and a trigger may share a name.
    """
    rows = source.execute_sql(
        "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"
    )
    return {(kind, name): sql for kind, name, sql in rows.fetchall()}


def _new_sqlite_definitions(models, triggers):
    """Return the definitions that a new database has."""
    new = peewee.SqliteDatabase(":memory:")
    with new.connection_context(), new.bind_ctx(models):
        new.create_tables(models)
        for trigger in triggers:
            if trigger.sqlite is not None:
                new.execute_sql(trigger.sqlite)
        definitions = _sqlite_definitions(new)

    # SQLite makes it by itself.
    definitions.pop(("table", "sqlite_sequence"), None)
    return definitions


def _remake_table(model, definition):
    """Make a table anew with its rows (sqlite.org/lang_altertable.html, section 7)."""
    table = model._meta.table_name
    check_columns(model)

    columns = ", ".join(column.name for column in database.get_columns(table))
    dependents = _execute(
        "SELECT sql FROM sqlite_master "
        "WHERE tbl_name = ? AND type IN ('index', 'trigger') AND sql IS NOT NULL",
        [table],
    )
    sequence = _execute("SELECT name, seq FROM sqlite_sequence WHERE name = ?", [table])

    _run(definition.replace(f'"{table}"', f'"{table}_new"', 1))
    _run(f"INSERT INTO {table}_new ({columns}) SELECT {columns} FROM {table}")
    # Without legacy_alter_table, RENAME fails if a view names the table, which is gone
    # at that moment.
    _run("PRAGMA legacy_alter_table = ON")
    _run(f"DROP TABLE {table}")
    _run(f"ALTER TABLE {table}_new RENAME TO {table}")
    _run("PRAGMA legacy_alter_table = OFF")

    # The rows alone do not tell which ids were given out.
    _execute("DELETE FROM sqlite_sequence WHERE name = ?", [table])
    for name_and_id in sequence:
        _execute("INSERT INTO sqlite_sequence VALUES (?, ?)", name_and_id)

    for (sql,) in dependents:
        _run(sql)


# --- PostgreSQL -----------------------------------------------------------------------


def _upgrade_postgresql(models, triggers):
    for trigger in triggers:
        _make_function(trigger)
    wanted = _new_postgresql_definitions(models, triggers)

    for model in models:
        table = model._meta.table_name
        if not database.table_exists(table):
            model.create_table(safe=False)
        _alter_table(model, wanted[table])
        _raise_sequence(table)

    for trigger in triggers:
        found = _postgresql_definition(trigger.table).triggers
        definition = wanted[trigger.table].triggers[trigger.name]
        if found.get(trigger.name) != definition:
            _run(f"DROP TRIGGER IF EXISTS {trigger.name} ON {trigger.table}")
            _run(trigger.postgresql)


@dataclass
class _PostgresqlColumn:
    data_type: str
    not_null: bool
    default: str | None


@dataclass
class _PostgresqlDefinition:
    """What PostgreSQL says of a table: each part by its name."""

    columns: dict[str, _PostgresqlColumn]
    constraints: dict[str, str]
    indexes: dict[str, str]
    triggers: dict[str, str]


def _postgresql_definition(table):
    """Return the definition of a table, which may be qualified by its schema."""
    columns = _execute(
        """
        SELECT attname, format_type(atttypid, atttypmod), attnotnull,
               pg_get_expr(adbin, adrelid)
        FROM pg_attribute
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped
        """,
        [table],
    )
    constraints = _execute(
        """
        SELECT conname, pg_get_constraintdef(oid)
        FROM pg_constraint
        WHERE conrelid = %s::regclass AND contype IN ('c', 'u')
        """,
        [table],
    )
    indexes = _execute(
        """
        SELECT relname, pg_get_indexdef(indexrelid)
        FROM pg_index
        JOIN pg_class ON pg_class.oid = indexrelid
        WHERE indrelid = %s::regclass AND NOT indisprimary
        """,
        [table],
    )
    triggers = _execute(
        """
        SELECT tgname, pg_get_triggerdef(oid)
        FROM pg_trigger
        WHERE tgrelid = %s::regclass AND NOT tgisinternal
        """,
        [table],
    )
    return _PostgresqlDefinition(
        columns={
            name: _PostgresqlColumn(data_type, not_null, _without_sequence(default))
            for name, data_type, not_null, default in columns
        },
        constraints=dict(constraints),
        indexes=_without_schema(indexes),
        triggers=_without_schema(triggers),
    )


def _without_sequence(default):
    """Return a default; None for that of an id, whose sequence has any name."""
    return None if default is None or default.startswith("nextval(") else default


def _without_schema(definitions):
    """Return definitions (pairs of name and SQL) without the schema of the table."""
    schema = r'(?:"[^"]*"|\w+)\.'
    return {name: re.sub(f" ON {schema}", " ON ", sql) for name, sql in definitions}


def _new_postgresql_definitions(models, triggers):
    """Return the definitions that new tables have, by their names.

    Temporary tables hide the real ones of the same names until they are dropped: their
    schema is the first one meanwhile, wherever the operator's search_path has it.
    """
    [(path,)] = _execute("SHOW search_path")
    set_path = "SELECT set_config('search_path', %s, true)"
    _execute(set_path, [f"pg_temp, {path}" if path else "pg_temp"])
    for model in models:
        model.create_table(safe=False, temporary=True)
    for trigger in triggers:
        _run(trigger.postgresql)
    tables = [model._meta.table_name for model in models]
    definitions = {
        table: _postgresql_definition(f"pg_temp.{table}") for table in tables
    }
    for table in tables:
        _run(f"DROP TABLE pg_temp.{table}")
    _execute(set_path, [path])
    return definitions


def _make_function(trigger):
    """Make the function of a trigger, unless it is there: a replacement locks it."""
    found = _execute(
        """
        SELECT prosrc FROM pg_proc
        WHERE proname = %s
            AND pronamespace = quote_ident(current_schema())::regnamespace
        """,
        [trigger.name],
    )
    if found != [(trigger.function,)]:
        _run(
            f"CREATE OR REPLACE FUNCTION {trigger.name}() RETURNS trigger "
            f"LANGUAGE plpgsql AS $function${trigger.function}$function$"
        )


def _alter_table(model, wanted):
    """Alter the table of a model where it is not as wanted."""
    table = model._meta.table_name
    check_columns(model)
    found = _postgresql_definition(table)

    for action in _alterations(found, wanted):
        _run(f"ALTER TABLE {table} {action}")

    # Even if the index exists, CREATE INDEX IF NOT EXISTS waits until no other
    # transaction writes to the table.
    for name, definition in wanted.indexes.items():
        if found.indexes.get(name) != definition:
            _run(f"DROP INDEX IF EXISTS {name}")
            _run(definition)


def _raise_sequence(table):
    """Let the ids that are drawn next be above all that are there.

    One that was inserted by hand may be above those that were drawn, and followers
    would pass the next ones.
    """
    _execute(
        f"""
        SELECT setval(pg_get_serial_sequence(%s, 'id'), max(id))
        FROM {table}
        HAVING max(id) > coalesce(
            pg_sequence_last_value(pg_get_serial_sequence(%s, 'id')::regclass), 0
        )
        """,
        [table, table],
    )


def _alterations(found, wanted):
    """Yield the actions of ALTER TABLE that make one definition the other."""
    for name, column in wanted.columns.items():
        if name not in found.columns:
            default = f" DEFAULT {column.default}" if column.default else ""
            not_null = " NOT NULL" if column.not_null else ""
            yield f"ADD COLUMN {name} {column.data_type}{default}{not_null}"
            continue

        present = found.columns[name]
        if present.data_type != column.data_type:
            yield f"ALTER COLUMN {name} TYPE {column.data_type}"
        if present.default != column.default:
            if column.default is None:
                yield f"ALTER COLUMN {name} DROP DEFAULT"
            else:
                yield f"ALTER COLUMN {name} SET DEFAULT {column.default}"
        if present.not_null != column.not_null:
            verb = "SET" if column.not_null else "DROP"
            yield f"ALTER COLUMN {name} {verb} NOT NULL"

    for name, definition in found.constraints.items():
        if wanted.constraints.get(name) != definition:
            yield f"DROP CONSTRAINT {name}"
    for name, definition in wanted.constraints.items():
        if found.constraints.get(name) != definition:
            yield f"ADD CONSTRAINT {name} {definition}"
