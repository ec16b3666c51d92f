"""What is done to a process from outside: strace attached, its limits lowered."""

import contextlib
import resource
import shutil
import subprocess

import pytest

SYNCS = "fdatasync,fsync"


def needs_strace():
    """Skip the test where strace(1) is missing."""
    if not shutil.which("strace"):
        pytest.skip("needs strace(1)")


def strace(*options, output="/dev/null"):
    """Return the command that follows every thread, to be completed by a command or by
    -p.
    """
    expressions = [part for option in options for part in ("-e", option)]
    return ["strace", "-f", "-o", str(output), *expressions]


@contextlib.contextmanager
def attached(pids, *options, outputs=None):
    """Attach strace with these -e options to each process, as long as the context
    lasts.

    `outputs` are the files of the traces, one for each process; without them nothing is
    kept.
    """
    needs_strace()
    with contextlib.ExitStack() as stack:
        for pid, output in zip(pids, outputs or ["/dev/null"] * len(pids), strict=True):
            command = [*strace(*options, output=output), "-p", str(pid)]
            tracer = subprocess.Popen(command, stderr=subprocess.PIPE)
            stack.callback(detach, tracer)
            assert b"attached" in tracer.stderr.readline()
        yield


def detach(tracer):
    """End an strace, which lets its process go on untraced."""
    tracer.terminate()
    tracer.communicate()


@contextlib.contextmanager
def limited(pids, limit, value):
    """Lower a soft limit of processes, as in limited(pids, resource.RLIMIT_FSIZE,
    2**18).

    It is raised again at the end.
    """
    before = {pid: resource.prlimit(pid, limit) for pid in pids}
    try:
        for pid, (_, hard) in before.items():
            resource.prlimit(pid, limit, (value, hard))
        yield
    finally:
        for pid, limits in before.items():
            # One of them may have ended meanwhile.
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, limit, limits)
