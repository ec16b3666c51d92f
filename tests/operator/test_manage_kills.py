"""Kills at random moments, beside a load: never half done, nothing lost."""

import contextlib
import random
import sqlite3
import time
from contextlib import closing

import pytest

from tests.helpers.load import assert_all_succeeded, lost

COUNT = 3000  # tickets; the load writes to the first LOADED of them
LOADED = 200
CLIENTS = 4


@pytest.fixture
def kills(full):
    """How often a command is killed."""
    return 25 if full else 3


@pytest.fixture
def filled(make_server):
    server = make_server().start()
    server.fill(COUNT)
    return server


@pytest.fixture
def kill(start_manage):
    """Run a command, kill it at a random moment; return whether it had ended."""
    length = {}

    def run(*arguments):
        name = arguments[0]
        began = time.monotonic()
        process = start_manage(*arguments)
        if name not in length:
            _, error = process.communicate(timeout=120)
            assert process.returncode == 0, error
            length[name] = time.monotonic() - began
            return True
        with contextlib.suppress(Exception):
            # Python itself needs about the first half to start.
            process.wait(random.uniform(0.3, 1.1) * length[name])
        has_ended = process.poll() is not None
        process.kill()
        process.communicate(timeout=60)
        return has_ended

    return run


@pytest.fixture
def loaded(start_load):
    """Return a context that writes to the first tickets: all is answered, and kept."""

    @contextlib.contextmanager
    def run(server):
        load = start_load(server, CLIENTS, LOADED)
        server.wait_for_answers(20)
        yield
        found = load.end()
        assert_all_succeeded(found)
        rows = server.sql(f"SELECT id, category FROM ticket WHERE id <= {LOADED}")
        assert lost(found, rows) == []

    return run


def assert_whole(server):
    """The file and all that belongs to a ticket are consistent."""
    if server.environ["DATABASE_URL"].startswith("sqlite"):
        assert server.sql("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
    twice = server.sql(
        "SELECT ticket_id, version FROM ticket_version WHERE version > 0 "
        "GROUP BY ticket_id, version HAVING count(*) > 1"
    )
    assert twice == []


@pytest.mark.database("sqlite")
def test_a_backup_killed_at_any_moment(filled, kill, kills, tmp_path, loaded):
    """M1."""
    folder = tmp_path / "backups"
    folder.mkdir()
    with loaded(filled):
        for number in range(kills):
            kill("backup", folder / f"{number}.db")
    hidden = [path for path in folder.iterdir() if path.name.startswith(".")]
    assert len(hidden) <= 2 * kills
    for path in folder.glob("[0-9]*.db"):
        with closing(sqlite3.connect(path)) as backup:
            assert backup.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            query = "SELECT count(*) FROM ticket"
            assert backup.execute(query).fetchone() == (COUNT,)
    assert_whole(filled)


@pytest.mark.database("sqlite")
def test_a_restore_killed_at_any_moment(
    filled, kill, kills, manage, start_load, tmp_path
):
    """M2."""
    copy = tmp_path / "copy.db"
    manage("backup", copy)
    shape = "SELECT name, sql FROM sqlite_master ORDER BY name"
    before = filled.sql(shape)
    for _ in range(kills):
        filled.sql("UPDATE ticket SET category = 'after'")
        load = start_load(filled, CLIENTS, LOADED)
        filled.wait_for_answers(20)
        kill("restore", copy)
        assert_all_succeeded(load.end())

        rest = f"FROM ticket WHERE id > {LOADED}"
        found = filled.sql(f"SELECT category, count(*) AS n {rest} GROUP BY category")
        assert found in (
            [{"category": None, "n": COUNT - LOADED}],
            [{"category": "after", "n": COUNT - LOADED}],
        )
        assert filled.sql(shape) == before
        assert_whole(filled)


def test_a_revert_killed_at_any_moment(filled, kill, kills, manage, loaded):
    """M3."""
    rest = f"WHERE id > {LOADED}"
    for number in range(kills):
        time.sleep(0.01)
        since = filled.request("GET", "/api/health").json["timestamp"]
        time.sleep(0.01)
        filled.sql(
            "UPDATE ticket SET category = 'bad', version = version + 1, "
            f"updated_by = 'alice', updated_at = '{since}' {rest}"
        )
        # What the load writes has no name.
        with loaded(filled):
            kill("revert", "--since", since, "--by", "alice")
            by_revert = filled.sql(
                f"SELECT count(*) AS n FROM ticket {rest} AND updated_by = 'revert'"
            )[0]["n"]
            left = filled.sql(
                f"SELECT count(*) AS n FROM ticket {rest} AND category = 'bad'"
            )[0]["n"]
            assert by_revert + left == COUNT - LOADED
            manage("revert", "--since", since, "--by", "alice")
        found = filled.sql(
            f"SELECT category, max(version) AS v, min(version) AS w FROM ticket {rest} "
            "GROUP BY category"
        )
        version = 3 + 2 * number
        assert found == [{"category": None, "v": version, "w": version}]
        assert_whole(filled)


def test_an_erase_killed_at_any_moment(filled, kill, kills, manage, loaded):
    """M4."""
    with loaded(filled):
        for number in range(kills):
            ids = range(COUNT - 10 * number - 9, COUNT - 10 * number + 1)
            kill("erase", *ids)
            listed = ", ".join(map(str, ids))
            (found,) = filled.sql(
                f"SELECT count(*) AS n FROM ticket WHERE id IN ({listed})"
            )
            assert found["n"] in (0, 10)
            manage("erase", *ids)
    assert filled.sql("SELECT count(*) AS n FROM ticket") == [{"n": COUNT - 10 * kills}]
    assert_whole(filled)


def test_a_prune_killed_at_any_moment(filled, kill, kills, manage, loaded):
    """M5."""
    with loaded(filled):
        for _ in range(kills):
            filled.sql(f"UPDATE ticket SET category = 'x' WHERE id > {LOADED}")
            kill("prune", "--before", "9999-12-31")
            firsts = filled.sql(
                "SELECT count(*) AS n FROM ticket_version "
                f"WHERE version = 1 AND ticket_id > {LOADED}"
            )
            assert firsts == [{"n": COUNT - LOADED}]
        manage("prune", "--before", "9999-12-31")
        rest = filled.sql(
            "SELECT count(*) AS n FROM ticket_version "
            f"WHERE version > 1 AND ticket_id > {LOADED}"
        )
        assert rest[0]["n"] <= 1
    assert_whole(filled)
