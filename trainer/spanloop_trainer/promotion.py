"""The gate: production moves only to a version that won its held-out evaluation; both outcomes are in the audit trail."""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spanloop_store import registry
from spanloop_trainer.errors import PromotionRejected

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

    from spanloop_store.registry import Evaluation, ModelVersion


@dataclass(frozen=True)
class Decision:
    """What the gate decided, and why."""

    version: str  # NAME@VERSION
    alias: str
    promoted: bool
    reason: str
    evaluation_id: str  # empty: none was asked for
    previous: str  # NAME@VERSION that the alias pointed to before; empty: none


def judge(version: ModelVersion, evaluation: Evaluation | None, incumbent: str) -> tuple[bool, str]:
    """Whether a version may become production, and the reason in words.

    It may when an evaluation names it as the candidate and the whole 95 % interval of its gain lies above 0.

    Args:
        version: the version to promote.
        evaluation: its evaluation, if one was given.
        incumbent: NAME@VERSION in production now; empty: none. An evaluation against another baseline is no proof
            that production gets better.
    """
    if evaluation is None:
        return False, "no evaluation was given: production moves only to a version that won one"
    if evaluation.candidate != version.id:
        return False, f"evaluation {evaluation.id} judges {evaluation.candidate}, not {version.id}"
    if incumbent and evaluation.baseline != incumbent:
        return (
            False,
            f"evaluation {evaluation.id} compares with {evaluation.baseline}, but {incumbent} is in production",
        )
    gain = (
        f"gain {evaluation.gain:+.3f} [{evaluation.gain_ci95_low:+.3f}, {evaluation.gain_ci95_high:+.3f}] "
        f"over {evaluation.baseline} on {evaluation.tasks} pairs"
    )
    if not evaluation.gain_ci95_low > 0:  # NaN does not win either
        return False, f"{gain}: the interval is not above 0"
    return True, gain


def promote(
    client: Client,
    ref: str,
    alias: str = registry.PRODUCTION,
    *,
    evaluation_id: str | None = None,
    who: str | None = None,
    why: str = "",
) -> Decision:
    """Move an alias to a version, if the gate lets it; write the outcome to the audit trail either way.

    Args:
        client: the store.
        ref: NAME@VERSION or NAME@ALIAS.
        alias: `production` passes the gate, `candidate` moves freely.
        evaluation_id: the evaluation that the gate looks at.
        who: for the audit trail; None: the user of this process.
        why: added to the gate's own words.

    Raises:
        RegistryError: an unknown version, alias or evaluation; nothing is written.
        PromotionRejected: the gate said no; the alias stays, and the rejection is recorded.
    """
    version = registry.resolve(client, ref)
    pointers = {(entry.name, entry.alias): entry.version for entry in registry.aliases(client)}
    before = pointers.get((version.name, alias))
    previous = f"{version.name}@{before}" if before else ""
    evaluation = registry.evaluation(client, evaluation_id) if evaluation_id else None
    if alias == registry.PRODUCTION:
        allowed, reason = judge(version, evaluation, previous)
        action = "promote" if allowed else "reject"
    else:
        allowed, reason, action = True, f"{alias} moves without an evaluation", "point"
    registry.point_alias(
        client,
        version.name,
        alias,
        version.version,
        action=action,
        evaluation_id=evaluation_id or "",
        dataset_id=evaluation.dataset_id if evaluation else version.dataset_id,
        who=who or getpass.getuser(),
        why=f"{reason}; {why}" if why else reason,
    )
    decision = Decision(version.id, alias, action != "reject", reason, evaluation_id or "", previous)
    if not decision.promoted:
        stays = f"{alias} stays at {previous}" if previous else f"{alias} stays unset"
        compare = f"spanloop evaluate --dataset DIR --baseline {previous or f'{version.name}@V'} --candidate {version.id}"
        step = "train a better one, or compare it on more tasks" if evaluation else "compare it first"
        raise PromotionRejected(f"{version.id} was not promoted: {reason}", f"{stays}; {step}: {compare}")
    return decision
