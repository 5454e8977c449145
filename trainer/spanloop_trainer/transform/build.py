"""`spanloop build`: the spans of a window to a dataset, recorded in the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from spanloop_store import audit, registry
from spanloop_trainer.config import Config
from spanloop_trainer.errors import TransformError
from spanloop_trainer.transform.credit import read_values
from spanloop_trainer.transform.datasets.dataset import Manifest, read_manifest, write_dataset
from spanloop_trainer.transform.episodes.tasks import read_tasks
from spanloop_trainer.transform.funnel import ANOTHER_AGENT, Funnel
from spanloop_trainer.transform.pieces.gather import Memory, gathered
from spanloop_trainer.transform.pieces.parts import Part, finished_parts, read_shard, whole_window
from spanloop_trainer.transform.pieces.piece import Piece
from spanloop_trainer.transform.pieces.texts import InMemory
from spanloop_trainer.transform.pipeline import Transitions, transform_pieces
from spanloop_trainer.transform.reading.read import Window, read_rewards, read_services, span_range
from spanloop_trainer.transform.rewards import scorer_of, watermark_of, write_computed
from spanloop_trainer.transform.streamed import Streamed

Progress = Callable[[str], None]


def _silent(_: str) -> None:
    pass


def build(
    client: Any,
    out: Path,
    *,
    config: Config,
    since: datetime | None = None,
    until: datetime | None = None,
    services: Sequence[str] | None = None,
    agents: Sequence[str] | None = None,
    parent: Path | None = None,
    merge: bool = False,
    memory: Memory = Memory(),  # noqa: B008  # it cannot be changed
    progress: Progress = _silent,
) -> Manifest:
    """Turn the spans of a window into a dataset, record it, and write rule rewards to the store.

    Args:
        client: what `spanloop_store.connect` returns; call `spanloop_store.flush` before, for what was only acknowledged.
        since, until: half-open interval of span starts (naive: UTC).
        services, agents: keep only these; None or empty: all.
        parent: folder of an earlier dataset: what it read of the window is not read again, unless the store's rows changed since.
            Such a dataset keeps what it read (`pieces/`), for the next.
        merge: the window is that of the shards which `build_shard` left in `out`; `since`, `until`, `services` are theirs.
        memory: how much is read, or put together, at a time.
        progress: receives one line a stage.

    Raises:
        TransformError: no model call in the window, a reward expression that is wrong, or a shard that is missing.
        JudgeError: the judge model cannot be asked.
        DatasetError: `parent` is no finished dataset.
        ConfigError: a task file is missing or malformed, or a verifier is not known.
        AuditError: the audit trail cannot be written; nor was the dataset.
        StoreUnavailable: the store did not answer.
    """
    tasks = read_tasks(config)
    config_hash = config.content_hash()
    parent_id = read_manifest(parent).id if parent is not None else ""
    window = Window(since, until, tuple(sorted(services or ())))
    if merge:
        window = whole_window(finished_parts(out))
    progress(f"window: {window}")
    # Before anything is read: what is wrong with the configuration shows at once.
    scorer, watermark = scorer_of(client, tasks, config, progress), watermark_of(config.watermark)
    read_values(config.values_path())
    with gathered(client, window, out, parent=parent, merge=merge, memory=memory, progress=progress) as found:
        rewards, of = read_rewards(client), tuple(agents or ())
        transitions: Transitions | Streamed
        if isinstance(found, Piece):
            transitions = transform_pieces(
                found.slim, InMemory(found.texts, found.tokens, memory.bucket_bytes), rewards, tasks, config, agents=of,
                scorer=scorer, watermark=watermark, funnel=Funnel(),
            )  # fmt: skip
        else:
            transitions = Streamed(
                client, found, rewards, tasks, config, agents=of, scorer=scorer, watermark=watermark, memory=memory,
                progress=progress,
            )  # fmt: skip
        del rewards
        funnel, height = transitions.funnel, transitions.height
        if not height:
            raise _nothing(client, window, agents, funnel)
        progress(f"writing {height} transitions to {out}")
        audit.record(client, "build", str(out.resolve()), {"window": str(window), "transitions": height})
        counts: dict[str, Any] = {}
        manifest = write_dataset(
            out,
            _with_counts(transitions, counts),
            query={
                "since": window.since.isoformat() if window.since else None,
                "until": window.until.isoformat() if window.until else None,
                "services": list(window.services),
                "agents": sorted(agents or ()),
                # What ended later was waited for.
                **({"watermark": watermark.isoformat()} if watermark else {}),
            },
            config_hash=config_hash,
            credit=str(config.credit),
            counts=counts,
            splits=transitions.splits,
            decoders=_decoders(client),
            parent=parent_id,
            lost=funnel.lost_rows(),
        )
        for computed in transitions.computed():
            write_computed(client, *computed, config)
        registry.record_dataset(
            client,
            registry.Dataset(
                id=manifest.id,
                uri=str(out.resolve()),
                parent=manifest.parent,
                episodes=manifest.counts["episodes"],
                transitions=manifest.counts["transitions"],
                manifest=asdict(manifest),
            ),
        )
        return manifest


def build_shard(
    client: Any,
    out: Path,
    shard: int,
    shards: int,
    *,
    since: datetime | None = None,
    until: datetime,
    services: Sequence[str] | None = None,
    parent: Path | None = None,
    progress: Progress = _silent,
) -> list[Part]:
    """Read one shard of a window into `out`, for `build(…, merge=True)` once all of them lie there.

    Args:
        shard, shards: traces whose `cityHash64(TraceId)` modulo `shards` is `shard`.
        since, until, services, parent: as of `build`; the same for every shard.

    Raises:
        AuditError: the audit trail cannot be written; nothing was read.
        StoreUnavailable: the store did not answer.
    """
    window = Window(since, until, tuple(sorted(services or ())), shard, shards)
    details = {"window": str(window), "shard": f"{shard + 1}/{shards}"}
    audit.record(client, "build", str(out.resolve()), details)
    return read_shard(client, window, out, parent=parent, progress=progress)


def _with_counts(transitions: Transitions | Streamed, counts: dict[str, Any]) -> Iterator[pl.DataFrame]:
    """The rows; `counts` is filled after the last, since the texts of most are only read then."""
    yield from transitions.frames()
    counts.update(transitions.funnel.as_dict())


def _nothing(client: Any, window: Window, agents: Sequence[str] | None, funnel: Funnel) -> TransformError:
    stored, first, last = span_range(client)
    where = f"{window}" + (f", agents {', '.join(agents)}" if agents else "")
    if not stored:
        return TransformError(
            f"no model call in {where}: the store holds no spans at all",
            "start `spanloop up`, run an agent with the variables that it prints, then build again",
        )
    lost = "; ".join(f"{number} × {reason}" for reason, number in funnel.lost.items())
    if funnel.counts.get("calls"):
        return TransformError(
            f"no transition is left of {funnel.counts['calls']} calls in {where}: {lost}",
            "loosen [filters] in spanloop.toml, or widen the window; nothing was written",
        )
    others = funnel.lost_rows().filter(pl.col("reason") == ANOTHER_AGENT)["detail"].drop_nulls()
    if others.len():
        return TransformError(
            f"no call of these agents in {where}", f"--agent, one of: {_some(others.unique())}"
        )
    known = read_services(client, replace(window, services=()))
    if window.services and known and not set(window.services) & set(known):
        return TransformError(
            f"no span of these services in {where}", f"--service, one of: {_some(pl.Series(known))}"
        )
    return TransformError(
        f"no model call in {where}; the store's {stored} spans are from {first} to {last} UTC"
        + (f"; in this window: {lost}" if lost else ""),
        "widen --since / --until / --service / --agent, or run `spanloop doctor` to see what the agent records",
    )


def _some(names: pl.Series) -> str:
    shown = names.sort().to_list()
    return ", ".join(map(repr, shown[:20])) + (f", and {len(shown) - 20} more" if len(shown) > 20 else "")


def _decoders(client: Any) -> dict[str, int]:
    """Spans by who decoded them, over the whole store; the engine's share is a promise of the collector."""
    rows = client.query(
        "SELECT decoder, sum(rows) FROM ingest_segments WHERE signal = 'traces' GROUP BY decoder ORDER BY decoder"
    )
    return {str(decoder): int(count) for decoder, count in rows.result_rows}
