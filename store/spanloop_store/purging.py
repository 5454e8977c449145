"""Takes off the disk what deleted rows lay in: old parts, and parts that the engine had put aside."""

from __future__ import annotations

import re
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from spanloop_store.otlp.queries import quote
from spanloop_store.tables import Table, holder

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

_PURGE_S: Final = 20.0
_PURGE_PAUSE_S: Final = 0.2
_LIFETIME: Final = re.compile(r"old_parts_lifetime = (\d+)")


def purge(client: Client, table: Table, tables: dict[str, Table]) -> list[str]:
    """Takes the parts that deleted rows lay in off the disk; a line for what stays for now, and until when."""
    local = holder(tables, table.name)
    if table.cluster or local.engine != "MergeTree":
        return [
            f"{table.name}: its servers delete the parts that the rows lay in by themselves, within old_parts_lifetime"
            " (8 minutes by default)"
        ]
    if not _old_parts(client, table):
        heal(client, table, tables)
        return []
    own = _LIFETIME.search(local.definition)
    client.command(f"ALTER TABLE {table.local} MODIFY SETTING old_parts_lifetime = 0")
    try:
        deadline = time.monotonic() + _PURGE_S
        while True:
            _drop_old_parts(client, table)
            left = _old_parts(client, table)
            if not left:
                return []
            if time.monotonic() > deadline:
                return [f"{table.name}: {left} old parts are in use by queries, and go when these end"]
            time.sleep(_PURGE_PAUSE_S)
    finally:
        # A 0 that was there is of a run that was killed here.
        if own and int(own[1]):
            client.command(f"ALTER TABLE {table.local} MODIFY SETTING old_parts_lifetime = {own[1]}")
        else:
            client.command(f"ALTER TABLE {table.local} RESET SETTING old_parts_lifetime")


def heal(client: Client, table: Table, tables: dict[str, Table]) -> None:
    """Gives a table its lifetime of old parts back, which a purge that was killed had taken: a merge is not synced."""
    own = _LIFETIME.search(holder(tables, table.name).definition)
    if own and not int(own[1]):
        client.command(f"ALTER TABLE {table.local} RESET SETTING old_parts_lifetime")


def drop_detached(client: Client, table: Table, days: Collection[str]) -> list[str]:
    """Deletes parts that the engine has put aside, of these days (as YYYYMMDD): nobody can look into them."""
    parts = client.query(
        "SELECT name FROM system.detached_parts WHERE database = currentDatabase() AND table = {table:String}",
        parameters={"table": table.local.split(".")[-1].strip("`")},
    ).result_rows
    dropped = []
    for (name,) in parts:
        if set(days) & set(re.findall(r"(?<!\d)\d{8}(?!\d)", name)):
            client.command(
                f"ALTER TABLE {table.local}{table.on_cluster} DROP DETACHED PART {quote(name)}"
                " SETTINGS allow_drop_detached = 1"
            )
            dropped.append(f"{table.name}: {name}")
    return dropped


def _drop_old_parts(client: Client, table: Table) -> None:
    # A partition that is none: what this does besides is to delete old parts and finished mutations now.
    client.command(f"ALTER TABLE {table.local} DROP PARTITION ID 'none'")


def _old_parts(client: Client, table: Table) -> int:
    return int(
        client.query(
            "SELECT count() FROM system.parts WHERE database = currentDatabase() AND table = {table:String}"
            " AND NOT active",
            parameters={"table": table.name},
        ).result_rows[0][0]
    )
