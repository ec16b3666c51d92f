"""Followers of the feed of changes, and transactions by hand for them to wait for."""

import http.client
import random
import re
import threading
from contextlib import closing, suppress

from tests.helpers.databases import connect, execute

CHANGES = "/api/v1/changes"
LINK = re.compile('<(.+)>; rel="next"')


def link(response):
    """Return the path of the next page, from a response of a test client."""
    assert response.status_code == 200
    return LINK.fullmatch(response.headers["Link"])[1]


def ids(response):
    return [each["id"] for each in response.json]


def pages(client, path=CHANGES):
    """Return the ids of each page until an empty one, and the path to go on with."""
    found = []
    while True:
        response = client.get(path)
        path = link(response)
        if response.json == []:
            return found, path
        found.append(ids(response))


class Follower:
    """A copy of the tickets, {id: ticket}, that is kept by reading page after page."""

    def __init__(self, server, limit=None):
        self._server = server
        self._path = CHANGES if limit is None else f"{CHANGES}?limit={limit}"
        self.copy = {}
        self.statuses = []

    def read_page(self):
        """Read a page into the copy; return its tickets, or None if it is no 200."""
        reply = self._server.request("GET", self._path)
        self.statuses.append(reply.status)
        if reply.status != 200:
            return None

        self._path = LINK.fullmatch(reply.headers["Link"])[1]
        for ticket in reply.json:
            if "deleted" in ticket:
                self.copy.pop(ticket["id"], None)
            else:
                self.copy[ticket["id"]] = ticket
        return reply.json

    def read_until(self, is_over):
        """Read pages until that is set, through kills of workers and answers of 503."""
        while not is_over.is_set():
            with suppress(OSError, http.client.HTTPException):
                self.read_page()

    def read_to_end(self):
        """Read pages until there is nothing new."""
        while self.read_page() != []:
            pass

    def differences(self, rows):
        """Return the ids of tickets that the rows of the table have otherwise."""
        table = {row["id"]: row for row in rows}
        wrong = self.copy.keys() ^ table.keys()
        for ticket_id in self.copy.keys() & table.keys():
            ticket = self.copy[ticket_id]
            row = table[ticket_id]
            names = row.keys() & ticket.keys()
            if {name: row[name] for name in names} != {
                name: ticket[name] for name in names
            }:
                wrong.add(ticket_id)
        return sorted(wrong)


def write_by_hand(url, is_over, tickets, number):
    """Run transactions on a connection past the service until `is_over` is set.

    Each changes one of `tickets`, or files one, perhaps to delete it later, pauses
    before COMMIT, and is sometimes rolled back.
    """
    chance = random.Random(number)
    filed = []
    with closing(connect(url)) as other:
        while not is_over.is_set():
            kept = list(filed)
            execute(other, "BEGIN")
            action = chance.choice(("change", "file", "delete"))
            if action == "change":
                ticket_id = chance.choice(tickets)
                change = f"UPDATE ticket SET status = 'closed' WHERE id = {ticket_id}"
                execute(other, change)
            elif action == "file" or not filed:
                [row] = execute(
                    other,
                    "INSERT INTO ticket (user_description, status) "
                    "VALUES ('by hand', 'closed') RETURNING id",
                )
                kept.append(row["id"])
            else:
                ticket_id = kept.pop(chance.randrange(len(kept)))
                execute(other, f"DELETE FROM ticket WHERE id = {ticket_id}")

            is_over.wait(chance.random() * 0.05)
            if chance.random() < 0.3:
                execute(other, "ROLLBACK")
            else:
                execute(other, "COMMIT")
                filed = kept
            is_over.wait(chance.random() * 0.01)


def start_thread(work, *arguments):
    thread = threading.Thread(target=work, args=arguments)
    thread.start()
    return thread
