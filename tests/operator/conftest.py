"""A database of an older version."""

from contextlib import closing
from pathlib import Path

import pytest

from tests.helpers.databases import connect, drop_tables

FOLDER = Path(__file__).parent


@pytest.fixture
def load_old():
    """Return a function that puts an old database in the place of what is at a URL."""

    def load(url):
        on_sqlite = url.startswith("sqlite")
        script = FOLDER / (
            "0672aee_sqlite.sql" if on_sqlite else "0672aee_postgresql.sql"
        )
        with closing(connect(url)) as other:
            drop_tables(other.execute_sql)
            connection = other.connection()
            # Both take several statements at once.
            run = connection.executescript if on_sqlite else connection.execute
            run(script.read_text("utf-8"))
        return url

    return load
