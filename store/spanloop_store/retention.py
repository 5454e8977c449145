"""How long rows are kept: a TTL on what grows, by whole partitions; the registry never expires."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Final

from spanloop_store.errors import StoreSettingError
from spanloop_store.tables import TIME_COLUMNS, Table, read_tables

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

log = logging.getLogger(__name__)

RETENTION_VARIABLE: Final = "SPANLOOP_RETENTION_DAYS"
DEFAULT_DAYS: Final = 365
MOST_DAYS: Final = 36_500
# A clock that was never set gives times of 1970: such rows say nothing of their age, and stay.
_CLOCK_SET: Final = "2000-01-01"
_NEVER: Final = "2149-06-06"  # the last Date
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
    return (
        f"if({time} < toDateTime('{_CLOCK_SET}'), toDate('{_NEVER}'), toDate({time}) + toIntervalDay({days}))"
    )


def read_retention(client: Client) -> list[Kept]:
    """What is kept how long, of the tables that exist."""
    tables = read_tables(client)
    return [_kept(client, table) for name, table in tables.items() if name in TIME_COLUMNS]


def set_retention(client: Client, days: int | None) -> list[Kept]:
    """Lets every table keep so many days; None: for ever.

    Partitions that are past it go within minutes, in the background; they do not come back.

    Raises:
        StoreSettingError: less than one day.
    """
    if days is not None and not 1 <= days <= MOST_DAYS:
        raise StoreSettingError(f"{days} days cannot be kept", f"give 1 to {MOST_DAYS} days, or --off")
    for name, table in read_tables(client).items():
        if name not in TIME_COLUMNS:
            continue
        if days is not None:
            _set_ttl(client, table, days)
        elif _local_definition(client, table).has_ttl:
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
    tables = {name: table for name, table in read_tables(client).items() if name in TIME_COLUMNS}
    old = [
        name
        for name in tables
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
    for table in tables.values():
        if not _local_definition(client, table).has_ttl:
            _set_ttl(client, table, days)


def _set_ttl(client: Client, table: Table, days: int) -> None:
    # Whole partitions: dropping a part is a rename, rewriting it to take single rows out is not.
    client.command(f"ALTER TABLE {table.local}{table.on_cluster} MODIFY SETTING ttl_only_drop_parts = 1")
    client.command(f"ALTER TABLE {table.local}{table.on_cluster} MODIFY TTL {ttl_clause(table.name, days)}")


def _local_definition(client: Client, table: Table) -> Table:
    """The table that holds the rows: of a distributed one, its local part on this node."""
    if not table.cluster:
        return table
    local = table.local.split(".")[-1].strip("`")
    return read_tables(client).get(local, table)


def _kept(client: Client, table: Table) -> Kept:
    match = _EXPRESSION.search(_local_definition(client, table).definition)
    expression = match[1] if match else ""
    days = _DAYS.search(expression)
    oldest, rows = client.query(
        f"SELECT toDate(min({TIME_COLUMNS[table.name]})), count() FROM {table.name}"  # noqa: S608  # constants
    ).result_rows[0]
    return Kept(table.name, int(days[1]) if days else None, expression, oldest if rows else None)
