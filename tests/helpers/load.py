"""A load of PATCHes on a server, what became of it, and what it cost the server."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.helpers.contract import ROOT


class Load:
    """tests/helpers/clients.py in a process of its own, against a server."""

    def __init__(self, server, clients, tickets=1000, seconds=120, once=False):
        command = [sys.executable, str(ROOT / "tests" / "helpers" / "clients.py")]
        command += ["--port", str(server.port), "--clients", str(clients)]
        command += ["--seconds", str(seconds), "--tickets", str(tickets)]
        if once:
            command.append("--once")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    @property
    def is_running(self):
        return self.process.poll() is None

    def send_no_more(self):
        """Have the clients wait for the answers that are due, and end."""
        self.process.terminate()

    def result(self):
        """Wait for the end; return what was printed, its ticket ids as integers."""
        with self.process:
            found = json.loads(self.process.communicate(timeout=300)[0])
        for name in ("sent", "acknowledged", "statuses"):
            found[name] = {int(key): value for key, value in found[name].items()}
        return found

    def end(self):
        """Have the clients send no more; return the result."""
        self.send_no_more()
        return self.result()

    def kill(self):
        """End it without a result, if it has not ended."""
        with self.process:
            self.process.kill()


def assert_all_succeeded(found):
    """Every request of a load was answered, and with 200."""
    assert set(found["statuses"]) == {200}
    assert found["failures"] == {}


def lost(found, rows):
    """Return the tickets that hold neither what was acknowledged last nor what was sent
    after it.

    `found` is the result of a load, and `rows` are those of the table; a ticket that
    was never acknowledged may hold anything sent.
    """
    stored = {
        row["id"]: int((row["category"] or "n 0").removeprefix("n ")) for row in rows
    }
    return [
        (ticket_id, found["acknowledged"].get(ticket_id, 0), stored[ticket_id], last)
        for ticket_id, last in found["sent"].items()
        if not found["acknowledged"].get(ticket_id, 0) <= stored[ticket_id] <= last
    ]


def cpu(server):
    """Return the CPU seconds of all processes of a server."""
    ticks = 0
    for pid in (server.process.pid, *server.workers()):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory(server):
    """Return the proportional set size of all processes of a server, in MiB."""
    total = 0
    for pid in (server.process.pid, *server.workers()):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += int(re.search(r"^Pss:\s+(\d+)", rollup, re.MULTILINE)[1])
    return total / 1024
