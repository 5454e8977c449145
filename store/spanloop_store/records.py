"""How the registry's rows are written and read: JSON in text columns, times in UTC, references as NAME@REST."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

NEVER: Final = datetime.fromtimestamp(0, UTC)


def split_reference(reference: str) -> tuple[str, str]:
    """`NAME@REST` or `NAME` as (name, rest); the name may hold an `@` itself, the last one counts."""
    name, separator, rest = reference.rpartition("@")
    return (name, rest) if separator else (reference, "")


def insert_record(client: Client, table: str, record: Mapping[str, Any]) -> None:
    """One row, by column name."""
    client.insert(table, [list(record.values())], column_names=list(record))


def json_text(value: Mapping[str, Any]) -> str:
    """An object as it is stored."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def json_object(text: str) -> dict[str, Any]:
    """A stored object; "" is an empty one."""
    value = json.loads(text or "{}")
    return value if isinstance(value, dict) else {"value": value}


def utc(time: datetime) -> datetime:
    """A time of the store, which has UTC without saying so."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
