"""A bounded load of PATCHes: so many keep-alive clients, then one JSON object about it.

It ends after so many seconds, or at SIGTERM. Client k of n owns the tickets k + 1, k +
1 + n, …, so that what was last sent to a ticket and what was last acknowledged for it
is known, whatever happens to the service meanwhile.
"""

import argparse
import asyncio
import collections
import contextlib
import itertools
import json
import signal
import time

LAST_ANSWERS = 30  # seconds that they may take after the last request


class Client(asyncio.Protocol):
    """One connection at a time, one request at a time."""

    def __init__(self, load, tickets):
        self.load = load
        self.tickets = itertools.cycle(tickets)
        self.waits = False

    def connection_made(self, transport):
        self.transport = transport
        self.received = b""
        self.send()

    def send(self):
        if self.load.over.is_set():
            self.transport.close()
            return
        self.ticket = next(self.tickets)
        self.number = self.load.sent.get(self.ticket, 0) + 1
        self.load.sent[self.ticket] = self.number
        body = b'{"category": "n %d"}' % self.number
        self.waits = True
        self.transport.write(self.load.head % (self.ticket, len(body)) + body)

    def data_received(self, data):
        self.received += data
        head, separator, body = self.received.partition(b"\r\n\r\n")
        if not separator:
            return
        head = head.lower()
        start = head.find(b"content-length:") + len(b"content-length:")
        if len(body) < int(head[start:].split(b"\r", 1)[0]):
            return
        self.received = b""
        self.waits = False
        self.load.answered(self, int(head[9:12]), body)
        if b"connection: close" not in head:
            self.send()

    def connection_lost(self, error):
        if self.waits:
            self.load.failures["cut" if self.received else "unanswered"] += 1
            self.waits = False
        if not self.load.once:
            self.load.connect_soon(self)


class Load:
    def __init__(self, port, clients, seconds, tickets, once):
        self.port, self.clients, self.seconds, self.once = port, clients, seconds, once
        self.tickets = range(1, 1 + max(tickets, clients))
        self.head = (
            b"PATCH /api/v1/tickets/%d HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        )
        self.sent, self.acknowledged, self.statuses = {}, {}, {}
        self.tasks = set()
        self.failures = collections.Counter()

    def answered(self, client, status, body):
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if not body.startswith(b"{"):
            self.failures["not json"] += 1
        if status == 200:
            self.acknowledged[client.ticket] = client.number

    def connect_soon(self, client):
        task = asyncio.ensure_future(self.connect(client))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def connect(self, client):
        while not self.over.is_set():
            try:
                await asyncio.get_running_loop().create_connection(
                    lambda: client, "127.0.0.1", self.port
                )
                return
            except OSError:
                self.failures["refused"] += 1
                await asyncio.sleep(0.05)

    async def run(self):
        self.over = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.over.set)
        for number in range(self.clients):
            self.connect_soon(Client(self, self.tickets[number :: self.clients]))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.over.wait(), self.seconds)
        self.over.set()
        deadline = time.monotonic() + LAST_ANSWERS
        while (self.tasks or self.waiting()) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        return {
            "statuses": self.statuses,
            "failures": self.failures,
            "sent": self.sent,
            "acknowledged": self.acknowledged,
        }

    def waiting(self):
        answered = sum(self.statuses.values())
        failed = self.failures["cut"] + self.failures["unanswered"]
        return answered + failed < sum(self.sent.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--tickets", type=int, default=1000)
    parser.add_argument("--once", action="store_true", help="do not connect again")
    print(json.dumps(asyncio.run(Load(**vars(parser.parse_args())).run())))


if __name__ == "__main__":
    main()
