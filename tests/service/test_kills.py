"""The versions of tickets after the service was killed: V2."""


def test_kills_lose_no_version_of_an_acknowledged_patch(server, start_load, full, sql):
    """V2, E4: and none is there twice."""
    server.fill(64)
    for _ in range(20 if full else 3):
        load = start_load(server, 16, 64)
        server.wait_for_answers(200)
        server.kill()
        found = load.end()
        server.start()
        kept = sql(
            "SELECT ticket_id, version, category FROM ticket_version "
            "UNION ALL SELECT id, version, category FROM ticket ORDER BY 1, 2"
        )
        categories, versions = {}, {}
        for each in kept:
            categories.setdefault(each["ticket_id"], []).append(each["category"])
            versions.setdefault(each["ticket_id"], []).append(each["version"])
        assert all(each == list(range(1, len(each) + 1)) for each in versions.values())
        assert found["acknowledged"]
        # A load sends n 1, n 2, … to each ticket, so that all up to the last one are
        # there.
        for ticket_id, number in found["acknowledged"].items():
            expected = [f"n {n}" for n in range(1, number + 1)]
            begun = (
                len(categories[ticket_id])
                - categories[ticket_id][::-1].index("n 1")
                - 1
            )
            assert categories[ticket_id][begun : begun + number] == expected
