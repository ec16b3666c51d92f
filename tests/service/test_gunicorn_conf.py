"""gunicorn.conf.py is read, or the log says that it is not."""

import pytest

from tests.helpers.contract import ROOT, once

pytestmark = once

WARNING = "gunicorn has not read gunicorn.conf.py"


@pytest.mark.parametrize("option", ["--chdir", "--pythonpath"])
def test_a_start_from_another_folder_warns(make_server, tmp_path, option):
    command = f'gunicorn {option} {ROOT} "ticketsvc:create_app()" --bind {{bind}}'
    server = make_server(command, WEB_CONCURRENCY="1")
    server.cwd = tmp_path
    server.start()
    assert server.log.count(WARNING) == 1


def test_a_start_from_the_folder_of_the_service_does_not_warn(server):
    assert WARNING not in server.log
