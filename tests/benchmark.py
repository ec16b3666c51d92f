"""Measure the service beside the limit: the same UPDATE in a bare WSGI function.

Run as `python tests/benchmark.py`; it needs wrk, since a loader in Python costs about
as much as the service and makes all look alike (one client: 0.88 of the limit in place
of 0.69). All are driven in turn, round by round, with every PATCH a real change; what
is printed are medians over the rounds, and ratios to the limit, which keeps no history.
On two cores, two workers each, WAL and synchronous=FULL, medians of five rounds:

    clients  name         PATCH/s  ratio  p50 ms  p99 ms  ratio  CPU us  ratio  MiB
          1  ticketsvc       1003   0.68     0.9     1.8   1.62     831   1.54   56
          1  limit           1479   1.00     0.5     1.1   1.00     541   1.00   34
         16  ticketsvc       2155   1.17     6.9    15.4   0.53     763   1.73   60
         16  limit           1848   1.00     8.1    29.1   1.00     440   1.00   34
         64  ticketsvc       1822   1.07    32.3    78.6   1.46     930   1.91   67
         64  limit           1700   1.00    37.1    53.8   1.00     488   1.00   34

1,000,000 tickets, and versions of one of them, beside 1,000: throughput 1.01, CPU 1.02,
pages 0.98 to 1.03. The limit shares no sync, which is why many clients are faster than
it.

PostgreSQL's own limit is the same UPDATE in autocommit, with a connection for each of
2 x 8 threads and prepared statements. On two cores that were also busy with other
work, medians of four rounds:

    clients  name         PATCH/s  ratio  p50 ms  p99 ms  ratio  CPU us  ratio  MiB
          1  PostgreSQL       129   0.87     7.5    49.5   0.71    1390   1.72   52
          1  PG limit         148   1.00     5.6    70.0   1.00     809   1.00   52
         16  PostgreSQL       715   0.57    19.9    88.0   1.59    1129   2.43   58
         16  PG limit        1256   1.00    11.2    55.3   1.00     464   1.00   54
         64  PostgreSQL       912   0.75    65.6   184.2   1.07    1049   1.88   61
         64  PG limit        1224   1.00    46.4   171.4   1.00     557   1.00   54

The service keeps a version with each PATCH, needs a second round trip for COMMIT, which
it sends after the answer to the statement, and prepares nothing, because of poolers.
"""

import argparse
import json
import os
import re
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What serves as the limit has nothing of the service in memory.
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from tests.helpers.databases import POSTGRESQL, postgresql_database, run_sql
    from tests.helpers.load import cpu, memory
    from tests.helpers.server import Server

CLIENTS = (1, 16, 64)
TICKETS = 1000
PATH = re.compile("/api/v1/tickets/([0-9]+)")
COLUMNS = (
    "id, user_description, category, ai_suggested_response, confidence_score, status, "
    "created_at, updated_at"
)
UPDATE = (
    "UPDATE ticket SET category = {param}, updated_at = {now}, version = version + 1 "
    f"WHERE id = {{param}} RETURNING {COLUMNS}, version"
)
SQLITE_UPDATE = UPDATE.format(param="?", now="strftime('%Y-%m-%dT%H:%M:%fZ', 'now')")
POSTGRESQL_UPDATE = UPDATE.format(
    param="%s",
    now="to_char(clock_timestamp() AT TIME ZONE 'UTC', "
    """'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')""",
)
# What each service is compared with.
LIMITS = {
    "ticketsvc": "limit",
    "limit": "limit",
    "PostgreSQL": "PG limit",
    "PG limit": "PG limit",
}
WRK_SCRIPT = """
local sent = 0
request = function()
  sent = sent + 1
  local body = string.format('{"category": "n %%d"}', sent)
  local path = "/api/v1/tickets/" .. (sent %% %d + 1)
  return wrk.format("PATCH", path, {["Content-Type"] = "application/json"}, body)
end
done = function(summary, latency)
  print(string.format(
    '{"requests": %%d, "seconds": %%f, "p50": %%f, "p99": %%f, "errors": %%d}',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e6,
    latency:percentile(99) / 1e6, summary.errors.status + summary.errors.timeout))
end
"""


def limit(environ, start_response):
    """Be the least a PATCH can be: one connection of sqlite3 to a process."""
    global _connection
    if _connection is None:
        _connection = sqlite3.connect(
            os.environ["LIMIT_FILE"], isolation_level=None, timeout=5
        )
        _connection.execute("PRAGMA synchronous = full")
    return answer(_connection, SQLITE_UPDATE, environ, start_response)


