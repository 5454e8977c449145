"""The pipeline from spans to a dataset: read, recognise, link, group, score, write."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from spanloop_store import audit, registry
from spanloop_trainer.config import Config
from spanloop_trainer.errors import TransformError
from spanloop_trainer.transform.calls import distinct_calls, merge_gateway, with_status
from spanloop_trainer.transform.chains import link_calls
from spanloop_trainer.transform.credit import advantages
from spanloop_trainer.transform.dataset import Manifest, write_dataset
from spanloop_trainer.transform.episodes import assign_episodes, next_calls
from spanloop_trainer.transform.funnel import Funnel
from spanloop_trainer.transform.messages import read_messages, states
from spanloop_trainer.transform.read import Spans, Window, read_spans, span_range
from spanloop_trainer.transform.rewards import address, name_answers, score_rules, total, write_rule_rewards
from spanloop_trainer.transform.tasks import assign_tasks, read_tasks

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
    transitions, parts, last_calls = transform(
        spans, tasks, config, agents=tuple(agents or ()), funnel=funnel
    )
    if transitions.is_empty():
        raise _nothing(client, window, agents, funnel)
    progress(f"writing {transitions.height} transitions to {out}")
    audit.record(
        client, "build", str(out.resolve()), {"window": str(window), "transitions": transitions.height}
    )
    splits = dict(sorted(transitions.group_by("split").agg(pl.col("episode_id").n_unique()).iter_rows()))
    manifest = write_dataset(
        out,
        transitions,
        query={
            "since": since.isoformat() if since else None,
            "until": until.isoformat() if until else None,
            "services": list(window.services),
            "agents": sorted(agents or ()),
        },
        config_hash=config_hash,
        credit=config.credit.method,
        counts=funnel.as_dict(),
        splits=splits,
        decoders=_decoders(client),
    )
    write_rule_rewards(client, parts, last_calls, config)
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


def transform(
    spans: Spans, tasks: pl.DataFrame, config: Config, *, agents: tuple[str, ...] = (), funnel: Funnel
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Spans in memory to transitions; no store, no disk.

    Returns:
        The transitions, the rules' reward parts by episode, and the last call of every episode.
    """
    funnel.count("spans", spans.counts["spans"])
    funnel.count("rows_of_spans_stored_twice", spans.counts["rows_again"])
    funnel.lose(
        "no model call (tools, agents, HTTP, …)",
        spans.counts["spans"] - spans.counts["gateway"] - spans.counts["model_calls"],
    )
    funnel.count("gateway_spans", spans.counts["gateway"])
    funnel.count("model_calls", spans.counts["model_calls"])
    funnel.lose("model call of a flavour that is not read", spans.counts["model_calls"] - spans.calls.height)
    calls = distinct_calls(spans.calls, funnel)
    calls = merge_gateway(calls, spans.gateway, funnel)
    messages = read_messages(calls)
    calls = with_status(calls, messages).join(states(messages), on="row", how="left", maintain_order="left")
    links = link_calls(calls, messages)
    calls = assign_episodes(calls, links, spans.ancestors)
    calls = calls.join(
        next_calls(calls, links, messages.prompts), on="row", how="left", maintain_order="left"
    )
    calls = _policy(calls)
    if agents:
        kept = calls.filter(pl.col("agent").is_in(agents))
        funnel.lose("call of another agent", calls.height - kept.height)
        calls = kept
    funnel.count("calls", calls.height)
    episodes = assign_tasks(_episodes(calls, messages.answers), tasks)
    rule_parts = score_rules(episodes, config)
    judgements = name_answers(spans.rewards, spans.calls, spans.gateway)
    call_parts, episode_parts = address(judgements, calls, spans.ancestors, funnel)
    of_episodes = total(pl.concat([rule_parts, episode_parts]), "episode_id", config)
    of_calls = total(call_parts, "row", config)
    transitions = _transitions(calls, messages.answers, episodes, of_episodes, of_calls)
    transitions = advantages(transitions, config.credit.method)
    _count(transitions, funnel)
    last_calls = calls.filter("last").select(
        "episode_id", "trace_id", "span_id", "response_id",
        (pl.col("start") + pl.duration(nanoseconds=pl.col("duration_ns").cast(pl.Int64))).alias("end"),
    )  # fmt: skip
    return transitions, rule_parts, last_calls


def _policy(calls: pl.DataFrame) -> pl.DataFrame:
    """Add `policy`, `policy_version` and `resources`: the gateway's stamp, else the names that the span has."""
    texts = calls["system_text"].drop_nulls().unique()
    hashes = [f"prompt:{hashlib.sha256(text.encode()).hexdigest()[:16]}" for text in texts.to_list()]
    table = pl.DataFrame([texts, pl.Series("prompt_hash", hashes, dtype=pl.String)])
    prompt = pl.coalesce(pl.lit("prompt:") + pl.col("prompt_version"), "prompt_hash")
    requested = pl.lit("requested:") + pl.col("prompt_requested")
    named = pl.coalesce("response_model", pl.col("request_model").replace("", None))
    return calls.join(table, on="system_text", how="left", maintain_order="left").with_columns(
        pl.coalesce("served_version", named).alias("policy_version"),
        pl.coalesce(pl.col("served_version").str.split("@").list.first(), named).alias("policy"),
        pl.concat_list(prompt, requested).list.drop_nulls().alias("resources"),
    )


