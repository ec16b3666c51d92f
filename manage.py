"""The operator's commands: python manage.py COMMAND, with the settings of the service.

The service may be running meanwhile. Each command prints one line that says what was
done; an error is one line on stderr, with exit status 1.
"""

import contextlib
import fcntl
import os
import re
import signal
import sys
from datetime import datetime, timezone
from pathlib import Path

import click
import peewee
from peewee import fn

import models
import ticketsvc
from database import (
    DATABASE_ERRORS,
    NOW,
    OPERATOR_PRAGMAS,
    READER_TIMEOUT,
    backend,
    database,
    one_line,
    select_database,
)
from models import ID_MAX, MODELS, REVERTER, TRIGGERS, Ticket, TicketVersion
from upgrade import bring_up_to_date, check_columns, check_rows

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
BACKUP_NAME = "tickets-%Y%m%d-%H%M%S.db"
BACKUP_PATTERN = re.compile(r"tickets-\d{8}-\d{6}\.db")
PORTION = 500  # rows that are changed in one statement
TIME_FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S.%fZ"]


class Commands(click.Group):
    """Commands whose failures are one line on stderr."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except (*DATABASE_ERRORS, OSError, ValueError) as error:
            raise click.ClickException(one_line(error)) from error
        finally:
            if backend.obj is not None:
                backend.close()


class Time(click.DateTime):
    """A timestamp as the service writes it, or the beginning of a day, in UTC."""

    name = "time"

    def __init__(self):
        super().__init__(TIME_FORMATS)

    def convert(self, value, param, ctx):
        time = super().convert(value, param, ctx)
        return f"{time.isoformat(timespec='milliseconds')}Z"


@click.group(cls=Commands)
def cli():
    """Back up, restore and correct the tickets, also while the service runs."""


def counted(number, noun):
    """Return a number with its noun, as in "1 ticket" or "2 tickets"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@contextlib.contextmanager
def progress_bar(label):
    """Give a function that shows on a terminal how much is done, and of how much."""
    is_hidden = not sys.stderr.isatty()
    with click.progressbar(
        length=1, label=label, file=sys.stderr, hidden=is_hidden
    ) as bar:

        def show(done, length):
            bar.length = max(length, 1)
            bar.update(min(done, bar.length) - bar.pos)

        yield show


def select_from_settings():
    """Choose the database that the settings name, without opening it."""
    settings = ticketsvc.read_settings(os.environ)
    with naming_the_setting():
        select_database(
            settings["DATABASE_URL"], settings["POOL_SIZE"], OPERATOR_PRAGMAS
        )


def require_database():
    """Raise ValueError unless the database exists."""
    with naming_the_setting():
        has_tickets = backend.has_table("ticket")
    if not has_tickets:
        raise ValueError(f"there is no database with tickets: {backend.name}")


def bring_selected_up_to_date():
    """Bring the database up to date; return whether it is new."""
    with naming_the_setting():
        return models.prepare_selected()


def bring_existing_up_to_date():
    """Bring the database up to date; raise ValueError if there is none."""
    select_from_settings()
    require_database()
    bring_selected_up_to_date()


