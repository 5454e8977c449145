"""The registry: model versions, prompts, the aliases that point at them, and what was trained and evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Unpack

from spanloop_store import pointers
from spanloop_store.errors import RegistryError
from spanloop_store.pointers import (
    ACTIONS,
    ALIASES,
    CANDIDATE,
    PRODUCTION,
    Alias,
    Promotion,
    Reasons,
    aliases,
    promotions,
)
from spanloop_store.prompts import PromptVersion, prompt, prompts, register_prompt
from spanloop_store.records import NEVER, insert_record, json_object, json_text, split_reference, utc
from spanloop_store.resources import KEY, Kind, check_name, next_version, rows

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

__all__ = [
    "ACTIONS",
    "ALIASES",
    "CANDIDATE",
    "PRODUCTION",
    "Alias",
    "Dataset",
    "Evaluation",
    "ModelVersion",
    "Promotion",
    "PromptVersion",
    "TrainingRun",
    "aliases",
    "evaluation",
    "evaluations",
    "point_alias",
    "promotions",
    "prompt",
    "prompts",
    "record_dataset",
    "record_evaluation",
    "record_training_run",
    "register_model",
    "register_prompt",
    "resolve",
    "roll_back",
    "split_reference",
    "versions",
]


@dataclass(frozen=True)
class ModelVersion:
    """One registered version of a model.

    Args:
        name: the model's name.
        version: from 1, per name.
        uri: a folder or a hub id.
        parent: NAME@VERSION, folder or hub id it was made from; empty: none.
        dataset_id: what it was trained on; empty: nothing known.
        training_run_id: the run that made it; empty: none.
        metadata: whatever else was recorded.
        created: UTC.
    """

    name: str
    version: int
    uri: str
    parent: str = ""
    dataset_id: str = ""
    training_run_id: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    created: datetime = NEVER

    @property
    def id(self) -> str:
        """NAME@VERSION."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Evaluation:
    """A paired comparison of two model versions on held-out tasks.

    Args:
        baseline: NAME@VERSION.
        candidate: NAME@VERSION.
        tasks: pairs compared.
        baseline_mean: mean episode reward.
        candidate_mean: mean episode reward.
        gain: mean paired difference.
        gain_ci95_low: lower end of its 95 % bootstrap interval.
        gain_ci95_high: upper end.
        details: the same per agent and per group.
    """

    id: str
    dataset_id: str
    baseline: str
    candidate: str
    tasks: int
    baseline_mean: float
    candidate_mean: float
    gain: float
    gain_ci95_low: float
    gain_ci95_high: float
    details: Mapping[str, Any] = field(default_factory=dict)
    time: datetime = NEVER


@dataclass(frozen=True)
class TrainingRun:
    """One training run; `status` is ok or failed."""

    id: str
    started: datetime
    finished: datetime
    algorithm: str
    dataset_id: str
    base: str
    uri: str
    status: str
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """One dataset that was built; `id` is its content hash."""

    id: str
    uri: str
    parent: str
    episodes: int
    transitions: int
    manifest: Mapping[str, Any] = field(default_factory=dict)


