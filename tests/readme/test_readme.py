"""The README is true: its commands run, and its examples answer what it shows."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
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
)
from tests.helpers.readme import BLOCKS, blocks
from tests.helpers.server import free_port
from tests.helpers.timing import wait_for

COMMANDS = [text.strip() for text in blocks("sh") if "curl" not in text]
EXAMPLES = [
    (command, output)
    for (kind, command), (_, output) in zip(
        BLOCKS, [*BLOCKS[1:], ("", "")], strict=True
    )
    if kind == "sh" and "curl" in command
]
QUEUE = next(command for command, _ in EXAMPLES if "while" in command)
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
    setups = [command for command in COMMANDS if "venv .venv" in command]
    assert [command.rpartition("/")[2].split()[0] for command in setups] == [
        "gunicorn",
        "pytest",
    ]
    assert not any("\n" in command for command in setups)


def test_the_run_command_and_every_example(checkout):
    """The service as the README starts it answers each example as the README shows."""
    port = free_port()
    environ = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    with (checkout / "log").open("w") as log:
        service = subprocess.Popen(
            ["bash", "-c", COMMANDS[0]],
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
        script = "\necho '<end of example>'\n".join(command for command, _ in EXAMPLES)
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
    assert len(EXAMPLES) == len(blocks("json"))
    expected = [normalise(output) for _, output in EXAMPLES]
    assert [normalise(output) for output in shown] == expected
    assert Path(checkout / "tickets.db").exists()


def bash(script, server, folder):
    """Start a script of the README against a server; its ports are the README's."""
    needed = [name for name in ("bash", "curl", "jq") if not shutil.which(name)]
    if needed:
        pytest.skip(f"needs {', '.join(needed)}")
    variables = f"tickets=http://127.0.0.1:{server.port}{TICKETS}\njson='{JSON_TYPE}'\n"
    command = ["bash", "-c", variables + script]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)


def test_two_queue_workers_close_each_ticket_once(server, tmp_path):
    """C2, L2, L3: the README's script, twice at the same moment over 30 tickets."""
    for _ in range(30):
        server.post()
    script = QUEUE.partition("\n")[2].replace("after=0", "after=0&limit=7")
    workers = [bash(script, server, tmp_path) for _ in range(2)]
    output = "".join(worker.communicate(timeout=300)[0] for worker in workers)
    closed = [
        int(line.split()[0]) for line in output.splitlines() if line.endswith(" 200")
    ]
    assert sorted(closed) == list(range(1, 31))
    assert {line.split()[1] for line in output.splitlines()} <= {"200", "412"}
    tickets = server.request("GET", f"{TICKETS}?status=closed").json
    assert len(tickets) == 30
    for ticket in tickets:
        assert_version(server.get(ticket["id"]), 2)


def test_the_driver_is_named_alike_everywhere():
    requirements = (ROOT / "tests" / "requirements.txt").read_text()
    assert f".venv/bin/pip install '{PSYCOPG}'" in README
    assert f"{PSYCOPG}\n" in requirements
    assert "psycopg" not in (ROOT / "requirements.txt").read_text()
