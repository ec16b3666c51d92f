"""The names of gunicorn that gunicorn.conf.py uses without a promise to keep them."""

import ast
import logging
import os
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import gunicorn
import pytest
from gunicorn import util
from gunicorn.arbiter import Arbiter
from gunicorn.config import KNOWN_SETTINGS, Config
from gunicorn.glogging import Logger
from gunicorn.http import errors, wsgi
from gunicorn.http.unreader import SocketUnreader
from gunicorn.sock import TCPSocket
from gunicorn.workers import gthread
from gunicorn.workers.gthread import TConn, ThreadWorker

from tests.helpers.contract import ROOT

SOURCE = (ROOT / "gunicorn.conf.py").read_text()
LISTED = re.findall(r"^# (\w+)\.(\w+): (to .+)$", SOURCE, re.MULTILINE)

SETTINGS = {setting.name for setting in KNOWN_SETTINGS}
# The variables of gunicorn.conf.py that hold something of gunicorn's.
VARIABLES = {
    "conn",
    "errors",
    "gthread",
    "listener",
    "req",
    "resp",
    "self",
    "server",
    "util",
    "worker",
}


@pytest.fixture
def owners():
    """What the listed names belong to: instances, for attributes set in __init__."""
    config = Config()
    logger = Logger(config)
    worker = ThreadWorker(1, os.getpid(), [], None, 30, config, logger)
    listener = TCPSocket(("127.0.0.1", 0), config, logger)
    ours, theirs = socket.socketpair()
    with closing(worker.tmp), closing(listener), ours, theirs:
        theirs.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connection = TConn(config, ours, "", ("127.0.0.1", 80))
        connection.init()
        request = next(connection.parser)
        response, environ = wsgi.create(request, ours, "", ("127.0.0.1", 80), config)
        response.start_response("200 OK", [])
        yield {
            "Arbiter": Arbiter,
            "Logger": logger,
            "Parser": connection.parser,
            "Request": request,
            "Response": response,
            "SocketUnreader": connection.parser.unreader,
            "TCPSocket": listener,
            "TConn": connection,
            "ThreadWorker": worker,
            "environ": environ,
            "errors": errors,
            "gthread": gthread,
            "util": util,
        }


def find_missing(owners):
    """Return a sentence for each listed name that the installed gunicorn lacks."""
    missing = []
    for owner, name, purpose in LISTED:
        found = owners[owner]
        exists = name in found if isinstance(found, dict) else hasattr(found, name)
        if not exists:
            missing.append(
                f"gunicorn {gunicorn.__version__} has no {owner}.{name}, "
                f"which gunicorn.conf.py uses {purpose}"
            )
    return missing


def root_of(node):
    """Return the variable that an expression like conn.parser.unreader begins with."""
    while isinstance(node, (ast.Attribute, ast.Call)):
        if isinstance(node, ast.Call):
            is_super = isinstance(node.func, ast.Name) and node.func.id == "super"
            return "self" if is_super else None
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def names_used(source):
    """Return the names of gunicorn in a source: attributes, imports and overrides."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    used = set()
    for node in nodes:
        if isinstance(node, ast.Attribute) and root_of(node) in VARIABLES:
            used.add(node.attr)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("gunicorn"):
            used.update(alias.name for alias in node.names)

    own = set()
    for node in nodes:
        if isinstance(node, ast.FunctionDef):
            own.add(node.name)
        if isinstance(node, ast.ClassDef):
            assignments = [each for each in node.body if isinstance(each, ast.Assign)]
            own.update(each.targets[0].id for each in assignments)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            target = node.targets[0]
            if isinstance(target.value, ast.Name) and target.value.id in (
                "self",
                "conn",
            ):
                own.add(target.attr)

    theirs = {*dir(ThreadWorker), *dir(Logger), *dir(SocketUnreader)}
    overridden = {name for name in own & theirs if not name.startswith("__")}
    standard_library = {
        *dir(socket.socket),
        *dir(logging.Logger),
        *dir(ThreadPoolExecutor),
    }
    return (used - own - SETTINGS - standard_library) | overridden


def find_unlisted(source):
    listed = {name for _, name, _ in LISTED} | {owner for owner, _, _ in LISTED}
    return sorted(names_used(source) - listed)


def test_the_installed_gunicorn_has_every_listed_name(owners):
    assert len(LISTED) > 30
    assert not find_missing(owners), "\n".join(find_missing(owners))


def test_a_missing_name_is_told_in_a_sentence(owners, monkeypatch):
    monkeypatch.delattr(ThreadWorker, "finish_request")
    assert find_missing(owners) == [
        f"gunicorn {gunicorn.__version__} has no ThreadWorker.finish_request, "
        "which gunicorn.conf.py uses to close connections in threads of their own"
    ]


def test_every_name_that_is_used_is_listed():
    unlisted = find_unlisted(SOURCE)
    assert not unlisted, f"gunicorn.conf.py uses {unlisted}: list them at its top"


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("conn.parser.finish_body()", "finish_body"),
        ("super().run()", "run"),
        ("class worker_class:\n    def accept(self):\n        pass", "accept"),
        ("from gunicorn.workers.gthread import TConn2", "TConn2"),
    ],
    ids=["attribute", "super", "override", "import"],
)
def test_a_name_that_is_not_listed_is_found(code, name):
    assert find_unlisted(f"{SOURCE}\n{code}\n") == [name]


def test_every_listed_name_is_used():
    for _, name, _ in LISTED:
        assert len(re.findall(rf"\b{name}\b", SOURCE)) > 1, f"{name} is not used"
