"""The README's part for the operator, followed command by command on a host."""

import shutil
import sqlite3
import subprocess
import time
from contextlib import closing

import pytest

from database import PSYCOPG
from tests.helpers.contract import ROOT, TICKETS, once
from tests.helpers.databases import assert_whole
from tests.helpers.host import is_private
from tests.helpers.readme import BLOCKS, SHELLS, blocks, commands, texts
from tests.helpers.server import free_port
from tests.helpers.timing import wait_for

pytestmark = once

BACKUPS = "/mnt/backups/ticketsvc"
NAMED = f"{BACKUPS}/tickets-20261124-031500.db"
CRON = [line.split(" ", 6) for line in texts("Backup")[-1].splitlines()]
TEXT = "mia@customer.example"


def need(*tools):
    """Skip the test unless these tools are on this machine."""
    missing = [name for name in tools if not shutil.which(name)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


def file_tickets(host, count=3, text="x"):
    """File tickets as bob."""
    for _ in range(count):
        body = {"user_description": text, "category": "bug"}
        assert host.request("POST", TICKETS, body, "bob").status == 201


def patch(host, ticket_id, body, name="alice"):
    reply = host.request("PATCH", f"{TICKETS}/{ticket_id}", body, name)
    assert reply.status == 200
    return reply.json


def states(host):
    """Return the status of each ticket by its id."""
    tickets = host.request("GET", TICKETS).json
    return {ticket["id"]: ticket["status"] for ticket in tickets}


def now():
    """Return the time as the README's commands take it."""
    time.sleep(0.002)
    seconds, fraction = divmod(time.time(), 1)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{text}.{int(fraction * 1000):03}Z"


def make_backup(host):
    """Follow "Backup", and give the backup the name that the README shows."""
    host.follow("Backup")
    (made,) = host.path(BACKUPS).iterdir()
    made.rename(host.path(NAMED))


def add_token(host, name):
    settings = host.path("/etc/ticketsvc.env")
    text = settings.read_text().replace("alice:", f"{name}:t0ken,alice:", 1)
    settings.write_text(text)
    host.run("systemctl restart ticketsvc.service")


# --- Running it -----------------------------------------------------------------------


def test_the_installed_service_has_two_tokens_and_is_private(host):
    """E2."""
    assert host.server.request("GET", TICKETS).status == 401
    assert [host.request("GET", TICKETS, name=n).status for n in ("alice", "bob")] == [
        200,
        200,
    ]
    assert is_private(host.path("/etc/ticketsvc.env"))
    missing = host.request("PATCH", f"{TICKETS}/99", {"status": "closed"})
    assert missing.status == 404
    assert host.path("/var/lib/ticketsvc/tickets.db").exists()


def test_systemd_finds_nothing_wrong_with_the_units(host):
    need("systemd-analyze")
    units = sorted(host.path("/etc/systemd/system").glob("ticketsvc.*"))
    run = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_a_port_that_was_changed_is_the_one_that_answers(host):
    socket = host.path("/etc/systemd/system/ticketsvc.socket")
    old = f":{host.server.port}"
    host.server.port = free_port(host.server)
    socket.write_text(socket.read_text().replace(old, f":{host.server.port}"))
    host.follow("Another port")
    assert host.request("GET", TICKETS).status == 200


def test_the_block_for_nginx_is_good(tmp_path):
    need("nginx")
    (location,) = blocks("nginx")
    logs = "access_log off; error_log stderr;"
    text = f"pid {tmp_path}/pid; events {{}} http {{ {logs} server {{ {location} }} }}"
    (tmp_path / "nginx.conf").write_text(text)
    run = subprocess.run(
        ["nginx", "-t", "-p", tmp_path, "-c", "nginx.conf", "-e", "stderr"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr


def test_tokens_are_found_added_and_rotated(host):
    """E2: nobody is locked out at any step."""
    (old,) = host.tokens("alice")
    (bob,) = host.tokens("bob")
    show, add, rotate, end = (block.text for block in commands("Tokens"))

    def works(token):
        headers = {"Authorization": f"Bearer {token}"}
        return host.server.request("GET", TICKETS, headers=headers).status == 200

    assert host.run(show) == f"{old}\n"
    host.run(add)
    (carol,) = host.tokens("carol")
    assert all(map(works, (old, bob, carol)))

    host.run(rotate)
    new, kept = host.tokens("alice")
    assert kept == old
    assert new != old
    assert all(map(works, (new, old, bob, carol)))

    # The day after was forgotten, until the next rotation.
    host.run(rotate)
    newest, *others = host.tokens("alice")
    assert others == [new, old]
    assert all(map(works, (newest, new, old, bob, carol)))

    host.run(end)
    assert host.tokens("alice") == [newest]
    assert all(map(works, (newest, bob, carol)))
    assert not works(new)
    assert not works(old)
    assert is_private(host.path("/etc/ticketsvc.env"))


def git(folder, *arguments):
    identity = ["-c", "user.name=x", "-c", "user.email=x@example"]
    command = ["git", *identity, "-C", folder, *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def test_an_upgrade_widens_a_limit_and_can_be_taken_back(bare_host, tmp_path):
    """D1: deployed by the README's commands."""
    host = bare_host
    origin = tmp_path / "origin"
    host.folder.rename(origin)
    virtual_environment = (origin / ".venv").readlink()
    (origin / ".venv").unlink()
    git(origin, "init", "-q", "-b", "main")
    git(origin, "add", ".")
    git(origin, "commit", "-q", "-m", "Serve tickets")
    git(tmp_path, "clone", "-q", origin, host.folder)
    (host.folder / ".venv").symlink_to(virtual_environment)
    host.follow("systemd")
    file_tickets(host, 1)
    long = {"category": "x" * 200}
    assert host.request("PATCH", f"{TICKETS}/1", long).status == 400

    models = origin / "models.py"
    text = models.read_text()
    assert "\nCATEGORY_MAX = 100\n" in text
    models.write_text(text.replace("CATEGORY_MAX = 100\n", "CATEGORY_MAX = 200\n"))
    git(origin, "commit", "-q", "-a", "-m", "Widen the category")
    upgrade, back, _ = (block.text for block in commands("Upgrade"))
    host.run(commands("Backup")[0].text)
    (made,) = host.path(BACKUPS).iterdir()
    made.rename(host.path(NAMED))
    assert '"status": "ok"' in host.run(upgrade)
    patch(host, 1, long)

    patch(host, 1, {"category": "billing"})
    host.run(back)
    assert host.request("PATCH", f"{TICKETS}/1", long).status == 400

    host.run("cd /srv/ticketsvc && git checkout -q main")
    host.run("systemctl restart ticketsvc.service")
    patch(host, 1, long)
    host.run(back, status=1)
    assert "breaks CHECK (length(category) BETWEEN 1 AND 100)" in host.journal
    host.follow("Upgrade", 2)
    assert host.request("GET", f"{TICKETS}/1").json["category"] == "bug"


def test_the_log_is_rotated_and_nothing_is_lost(bare_host):
    need("logrotate")
    host = bare_host
    folder = host.path("/var/log/ticketsvc")
    folder.mkdir(parents=True)
    (host.root / "journal").symlink_to(folder / "requests.log")
    host.follow("systemd")
    (text,) = [each for each in texts("Log") if "copytruncate" in each]
    configuration = host.root / "logrotate.conf"
    configuration.write_text(host.here(text))
    configuration.chmod(0o644)
    assert "New database" in host.journal

    file_tickets(host, 1)
    wait_for(lambda: " POST " in host.journal, "nothing is logged")
    state = host.root / "logrotate.state"
    subprocess.run(
        ["logrotate", "-f", "-s", state, configuration], check=True, timeout=60
    )
    file_tickets(host, 1)
    kept = (folder / "requests.log.1").read_text()
    assert kept.count(" POST ") == 1
    wait_for(lambda: " POST " in host.journal, "nothing is logged")
    # Not at its old place, with a hole of zeros before it.
    assert "\0" not in host.journal
    assert host.journal.count(" POST ") == 1


def test_monitoring_sees_a_service_that_is_down_and_a_missing_backup(host):
    health, rest = (block.text for block in commands("Monitoring"))
    space, age = rest.splitlines()
    host.run(health)
    host.run(space.replace("-gt 1000", "-gt 0"))
    host.run(age, status=1)
    host.run(commands("Backup")[0].text)
    host.run(age)
    host.kill()
    host.run(health, status=7)


# --- Keeping the tickets --------------------------------------------------------------


def test_a_backup_is_made_by_hand_and_by_cron(host):
    """M1: a percent sign of cron's would end the command."""
    file_tickets(host)
    host.follow("Backup")
    folder = host.path(BACKUPS)
    assert is_private(folder)
    (first,) = folder.iterdir()
    wait_for(lambda: time.time() > first.stat().st_mtime + 1.1, "time stands still")

    *times, user, command = CRON[0]
    assert (len(times), user) == (5, "root")
    assert "%" not in command.replace("\\%", "")
    assert host.run(command.replace("\\%", "%"), "sh") == ""
    made = sorted(folder.iterdir())
    assert len(made) == 2
    for path in made:
        with closing(sqlite3.connect(path)) as backup:
            (count,) = backup.execute("SELECT count(*) FROM ticket").fetchone()
        assert count == 3


def test_backups_are_copied_to_another_host(host):
    """By cron's second line; if the disk is missing, the copies stay."""
    need("rsync")
    file_tickets(host)
    host.follow("Backup")
    copies = host.root / "copies"
    command = CRON[1][-1].replace("backup@backup.example:ticketsvc/", f"{copies}/")
    assert str(copies) in command
    host.run(command, "sh")
    names = [path.name for path in host.path(BACKUPS).iterdir()]
    assert [path.name for path in copies.iterdir()] == names

    shutil.rmtree(host.path(BACKUPS))
    host.run(command, "sh", status=23)
    assert [path.name for path in copies.iterdir()] == names


def test_without_the_disk_for_backups_there_is_an_error(host):
    """M1: not a folder on the disk of the database."""
    host.run(CRON[0][-1], "sh", status=2)
    assert list(host.path("/mnt/backups").iterdir()) == []


def test_a_restore_brings_the_backup_back(host):
    """M2."""
    file_tickets(host)
    make_backup(host)
    patch(host, 1, {"status": "closed"})
    file_tickets(host, 1)
    host.follow("Restore")
    assert states(host) == dict.fromkeys((1, 2, 3), "pending_agent")
    file_tickets(host, 1)
    assert max(states(host)) == 5
    assert_whole_file(host)


def assert_whole_file(host):
    path = host.path("/var/lib/ticketsvc/tickets.db")
    host.server.environ["DATABASE_URL"] = f"sqlite:///{path}"
    assert_whole(host.server)


def test_a_script_is_undone(host):
    """M3: except where somebody else has corrected it."""
    need("grep")
    add_token(host, "carol")
    file_tickets(host)
    since = now()
    for ticket_id in (1, 2, 3):
        patch(host, ticket_id, {"status": "closed"})
    patch(host, 3, {"status": "ai_resolved"}, "carol")

    found, dry_run, undo = range(3)
    wait_for(lambda: host.journal.count(" PATCH ") == 4, "not all is logged")
    assert host.run(commands("Undo")[found].text).count(" PATCH ") == 3
    before = states(host)
    host.follow("Undo", dry_run, since=since)
    assert states(host) == before
    host.follow("Undo", undo, since=since)
    assert states(host) == {1: "pending_agent", 2: "pending_agent", 3: "ai_resolved"}


def test_a_customer_is_found_and_erased(host):
    """M4: grep finds nothing in file and log."""
    need("sqlite3")
    file_tickets(host, 2, f"please call {TEXT}")
    file_tickets(host, 1)
    patch(host, 3, {"ai_suggested_response": f"Dear {TEXT}"})
    patch(host, 3, {"ai_suggested_response": "Dear customer"})
    find, erase = (block.text for block in commands("Erase a customer"))
    assert host.run(find).split() == ["1", "2", "3"]
    patch(host, 1, {"status": "closed"})
    host.run(erase.replace("2 3", "1 2 3"))
    for path in host.path("/var/lib/ticketsvc").iterdir():
        assert TEXT.encode() not in path.read_bytes()
    assert states(host) == {}


def test_the_outputs_of_an_erasure_are_real(host):
    """M4."""
    need("sqlite3")
    file_tickets(host, 1)
    file_tickets(host, 2, f"please call {TEXT}")
    host.follow("Erase a customer")
    assert list(states(host)) == [1]


def test_versions_are_pruned(host):
    """M5."""
    file_tickets(host)
    host.follow("Prune")


def test_corrections_are_counted(host):
    """V1: of tickets that were and were not written to; null is a category too."""
    need("sqlite3")
    file_tickets(host, 3)
    body = {"user_description": "x"}
    for _ in range(2):
        assert host.request("POST", TICKETS, body, "bob").status == 201
    patch(host, 1, {"category": "billing"})
    patch(host, 2, {"status": "closed"})
    patch(host, 4, {"category": "bug"})
    host.follow("Count corrections")


def test_the_database_is_moved_to_another_disk(host):
    """E4: the same tickets, and no new database."""
    file_tickets(host)
    before = states(host)
    host.follow("Move to another disk")
    assert host.path("/var/lib/ticketsvc.hidden").exists()
    assert states(host) == before
    assert host.journal.count("New database") == 1
    assert "/var/lib/ticketsvc ext4" in host.path("/etc/fstab").read_text().replace(
        str(host.root), ""
    )


def test_another_program_writes_without_a_checkpoint(host):
    """D4, V3."""
    need("sqlite3")
    file_tickets(host, 1)
    patch(host, 1, {"category": "Billing"})
    host.follow("Other programs")
    assert host.request("GET", f"{TICKETS}/1").json["category"] == "billing"
    history = host.request("GET", f"{TICKETS}/1/history").json
    assert [each["updated_by"] for each in history] == [None, "alice", "bob"]


# --- Elsewhere ------------------------------------------------------------------------


def test_heroku_gets_its_settings_and_its_driver(host):
    host.add_tool("heroku", 'echo "heroku $*" >>"$HOST/calls"')
    host.add_tool("git", 'echo "git $*" >>"$HOST/calls"')
    (block,) = commands("Heroku")
    host.run(f"cd /srv/ticketsvc\n{block.text}")
    calls = (host.root / "calls").read_text().splitlines()
    assert [call.split()[1] for call in calls] == [
        "create",
        "addons:create",
        "config:set",
        "commit",
        "push",
    ]
    before = (ROOT / "requirements.txt").read_text()
    after = (host.folder / "requirements.txt").read_text()
    assert after == f"{before}{PSYCOPG}\n"


@pytest.mark.parametrize("language", SHELLS)
def test_every_block_is_in_the_language_it_names(language):
    for block in BLOCKS:
        if block.language == language:
            shell = ["bash", "-n"] if language == "bash" else ["sh", "-n"]
            run = subprocess.run(
                shell, input=block.text, capture_output=True, text=True, timeout=60
            )
            assert (run.returncode, run.stderr) == (0, ""), block.text
