"""The table `resources`: versions of models and prompts by name, their numbers given out one by one."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from spanloop_store.errors import RegistryError
from spanloop_store.records import json_object, utc

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

Kind = Literal["model", "prompt"]
KEY: Final = "key"  # in a version's metadata: whose row it is
_ATTEMPTS: Final = 20
_PAUSE_S: Final = 0.02  # times the number of the attempt
_LAST: Final = "SELECT max(version) FROM resources WHERE kind = {kind:String} AND name = {name:String}"
_OTHERS: Final = """
    SELECT count() FROM resources WHERE kind = {kind:String} AND name = {name:String} AND version = {version:UInt32}
        AND JSONExtractString(metadata, 'key') != {key:String}
"""
_TAKE_BACK: Final = """
    DELETE FROM resources WHERE kind = {kind:String} AND name = {name:String} AND version = {version:UInt32}
        AND JSONExtractString(metadata, 'key') = {key:String}
"""


class Row(NamedTuple):
    """One row; a number may have several, the first of which counts."""

    name: str
    version: int
    created: datetime  # UTC
    metadata: dict[str, Any]
    values: Sequence[Any]  # of the columns that were asked for


def rows(client: Client, kind: Kind, name: str | None, columns: Sequence[str]) -> list[Row]:
    """By name and number, the oldest row of each first; of one name where it is given."""
    found = client.query(
        f"SELECT name, version, created, metadata, {', '.join(columns)} FROM resources"  # noqa: S608  # names are constants
        " WHERE kind = {kind:String} AND ({name:String} = '' OR name = {name:String})"
        " ORDER BY name, version, created, metadata",
        parameters={"kind": kind, "name": name or ""},
    ).result_rows
    return [
        Row(name, int(version), utc(created), json_object(metadata), values)
        for name, version, created, metadata, *values in found
    ]


def check_name(kind: Kind, name: str) -> None:
    """Raises:
    RegistryError: it cannot be a name.
    """
    if not name or "@" in name or name != name.strip():
        raise RegistryError(f"{name!r} cannot be a {kind}'s name", "use a name without '@' and outer blanks")


def next_version(client: Client, kind: Kind, name: str, write: Callable[[int, str], None]) -> int:
    """Takes a number of a name, the next one or one soon after it, which on one server no two get.

    There are no transactions: whoever finds another's row beside the one just written takes that back and tries again. The
    later of two looks sees both rows, so it never happens that both stay.

    Args:
        client: the store.
        kind: of what.
        name: whose.
        write: inserts a row with a number, and a key as `metadata.key`.

    Raises:
        RegistryError: others came in between every time; nothing of ours is left.
    """
    which = {"kind": kind, "name": name}
    for attempt in range(_ATTEMPTS):
        last = client.query(_LAST, parameters=which).result_rows
        number, key = int(last[0][0]) + 1, uuid.uuid4().hex
        write(number, key)
        written = {**which, "version": number, "key": key}
        if not client.query(_OTHERS, parameters=written).result_rows[0][0]:
            return number
        client.command(_TAKE_BACK, parameters=written)
        time.sleep(random.uniform(0, _PAUSE_S * attempt))  # noqa: S311  # so that the same two do not meet again
    raise RegistryError(f"{kind} {name!r}: others take every next version first", "try again")