@contextlib.contextmanager
def naming_the_setting():
    """Begin the sentence of a ValueError with the name of the setting."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"DATABASE_URL: {error}") from error


def portions(model, end):
    """Yield (after, last) for each portion of the rows with ids up to `end`.

    A portion is the PORTION rows, or fewer, with ids above `after` and up to `last`.
    """
    after = -ID_MAX
    while True:
        portion = (
            model.select(model.id)
            .where(model.id > after, model.id <= end)
            .order_by(model.id)
            .limit(PORTION)
            .alias("portion")
        )
        query = model.select(fn.MAX(portion.c.id).alias("last")).from_(portion)
        last = backend.read(query)[0]["last"]
        if last is None:
            return
        yield after, last
        after = last


def last_id(model):
    """Return the greatest id in a table, or 0."""
    query = model.select(fn.COALESCE(fn.MAX(model.id), 0).alias("last"))
    return backend.read(query)[0]["last"]


# --- Backup and restore ---------------------------------------------------------------


@cli.command()
@click.option(
    "--keep",
    type=click.IntRange(1),
    metavar="N",
    help="Name it by the time, in a DIRECTORY, and delete all but the newest N there.",
)
@click.argument("target", metavar="FILE|DIRECTORY", type=click.Path(path_type=Path))
def backup(target, keep):
    """Write a checked copy of the SQLite database to a new FILE.

    The copy holds what the database holds at this moment. No file is overwritten.
    """
    select_from_settings()
    if backend.backup_advice is not None:
        raise ValueError(backend.backup_advice)

    folder = target.parent if keep is None else target
    if not folder.is_dir():
        raise click.BadParameter(f"there is no directory {folder}")
    if keep is None and target.is_dir():
        raise click.BadParameter(f"{target} is a directory: use --keep N")

    require_database()
    hidden = folder / f".{target.name}.partial"
    if keep is not None:
        hidden = folder / ".tickets.partial"
        target = folder / datetime.now(timezone.utc).strftime(BACKUP_NAME)

    with stop_at_signals(), progress_bar("Backing up") as progress:
        count = write_backup(hidden, target, progress)
        deleted = [] if keep is None else delete_old_backups(target, keep)

    size = target.stat().st_size / 1e6
    line = f"Backed up {counted(count, 'ticket')} to {target}, {size:.1f} MB"
    if keep is not None:
        line += f"; deleted {counted(len(deleted), 'older backup')}"
    click.echo(line)


@contextlib.contextmanager
def stop_at_signals():
    """Let SIGINT and SIGTERM raise SystemExit, so that nothing is left behind."""
    sentence = None

    def stop(number, frame):
        nonlocal sentence
        ignore_signals()
        sentence = f"Error: stopped by {signal.Signals(number).name}"
        sys.exit(sentence)

    previous = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield
    except DATABASE_ERRORS:
        # If the signal came while SQLite reported its progress, this is what is left
        # of SystemExit.
        if sentence is not None:
            sys.exit(sentence)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        for number, handler in previous.items():
            signal.signal(number, handler)


def ignore_signals():
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def write_backup(hidden, target, progress):
    """Write a copy to `hidden`, and name it `target` when it is complete and synced.

    Return the number of tickets in it.
    """
    if os.path.lexists(target):
        raise ValueError(f"{target} exists")
    folder = os.open(target.parent, os.O_RDONLY)
    # From the moment at which the file is there it has to be removed.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    file = create_locked(hidden)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        count = backend.back_up(str(hidden), "ticket", progress)
        os.fsync(file)
        ignore_signals()
        # Unlike rename(2), link(2) overwrites nothing.
        os.link(hidden, target)
        return count
    finally:
        hidden.unlink()
        journal_of(hidden).unlink(missing_ok=True)
        os.fsync(folder)
        os.close(file)
        os.close(folder)


def create_locked(hidden):
    """Return the descriptor of a new file, locked; remove what a killed run left."""
    try:
        with contextlib.suppress(FileNotFoundError):
            left = os.open(hidden, os.O_RDONLY)
            try:
                fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.path.samestat(os.fstat(left), hidden.stat()):
                    raise FileExistsError  # Another run has just replaced it.
                # Not truncated: the killed run may have given it its name already.
                hidden.unlink()
            finally:
                os.close(left)
        journal_of(hidden).unlink(missing_ok=True)
        file = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, FileExistsError):
        raise ValueError(f"another backup is being written to {hidden}") from None
    return file


def journal_of(hidden):
    return hidden.with_name(f"{hidden.name}-journal")


def delete_old_backups(newest, keep):
    """Delete all but the newest backups beside one that was just made; return them."""
    others = sorted(
        path
        for path in newest.parent.iterdir()
        if BACKUP_PATTERN.fullmatch(path.name) and path.is_file() and path != newest
    )
    too_many = max(0, len(others) + 1 - keep)
    old = others[:too_many]
    for path in old:
        path.unlink()
    return old


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
def restore(file):
    """Put the tickets of a backup in the place of those in the database.

    FILE may be of an older version of the service. If there is no database, one is
    made.
    """
    select_from_settings()
    if backend.restore_advice is not None:
        raise ValueError(backend.restore_advice)
    if not file.is_file():
        raise click.BadParameter(f"there is no file {file}")

    backend.check_backup(str(file), "ticket")
    with stop_at_signals(), progress_bar("Restoring") as progress:
        is_new = bring_selected_up_to_date()
        try:
            count = restore_backup(str(file), progress)
        except BaseException:
            if is_new:
                backend.remove_if_empty([model._meta.table_name for model in MODELS])
            raise

    place = f"the {'new ' if is_new else ''}database {backend.name}"
    line = f"Restored {counted(count, 'ticket')} from {file} to {place}"
    if not backend.empty_log(READER_TIMEOUT):
        line += "; a reader keeps its log from being emptied"
    click.echo(line)


def restore_backup(path, progress):
    """Put the rows of a backup of SQLite in the place of those in the database.

    `progress` is called with the number of rows that are written and that of all.
    Return the number of tickets. Raise ValueError with a sentence for the operator if
    a row breaks a rule.
    """
    counts = {}

    def replace():
        for model in MODELS:
            check_columns(model, "backup")
        try:
            counts.update(_replace_rows(progress))
        except peewee.IntegrityError:
            for model in MODELS:
                check_rows(model, "backup")
            raise

    backend.restore(path, replace)
    return counts["ticket"]


def _replace_rows(progress):
    """Replace all rows by those of the attached database, and return their numbers."""
    run = database.execute_sql
    old_id = _last_given_id("main", "ticket_version")
    ticket_id = max(
        _last_given_id("main", "ticket"), _last_given_id("backup", "ticket")
    )
    counts = {
        model._meta.table_name: _count_backup(model)
        for model in (Ticket, TicketVersion)
    }
    total = sum(counts.values())

    # They would keep the replaced rows as versions.
    for trigger in TRIGGERS:
        run(f"DROP TRIGGER IF EXISTS {trigger.name}")

    # The marks of tickets that were deleted stay.
    run("DELETE FROM ticket_version WHERE version > 0")
    for done in _copy_rows(TicketVersion, old_id):
        progress(done, total)

    gone = f"""
        INSERT INTO ticket_version ({models.MARK_COLUMNS})
        SELECT id, 0, 'deleted', {NOW}
        FROM ticket
        WHERE id NOT IN (SELECT id FROM backup.ticket)
    """
    run(gone)
    run("DELETE FROM ticket")
    for done in _copy_rows(Ticket, 0):
        progress(counts["ticket_version"] + done, total)

    # If the greatest id of the table is now lower, the next row would get an id that
    # followers have passed. One more mark prevents it: that of a ticket which is there
    # only makes them read it again.
    mark = f"""
        INSERT INTO ticket_version (id, {models.MARK_COLUMNS})
        SELECT {old_id + 1}, id, 0, 'deleted', {NOW}
        FROM ticket
        WHERE NOT EXISTS (SELECT 1 FROM ticket_version WHERE id > {old_id})
        LIMIT 1
    """
    run(mark)
    run("DELETE FROM sqlite_sequence WHERE name = 'ticket'")
    run("INSERT INTO sqlite_sequence VALUES ('ticket', ?)", [ticket_id])
    bring_up_to_date(MODELS, TRIGGERS)
    return counts


def _last_given_id(schema, table):
    """Return the greatest id that a table of SQLite has given out, or 0."""
    run = database.execute_sql
    tables = database.get_tables(schema)
    ids = [0]
    if table in tables:
        ids += run(f"SELECT coalesce(max(id), 0) FROM {schema}.{table}").fetchone()
    if "sqlite_sequence" in tables:
        sequence = f"SELECT seq FROM {schema}.sqlite_sequence WHERE name = ?"
        ids += [row[0] for row in run(sequence, [table]).fetchall()]
    return max(ids)


def _count_backup(model):
    table = model._meta.table_name
    if table not in database.get_tables("backup"):
        return 0
    return database.execute_sql(f"SELECT count(*) FROM backup.{table}").fetchone()[0]


def _copy_rows(model, shift):
    """Copy the rows of the attached database, their ids shifted; yield their number.

    The columns are those that both have.
    """
    table = model._meta.table_name
    columns = [column.name for column in database.get_columns(table, "backup")]
    if not columns:
        return
    others = [name for name in columns if name != "id"]
    copy = f"""
        INSERT INTO main.{table} (id, {", ".join(others)})
        SELECT id + {shift}, {", ".join(others)}
        FROM backup.{table}
        WHERE id > ? AND id <= ?
        ORDER BY id
    """
    find_last = f"""
        SELECT max(id)
        FROM (SELECT id FROM backup.{table} WHERE id > ? ORDER BY id LIMIT {PORTION})
    """
    after = -ID_MAX
    done = 0
    while True:
        (last,) = database.execute_sql(find_last, [after]).fetchone()
        if last is None:
            return
        done += database.execute_sql(copy, [after, last]).rowcount
        yield done
        after = last


# --- Corrections ----------------------------------------------------------------------


@cli.command()
@click.option(
    "--since",
    type=Time(),
    metavar="TIME",
    required=True,
    help="The time of the first wrong change.",
)
@click.option("--by", "name", metavar="NAME", help="Only changes by the token NAME.")
@click.option("--dry-run", is_flag=True, help="Only list the tickets.")
def revert(since, name, dry_run):
    """Undo what was written since a time, as new versions of the tickets.

    A ticket gets the status, category and response that it had before. A ticket that
    was filed in that time, or that somebody else has changed afterwards, is left alone
    and listed. TIME is as in 2026-11-23T12:02:00.120Z, or a date, in UTC.
    """
    bring_existing_up_to_date()
    count = 0
    left_alone = {}
    end = last_id(Ticket)

    with progress_bar("Reverting") as progress:
        for after, last in portions(Ticket, end):
            found = []
            for row in Ticket.find_written(since, name, after, last):
                reason = reason_to_leave(row)
                if reason is not None:
                    left_alone[row["id"]] = reason
                elif not row["is_same"]:
                    found.append(row)

            if dry_run:
                for row in found:
                    version = row["first_version"] - 1
                    click.echo(f"Ticket {row['id']} would be as in version {version}")
                count += len(found)
            elif found:
                reverted = Ticket.revert(found)
                count += len(reverted)
                for row in found:
                    if row["id"] not in reverted:
                        left_alone[row["id"]] = "it was changed just now"
            progress(last, end)

    for ticket_id, reason in left_alone.items():
        click.echo(f"Ticket {ticket_id} is left alone: {reason}")
    verb = "Would revert" if dry_run else "Reverted"
    click.echo(f"{verb} {counted(count, 'ticket')}, left {len(left_alone)} alone")


def reason_to_leave(row):
    """Return why a ticket that Ticket.find_written() found is left alone, or None."""
    # There is nothing to undo: the write changed nothing, or an earlier run undid it.
    was_reverted = row["updated_by"] == REVERTER
    if row["is_same"] and (row["is_latest"] or was_reverted):
        return None

    if row["previous_id"] is None:
        if row["first_version"] == 1:
            return "it was filed in that time"
        return f"its version {row['first_version'] - 1} is not kept"
    if not row["is_latest"]:
        return f"it was changed afterwards by {row['updated_by'] or 'somebody else'}"
    return None


@cli.command()
@click.argument(
    "ticket_ids",
    metavar="ID...",
    type=click.IntRange(1, ID_MAX),
    nargs=-1,
    required=True,
)
def erase(ticket_ids):
    """Delete tickets with all their versions, and overwrite their text.

    If one ID is unknown, nothing is deleted. Backups still hold the tickets.
    """
    bring_existing_up_to_date()
    unknown = Ticket.find_unknown(ticket_ids)
    if unknown:
        raise ValueError(f"there is no ticket {unknown[0]}; nothing is erased")

    erased = Ticket.erase(ticket_ids)
    try:
        holders = backend.overwrite_deleted(["ticket", "ticket_version"])
    except DATABASE_ERRORS as error:
        raise ValueError(
            f"{counted(len(erased), 'ticket')} deleted, but the text may be in the "
            f"file until the same command succeeds: {error}"
        ) from error
    click.echo(
        f"Erased {counted(len(erased), 'ticket')} with all versions; "
        f"{holders} still hold them"
    )


@cli.command()
@click.option(
    "--before",
    type=Time(),
    metavar="TIME",
    required=True,
    help="Delete what was replaced before.",
)
def prune(before):
    """Delete old versions: those that were replaced before a time.

    The first version of each ticket and the present one are kept. TIME is as in
    2026-11-23T12:02:00.120Z, or a date, in UTC.
    """
    bring_existing_up_to_date()
    count = 0
    end = last_id(TicketVersion)
    with progress_bar("Pruning") as progress:
        for after, last in portions(TicketVersion, end):
            count += TicketVersion.prune(before, after, last)
            progress(last, end)
    click.echo(f"Deleted {counted(count, 'version')} replaced before {before}")


if __name__ == "__main__":
    # A statement that runs for long would hold KeyboardInterrupt back. What a command
    # has not committed is undone by the database.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    cli()
