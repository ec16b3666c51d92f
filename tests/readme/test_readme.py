"""The README is true: its commands run, and its examples answer what it shows."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from database import PSYCOPG
from tests.helpers.contract import (
    JSON_TYPE,
    README,
    ROOT,
    TICKETS,
    TIMESTAMP,
    assert_version,
    once,
)
from tests.helpers.follower import CHANGES
from tests.helpers.readme import BLOCKS
from tests.helpers.server import free_port
from tests.helpers.timing import wait_for

SETUPS = [
    line
    for block in BLOCKS
    if block.language == "sh"
    for line in block.text.splitlines()
    if "venv .venv" in line
]
EXAMPLES = [block for block in BLOCKS if block.output_language == "json"]
QUEUE = re.search(
    "^cat >queue.sh <<'END'\n(.*?)^END$", README, re.MULTILINE | re.DOTALL
)[1]
FOLLOW = re.search(
    "^cat >follow.sh <<'END'\n(.*?)^END$", README, re.MULTILINE | re.DOTALL
)[1]
HEADERS = re.compile(r"(Date|X-Request-ID): [^\n]+")


def normalise(text):
    text = text.replace("\r\n", "\n").strip()
    return HEADERS.sub(r"\1: (new)", re.sub(TIMESTAMP, "(now)", text))


@pytest.fixture
def checkout(tmp_path):
    """The files of the repository in a folder of their own, nothing installed."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_there_are_two_commands_to_set_up():
    assert [command.rpartition("/")[2].split()[0] for command in SETUPS] == [
        "gunicorn",
        "pytest",
    ]


