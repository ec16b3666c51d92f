"""What stands in the write-ahead log of SQLite (sqlite.org/fileformat.html, 4.1)."""

from pathlib import Path

HEADER = 32  # bytes, of the log
FRAME_HEADER = 24  # bytes, of each page in it


def number_at(data, offset):
    return int.from_bytes(data[offset : offset + 4], "big")


def resets(path):
    """Return how often the log of a database file began anew."""
    return number_at(Path(f"{path}-wal").read_bytes(), 12)


def commits(path):
    """Return how many commits there are in the log since it last began anew."""
    data = Path(f"{path}-wal").read_bytes()
    salt = data[16:24]
    step = FRAME_HEADER + number_at(data, 8)
    frames = [data[start : start + step] for start in range(HEADER, len(data), step)]
    # The last page of a commit has the size of the database, the others 0.
    return sum(number_at(each, 4) > 0 for each in frames if each[8:16] == salt)
