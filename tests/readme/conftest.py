"""A host on which the README's commands for the operator run as they stand there."""

import pytest

from tests.helpers.host import Host


@pytest.fixture
def bare_host(tmp_path):
    """A host with a clone of this repository, and no more."""
    host = Host(tmp_path)
    yield host
    host.kill()


@pytest.fixture
def host(bare_host):
    """A host on which the service was installed as the README says, and runs."""
    bare_host.follow("systemd")
    return bare_host
