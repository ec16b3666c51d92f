"""A host on which the README's commands for the operator run as they stand there."""

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

from tests.helpers.contract import ROOT, TIMESTAMP
from tests.helpers.readme import commands
from tests.helpers.server import Server
from tests.helpers.timing import wait_for

# The paths that lie below the root of such a host.
PATHS = re.compile(
    r"(?<![\w.-])/(?=etc/(?:ticketsvc|systemd|fstab)|usr/local/sbin|usr/sbin/runuser"
    r"|srv/ticketsvc|var/lib/ticketsvc|var/log/ticketsvc|mnt\b|root\b)"
)
BACKUP_NAME = re.compile(r"tickets-\d{8}-\d{6}\.db")
SIZE = re.compile(r"\d+\.\d MB")
# What the tests' own folders hold is not the service's.
SOURCES = ("*.py", "*.json", "*.txt", ".gitignore")

# What belongs to the whole machine is replaced by as little as the README needs.
# Systemd's part is to start the unit with its settings, and to wait for its end.
TOOLS = {
    "useradd": "",
    "journalctl": 'cat "$HOST/journal"',
    "runuser": 'shift 3; exec "$@"',
    "install": """
        arguments=()
        while [ $# -gt 0 ]; do
            if [ "$1" = -o ]; then shift; else arguments+=("$1"); fi
            shift
        done
        PATH=${PATH#*:} exec install "${arguments[@]}"
    """,
    "mount": """
        [ "$1" = "$HOST/var/lib/ticketsvc" ] || exit 0
        mv "$1" "$1.hidden"
        cp -a "$HOST/mnt/new" "$1"
    """,
    "umount": "",
    "systemctl": """
        units=$HOST/etc/systemd/system
        stop() {
            pid=$(cat "$HOST/pid") || return 0
            kill "$pid" 2>/dev/null
            while grep -q . "/proc/$pid/cmdline" 2>/dev/null; do sleep 0.05; done
            rm "$HOST/pid"
        }
        start() {
            mkdir -p "$HOST/var/lib/ticketsvc"
            bind=$(sed -n 's/^ListenStream=//p' "$units/ticketsvc.socket")
            command=$(sed -n 's/^ExecStart=//p' "$units/ticketsvc.service")
            set -a
            . "$(sed -n 's/^EnvironmentFile=//p' "$units/ticketsvc.service")"
            cd "$(sed -n 's/^WorkingDirectory=//p' "$units/ticketsvc.service")" || exit
            eval "exec setsid $command --bind $bind" >>"$HOST/journal" 2>&1 </dev/null &
            echo $! >"$HOST/pid"
            for _ in {1..300}; do
                curl -s -o /dev/null "http://$bind/" && return
                grep -q . "/proc/$!/cmdline" || exit 1
                sleep 0.1
            done
            exit 1
        }
        [[ " $* " == *" ticketsvc.service "* ]] || exit 0
        case $1 in
            stop) stop ;;
            restart) stop; start ;;
            enable | start) start ;;
        esac
    """,
}


class Host:
    """A folder that stands for the root of a host, and the service that runs on it."""

    def __init__(self, folder):
        self.root = folder / "host"
        self.server = Server(folder, {})
        self.tools = self.root / "tools"

        for name in ("etc/systemd/system", "usr/local/sbin", "usr/sbin"):
            (self.root / name).mkdir(parents=True)
        for name in ("mnt/backups", "root", "srv/ticketsvc", "tools"):
            (self.root / name).mkdir(parents=True)
        for name, script in TOOLS.items():
            self.add_tool(name, script)
        shutil.copy(self.tools / "runuser", self.root / "usr/sbin")

        self.folder = self.root / "srv/ticketsvc"
        for pattern in SOURCES:
            for path in ROOT.glob(pattern):
                shutil.copy(path, self.folder)
        (self.folder / ".venv").symlink_to(Path(sys.executable).parent.parent)

    def add_tool(self, name, script):
        """Put a script in the place of a command of the machine."""
        path = self.tools / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    def path(self, name):
        """Return where a path of the README lies."""
        return self.root / name.removeprefix("/")

    def here(self, text):
        """Return a text of the README with the paths and the port of this host."""
        text = PATHS.sub(f"{self.root}/", text)
        return text.replace("127.0.0.1:8000", f"127.0.0.1:{self.server.port}")

    def there(self, text):
        """Return a text as the README shows it, what differs each time replaced."""
        text = text.replace(str(self.root), "").strip()
        text = BACKUP_NAME.sub("(backup)", re.sub(TIMESTAMP, "(time)", text))
        return SIZE.sub("(size)", text)

    def run(self, script, shell="bash", status=0):
        """Run commands of the README; return what they print."""
        path = [self.tools, self.path("/usr/local/sbin"), os.environ["PATH"]]
        run = subprocess.run(
            [shell, "-ec", self.here(script)],
            cwd=self.root,
            env={
                "PATH": ":".join(map(str, path)),
                "HOST": str(self.root),
                "HOME": str(self.root),
                "TZ": os.environ["TZ"],
            },
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert run.returncode == status, run.stdout + run.stderr
        return run.stdout

    def follow(self, section, *numbers, since=None):
        """Run the blocks of a section, or some of them; compare what they print.

        `since` is the time to take in place of the times in the commands.
        """
        for number, block in enumerate(commands(section)):
            if numbers and number not in numbers:
                continue
            text = block.text if since is None else re.sub(TIMESTAMP, since, block.text)
            printed = self.run(text, "bash" if block.language == "bash" else "sh")
            if block.output_language == "text":
                assert self.there(printed) == self.there(block.output)

    def request(self, method, path, body=None, name="alice"):
        """Send a request with the newest token of this name."""
        token = self.tokens(name)[0]
        headers = {"Authorization": f"Bearer {token}"}
        return self.server.request(method, path, body, headers)

    def tokens(self, name):
        """Return the tokens that a name has in the settings."""
        settings = self.path("/etc/ticketsvc.env").read_text()
        return re.findall(rf'[",]{name}:([^,"]*)', settings)

    def kill(self):
        """End every process of the service."""
        try:
            pid = int((self.root / "pid").read_text())
            os.killpg(pid, signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            return
        # Until then a connection is still taken.
        wait_for(self.is_port_closed, "the service still listens")

    def is_port_closed(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.server.port)) != 0

    @property
    def journal(self):
        return (self.root / "journal").read_text()


def is_private(path):
    """Whether nobody but its owner can read a file or a folder."""
    return not stat.S_IMODE(path.stat().st_mode) & 0o077
