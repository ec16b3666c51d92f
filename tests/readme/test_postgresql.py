"""The README's part about PostgreSQL, followed command by command on a host."""

import re
import shutil

import pytest

from tests.helpers.contract import TICKETS
from tests.helpers.readme import commands, texts

pytestmark = [
    pytest.mark.database("postgresql"),
    pytest.mark.skipif(
        not all(map(shutil.which, ("psql", "pg_dump", "sqlite3"))),
        reason="needs psql(1), pg_dump(1) and sqlite3(1)",
    ),
]
STOP = "systemctl stop ticketsvc.service ticketsvc.socket"
START = "systemctl start ticketsvc.socket ticketsvc.service"


def set_database(host, url):
    """Edit the settings as the README says."""
    (line,) = texts("PostgreSQL")
    assert re.fullmatch(r'DATABASE_URL="[^"]+"\n', line)
    settings = host.path("/etc/ticketsvc.env")
    text = re.sub(
        '(?m)^DATABASE_URL=".*"$', f'DATABASE_URL="{url}"', settings.read_text()
    )
    settings.write_text(text)


def everything(host):
    """Return all tickets with their versions."""
    tickets = host.request("GET", TICKETS).json
    return [
        (each, host.request("GET", f"{TICKETS}/{each['id']}/history").json)
        for each in tickets
    ]


@pytest.fixture
def filled(host):
    """The installed service on SQLite, with three tickets of which two have changed."""
    texts_of_people = ('He said "no", twice', "two\nlines, and a comma", "ümläut\\n\t")
    for number, text in enumerate(texts_of_people, 1):
        body = {"user_description": text, "confidence_score": number / 10}
        assert host.request("POST", TICKETS, body).status == 201
    for ticket_id in (1, 2):
        body = {"status": "closed", "ai_suggested_response": 'a,\r\n"b"'}
        assert host.request("PATCH", f"{TICKETS}/{ticket_id}", body).status == 200
    return host


def move(host, url):
    """Follow "From SQLite to PostgreSQL"."""
    host.run(STOP)
    set_database(host, url)
    host.follow("From SQLite to PostgreSQL")
    host.run(START)


def test_tickets_move_from_sqlite_to_postgresql(filled, postgresql_url):
    before = everything(filled)
    move(filled, postgresql_url)
    assert everything(filled) == before
    body = {"user_description": "x"}
    assert filled.request("POST", TICKETS, body).json["id"] == 4
    reply = filled.request("PATCH", f"{TICKETS}/1", {"category": "bug"})
    assert reply.status == 200
    history = filled.request("GET", f"{TICKETS}/1/history").json
    assert [each["version"] for each in history] == [3, 2, 1]


def test_a_dump_is_restored(filled, postgresql_url):
    """M6: with the tools that its error names."""
    move(filled, postgresql_url)
    before = everything(filled)
    filled.run("install -d /mnt/backups/ticketsvc")
    dump, restore = (block.text for block in commands("Dump and restore"))
    filled.run(dump)
    (made,) = filled.path("/mnt/backups/ticketsvc").iterdir()
    made.rename(made.with_name("tickets-20261124-031500.sql"))
    for ticket_id in (1, 2, 3):
        body = {"status": "ai_resolved"}
        assert filled.request("PATCH", f"{TICKETS}/{ticket_id}", body).status == 200
    filled.run(restore)
    assert everything(filled) == before
    reply = filled.request("PATCH", f"{TICKETS}/3", {"category": "bug"})
    assert reply.status == 200
