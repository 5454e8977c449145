"""The audit trail: who erased, exported, promoted or used the administrator's token, and when."""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from spanloop_store.errors import AuditError
from spanloop_store.tables import read_tables

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

TABLE: Final = "audit"
# The moves of aliases have a table of their own, which is where they happen: a row there is the move. They are shown with
# the rest, and written once.
_ENTRIES: Final = """
SELECT time, who, action, subject, details FROM
(
    SELECT time, who, toString(action) AS action, subject, details FROM audit
    UNION ALL
    SELECT time, who, toString(action) AS action, concat(name, if(version = 0, ' (no version)', concat('@', toString(version))), ' as ', alias) AS subject,
        toJSONString(map('kind', toString(kind), 'why', why, 'evaluation', evaluation_id, 'dataset', dataset_id)) AS details
    FROM promotions
)
WHERE time >= fromUnixTimestamp64Nano({since:Int64})
ORDER BY time DESC, action, subject
LIMIT {limit:UInt32}
"""


@dataclass(frozen=True)
class Entry:
    """One row of the trail.

    Args:
        time: UTC.
        who: USER@HOST of a command; of a request the user and the address that it came from.
        action: erase, retention, backup, restore, build, query, pause, resume; promote, reject, rollback, point.
        subject: what it was done to.
        details: whatever else was recorded.
    """

    time: datetime
    who: str
    action: str
    subject: str
    details: Mapping[str, Any]


def record(
    client: Client, action: str, subject: str, details: Mapping[str, Any], who: str | None = None
) -> None:
    """Writes one row, synced. Call it before what it is about: what cannot be recorded is not to be done.

    Args:
        client: of the store; the read-only user may not.
        action: one word.
        subject: what it is done to; no content of spans.
        details: becomes a JSON object.
        who: None: the user of this process, and its machine.

    Raises:
        AuditError: the store did not take it.
    """
    from clickhouse_connect.driver.exceptions import ClickHouseError

    row = [who or this_user(), action, subject, json.dumps(dict(details), ensure_ascii=False, default=str)]
    try:
        client.insert(TABLE, [row], column_names=["who", "action", "subject", "details"])
    except ClickHouseError as error:
        raise AuditError(
            f"the audit trail cannot be written: {str(error).splitlines()[0]}",
            f"nothing was done: {action} needs its row; look at the store's disk and rights, then try again",
        ) from error


def entries(client: Client, *, since: datetime | None = None, limit: int = 1000) -> list[Entry]:
    """The newest rows, newest first; promotions, rejections and rollbacks among them.

    Args:
        client: any user of the store.
        since: only later ones; naive is UTC; None: all.
        limit: the most rows.
    """
    rows = client.query(
        _ENTRIES, parameters={"since": 0 if since is None else _nanoseconds(since), "limit": limit}
    ).result_rows
    return [
        Entry(_utc(time), who, action, subject, _object(text)) for time, who, action, subject, text in rows
    ]


def is_there(client: Client) -> bool:
    """Whether the store has the table: one of a cluster has it once its schema was brought up to date by hand."""
    return TABLE in read_tables(client)


def this_user() -> str:
    """USER@HOST of this process."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _nanoseconds(moment: datetime) -> int:
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return int(moment.timestamp() * 1_000_000) * 1000


def _utc(time: datetime) -> datetime:
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {"text": text}
    return value if isinstance(value, dict) else {"value": value}