def test_the_run_command_and_every_example(checkout):
    """The service as the README starts it answers each example as the README shows."""
    port = free_port()
    environ = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    with (checkout / "log").open("w") as log:
        service = subprocess.Popen(
            ["bash", "-c", SETUPS[0]],
            cwd=checkout,
            env={**environ, "GUNICORN_CMD_ARGS": f"--bind 127.0.0.1:{port}"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def answers():
        assert service.poll() is None, (checkout / "log").read_text()
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(
                f"http://127.0.0.1:{port}/api/health", timeout=2
            )

    try:
        wait_for(answers, "it is not set up, or does not answer", timeout=300).close()
        # One shell for all examples, since the later ones use the variables of the
        # first.
        script = "\necho '<end of example>'\n".join(each.text for each in EXAMPLES)
        shown = subprocess.run(
            ["bash", "-c", script.replace(":8000", f":{port}")],
            cwd=checkout,
            capture_output=True,
            text=True,
            timeout=300,
        ).stdout.split("<end of example>")
    finally:
        os.killpg(service.pid, signal.SIGTERM)
        service.wait(60)
    expected = [normalise(each.output) for each in EXAMPLES]
    assert [normalise(output) for output in shown] == expected
    assert Path(checkout / "tickets.db").exists()


def start_queue(server, folder, **environ):
    """Start the README's queue worker, with a page of seven tickets."""
    needed = [name for name in ("bash", "curl", "jq") if not shutil.which(name)]
    if needed:
        pytest.skip(f"needs {', '.join(needed)}")
    environ = {
        "PATH": os.environ["PATH"],
        "tickets": f"http://127.0.0.1:{server.port}{TICKETS}",
        **environ,
    }
    return subprocess.Popen(
        ["bash", "-c", QUEUE.replace("after=0", "after=0&limit=7")],
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_queue_workers_close_each_ticket_once(server, tmp_path):
    """C2, L2, L3: the README's script, twice at the same moment over 30 tickets."""
    for _ in range(30):
        server.post()
    workers = [start_queue(server, tmp_path) for _ in range(2)]
    outputs = [worker.communicate(timeout=300) for worker in workers]
    assert [(w.returncode, e) for w, (_, e) in zip(workers, outputs, strict=True)] == [
        (0, "")
    ] * 2
    output = "".join(out for out, _ in outputs)
    closed = [
        int(line.split()[0]) for line in output.splitlines() if line.endswith(" 200")
    ]
    assert sorted(closed) == list(range(1, 31))
    assert {line.split()[1] for line in output.splitlines()} <= {"200", "412"}
    tickets = server.request("GET", f"{TICKETS}?status=closed").json
    assert len(tickets) == 30
    for ticket in tickets:
        assert_version(server.get(ticket["id"]), 2)


def follow(server, folder, **environ):
    """Start the README's follower in a folder of its own."""
    environ = {
        "PATH": os.environ["PATH"],
        "changes": f"http://127.0.0.1:{server.port}{CHANGES}",
        **environ,
    }
    return subprocess.Popen(
        ["bash", "-c", FOLLOW],
        cwd=folder,
        env=environ,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_follower_that_is_killed_misses_nothing(
    server, start_load, tmp_path, sql, full
):
    """F2, F3: the README's script, at random moments, beside writers."""
    server.fill(200)
    folder = tmp_path / "follower"
    folder.mkdir()
    chance = random.Random(11)
    load = start_load(server, 8, 100)
    killed = 0
    for _ in range(150 if full else 15):
        follower = follow(server, folder)
        time.sleep(chance.random() * 0.4)
        server.post()
        if follower.poll() is None:
            killed += 1
        with contextlib.suppress(ProcessLookupError):
            os.killpg(follower.pid, signal.SIGKILL)
        follower.communicate()
    load.end()
    sql("DELETE FROM ticket WHERE id IN (1, 150)")

    follower = follow(server, folder)
    _, errors = follower.communicate(timeout=60)
    assert (follower.returncode, errors) == (0, "")
    assert killed > 5
    copy = {}
    for line in (folder / "changes.jsonl").read_text("utf-8").splitlines():
        ticket = json.loads(line)
        copy[ticket["id"]] = ticket
    rows = sql("SELECT * FROM ticket")
    present = {key: each for key, each in copy.items() if "deleted" not in each}
    assert present.keys() == {row["id"] for row in rows}
    for row in rows:
        names = row.keys() & present[row["id"]].keys()
        assert {name: row[name] for name in names} == {
            name: present[row["id"]][name] for name in names
        }


class TestScriptsWithToken:
    """E2: with TICKETSVC_TOKENS set."""

    pytestmark = once

    @pytest.fixture
    def settings(self):
        return {"TICKETSVC_TOKENS": "s3cret"}

    def test_it_sends_a_token_if_one_is_set(self, server, tmp_path):
        """E2."""
        follower = follow(server, tmp_path, TOKEN="s3cret")
        _, errors = follower.communicate(timeout=60)
        assert (follower.returncode, errors) == (0, "")
        assert (tmp_path / "cursor").read_text() == "?since=0-0\n"

    def test_it_ends_with_an_error_after_another_status(self, server, tmp_path):
        """F2: its cursor stays as it was."""
        (tmp_path / "cursor").write_text("?since=0-0\n")
        follower = follow(server, tmp_path)
        _, errors = follower.communicate(timeout=60)
        assert follower.returncode != 0
        assert "401" in errors
        assert (tmp_path / "cursor").read_text() == "?since=0-0\n"
        assert (tmp_path / "changes.jsonl").read_text() == ""

    def test_a_queue_worker_sends_a_token_if_one_is_set(self, server, tmp_path):
        """E2."""
        token = {"Authorization": "Bearer s3cret"}
        server.post(headers=token)
        worker = start_queue(server, tmp_path, TOKEN="s3cret")
        assert worker.communicate(timeout=60) == ("1 200\n", "")
        assert worker.returncode == 0

    def test_a_queue_worker_ends_with_an_error_after_another_status(
        self, server, tmp_path
    ):
        """E2: not with success, as if there were nothing to do."""
        worker = start_queue(server, tmp_path)
        output, errors = worker.communicate(timeout=60)
        assert worker.returncode != 0
        assert output == ""
        assert "401" in errors

    def test_a_patch_is_not_sent_without_its_tag(self, server, tmp_path):
        """C2: the README's PATCH is conditional, or none, if its GET has failed."""
        (patch,) = [each.text for each in EXAMPLES if each.section == "PATCH"]
        script = (
            f"tickets=http://127.0.0.1:{server.port}{TICKETS}\njson='{JSON_TYPE}'\n"
        )
        run = subprocess.run(
            ["bash", "-c", script + patch],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert run.returncode != 0
        assert "etag" in run.stderr
        assert "PATCH" not in server.log


def test_the_driver_is_named_alike_everywhere():
    requirements = (ROOT / "tests" / "requirements.txt").read_text()
    assert f".venv/bin/pip install '{PSYCOPG}'" in README
    assert f"{PSYCOPG}\n" in requirements
    assert "psycopg" not in (ROOT / "requirements.txt").read_text()