def postgresql_limit(environ, start_response):
    """Be the same on PostgreSQL: one connection in autocommit to a thread."""
    if not hasattr(_local, "connection"):
        import psycopg

        _local.connection = psycopg.connect(os.environ["LIMIT_URL"], autocommit=True)
    return answer(_local.connection, POSTGRESQL_UPDATE, environ, start_response)


def answer(connection, update, environ, start_response):
    """Run the statement of a request and answer with its row."""
    match = PATH.fullmatch(environ["PATH_INFO"])
    if environ["REQUEST_METHOD"] == "GET":
        row = connection.execute("SELECT 1").fetchone()
    else:
        category = json.loads(environ["wsgi.input"].read())["category"]
        row = connection.execute(update, (category, int(match[1]))).fetchall()[0]
    body = json.dumps(dict(zip(COLUMNS.split(", "), row, strict=False))).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]


_connection = None
_local = threading.local()


def age(service, count):
    """Give the first ticket `count` old versions."""
    service.sql(
        f"""
        WITH RECURSIVE n(i) AS (
            SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}
        )
        INSERT INTO ticket_version (ticket_id, version, status, category, updated_at)
        SELECT 1, i, 'closed', 'n ' || i, '2026-11-24T00:00:00.000Z' FROM n
        """
    )
    service.sql(
        f"UPDATE ticket SET status = 'closed', version = {count + 1} WHERE id = 1"
    )


