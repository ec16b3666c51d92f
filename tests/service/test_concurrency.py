"""Several clients at once, through the running service: P1 and C2."""

import threading

import pytest

from tests.helpers.contract import DESCRIPTION, TICKETS, assert_version
from tests.helpers.timing import together

PATCHES = 200
ROUNDS = 20


@pytest.fixture
def ticket_id(server):
    return server.post().json["id"]


def test_patches_of_different_fields_are_both_there_every_time(server, ticket_id):
    """P1: two clients, one field each, 200 times at the same moment."""
    barrier = threading.Barrier(2, timeout=30)
    fields = ["category", "ai_suggested_response"]

    def client(number):
        connection, field, lost = server.connect(), fields[number], []
        for turn in range(PATCHES):
            barrier.wait()
            value = f"{field} {turn}"
            reply = server.patch(ticket_id, {field: value}, connection=connection)
            assert reply.status == 200
            barrier.wait()
            stored = server.get(ticket_id, connection=connection).json
            lost += [name for name in fields if stored[name] != f"{name} {turn}"]
        connection.close()
        return lost

    assert together(2, client) == [[], []]


def test_every_concurrent_patch_has_a_version_of_its_own(server, ticket_id):
    """C1, P1, V2: eight clients on one ticket; as many tags, and versions kept, as
    writes.
    """

    def client(number):
        connection = server.connect()
        replies = [
            server.patch(
                ticket_id, {"category": f"{number}.{turn}"}, connection=connection
            )
            for turn in range(50)
        ]
        connection.close()
        return [reply.headers["ETag"] for reply in replies]

    tags = [tag for tags in together(8, client) for tag in tags]
    assert len(set(tags)) == len(tags) == 400
    assert_version(server.get(ticket_id), 401)
    history = server.request("GET", f"{TICKETS}/{ticket_id}/history?limit=1000").json
    assert [each["version"] for each in history] == list(range(401, 0, -1))


def test_of_sixteen_patches_with_one_tag_one_applies(server, ticket_id):
    """C2: one 200 and fifteen 412, every round."""
    connections = [server.connect() for _ in range(16)]
    etag = server.get(ticket_id).headers["ETag"]
    for _ in range(ROUNDS):
        replies = together(
            16,
            lambda number, etag=etag: server.patch(
                ticket_id,
                {"category": f"client {number}"},
                headers={"If-Match": etag},
                connection=connections[number],
            ),
        )
        statuses = [reply.status for reply in replies]
        assert sorted(statuses) == [200] + [412] * 15
        winner = statuses.index(200)
        stored = server.get(ticket_id)
        assert stored.json["category"] == f"client {winner}"
        etag = stored.headers["ETag"]
        assert etag == replies[winner].headers["ETag"]
    for connection in connections:
        connection.close()


def test_concurrent_creations_get_ids_of_their_own(server):
    """O2."""

    def client(number):
        connection = server.connect()
        body = {"user_description": f"{DESCRIPTION} {number}"}
        replies = [server.post(body, connection=connection) for _ in range(25)]
        connection.close()
        return [(reply.status, reply.headers["Location"]) for reply in replies]

    answers = [answer for answers in together(8, client) for answer in answers]
    assert {status for status, _ in answers} == {201}
    assert {location for _, location in answers} == {
        f"{TICKETS}/{n}" for n in range(1, 201)
    }


def test_sixteen_at_once_file_one_ticket(make_server):
    """O5: through two services on one database."""
    servers = [make_server().start(), make_server().start()]
    for turn in range(5):
        replies = together(
            16,
            lambda number, turn=turn: servers[number % 2].post(
                {"user_description": "x"}, headers={"Idempotency-Key": f"k-{turn}"}
            ),
        )
        assert sorted(reply.status for reply in replies) == [200] * 15 + [201]
        assert len({reply.headers["Location"] for reply in replies}) == 1
    assert len(servers[0].request("GET", TICKETS).json) == 5


@pytest.mark.database("sqlite")
def test_a_repeat_at_the_same_moment_uses_up_no_id(server):
    """O5: sixteen of each key at once, and the ids stay consecutive."""
    for turn in range(1, 4):
        headers = {"Idempotency-Key": f"k-{turn}"}
        body = {"user_description": "x"}
        replies = together(16, lambda _, h=headers, b=body: server.post(b, headers=h))
        assert sorted(reply.status for reply in replies) == [200] * 15 + [201]
        assert {reply.json["id"] for reply in replies} == {turn}
    assert server.post().json["id"] == 4