def _episodes(calls: pl.DataFrame, answers: pl.DataFrame) -> pl.DataFrame:
    """One row an episode, with what rules and task lookup need; `answer` is the last call's text, if it had one."""
    taken = answers.select("row", pl.col("choice").alias("taken"), "text", "tool_calls", "finish")
    calls = calls.join(taken, on=["row", "taken"], how="left", maintain_order="left")
    end = pl.col("start").dt.epoch("ns") + pl.col("duration_ns").cast(pl.Int64)
    return calls.group_by("episode_id", maintain_order=True).agg(
        pl.col("explicit_task").drop_nulls().first(),
        pl.col("first_user").first(),
        pl.col("agent").first(),
        pl.col("service").first(),
        pl.col("policy_version").last(),
        pl.when(pl.col("status").last() == "ok").then(pl.col("text").last()).alias("answer"),
        pl.col("finish").last().alias("finish_reason"),
        pl.col("status").last(),
        pl.len().cast(pl.Int64).alias("steps"),
        (pl.col("status") != "ok").sum().cast(pl.Int64).alias("errors"),
        pl.col("tool_calls").fill_null(0).sum().cast(pl.Int64).alias("tool_calls"),
        ((end.max() - pl.col("start").dt.epoch("ns").min()) / 1e9).alias("duration_s"),
    )


def _transitions(
    calls: pl.DataFrame,
    answers: pl.DataFrame,
    episodes: pl.DataFrame,
    of_episodes: pl.DataFrame,
    of_calls: pl.DataFrame,
) -> pl.DataFrame:
    """One row an answer, and one for a call that has none.

    An answer that the episode did not go on with (n > 1) ends there: no next call, and no reward, which judged another.
    """
    choices = answers.select("row", "choice", "chat", "finish")
    rows = calls.join(choices, on="row", how="left", maintain_order="left").with_columns(
        pl.col("choice").fill_null(0).cast(pl.Int32)
    )
    rows = (
        rows.join(
            episodes.select("episode_id", "task_id", "split"),
            on="episode_id",
            how="left",
            maintain_order="left",
        )
        .join(of_episodes, on="episode_id", how="left", maintain_order="left")
        .join(of_calls, on="row", how="left", suffix="_call", maintain_order="left")
    )
    ok, taken = pl.col("status") == "ok", pl.col("choice") == pl.col("taken")
    valid = pl.col("status") != "invalid"
    no_parts = pl.lit([], dtype=of_episodes.schema["reward_parts"])
    both = pl.col("reward").is_null() & pl.col("reward_call").is_null()
    rows = rows.with_columns(
        pl.when(taken & ~both)
        .then(pl.col("reward").fill_null(0.0) + pl.col("reward_call").fill_null(0.0))
        .alias("reward"),
        pl.when(taken)
        .then(
            pl.concat_list(
                pl.col("reward_parts").fill_null(no_parts), pl.col("reward_parts_call").fill_null(no_parts)
            )
        )
        .otherwise(no_parts)
        .alias("reward_parts"),
    )
    # An empty array is what an absent attribute looks like: not captured, never guessed.
    choice = pl.col("choice")
    per_choice = {
        name: pl.col(name).list.get(choice, null_on_oob=True) for name in ("completion_ids", "logprobs")
    }
    completion = pl.when(ok & (per_choice["completion_ids"].list.len() > 0)).then(
        per_choice["completion_ids"]
    )
    logprobs = pl.when(ok & (per_choice["logprobs"].list.len() > 0)).then(per_choice["logprobs"])
    return rows.select(
        "episode_id", "step", "choice", pl.lit(None, pl.String).alias("parent_episode_id"), "task_id", "agent",
        "trace_id", "span_id", "response_id", "start",
        pl.when(valid).then("state").alias("state"),
        pl.when(valid).then("tools_json").alias("tools"),
        pl.when(ok).then("chat").alias("action"),
        pl.when(taken).then("observation").alias("observation"),
        pl.when(taken).then("next_span_id").alias("next_span_id"),
        (~taken | pl.col("last")).alias("done"),
        "status", "error_type",
        pl.coalesce("finish", pl.col("finish_reasons").list.get(choice, null_on_oob=True)).alias("finish_reason"),
        "reward", pl.col("reward").alias("return_"), pl.lit(None, pl.Float64).alias("advantage"), "reward_parts",
        "policy", "policy_version", "resources",
        pl.struct(
            pl.coalesce("temperature", "gateway_temperature").alias("temperature"),
            pl.coalesce("top_p", "gateway_top_p").alias("top_p"),
            pl.coalesce("max_tokens", "gateway_max_tokens").alias("max_tokens"),
            pl.coalesce("seed", "gateway_seed").alias("seed"),
            pl.col("output").list.len().cast(pl.Int32).alias("n"),
        ).alias("sampling"),
        pl.when(pl.col("prompt_ids").list.len() > 0).then("prompt_ids").alias("prompt_ids"),
        completion.alias("completion_ids"), logprobs.alias("logprobs"),
        pl.lit(1.0).alias("weight"), "split",
    )  # fmt: skip


def _count(transitions: pl.DataFrame, funnel: Funnel) -> None:
    funnel.count("episodes", transitions["episode_id"].n_unique())
    funnel.count("transitions", transitions.height)
    for status, why in (
        ("error", "status error: the call failed"),
        ("truncated", "status truncated: the stream was cut"),
        ("invalid", "status invalid: recorded JSON does not parse (quarantined)"),
    ):
        funnel.lose(why, transitions.filter(pl.col("status") == status).height)
    ok = transitions.filter(pl.col("status") == "ok")
    funnel.count("usable", ok.height)
    funnel.count("usable_scored", ok.filter(pl.col("reward").is_not_null()).height)
    funnel.count("usable_with_token_ids", ok.filter(pl.col("completion_ids").is_not_null()).height)
    funnel.count(
        "episodes_scored", transitions.filter(pl.col("reward").is_not_null())["episode_id"].n_unique()
    )


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