def drive(service, clients, seconds, folder):
    """Load the service and return its figures; end where an answer was not 200."""
    used = cpu(service)
    script = folder / "patch.lua"
    script.write_text(WRK_SCRIPT % TICKETS)
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "10s"]
    command += ["-s", str(script), f"http://127.0.0.1:{service.port}"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = json.loads(output.splitlines()[-1])
    requests = found["requests"]
    rows = service.sql(f"SELECT id, category FROM ticket WHERE id <= {TICKETS}")
    values = {row["id"]: int((row["category"] or "n 0").split()[1]) for row in rows}
    # wrk sends number n to ticket n % TICKETS + 1 and ends with some unanswered.
    wrong = [
        ticket_id
        for ticket_id, value in values.items()
        if (value and value % TICKETS + 1 != ticket_id)
        or value < requests - clients - 2 * TICKETS
    ]
    if found["errors"] or wrong:
        raise SystemExit(f"{found['errors']} bad answers, {len(wrong)} lost values")
    return {
        "throughput": requests / found["seconds"],
        "p50": found["p50"] * 1000,
        "p99": found["p99"] * 1000,
        "cpu": (cpu(service) - used) / requests * 1e6,
        "memory": memory(service),
    }


def medians(rounds):
    return {
        name: statistics.median(each[name] for each in rounds) for name in rounds[0]
    }


def progress(text):
    print(text, file=sys.stderr, flush=True)


def compare(services, rounds, seconds, folder):
    """Drive the services (a dict) in turn; return {clients: {name: medians}}."""
    figures = {}
    for clients in CLIENTS:
        found = {name: [] for name in services}
        for number in range(rounds):
            for name, service in services.items():
                found[name].append(drive(service, clients, seconds, folder))
                latest = found[name][-1]["throughput"]
                progress(
                    f"{clients} clients, round {number + 1}, {name}: {latest:.0f}/s"
                )
        figures[clients] = {name: medians(each) for name, each in found.items()}
    return figures


PAGES = {
    "first": "tickets?limit=100",
    "last": "tickets?limit=100&before=101",
    "first, closed": "tickets?limit=100&status=closed",
    "last, closed": "tickets?limit=100&status=closed&before=301",
    "first, oldest": "tickets?limit=100&after=0",
    "history": "tickets/1/history?limit=100",
    "last of history": "tickets/1/history?limit=100&before=101",
}


def sizes(start, rounds, seconds, folder):
    """Compare 1,000 tickets, and versions of one of them, with 1,000,000."""
    counts = {"1,000": 1000, "1,000,000": 1_000_000}
    services = {name: start(name).fill(count) for name, count in counts.items()}
    for name, service in services.items():
        age(service, counts[name])
    found = {name: [] for name in services}
    for number in range(rounds):
        for name, service in services.items():
            found[name].append(drive(service, 16, seconds, folder))
            progress(f"round {number + 1}, {name}")
    figures = {name: {**medians(each), "pages": {}} for name, each in found.items()}
    for page, query in PAGES.items():
        times = {name: [] for name in services}
        for _ in range(60):
            for name, service in services.items():
                started = time.perf_counter()
                assert service.request("GET", f"/api/v1/{query}").status == 200
                times[name].append((time.perf_counter() - started) * 1000)
        for name, each in times.items():
            figures[name]["pages"][page] = statistics.median(each)
    return figures


def growth(service):
    """Return how many bytes of the file there are for each version that was kept."""
    service.sql("PRAGMA wal_checkpoint(TRUNCATE)")
    [used] = service.sql(
        "SELECT (page_count - freelist_count) * page_size AS bytes "
        "FROM pragma_page_count, pragma_page_size, pragma_freelist_count"
    )
    [kept] = service.sql("SELECT count(*) AS versions FROM ticket_version")
    return used["bytes"] / kept["versions"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of each load")
    parser.add_argument(
        "--json", action="store_true", help="print the figures for machines"
    )
    parser.add_argument(
        "--skip-sizes", action="store_true", help="leave the large file out"
    )
    arguments = parser.parse_args()
    if not shutil.which("wrk"):
        raise SystemExit(
            "needs wrk: a loader that costs more hides what the service costs"
        )
    with ExitStack() as stack:
        # Not in /tmp, which may be memory, where a sync costs nothing.
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(dir=ROOT / "tests"))
        )

        def start(name, *command, url=None):
            path = folder / f"{name}.db"
            environ = {
                "DATABASE_URL": url or f"sqlite:///{path}",
                "LIMIT_FILE": str(path),
                "LIMIT_URL": url or "",
            }
            server = Server(folder, environ, *command)
            stack.callback(server.start().stop)
            return server

        began = time.perf_counter()
        service = start("ticketsvc")
        figures = {"first answer": time.perf_counter() - began}
        service.fill(TICKETS)
        bare = folder / "limit.db"
        service.sql(f"VACUUM INTO '{bare}'")
        run_sql(f"sqlite:///{bare}", "DROP TRIGGER ticket_version_kept")
        run_sql(f"sqlite:///{bare}", "PRAGMA journal_mode = wal")
        limit = start("limit", "gunicorn benchmark:limit --bind {bind}", ROOT / "tests")
        services = {"ticketsvc": service, "limit": limit}
        if POSTGRESQL:
            url = stack.enter_context(postgresql_database())
            services["PostgreSQL"] = start("PostgreSQL", url=url).fill(TICKETS)
            url = stack.enter_context(postgresql_database())
            start("PG limit", url=url).fill(TICKETS).stop()  # It makes the table.
            run_sql(url, "DROP TRIGGER ticket_version_kept ON ticket")
            command = "gunicorn benchmark:postgresql_limit --threads 8 --bind {bind}"
            services["PG limit"] = start("PG limit", command, ROOT / "tests", url=url)
        rest = arguments.rounds, arguments.seconds, folder
        figures |= {"clients": compare(services, *rest), "growth": growth(service)}
        if not arguments.skip_sizes:
            figures["sizes"] = sizes(start, *rest)
    if arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        report(figures)


def report(figures):
    print(f"first answer {figures['first answer']:.2f} s after the start")
    print(
        "clients  name         PATCH/s  ratio  "
        "p50 ms  p99 ms  ratio  CPU us  ratio  MiB"
    )
    for clients, found in figures["clients"].items():
        for name, f in found.items():
            base = found[LIMITS[name]]
            print(
                f"{clients:>7}  {name:<11} {f['throughput']:>8.0f} "
                f"{f['throughput'] / base['throughput']:>6.2f} "
                f"{f['p50']:>7.1f} {f['p99']:>7.1f} {f['p99'] / base['p99']:>6.2f} "
                f"{f['cpu']:>7.0f} {f['cpu'] / base['cpu']:>6.2f} "
                f"{f['memory']:>4.0f}"
            )
    if "sizes" in figures:
        (small, f), (large, g) = figures["sizes"].items()
        print(
            f"{large} / {small}: PATCH/s {g['throughput'] / f['throughput']:.2f}, ",
            end="",
        )
        print(f"CPU {g['cpu'] / f['cpu']:.2f}, page ", end="")
        print("; ".join(f"{n} {g['pages'][n] / f['pages'][n]:.2f}" for n in f["pages"]))
    print(f"{figures['growth']:.0f} bytes of the file for each version kept")


if __name__ == "__main__":
    main()
