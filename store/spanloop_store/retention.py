"""How long rows are kept: a TTL on what grows, by whole partitions; the registry never expires."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Final

from spanloop_store import audit
from spanloop_store.errors import StoreSettingError
from spanloop_store.tables import TIME_COLUMNS, Table, holder, read_tables

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

log = logging.getLogger(__name__)

RETENTION_VARIABLE: Final = "SPANLOOP_RETENTION_DAYS"
DEFAULT_DAYS: Final = 365
MOST_DAYS: Final = 36_500
# A clock that was never set gives times of 1970, a broken one times of the next century: such rows say nothing of their
# age, and stay.
_CLOCK_SET: Final = "2000-01-01"
_LAST_DAY: Final = date(2149, 6, 6)  # of the type Date; the day after it is in 1970 again
_EXPRESSION = re.compile(r" TTL (.+?)(?= SETTINGS |$)", re.DOTALL)
_DAYS = re.compile(r"toIntervalDay\((\d+)\)")


@dataclass(frozen=True)
class Kept:
    """How long one table keeps its rows.

    Args:
        days: None: for ever, or by an expression that is not ours.
        expression: the TTL as the engine has it; empty: none.
        oldest: day of its oldest row; None: it is empty.
    """

    table: str
    days: int | None
    expression: str
    oldest: date | None


def configured_days(environ: Mapping[str, str] | None = None) -> int | None:
    """Days that a new store keeps, from `SPANLOOP_RETENTION_DAYS`, else a year; None: for ever (0).

    Raises:
        StoreSettingError: the variable is no number of days.
    """
    text = (os.environ if environ is None else environ).get(RETENTION_VARIABLE, "").strip()
    if not text:
        return DEFAULT_DAYS
    if not text.isdecimal() or int(text) > MOST_DAYS:
        raise StoreSettingError(
            f"{RETENTION_VARIABLE}={text!r} is no number of days",
            f"write a whole number up to {MOST_DAYS}; 0 keeps everything",
        )
    return int(text) or None


def ttl_clause(table: str, days: int) -> str:
    """The TTL expression of a table, for CREATE and ALTER."""
    time = TIME_COLUMNS[table]
    countable = _LAST_DAY - timedelta(days=days)
    return (
        f"if(({time} < toDateTime('{_CLOCK_SET}')) OR ({time} >= toDateTime64('{countable}', 0)),"
        f" toDate('{_LAST_DAY}'), toDate({time}) + toIntervalDay({days}))"
    )


def read_retention(client: Client) -> list[Kept]:
    """What is kept how long, of the tables that exist."""
    tables = read_tables(client)
    return [_kept(client, name, holder(tables, name)) for name in tables if name in TIME_COLUMNS]


def set_retention(client: Client, days: int | None) -> list[Kept]:
    """Lets every table keep so many days; None: for ever.

    Partitions that are past it go within minutes, in the background; they do not come back. The audit trail has it first.

    Raises:
        StoreSettingError: less than one day.
        AuditError: it could not be recorded; nothing was changed.
    """
    if days is not None and not 1 <= days <= MOST_DAYS:
        raise StoreSettingError(f"{days} days cannot be kept", f"give 1 to {MOST_DAYS} days, or --off")
    before = {kept.table: kept.days or kept.expression or "for ever" for kept in read_retention(client)}
    audit.record(client, "retention", f"{days} days" if days else "for ever", {"before": before})
    tables = read_tables(client)
    for name in tables.keys() & TIME_COLUMNS.keys():
        table = tables[name]
        if days is not None:
            _set_ttl(client, table, days)
        elif holder(tables, name).has_ttl:
            client.command(f"ALTER TABLE {table.local}{table.on_cluster} REMOVE TTL")
    return read_retention(client)


def apply_default(client: Client) -> None:
    """The default of a store that has none: only where it deletes nothing that is there now.

    A table that has a TTL keeps it (a stock collector's `ttl`). Where rows are older than the default nothing is set, and
    a warning says how to.
    """
    days = configured_days()
    if days is None:
        return
    tables = read_tables(client)
    names = sorted(tables.keys() & TIME_COLUMNS.keys())
    old = [
        name
        for name in names
        if client.query(
            f"SELECT count() FROM {name} WHERE {TIME_COLUMNS[name]} < now() - toIntervalDay({days})"  # noqa: S608  # constants
            f" AND {TIME_COLUMNS[name]} >= toDateTime('{_CLOCK_SET}')"
        ).result_rows[0][0]
    ]
    if old:
        log.warning(
            "%s hold rows older than %d days: nothing expires by itself; `spanloop store retention --days N` decides",
            ", ".join(old),
            days,
        )
        return
    for name in names:
        if not holder(tables, name).has_ttl:
            _set_ttl(client, tables[name], days)


def _set_ttl(client: Client, table: Table, days: int) -> None:
    # Whole partitions: dropping a part is a rename, rewriting it to take single rows out is not. And a change of the days
    # writes each part's new date, where the default writes all rows of the table again.
    client.command(
        f"ALTER TABLE {table.local}{table.on_cluster}"
        " MODIFY SETTING ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1"
    )
    client.command(f"ALTER TABLE {table.local}{table.on_cluster} MODIFY TTL {ttl_clause(table.name, days)}")


def _kept(client: Client, name: str, table: Table) -> Kept:
    match = _EXPRESSION.search(table.definition)
    expression = match[1] if match else ""
    days = _DAYS.search(expression)
    oldest, rows = client.query(
        f"SELECT toDate(min({TIME_COLUMNS[name]})), count() FROM {name}"  # noqa: S608  # constants
    ).result_rows[0]
    return Kept(name, int(days[1]) if days else None, expression, oldest if rows else None)
