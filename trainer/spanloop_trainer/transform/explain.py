"""How the row of one span came to be, or why there is none: the pipeline, run again over what lies around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from spanloop_trainer.config import Config
from spanloop_trainer.errors import TransformError
from spanloop_trainer.transform import credit
from spanloop_trainer.transform.datasets.dataset import Manifest, open_dataset, scan_lost
from spanloop_trainer.transform.episodes.tasks import read_tasks
from spanloop_trainer.transform.funnel import NOT_READ, Funnel
from spanloop_trainer.transform.pieces.gather import looked_at
from spanloop_trainer.transform.pieces.piece import Slim
from spanloop_trainer.transform.pipeline import Transitions, transform_pieces
from spanloop_trainer.transform.reading.read import Window, find_span, read_rewards
from spanloop_trainer.transform.rewards import scorer_of, watermark_of

# Twins and gateway spans lie around the calls that are looked at.
_MARGIN = timedelta(minutes=5)
# Without a dataset: its conversation and its group are looked for so far around it.
AROUND = timedelta(hours=1)

RULES = {
    "rollout": "a rollout id names it",
    "session": "a session id names it, within one process",
    "trace": "the calls below one agent's span of a trace",
    "chain": "each prompt begins with the one before and its answer",
}


@dataclass(frozen=True)
class Explanation:
    """What is known of one span.

    Attributes:
        span: `trace_id`, `span_id`, `start`, `service`, `name`.
        window: what was run again, in words, and how many spans it holds.
        why_not: reason and detail, where the span has no row; empty: it has.
        call: what the span reports; empty: no model call that can be read.
        merged: other spans of the same call: `span_id`, `trace_id`, `why`.
        episode, task: where the row belongs, and by which rule.
        rows: one for each answer: `choice`, `taken`, `status`, `reward`, `return_`, `advantage`, `weight`, `rewards` (the parts, with
            `weight` and `by`), `credit` (lines).
        filters: what filters of the configuration had to say: reason and detail; empty: all kept it. With a dataset also what those
            of its build said and these did not: a duplicate's original may lie outside of what was run again.
        dataset: fields in which the row of the dataset differs from what came out now: name → (there, now), `rows` (how many) also
            where neither has one; None: not asked for.
    """

    span: dict[str, Any]
    window: str
    why_not: str = ""
    call: dict[str, Any] = field(default_factory=dict)
    merged: list[dict[str, str]] = field(default_factory=list)
    episode: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    filters: list[str] = field(default_factory=list)
    dataset: dict[str, Any] | None = None


def explain(
    client: Any,
    span_id: str,
    config: Config,
    *,
    dataset: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Explanation:
    """Explain a span.

    Args:
        client: what `spanloop_store.connect` returns.
        span_id: of a span, or `TRACE_ID-SPAN_ID`.
        dataset: whose window, services and agents hold, and whose rows of the same task are looked at, however far away.

    Raises:
        TransformError: the store has no such span, or has it in several traces.
        DatasetError: the folder is no finished dataset.
        StoreUnavailable: the store did not answer.
    """
    span = _find(client, span_id)
    manifest, window, around = _window(span, dataset)
    if outside := manifest and _outside(span, Window.of_query(manifest.query)):
        return Explanation(span, around, why_not=outside)
    agents = tuple(manifest.query.get("agents", ())) if manifest else ()
    progress(f"reading spans, {around}")
    funnel, tasks, judgements = Funnel(), read_tasks(config), read_rewards(client)
    waited = manifest.query.get("watermark") if manifest else None
    # A task may span the dataset's whole window; what does not fit in memory is put aside, as for a build.
    with looked_at(client, window, progress) as (slim, texts):
        spans = slim.counts["spans"]
        said = f"{around}: {spans:,} spans"
        if slim.calls.is_empty():
            return Explanation(span, said, why_not=_no_call(span), dataset=_differences(dataset, span))
        transitions = transform_pieces(
            slim, texts, judgements, tasks, config, agents=agents,
            scorer=scorer_of(client, tasks, config, progress, may_ask=False),
            watermark=datetime.fromisoformat(waited) if waited else watermark_of(config.watermark), funnel=funnel,
        )  # fmt: skip
        return _explained(span, said, slim, transitions, tasks, config, dataset)


def _find(client: Any, asked: str) -> dict[str, Any]:
    trace_id, _, span_id = asked.rpartition("-")
    found = find_span(client, span_id, trace_id) if trace_id else find_span(client, asked, "")
    # An id may hold a hyphen itself.
    found = found or find_span(client, asked, "")
    if not found:
        raise TransformError(
            f"the store has no span {asked!r}", "spanloop dataset show DIR lists span ids; check --store"
        )
    if len(found) > 1:
        raise TransformError(
            f"{len(found)} traces have a span {asked!r}",
            "one of: " + ", ".join(f"{row['trace_id']}-{row['span_id']}" for row in found[:5]),
        )
    return found[0]


def _window(span: dict[str, Any], dataset: Path | None) -> tuple[Manifest | None, Window, str]:
    """What to run again: with a dataset all of the span's task, else an hour around it."""
    start: datetime = span["start"]
    if dataset is None:
        since, until = start - AROUND, start + AROUND
        return None, Window(since, until), "an hour before and after"
    manifest, rows = open_dataset(dataset)
    place = ("task_id", "trace_id", "span_id", "start")
    known = pl.concat([rows.select(place), scan_lost(dataset).select(place)])
    task = known.filter(_is(span) & pl.col("task_id").is_not_null()).select("task_id").unique()
    bounds = known.join(task, on="task_id", how="semi").select(
        first=pl.col("start").min(), last=pl.col("start").max()
    )
    first, last = bounds.collect().row(0)
    since = min(filter(None, (first and first.replace(tzinfo=UTC), start))) - _MARGIN
    until = max(filter(None, (last and last.replace(tzinfo=UTC), start))) + _MARGIN
    # Never beyond the dataset's own window.
    whole = Window.of_query(manifest.query)
    since = max(filter(None, (since, whole.since)))
    until = min(filter(None, (until, whole.until)))
    window = Window(since, until, whole.services)
    return manifest, window, f"the dataset's rows of this task, {window}"


