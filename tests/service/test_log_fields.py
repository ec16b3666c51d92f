"""Nothing that a request carries adds a line to the log or moves a field: E12."""

from tests.helpers.contract import TICKETS, once

pytestmark = once

FIELDS = 9  # Time, method, path, status, bytes, milliseconds, address, name, id

FORWARDED = {
    "192.0.2.7,\t192.0.2.8": "192.0.2.8",
    "192.0.2.7, 192.0.2.8 ": "192.0.2.8",
    "192.0.2.8\t,": "-",
    "192.0.2.8\talice": "192.0.2.8?alice",
    "192.0.2.8 alice": "192.0.2.8?alice",
    "a\x85b\xa0c\xe9": "a?b?c?",
    "2001:db8::1": "2001:db8::1",
    "x" * 5000: "x" * 61 + "...",
}

PATHS = {
    "/" + "x" * 4000: "/" + "x" * 196 + "...",
    f"{TICKETS}/1%0afake": f"{TICKETS}/1%0afake",
    f"{TICKETS}/1%0d%0afake": f"{TICKETS}/1%0d%0afake",
    f"{TICKETS}/1%09%20fake": f"{TICKETS}/1%09%20fake",
    f"{TICKETS}/1%e2%80%a8fake": f"{TICKETS}/1%e2%80%a8fake",
}


def fields_of(server, request_id):
    """Return the fields of the line that ends with this id."""
    server.wait_for_log(f" {request_id}\n")
    (line,) = [each for each in server.log.split("\n") if each.endswith(request_id)]
    return line.split()


def test_a_forwarded_address_is_one_short_field(server):
    """E12."""
    for number, (forwarded, address) in enumerate(FORWARDED.items(), 100):
        request_id = f"forwarded-{number}"
        headers = {"X-Forwarded-For": forwarded, "X-Request-ID": request_id}
        assert server.request("GET", TICKETS, headers=headers).status == 200
        fields = fields_of(server, request_id)
        assert len(fields) == FIELDS
        assert fields[-3:] == [address, "-", request_id]


def test_a_path_is_one_short_field(server):
    """E12."""
    for number, (path, logged) in enumerate(PATHS.items(), 100):
        request_id = f"path-{number}"
        headers = {"X-Request-ID": request_id}
        assert server.request("GET", path, headers=headers).status == 404
        fields = fields_of(server, request_id)
        assert len(fields) == FIELDS
        assert fields[2] == logged
