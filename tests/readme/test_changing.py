"""D1, D2: the README's "Changing the service", followed on a copy of the service."""

import re
import shutil
import textwrap

import pytest

from tests.helpers.contract import ROOT, TICKETS
from tests.helpers.databases import connect
from tests.helpers.server import SERVICE

# What an older version stored, on each kind of database.
STORED = ROOT / "tests" / "operator"


# A field of a class: up to the end of its line, or to the parenthesis that closes it.
FIELD = r"(?m)^    \w+ = (?:\S.*\($(?:\n        .*)+\n    \)|.*\)$)"


def section(heading):
    """Return what stands under a heading of the README."""
    readme = (ROOT / "README.md").read_text("utf-8")
    return readme.partition(f"\n### {heading}\n")[2].partition("\n##")[0]


def steps(heading):
    """Return (the text, the code) of each step with code under a heading."""
    pattern = r"^\d+\. (.*?)\n   ```python\n(.*?)   ```$"
    found = re.findall(pattern, section(heading), re.MULTILINE | re.DOTALL)
    assert found
    return [(text, textwrap.dedent(code)) for text, code in found]


def names_in(text):
    return re.findall("`([A-Za-z_.]+)`", text)


@pytest.fixture
def copy(tmp_path):
    """A copy of the service, in which the steps are followed."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in (*ROOT.glob("*.py"), ROOT / "openapi.json"):
        shutil.copy(path, folder)
    return folder


def column_with_default():
    """Return the column that the README gives for a field that is never null."""
    return re.search(r"(?ms)^```python\n(.*?)^```$", section("Adding a field"))[1]


def add_field(copy, is_never_null=False):
    """Add each step's line after the last field of the classes that the step names."""
    for text, code in steps("Adding a field"):
        file_name, *classes = names_in(text)
        if is_never_null and file_name == "models.py":
            code = column_with_default()
        elif is_never_null:
            code = code.replace(", allow_none=True", "")
        path = copy / file_name
        source = path.read_text("utf-8")
        for name in classes:
            head, body = source.split(f"\nclass {name}(", 1)
            body, rest = re.split(r"(?=\n\n\n)", body, maxsplit=1)
            last = list(re.finditer(FIELD, body))[-1].end()
            field = textwrap.indent(code.strip(), "    ")
            body = f"{body[:last]}\n{field}{body[last:]}"
            source = f"{head}\nclass {name}({body}{rest}"
        path.write_text(source, "utf-8")


def widen_limits(copy):
    """Put each line of the steps in the place of the line that gives the same name."""
    for text, code in steps("Widening a limit"):
        path = copy / names_in(text)[0]
        source = path.read_text("utf-8")
        for line in code.splitlines():
            name = line.partition(" = ")[0]
            source, count = re.subn(rf"^{name} = .*$", line, source, flags=re.MULTILINE)
            assert count == 1
        path.write_text(source, "utf-8")


@pytest.fixture(params=["new", "39c0897", "0672aee"])
def old_database(request, database_url, kind):
    """A database without a table, or that of an older version with its tickets."""
    if request.param != "new":
        script = (STORED / f"{request.param}_{kind}.sql").read_text("utf-8")
        other = connect(database_url)
        connection = other.connection()
        run = connection.executescript if kind == "sqlite" else connection.execute
        run(script)
        other.close()
    return request.param


def test_a_field_that_was_added_is_written_with_its_history(
    make_server, copy, old_database
):
    """D1, D2."""
    add_field(copy)
    server = make_server(SERVICE, copy).start()
    ticket_id = server.post({"user_description": "x", "priority": "low"}).json["id"]
    assert server.patch(ticket_id, {"priority": "high"}).json["priority"] == "high"
    refused = server.patch(ticket_id, {"priority": "none"})
    assert list(refused.json["fields"]) == ["priority"]
    history = server.request("GET", f"{TICKETS}/{ticket_id}/history").json
    assert [each["priority"] for each in history] == ["high", "low"]


def test_a_field_that_is_never_null_has_its_default(make_server, copy, old_database):
    """D1, D2."""
    add_field(copy, is_never_null=True)
    server = make_server(SERVICE, copy).start()
    ticket_id = server.post().json["id"]
    assert server.get(ticket_id).json["priority"] == "low"
    assert server.patch(ticket_id, {"priority": "high"}).json["priority"] == "high"
    assert server.patch(ticket_id, {"priority": None}).status == 400
    assert server.post({"user_description": "x", "priority": None}).status == 400
    if old_database != "new":
        assert server.get(1).json["priority"] == "low"


def test_a_limit_that_was_widened_holds_on_an_old_database(
    make_server, copy, old_database
):
    """D1."""
    widen_limits(copy)
    server = make_server(SERVICE, copy).start()
    ticket_id = 1
    if old_database == "new":
        ticket_id = server.post({"user_description": "x"}).json["id"]
    changes = {"category": "x" * 200, "status": "waiting_customer"}
    changed = server.patch(ticket_id, changes)
    assert changed.status == 200
    assert changed.json["status"] == "waiting_customer"
    assert server.patch(ticket_id, {"category": "x" * 201}).status == 400
    history = server.request("GET", f"{TICKETS}/{ticket_id}/history").json
    assert [each["status"] for each in history[:2]] == [
        "waiting_customer",
        history[1]["status"],
    ]
