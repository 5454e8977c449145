"""Where aliases point, and the audit trail of every move: the trail's newest row is the pointer."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, TypedDict, Unpack

from spanloop_store.records import utc
from spanloop_store.resources import Kind

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

PRODUCTION: Final = "production"
CANDIDATE: Final = "candidate"
ALIASES: Final = (PRODUCTION, CANDIDATE)
ACTIONS: Final = ("promote", "reject", "rollback", "point")


class Reasons(TypedDict, total=False):
    """What a row of the audit trail says of a move, all of it optional."""

    evaluation_id: str
    dataset_id: str
    who: str
    why: str


@dataclass(frozen=True)
class Alias:
    """Where an alias of a model or prompt points, and since when (UTC)."""

    name: str
    alias: str
    version: int
    time: datetime


@dataclass(frozen=True)
class Promotion:
    """One line of the audit trail; a rejection is one too and moves nothing.

    Args:
        time: UTC.
        action: promote, reject, rollback or point.
        version: the version it is about; 0: none any more (a prompt that was rolled back to what its agent sends).
        previous_version: where the alias pointed before; 0: nowhere.
    """

    time: datetime
    name: str
    alias: str
    action: str
    version: int
    previous_version: int
    evaluation_id: str
    dataset_id: str
    who: str
    why: str


def aliases(client: Client, kind: Kind = "model") -> list[Alias]:
    """Where every alias of a kind points now: the newest row of it that is no rejection."""
    # Two rows of one instant cannot be told apart by time: `move` keeps times of one alias apart.
    rows = client.query(
        "SELECT name, alias, argMax(version, time) AS version, max(time) FROM promotions"
        " WHERE kind = {kind:String} AND action != 'reject' GROUP BY name, alias ORDER BY name, alias",
        parameters={"kind": kind},
    ).result_rows
    return [Alias(name, alias, int(version), utc(time)) for name, alias, version, time in rows if version]


def promotions(
    client: Client, name: str | None = None, alias: str | None = None, kind: Kind = "model"
) -> list[Promotion]:
    """The audit trail, oldest first; of one name or alias where given."""
    rows = client.query(
        "SELECT time, name, alias, action, version, previous_version, evaluation_id, dataset_id, who, why"
        " FROM promotions WHERE kind = {kind:String}"
        " AND ({name:String} = '' OR name = {name:String}) AND ({alias:String} = '' OR alias = {alias:String})"
        " ORDER BY time, name, alias",
        parameters={"kind": kind, "name": name or "", "alias": alias or ""},
    ).result_rows
    return [
        Promotion(utc(row[0]), row[1], row[2], row[3], int(row[4]), int(row[5]), *row[6:]) for row in rows
    ]


def before(trail: list[Promotion]) -> int:
    """The version that one alias pointed to before the one it points to now, rollbacks undone; 0: to none.

    Args:
        trail: of that alias, oldest first.
    """
    stack = [0]
    for row in trail:
        if row.action == "reject":
            continue
        if row.action == "rollback" and row.version in stack:
            while stack[-1] != row.version:
                stack.pop()
        elif stack[-1] != row.version:
            stack.append(row.version)
    return stack[-2] if len(stack) > 1 else 0


def move(
    client: Client,
    kind: Kind,
    name: str,
    alias: str,
    version: int,
    *,
    action: str,
    **reasons: Unpack[Reasons],
) -> Promotion:
    """Writes one row of the audit trail, unchecked."""
    # The store orders by time, so a row is later than every row of its alias even where a clock stands still or
    # steps back. Computed by the engine's clock, in nanoseconds, in the insert itself.
    client.command(
        "INSERT INTO promotions (time, kind, name, alias, action, version, previous_version, evaluation_id,"
        " dataset_id, who, why)"
        " WITH (SELECT max(toUnixTimestamp64Nano(time)) FROM promotions"
        "   WHERE kind = {kind:String} AND name = {name:String} AND alias = {alias:String}) AS last"
        " SELECT fromUnixTimestamp64Nano(greatest(toUnixTimestamp64Nano(now64(9)), last + 1)), {kind:String},"
        " {name:String}, {alias:String}, {action:String}, {version:UInt32},"
        " (SELECT argMax(version, time) FROM promotions WHERE kind = {kind:String}"
        "   AND name = {name:String} AND alias = {alias:String} AND action != 'reject'),"
        " {evaluation:String}, {dataset:String}, {who:String}, {why:String}",
        parameters={
            "kind": kind,
            "name": name,
            "alias": alias,
            "action": action,
            "version": version,
            "evaluation": reasons.get("evaluation_id", ""),
            "dataset": reasons.get("dataset_id", ""),
            "who": reasons.get("who", ""),
            "why": reasons.get("why", ""),
        },
    )
    return promotions(client, name, alias, kind)[-1]
