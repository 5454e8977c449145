"""A store's folder as another program, or an earlier version of this one, left it."""

from pathlib import Path

from chdb import connect

from spanloop_store.migrate import split_statements

SNAPSHOTS = Path(__file__).parent / "snapshots"


def fill(folder: Path, snapshot: str) -> None:
    """Runs a snapshot in a fresh engine that knows nothing of Spanloop, and closes it."""
    (folder / "engine").mkdir(parents=True)
    connection = connect(str(folder / "engine"))
    try:
        for statement in split_statements((SNAPSHOTS / f"{snapshot}.sql").read_text(encoding="utf-8")):
            connection.query(statement, "Null")
    finally:
        connection.close()