def register_model(
    client: Client,
    name: str,
    uri: str,
    *,
    parent: str = "",
    dataset_id: str = "",
    training_run_id: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> ModelVersion:
    """Records a model as the next version of its name.

    Raises:
        RegistryError: the name is empty or holds an `@`, which would read as a version.
    """
    check_name("model", name)

    def write(number: int, key: str) -> None:
        record = {
            "kind": "model",
            "name": name,
            "version": number,
            "uri": uri,
            "parent": parent,
            "dataset_id": dataset_id,
            "training_run_id": training_run_id,
            "metadata": json_text({**(metadata or {}), KEY: key}),
        }
        insert_record(client, "resources", record)

    number = next_version(client, "model", name, write)
    return next(version for version in versions(client, name) if version.version == number)


def versions(client: Client, name: str | None = None) -> list[ModelVersion]:
    """Registered model versions by name and version; of one name where it is given."""
    found: dict[tuple[str, int], ModelVersion] = {}
    for row in rows(client, "model", name, ("uri", "parent", "dataset_id", "training_run_id")):
        row.metadata.pop(KEY, None)
        uri, parent, dataset_id, run_id = row.values
        one = ModelVersion(row.name, row.version, uri, parent, dataset_id, run_id, row.metadata, row.created)
        found.setdefault((one.name, one.version), one)
    return list(found.values())


def resolve(client: Client, reference: str) -> ModelVersion:
    """The model version that `NAME@VERSION`, `NAME@candidate`, `NAME@production` or `NAME` (production) names.

    Raises:
        RegistryError: it names none; the message lists what there is.
    """
    name, rest = split_reference(reference)
    known = versions(client, name)
    if not known:
        names = sorted({version.name for version in versions(client)})
        listed = ", ".join(names) if names else "none yet"
        raise RegistryError(
            f"the registry has no model {name!r}; models: {listed}", "spanloop train … --register NAME"
        )
    if rest.isdecimal():
        wanted = int(rest)
    else:
        alias = rest or PRODUCTION
        pointers = {pointer.alias: pointer.version for pointer in aliases(client) if pointer.name == name}
        if alias not in pointers:
            listed = ", ".join(f"{key} → {name}@{value}" for key, value in pointers.items()) or "none"
            raise RegistryError(
                f"model {name!r} has no alias {alias!r}; aliases: {listed}; versions: {_numbers(known)}",
                f"spanloop promote {known[-1].id} --alias {alias if alias in ALIASES else CANDIDATE}",
            )
        wanted = pointers[alias]
    for version in known:
        if version.version == wanted:
            return version
    raise RegistryError(
        f"model {name!r} has no version {wanted}; versions: {_numbers(known)}",
        f"name one of them, as {known[-1].id}",
    )


def point_alias(
    client: Client,
    name: str,
    alias: str,
    version: int,
    *,
    action: str,
    kind: Kind = "model",
    **reasons: Unpack[Reasons],
) -> Promotion:
    """Writes one row of the audit trail. The row is the pointer: unless it is a rejection, the alias moves with it.

    Raises:
        RegistryError: an alias or action that we do not know, or a version that is not registered.
    """
    if alias not in ALIASES:
        raise RegistryError(f"{alias!r} is no alias", f"use one of: {', '.join(ALIASES)}")
    if action not in ACTIONS:
        raise RegistryError(f"{action!r} is no action", f"use one of: {', '.join(ACTIONS)}")
    (prompt if kind == "prompt" else resolve)(client, f"{name}@{version}")
    return pointers.move(client, kind, name, alias, version, action=action, **reasons)


def roll_back(
    client: Client, name: str, alias: str = PRODUCTION, *, kind: Kind = "model", who: str = "", why: str = ""
) -> Promotion:
    """Points an alias to where it pointed before; once more, to where it pointed before that.

    A prompt whose first move is rolled back points nowhere: its agent's own text goes out again.

    Raises:
        RegistryError: there is no step to take back.
    """
    trail = promotions(client, name, alias, kind)
    target = pointers.before(trail)
    moves = [row for row in trail if row.action != "reject"]
    if not moves or not moves[-1].version or (kind == "model" and not target):
        known = prompts(client, name) if kind == "prompt" else versions(client, name)
        what = f"{name}@{alias} has no earlier version" if known else f"the registry has no {kind} {name!r}"
        raise RegistryError(what, "spanloop prompt list" if kind == "prompt" else "spanloop status")
    return pointers.move(client, kind, name, alias, target, action="rollback", who=who, why=why)


def record_dataset(client: Client, dataset: Dataset) -> None:
    """Records a dataset; one that is known already (the same content) is not recorded twice."""
    if not _is_recorded(client, "datasets", dataset.id, dataset.uri):
        record = {key: getattr(dataset, key) for key in ("id", "uri", "parent", "episodes", "transitions")}
        insert_record(client, "datasets", {**record, "manifest": json_text(dataset.manifest)})


def record_training_run(client: Client, run: TrainingRun) -> None:
    """Records a training run, failed ones too; one that is known already (id and folder) is not recorded twice."""
    if not _is_recorded(client, "training_runs", run.id, run.uri):
        keys = ("id", "started", "finished", "algorithm", "dataset_id", "base", "uri", "status")
        record = {key: getattr(run, key) for key in keys}
        insert_record(client, "training_runs", {**record, "metrics": json_text(run.metrics)})


_EVALUATION_KEYS = (
    "id", "dataset_id", "baseline", "candidate", "tasks", "baseline_mean", "candidate_mean", "gain", "gain_ci95_low",
    "gain_ci95_high",
)  # fmt: skip
_EVALUATIONS = f"SELECT {', '.join(_EVALUATION_KEYS)}, details, time FROM evaluations "  # noqa: S608  # names are constants


def record_evaluation(client: Client, evaluation: Evaluation) -> None:
    """Records an evaluation; its `time` is set by the store."""
    record = {key: getattr(evaluation, key) for key in _EVALUATION_KEYS}
    insert_record(client, "evaluations", {**record, "details": json_text(evaluation.details)})


def evaluation(client: Client, evaluation_id: str) -> Evaluation:
    """One evaluation by id.

    Raises:
        RegistryError: there is none; the message lists the newest ones.
    """
    rows = client.query(
        _EVALUATIONS + "WHERE id = {id:String} ORDER BY time DESC LIMIT 1",
        parameters={"id": evaluation_id},
    ).result_rows
    if not rows:
        newest = [
            row[0]
            for row in client.query("SELECT id FROM evaluations ORDER BY time DESC LIMIT 5").result_rows
        ]
        raise RegistryError(
            f"there is no evaluation {evaluation_id!r}; newest: {', '.join(newest) or 'none yet'}",
            "spanloop evaluate --dataset DIR --baseline NAME@V --candidate NAME@V",
        )
    return _evaluation(rows[0])


def evaluations(client: Client, limit: int = 100) -> list[Evaluation]:
    """The newest evaluations, newest first."""
    rows = client.query(
        _EVALUATIONS + "ORDER BY time DESC, id LIMIT {n:UInt32}",
        parameters={"n": limit},
    ).result_rows
    return [_evaluation(row) for row in rows]


def _evaluation(row: Sequence[Any]) -> Evaluation:
    *values, details, time = row
    return Evaluation(
        **dict(zip(_EVALUATION_KEYS, values, strict=True)), details=json_object(details), time=utc(time)
    )


def _is_recorded(client: Client, table: str, record_id: str, uri: str) -> bool:
    return bool(
        client.query(
            "SELECT count() FROM {table:Identifier} WHERE id = {id:String} AND uri = {uri:String}",
            parameters={"table": table, "id": record_id, "uri": uri},
        ).result_rows[0][0]
    )


def _numbers(known: list[ModelVersion]) -> str:
    return ", ".join(str(version.version) for version in known)
