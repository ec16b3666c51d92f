"""A backup taken under load opens, is intact, and holds what was acknowledged before it
began.
"""

import re
import shutil
import sqlite3
import subprocess
import threading
from pathlib import Path

import pytest

from tests.helpers.contract import README, TICKETS, assert_version
from tests.helpers.databases import assert_whole
from tests.helpers.load import assert_all_succeeded
from tests.helpers.timing import together, wait_for

pytestmark = [
    pytest.mark.database("sqlite"),
    pytest.mark.skipif(not shutil.which("sqlite3"), reason="needs sqlite3(1)"),
]

BACKUP, RESTORE = re.findall(r"^sqlite3 .*$", README, re.MULTILINE)
CRON = re.search("root cd /var/lib/ticketsvc && (.*)`", README)[1].replace("\\%", "%")
CLIENTS = 8


@pytest.mark.parametrize("command", [BACKUP, CRON], ids=["by hand", "by cron"])
def test_a_backup_under_load_is_whole(server, command):
    """E4: by the README's own command."""
    server.fill(20_000)
    acknowledged, over = [0] * CLIENTS, threading.Event()

    def write(number):
        connection = server.connect()
        while not over.is_set():
            value = acknowledged[number] + 1
            reply = server.patch(
                number + 1, {"category": f"n {value}"}, connection=connection
            )
            assert reply.status == 200
            acknowledged[number] = value
        connection.close()

    load = threading.Thread(target=together, args=(CLIENTS, write))
    load.start()
    try:
        wait_for(lambda: min(acknowledged) >= 20, "no PATCH is answered")
        before = list(acknowledged)
        folder = Path(server.path).parent
        subprocess.run(command, shell=True, cwd=folder, check=True, timeout=60)
    finally:
        over.set()
        load.join()
    (path,) = folder.glob("backup-*.db")
    backup = sqlite3.connect(path)
    assert backup.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    stored = backup.execute(
        "SELECT category FROM ticket WHERE id <= ? ORDER BY id", [CLIENTS]
    ).fetchall()
    backup.close()
    values = [int(category.removeprefix("n ")) for (category,) in stored]
    assert all(value >= least for value, least in zip(values, before, strict=True))


def test_a_restore_brings_the_backup_back(server, start_load):
    """E4: by the README's own commands, under load and after the service was killed."""
    folder = Path(server.path).parent
    server.fill(16)
    subprocess.run(BACKUP, shell=True, cwd=folder, check=True, timeout=60)
    (backup,) = folder.glob("backup-*.db")
    restore = re.sub(r"backup-[0-9-]*\.db", backup.name, RESTORE)
    for _ in range(4):
        load = start_load(server, 16, 16)
        server.wait_for_answers(100)
        subprocess.run(restore, shell=True, cwd=folder, check=True, timeout=60)
        assert_all_succeeded(load.end())
    for killed in (False, True):
        assert server.patch(1, {"category": "later"}).status == 200
        if killed:
            server.kill()
        subprocess.run(restore, shell=True, cwd=folder, check=True, timeout=60)
        if killed:
            server.start()
        assert server.get(1).json["category"] is None
    assert_version(server.patch(1, {"category": "again"}), 2)
    assert_whole(server)


def test_a_restore_of_what_is_not_there_changes_nothing(server):
    """E4: sqlite3(1) by itself would make an empty file, and restore that."""
    server.post()
    run = subprocess.run(RESTORE, shell=True, cwd=Path(server.path).parent, timeout=60)
    assert run.returncode != 0
    assert server.get(1).status == 200
    assert not list(Path(server.path).parent.glob("*backup*"))


@pytest.mark.parametrize(
    "command", [BACKUP, CRON, RESTORE], ids=["by hand", "by cron", "restore"]
)
def test_where_no_database_is_none_is_made(tmp_path, command):
    """E4: sqlite3(1) by itself would make an empty one, and say nothing."""
    sqlite3.connect(tmp_path / "backup-2026-11-24.db").close()
    run = subprocess.run(command, shell=True, cwd=tmp_path, timeout=60)
    assert run.returncode != 0
    assert [path.name for path in tmp_path.iterdir()] == ["backup-2026-11-24.db"]


def test_a_backup_of_an_older_version_is_good_after_a_restart(server, load_old):
    """The start brings it up to date."""
    folder = Path(server.path).parent
    load_old(f"sqlite:///{folder}/backup-2026-11-24.db")
    subprocess.run(RESTORE, shell=True, cwd=folder, check=True, timeout=60)
    server.stop()
    server.start()
    assert server.patch(1, {"status": "closed"}).status == 200
    assert len(server.request("GET", f"{TICKETS}/1/history").json) == 2
    assert_whole(server)
