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
_MAX_BYTES = 16 << 20  # of the setup's statements and values, and of all that a query gives
# Of an answer. No clock is looked at inside one function of SQLite, and some take the product of two texts' lengths.
_ANSWER = {
    sqlite3.SQLITE_LIMIT_LENGTH: 1 << 18,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 200,
}
_Row = tuple[Any, ...]
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
    with a fraction are compared to nine digits. An answer that fails, takes too long or gives too many rows is wrong.

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
            for limit, value in _ANSWER.items():
                connection.setlimit(limit, value)
            given = _rows(connection, fenced(episode.answer or "", "sql", "sqlite"), timeout_s, max_rows)
        except (sqlite3.Error, sqlite3.Warning, OverflowError, ValueError):
            return 0.0
    finally:
        connection.close()
    given, expected = _alike(given, expected)
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


def _expected(connection: sqlite3.Connection, expected: str, timeout_s: float, max_rows: int) -> list[_Row]:
    try:
        rows = json.loads(expected)
    except ValueError:
        return _rows(connection, expected, timeout_s, max_rows)
    if not (isinstance(rows, list) and all(isinstance(row, list) for row in rows)):
        raise ValueError("expected is neither a query nor a JSON list of rows")
    return [tuple(map(_plain, row)) for row in rows]


def _rows(connection: sqlite3.Connection, query: str, timeout_s: float, max_rows: int) -> list[_Row]:
    _deadline(connection, timeout_s)
    cursor = connection.execute(query.strip())
    if cursor.description is None:
        raise ValueError("that is no query")
    rows: list[_Row] = []
    room = _MAX_BYTES
    for row in cursor:
        room -= sum(len(value) for value in row if isinstance(value, str | bytes))
        if len(rows) == max_rows or room < 0:
            raise ValueError(f"it gives more than {max_rows} rows, or {_MAX_BYTES >> 20} MiB")
        rows.append(tuple(map(_plain, row)))
    return rows


def _alike(one: list[_Row], other: list[_Row]) -> tuple[list[_Row], list[_Row]]:
    """Numbers to nine digits in columns where one side has a fraction or a float; whole numbers, as ids, stay what they are."""
    floats = {place for row in (*one, *other) for place, value in enumerate(row) if isinstance(value, float)}
    if not floats:
        return one, other

    def rounded(rows: list[_Row]) -> list[_Row]:
        return [
            tuple(_rounded(value) if place in floats else value for place, value in enumerate(row))
            for row in rows
        ]

    return rounded(one), rounded(other)


def _rounded(value: Any) -> Any:
    if not isinstance(value, int | float):
        return value
    return float(f"{value:.9g}") if math.isfinite(value) else repr(value)


def _plain(value: Any) -> Any:
    """Equal for 1 and true, and something that can be counted."""
    if isinstance(value, bool):
        return int(value)
    return value if isinstance(value, int | float | str | bytes | None) else json.dumps(value)
