"""Answers that are SQL: compared by what they give, on a database in memory."""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections import Counter
from typing import Any

from spanloop_trainer.transform.rewards.checks.documents import fenced
from spanloop_trainer.transform.rewards.episode import Episode

_STEPS_A_LOOK = 10_000  # of SQLite's machine between two looks at the clock: under a millisecond
_MAX_BYTES = 16 << 20  # of one value, and of the statement
_READS = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
)


def sql_result(
    episode: Episode,
    *,
    setup: str = "",
    ordered: bool = False,
    timeout_s: float = 5.0,
    max_rows: int = 10_000,
) -> float | None:
    """1 where the answer (or its last fenced block), a query, gives the rows that `expected` gives; else 0.

    Both run on an SQLite database in memory that `setup` made; the answer may only read. Names of columns do not matter, numbers
    are compared to nine digits. An answer that fails, takes too long or gives too many rows is wrong.

    Args:
        setup: SQL that makes the tables; empty: the task's field `setup`.
        ordered: the order of rows matters.
        timeout_s: for each of the two, seconds.
        max_rows: more are not compared.

    `expected` is a query, or the rows as JSON (a list of lists).

    Raises:
        ValueError: there is no setup, or it or `expected` fails.
    """
    if episode.expected is None or episode.status != "ok":
        return None
    script = setup or str(episode.task.get("setup") or "")
    if not script:
        raise ValueError("there is no database: give the option `setup`, or the task a field `setup`")
    connection = sqlite3.connect(":memory:")
    try:
        _bound(connection, timeout_s)
        try:
            connection.executescript(script)
            _read_only(connection)
            expected = _expected(connection, episode.expected, timeout_s, max_rows)
        except sqlite3.Error as error:
            raise ValueError(f"setup or expected fails: {error}") from error
        try:
            given = _rows(connection, fenced(episode.answer or ""), timeout_s, max_rows)
        except (sqlite3.Error, sqlite3.Warning, OverflowError, ValueError):
            return 0.0
    finally:
        connection.close()
    if ordered:
        return float(given == expected)
    return float(Counter(given) == Counter(expected))


def _bound(connection: sqlite3.Connection, timeout_s: float) -> None:
    for limit in (sqlite3.SQLITE_LIMIT_LENGTH, sqlite3.SQLITE_LIMIT_SQL_LENGTH):
        connection.setlimit(limit, _MAX_BYTES)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    _deadline(connection, timeout_s)


def _deadline(connection: sqlite3.Connection, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    connection.set_progress_handler(lambda: time.monotonic() > end, _STEPS_A_LOOK)


def _read_only(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA query_only = ON")

    def allow(action: int, _: str | None, second: str | None, *__: str | None) -> int:
        loads = action == sqlite3.SQLITE_FUNCTION and (second or "").lower() == "load_extension"
        return sqlite3.SQLITE_OK if action in _READS and not loads else sqlite3.SQLITE_DENY

    connection.set_authorizer(allow)


def _expected(
    connection: sqlite3.Connection, expected: str, timeout_s: float, max_rows: int
) -> list[tuple[Any, ...]]:
    try:
        rows = json.loads(expected)
    except ValueError:
        return _rows(connection, expected, timeout_s, max_rows)
    if not (isinstance(rows, list) and all(isinstance(row, list) for row in rows)):
        raise ValueError("expected is neither a query nor a JSON list of rows")
    return [tuple(map(_plain, row)) for row in rows]


def _rows(
    connection: sqlite3.Connection, query: str, timeout_s: float, max_rows: int
) -> list[tuple[Any, ...]]:
    _deadline(connection, timeout_s)
    cursor = connection.execute(query.strip())
    if cursor.description is None:
        raise ValueError("that is no query")
    rows = cursor.fetchmany(max_rows + 1)
    if len(rows) > max_rows:
        raise ValueError(f"it gives more than {max_rows} rows")
    return [tuple(map(_plain, row)) for row in rows]


def _plain(value: Any) -> Any:
    """What two equal values have in common: 1, 1.0 and true; floats to nine digits."""
    if isinstance(value, bool | int):
        return float(value) if abs(int(value)) < 2**53 else int(value)
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else repr(value)
    return value if isinstance(value, str | bytes | None) else json.dumps(value)
