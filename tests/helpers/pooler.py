"""PgBouncer between the service and the server, as hosted databases have it."""

import os
import shutil
import signal
import socket
import subprocess
from contextlib import contextmanager, suppress
from urllib.parse import unquote, urlsplit

import pytest

from tests.helpers.server import free_port
from tests.helpers.timing import wait_for

CONFIGURATION = """\
[databases]
* = host={server.hostname} port={server.port} user={user} password='{password}'

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
ignore_startup_parameters = {ignored}
"""


@contextmanager
def pgbouncer(folder, url, mode="transaction", size=3, ignored=""):
    """Run PgBouncer before the server of `url`; give the URL that leads through it."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("needs pgbouncer")
    server = urlsplit(url)
    port = free_port()
    configuration = folder / f"pgbouncer-{port}.ini"
    configuration.write_text(
        CONFIGURATION.format(
            server=server,
            user=unquote(server.username),
            password=unquote(server.password).replace("'", "''"),
            port=port,
            mode=mode,
            size=size,
            ignored=ignored,
        )
    )

    command = [program, str(configuration)]
    if os.getuid() == 0:  # It refuses to run as root.
        command[1:1] = ["-u", "nobody"]
    with (folder / f"pgbouncer-{port}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def accepts():
        assert process.poll() is None, "PgBouncer ended at its start"
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return True

    try:
        wait_for(accepts, "PgBouncer does not listen")
        yield server._replace(netloc=f"anybody:any@127.0.0.1:{port}").geturl()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