def _outside(span: dict[str, Any], window: Window) -> str:
    """Why a dataset's build did not look at a span; empty: it did."""
    since, until = window.since, window.until
    if (since and span["start"] < since) or (until and span["start"] >= until):
        return f"it lies outside the dataset's window, {window}"
    if window.services and span["service"] not in window.services and not span["gateway"]:
        return f"its service is none of the dataset's: {', '.join(window.services)}"
    return ""


def _no_call(span: dict[str, Any]) -> str:
    if span["gateway"]:
        return "a gateway's span: its stamp goes to the agent's span of the same answer, which is not in this window"
    return f"a {NOT_READ}" if span["model_call"] else "no model call: no attribute of it says so"


def _explained(
    span: dict[str, Any],
    window: str,
    slim: Slim,
    transitions: Transitions,
    tasks: pl.DataFrame,
    config: Config,
    dataset: Path | None,
) -> Explanation:
    key = _is(span)
    calls, lost = transitions.calls, transitions.funnel.lost_rows()
    mine = _reasons(lost.filter(key))
    call = calls.filter(key)
    if span["gateway"] and (merged := calls.filter(pl.col("gateway_span") == span["span_id"])).height:
        of = merged.row(0, named=True)
        why = f"a gateway's span, merged into {of['trace_id']}-{of['span_id']}"
        return Explanation(span, window, why_not=why)
    if call.is_empty():
        reported = slim.calls.filter(key)
        why = "; ".join(mine) or _no_call(span)
        return Explanation(
            span, window, why_not=why, call=_facts(reported.row(0, named=True)) if reported.height else {},
            dataset=_differences(dataset, span),
        )  # fmt: skip
    row = call.row(0, named=True)
    kept = pl.col("detail").str.ends_with(f"{span['trace_id']}-{span['span_id']}")
    twins = [
        {"trace_id": twin["trace_id"], "span_id": twin["span_id"], "why": twin["reason"]}
        for twin in lost.filter(kept & pl.col("reason").str.starts_with("twin")).iter_rows(named=True)
    ]
    if row["gateway_span"]:
        twins.append(
            {"trace_id": "", "span_id": row["gateway_span"], "why": "the gateway's span of this answer"}
        )
    if dataset is not None:
        then = _reasons(scan_lost(dataset).filter(key).collect())
        mine += [f"{why} (says the dataset)" for why in then if why not in mine]
    steps = calls.filter(pl.col("episode_id") == row["episode_id"]).height
    # A chain of one call is what no other rule found an episode for.
    why = (
        "by itself: no other call goes on from it"
        if (row["kind"], steps) == ("chain", 1)
        else RULES.get(row["kind"], "")
    )
    rows = transitions.settled.credited.filter(pl.col("row") == row["row"])
    parts = _parts(row, transitions, config)
    return Explanation(
        span, window,
        call=_facts(row),
        merged=twins,
        episode={
            "episode_id": row["episode_id"], "rule": row["kind"], "why": why, "step": row["step"], "steps": steps,
            "agent": row["agent"], "parent_episode_id": row.get("parent_episode_id"), "next_span_id": row["next_span_id"], "done": row["last"],
        },
        task={"task_id": row["task_id"], "split": row["split"], "why": _task_rule(row, calls, tasks)},
        rows=[
            {
                **{name: one[name] for name in ("choice", "taken", "status", "reward", "return_", "advantage", "weight")},
                "rewards": parts if one["taken"] else [],
                "credit": credit.explain(
                    transitions.settled.credited, config.credit, episode_id=one["episode_id"], step=one["step"], choice=one["choice"]
                ),
            }
            for one in rows.iter_rows(named=True)
        ],
        filters=[why for why in mine if not why.startswith(("status ", "unscored "))],
        dataset=_differences(dataset, span, rows.join(transitions.settled.rows, on=["row", "choice"], how="semi")),
    )  # fmt: skip


