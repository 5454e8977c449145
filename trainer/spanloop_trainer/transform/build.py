"""`spanloop build`: the spans of a window to a dataset, recorded in the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from spanloop_store import audit, registry
from spanloop_trainer.config import Config
from spanloop_trainer.errors import TransformError
from spanloop_trainer.transform.dataset import Manifest, write_dataset
from spanloop_trainer.transform.funnel import Funnel
from spanloop_trainer.transform.pipeline import Transitions, transform
from spanloop_trainer.transform.read import Window, read_rewards, read_spans, span_range
from spanloop_trainer.transform.rewards import write_rule_rewards
from spanloop_trainer.transform.tasks import read_tasks

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
    progress: Progress = _silent,
) -> Manifest:
    """Turn the spans of a window into a dataset, record it, and write rule rewards to the store.

    Args:
        client: what `spanloop_store.connect` returns; call `spanloop_store.flush` before, for what was only acknowledged.
        since, until: half-open interval of span starts (naive: UTC).
        services, agents: keep only these; None or empty: all.
        progress: receives one line a stage.

    Raises:
        TransformError: no model call in the window, or a reward expression that is wrong.
        ConfigError: a task file is missing or malformed.
        AuditError: the audit trail cannot be written; nor was the dataset.
    """
    tasks = read_tasks(config)
    config_hash = config.content_hash()
    window = Window(since, until, tuple(sorted(services or ())))
    progress(f"reading spans, {window}")
    spans = read_spans(client, window)
    funnel = Funnel()
    transitions = transform(
        spans, read_rewards(client), tasks, config, agents=tuple(agents or ()), funnel=funnel
    )
    rows = transitions.settled.rows
    if rows.is_empty():
        raise _nothing(client, window, agents, funnel)
    progress(f"writing {rows.height} transitions to {out}")
    audit.record(client, "build", str(out.resolve()), {"window": str(window), "transitions": rows.height})
    splits = dict(sorted(rows.group_by("split").agg(pl.col("episode_id").n_unique()).iter_rows()))
    counts: dict[str, Any] = {}
    manifest = write_dataset(
        out,
        _with_counts(transitions, counts),
        query={
            "since": since.isoformat() if since else None,
            "until": until.isoformat() if until else None,
            "services": list(window.services),
            "agents": sorted(agents or ()),
        },
        config_hash=config_hash,
        credit=config.credit.method,
        counts=counts,
        splits=splits,
        decoders=_decoders(client),
    )
    write_rule_rewards(client, transitions.judged.parts, transitions.last_calls(), config)
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


def _with_counts(transitions: Transitions, counts: dict[str, Any]) -> Iterator[pl.DataFrame]:
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
    return TransformError(
        f"no model call in {where}; the store's {stored} spans are from {first} to {last} UTC"
        + (f"; in this window: {lost}" if lost else ""),
        "widen --since / --until / --service / --agent, or run `spanloop doctor` to see what the agent records",
    )


def _decoders(client: Any) -> dict[str, int]:
    """Spans by who decoded them, over the whole store; the engine's share is a promise of the collector."""
    rows = client.query(
        "SELECT decoder, sum(rows) FROM ingest_segments WHERE signal = 'traces' GROUP BY decoder ORDER BY decoder"
    )
    return {str(decoder): int(count) for decoder, count in rows.result_rows}
