"""Which times a row may not have: those whose rows the store would delete as soon as it has them. The engine is asked."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from spanloop_store.otlp.signals import Signal
from spanloop_store.retention import _DAYS, _EXPRESSION
from spanloop_store.tables import holder, read_tables

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

log = logging.getLogger(__name__)

KEEP_MORE: Final = "`spanloop store retention --days N`, or --off, keeps more"
_FIRST_NS: Final = -(1 << 63)  # of the type DateTime64(9), with the year 2262
_END_NS: Final = 1 << 63
# Every day from 1900 to 2250 in the server's time zone (a DateTime64 ends in 2262, and a TTL adds to it), and where an answer
# follows another one. A day is gone once its 23rd hour is: a TTL of others need not end at midnight, and days are 23 to 25
# hours long.
_CHANGES: Final = """
SELECT at, gone FROM
(
    SELECT at, gone, lagInFrame(gone, 1, 2) OVER (ORDER BY at ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) AS before FROM
    (
        SELECT at, toDateTime64({expression}, 0) <= now64(0) AS gone FROM
        (
            SELECT
                toDateTime64(toDate32('1900-01-01') + number, 9) AS day, toUnixTimestamp64Nano(day) AS at,
                day + toIntervalSecond(82799) AS Timestamp, toDateTime(Timestamp) AS TimestampTime
            FROM numbers(127834)
        )
    )
)
WHERE gone != before ORDER BY at
"""


@dataclass(frozen=True)
class Expiry:
    """What a table deletes at once, at one moment.

    Args:
        gone: times of rows that are past their TTL, as [first, end) in nanoseconds since 1970, ascending.
        days: that the table keeps; None: its TTL is not ours.
        now_ns: the moment. It lies in no interval.
    """

    gone: tuple[tuple[int, int], ...]
    days: int | None
    now_ns: int

    @property
    def kept(self) -> tuple[int, int]:
        """[first, end) around now: nearly every row is of a time in here, and nothing else need be asked."""
        first = max((end for _, end in self.gone if end <= self.now_ns), default=0)
        return max(first, 0), min((start for start, _ in self.gone if start > self.now_ns), default=_END_NS)

    def why(self, time_ns: int) -> str:
        """Why rows of this time would go; empty: they would not."""
        for first, end in self.gone:
            if not first <= time_ns < end:
                continue
            if first > self.now_ns:
                return f"a time from {day_of(first)} on, and the store would delete them at once"
            keeps = f"keeps {self.days} days" if self.days else "deletes them at once"
            return f"a time before {day_of(end)}, and the store {keeps}"
        return ""


def read_expiry(client: Client) -> dict[Signal, Expiry]:
    """What is deleted at once now; a signal whose rows are kept for ever is missing.

    Raises:
        ClickHouseError: the store does not answer.
    """
    tables = read_tables(client)
    found = {}
    for signal in Signal:
        match = (
            _EXPRESSION.search(holder(tables, signal.table).definition) if signal.table in tables else None
        )
        if match is None:
            continue
        gone = _ask(client, signal.table, match[1])
        days = _DAYS.search(match[1])
        now_ns = time.time_ns()
        # A TTL by which a row of this moment goes at once is none that anybody means.
        if gone and not any(first <= now_ns < end for first, end in gone):
            found[signal] = Expiry(gone, int(days[1]) if days else None, now_ns)
    return found


def _ask(client: Client, table: str, expression: str) -> tuple[tuple[int, int], ...]:
    from clickhouse_connect.driver.exceptions import DatabaseError

    try:
        rows: Any = client.query(_CHANGES.format(expression=expression)).result_rows
    except DatabaseError as error:
        # Several expressions, or one over other columns than the time.
        log.debug("what the TTL of %s deletes at once is not known: %s", table, error)
        return ()
    edges = [at for at, _ in rows[1:]] + [_END_NS]
    starts = [_FIRST_NS] + [at for at, _ in rows[1:]]
    return tuple((first, end) for first, end, (_, gone) in zip(starts, edges, rows, strict=True) if gone)


def day_of(time_ns: int) -> str:
    """The day of a time, for messages."""
    return f"{datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=time_ns // 10**9):%Y-%m-%d}"
