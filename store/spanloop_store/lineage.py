"""Which datasets and prompts hold something of given traces, and which model versions learnt from them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from spanloop_store import audit, prompts, registry
from spanloop_store.matching import chunks, utc
from spanloop_store.pointers import aliases
from spanloop_store.subjects import PLAIN, Subject

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

PARQUET: Final = "transitions.parquet"


@dataclass(frozen=True)
class DatasetHit:
    """A dataset that holds it, or may.

    Args:
        id: the content hash.
        uri: its folder.
        rows: transitions of it; None: the dataset is not on this machine, or was made from one that has some.
        why: in words.
    """

    id: str
    uri: str
    rows: int | None
    why: str


@dataclass(frozen=True)
class ModelHit:
    """A model version that learnt from it, or may have.

    Args:
        id: NAME@VERSION.
        uri: its folder.
        why: the dataset, run or version through which.
        aliases: those that point at it now.
    """

    id: str
    uri: str
    why: str
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class PromptHit:
    """A version of a prompt that may hold a person's text.

    Args:
        id: NAME@VERSION.
        why: in words.
        aliases: those that point at it now.
    """

    id: str
    why: str
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class Lineage:
    """What was made of it."""

    datasets: tuple[DatasetHit, ...] = ()
    training_runs: tuple[str, ...] = ()
    models: tuple[ModelHit, ...] = ()
    prompts: tuple[PromptHit, ...] = ()


def trace_lineage(
    client: Client, subject: Subject, traces: Collection[str], *, first: datetime | None, reads_files: bool
) -> Lineage:
    """Follows traces into datasets, training runs and model versions, and from these to what was made of them.

    Args:
        client: of the store.
        subject: what was asked for; a session's id is in the ids of its episodes.
        traces: its traces.
        first: when its first span began: an older dataset, where it cannot be read here, has nothing of it; None: not known.
        reads_files: whether the client's engine runs on this machine with the right to read files.
    """
    datasets = _datasets(client, subject, traces, first, reads_files)
    ids = {dataset.id for dataset in datasets}
    runs = {
        row[0]: row[1]
        for row in client.query("SELECT id, dataset_id FROM training_runs ORDER BY started").result_rows
        if row[1] in ids
    }
    pointers: dict[str, list[str]] = {}
    for alias in registry.aliases(client):
        pointers.setdefault(f"{alias.name}@{alias.version}", []).append(alias.alias)
    why: dict[str, str] = {}
    versions = registry.versions(client)
    places = {version.uri: version.id for version in versions if version.uri}
    for version in versions:
        if version.dataset_id in ids:
            why[version.id] = f"trained on dataset {version.dataset_id[:16]}"
        elif version.training_run_id in runs:
            why[version.id] = f"made by training run {version.training_run_id}"
    grown = -1
    while grown != len(why):  # versions that were trained from these
        grown = len(why)
        for version in versions:
            parent = places.get(version.parent, version.parent)
            if parent in why and version.id not in why:
                why[version.id] = f"trained from {parent}"
    models = [
        ModelHit(version.id, version.uri, why[version.id], tuple(pointers.get(version.id, ())))
        for version in versions
        if version.id in why
    ]
    return Lineage(tuple(datasets), tuple(runs), tuple(models), tuple(_prompts(client, subject, traces)))


def _prompts(client: Client, subject: Subject, traces: Collection[str]) -> list[PromptHit]:
    """Versions that name the subject, and those that were learnt of nobody else: their text may be its text."""
    names = [id for id in subject.ids if len(id) >= PLAIN] if subject.kind != "trace" else []
    why: dict[str, str] = {}
    versions = prompts.prompts(client)
    for version in versions:
        text = json.dumps(
            [version.content, version.examples, version.metadata], ensure_ascii=False, default=str
        )
        if any(json.dumps(name, ensure_ascii=False)[1:-1] in text for name in names):
            why[version.id] = f"its text or its examples name the {subject.kind}"
    learnt = {version.id for version in versions if version.learnt}
    own: Counter[str] = Counter()
    for chunk in chunks(traces):
        own.update(_traces_by_prompt(client, " AND TraceId IN {ids:Array(String)}", ids=chunk))
    everybody = _traces_by_prompt(client) if own else {}
    only = {id for id, count in own.items() if everybody.get(id) == count}
    for id in sorted(learnt & (only | _told(client, subject))):
        why.setdefault(id, "learnt from an agent, and no other trace ran with it")
    pointers: dict[str, list[str]] = {}
    for alias in aliases(client, "prompt"):
        pointers.setdefault(f"{alias.name}@{alias.version}", []).append(alias.alias)
    return [PromptHit(id, reason, tuple(pointers.get(id, ()))) for id, reason in why.items()]


def _traces_by_prompt(client: Client, where: str = "", **parameters: Any) -> dict[str, int]:
    """How many traces ran with each version, or asked for it."""
    rows = client.query(
        "SELECT arrayJoin(arrayDistinct([SpanAttributes['spanloop.prompt.version'],"  # noqa: S608  # constants
        " SpanAttributes['spanloop.prompt.requested']])) AS version, uniqExact(TraceId) FROM otel_traces"
        f" WHERE mapContains(SpanAttributes, 'spanloop.prompt.version'){where} GROUP BY version HAVING version != ''",
        parameters=parameters,
    ).result_rows
    return {str(version): int(count) for version, count in rows}


def _told(client: Client, subject: Subject) -> set[str]:
    """Versions that an earlier run for this subject named: the spans that led there may be gone."""
    if not audit.is_there(client):
        return set()
    rows = client.query(
        "SELECT DISTINCT arrayJoin(JSONExtractArrayRaw(details, 'prompts')) FROM audit"
        " WHERE action = 'erase' AND subject = {subject:String}",
        parameters={"subject": str(subject)},
    ).result_rows
    return {str(json.loads(row[0])) for row in rows}


def _datasets(
    client: Client, subject: Subject, traces: Collection[str], first: datetime | None, reads_files: bool
) -> list[DatasetHit]:
    rows = client.query(
        "SELECT id, uri, parent, min(created) FROM datasets GROUP BY id, uri, parent ORDER BY 4, id, uri"
    ).result_rows
    # By id and folder: the same dataset may have been built in two.
    hits: dict[tuple[str, str], DatasetHit] = {}
    clean: set[tuple[str, str]] = set()
    for id, uri, _, created in rows:
        count = _rows_in(client, Path(uri), subject, traces, reads_files)
        kept = _in_pieces(client, Path(uri), traces, reads_files)
        if count:
            hits[id, uri] = DatasetHit(id, uri, count, f"{count} transitions")
        elif kept:
            hits[id, uri] = DatasetHit(id, uri, count, "what it was made from (pieces/)")
        elif count == 0:
            clean.add((id, uri))
        elif (first is None or utc(created) >= first) and not any(id == known for known, _ in hits):
            hits[id, uri] = DatasetHit(
                id,
                uri,
                None,
                "cannot be read here: run `spanloop erase` with --dry-run on the machine that has it",
            )
    grown = -1
    while grown != len(hits):
        grown = len(hits)
        known = {id for id, _ in hits}
        for id, uri, parent, _ in rows:
            # One that was built again without it is looked into, and not guessed.
            if parent in known and (id, uri) not in hits and (id, uri) not in clean and id not in known:
                hits[id, uri] = DatasetHit(id, uri, None, f"made from dataset {parent[:16]}")
    return list(hits.values())


def _rows_in(
    client: Client, folder: Path, subject: Subject, traces: Collection[str], reads_files: bool
) -> int | None:
    """Rows of a dataset that are of these traces; None: the file is not here, or nothing here can read it."""
    path = folder / PARQUET
    if not path.is_file():
        return None
    sessions = [f"{id}@" for id in subject.ids] if subject.kind == "session" else []
    return _by_engine(client, path, sessions, traces) if reads_files else _by_polars(path, sessions, traces)


def _in_pieces(client: Client, folder: Path, traces: Collection[str], reads_files: bool) -> bool:
    """Whether what a build read, and keeps for the next, has one of these traces, or cannot be read.

    Texts of calls that are in no transition are there, too.
    """
    kept = [
        path for name in ("calls", "gateway", "ancestors") for path in folder.glob(f"pieces/*/{name}.parquet")
    ]
    return any(
        count is None or count
        for path in kept
        for count in [_by_engine(client, path, [], traces) if reads_files else _by_polars(path, [], traces)]
    )


def _by_engine(client: Client, path: Path, sessions: list[str], traces: Collection[str]) -> int | None:
    from clickhouse_connect.driver.exceptions import ClickHouseError

    found = 0
    pieces = list(chunks(traces)) or [[]]
    for place, chunk in enumerate(pieces):
        # Rows of the session are counted once, with the first piece.
        parameters: Mapping[str, Any] = {
            "path": str(path),
            "ids": chunk,
            "sessions": [] if place else sessions,
        }
        try:
            found += int(
                client.query(
                    "SELECT count() FROM file({path:String}, Parquet, 'trace_id String, episode_id String')"
                    " WHERE trace_id IN {ids:Array(String)}"
                    " OR arrayExists(session -> startsWith(episode_id, session), {sessions:Array(String)})",
                    parameters=dict(parameters),
                ).result_rows[0][0]
            )
        except ClickHouseError:
            return None
    return found


def _by_polars(path: Path, sessions: list[str], traces: Collection[str]) -> int | None:
    try:
        import polars as pl
    except ImportError:
        return None
    try:
        frame = pl.read_parquet(path, columns=["trace_id", *(["episode_id"] if sessions else [])])
    except (OSError, pl.exceptions.PolarsError):
        return None
    hit = pl.col("trace_id").is_in(list(traces))
    for session in sessions:
        hit |= pl.col("episode_id").str.starts_with(session)
    return frame.filter(hit).height
