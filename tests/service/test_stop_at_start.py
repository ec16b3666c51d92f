"""A worker that is told to stop while it starts does stop."""

import signal
import time

from tests.helpers.contract import ROOT, once

pytestmark = once

# gunicorn.conf.py, but a worker takes a second from its fork to its signal handlers.
SLOW_START = f"""
import time

exec(compile(open("{ROOT}/gunicorn.conf.py").read(), "gunicorn.conf.py", "exec"))


class SlowStart(worker_class):
    def init_process(self):
        time.sleep(1)
        super().init_process()


worker_class = SlowStart
"""


def test_a_sigterm_right_after_the_fork_is_not_lost(make_server, tmp_path):
    """Without its own handler, a worker has the master's, which only queues signals."""
    (tmp_path / "slow_start.py").write_text(SLOW_START)
    options = f"-c {tmp_path}/slow_start.py --bind {{bind}}"
    command = f'gunicorn {options} "ticketsvc:create_app()"'
    server = make_server(command, WEB_CONCURRENCY="1")
    server.start(wait=False)
    server.wait_for_log("Booting worker")
    begin = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    assert time.monotonic() - begin < 5
