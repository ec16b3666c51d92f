"""Waiting for something to happen, and doing several things at the same moment."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor


def wait_for(condition, what, timeout=60):
    """Return what `condition()` returns once that is true, or fail."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, f"after {timeout} s: {what}"
        time.sleep(0.02)
    return found


def together(count, work):
    """Run work(0) … work(count - 1) at the same moment and return what they return, in
    order.
    """
    barrier = threading.Barrier(count, timeout=30)

    def run(number):
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))