def _reasons(lost: pl.DataFrame) -> list[str]:
    return [
        f"{row['reason']}{': ' + row['detail'] if row['detail'] else ''}"
        for row in lost.iter_rows(named=True)
    ]


_FACTS = (
    "flavour", "status", "error_type", "failure", "request_model", "response_model", "response_id", "policy", "policy_version",
    "resources", "length", "temperature", "top_p", "max_tokens", "seed",
)  # fmt: skip


def _facts(row: dict[str, Any]) -> dict[str, Any]:
    from spanloop_trainer.transform.flavours import Flag

    facts = {name: row[name] for name in _FACTS if row.get(name) not in (None, "")}
    facts["messages"] = facts.pop("length", 0)
    facts["answers"] = [
        {"choice": a["choice"], "finish_reason": a["finish"], "tool_calls": a["tool_calls"]}
        for a in row["answers"]
    ]
    facts["token_ids"] = row.get("tokens", row.get("own_tokens")) is not None
    facts["flags"] = list(Flag(row["flags"]).names())
    return facts


def _task_rule(row: dict[str, Any], calls: pl.DataFrame, tasks: pl.DataFrame) -> str:
    of_episode = calls.filter(pl.col("episode_id") == row["episode_id"])
    if row["task_id"] in of_episode["explicit_task"].drop_nulls().to_list():
        return "a span names it"
    if row["task_id"] in tasks["task_id"].to_list():
        return "the first user message is its prompt in a task file"
    if row["task_id"] in of_episode["asked"].drop_nulls().to_list():
        return "a hash of the first user message"
    return "that of the episode that called this one" if row["parent_episode_id"] else "no user message"


def _parts(row: dict[str, Any], transitions: Transitions, config: Config) -> list[dict[str, Any]]:
    """The row's parts of reward, with `weight`, `by` (how they were joined) and `of` (`episode` or `call`)."""
    found, scores = transitions.settled.found, transitions.judged.scores
    weights = {rule.name: rule.weight for rule in config.rewards}
    parts = []
    for of, key, frames in (
        ("episode", "episode_id", (scores.of_episodes, found.of_episodes)),
        ("call", "row", (scores.of_calls, found.of_calls)),
    ):
        for frame in frames:
            for part in frame.filter(pl.col(key) == row[key]).iter_rows(named=True):
                by = part.get("by") or "computed"
                parts.append({name: part[name] for name in ("name", "value", "source", "evaluator", "version")}
                             | {"weight": weights.get(part["name"], 1.0), "by": by, "of": of})  # fmt: skip
    return sorted(
        parts, key=lambda part: (part["of"], part["name"], part["source"], part["evaluator"], part["value"])
    )


_COMPARED = ("episode_id", "step", "task_id", "status", "split", "reward", "return_", "advantage", "weight")


def _differences(
    dataset: Path | None, span: dict[str, Any], rows: pl.DataFrame | None = None
) -> dict[str, Any] | None:
    """Where the dataset, if there is one, says otherwise than the store does now, which gives these rows (None: none)."""
    if dataset is None:
        return None
    there = open_dataset(dataset)[1].filter(_is(span)).select("choice", *_COMPARED).collect()
    now = there.clear() if rows is None else rows.select("choice", *_COMPARED)
    differ: dict[str, Any] = {}
    if there.height != now.height or not there.height:
        differ["rows"] = (there.height, now.height)
    for one, other in (
        (a, b)
        for a in there.iter_rows(named=True)
        for b in now.iter_rows(named=True)
        if a["choice"] == b["choice"]
    ):
        differ |= {name: (one[name], other[name]) for name in _COMPARED if one[name] != other[name]}
    return differ


def _is(span: dict[str, Any]) -> pl.Expr:
    return pl.col("trace_id").eq(span["trace_id"]) & pl.col("span_id").eq(span["span_id"])
