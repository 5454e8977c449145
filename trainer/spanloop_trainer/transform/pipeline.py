"""Spans in memory to transitions, stage by stage; no store, no disk."""

from __future__ import annotations

import polars as pl

from spanloop_trainer.config import Config
from spanloop_trainer.transform.assemble import assemble, episode_facts, with_policy
from spanloop_trainer.transform.calls import distinct_calls, merge_gateway, with_status
from spanloop_trainer.transform.chains import link_calls
from spanloop_trainer.transform.credit import advantages
from spanloop_trainer.transform.episodes import assign_episodes, next_calls
from spanloop_trainer.transform.funnel import Funnel
from spanloop_trainer.transform.messages import read_messages
from spanloop_trainer.transform.read import Spans
from spanloop_trainer.transform.rewards import address, name_answers, score_rules, total
from spanloop_trainer.transform.tasks import assign_tasks


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
    calls = with_status(read_messages(spans.calls))
    calls = distinct_calls(calls, funnel)
    calls = merge_gateway(calls, spans.gateway, funnel)
    links = link_calls(calls)
    calls = assign_episodes(calls, links, spans.ancestors)
    calls = calls.join(next_calls(calls, links), on="row", how="left", maintain_order="left")
    calls = with_policy(calls)
    if agents:
        kept = calls.filter(pl.col("agent").is_in(agents))
        funnel.lose("call of another agent", calls.height - kept.height)
        calls = kept
    funnel.count("calls", calls.height)
    episodes = assign_tasks(episode_facts(calls), tasks)
    rule_parts = score_rules(episodes, config)
    judgements = name_answers(spans.rewards, spans.calls, spans.gateway)
    call_parts, episode_parts = address(judgements, calls, spans.ancestors, funnel)
    of_episodes = total(pl.concat([rule_parts, episode_parts]), "episode_id", config)
    of_calls = total(call_parts, "row", config)
    transitions = assemble(calls, episodes, of_episodes, of_calls)
    transitions = advantages(transitions, config.credit.method)
    _count(transitions, funnel)
    last_calls = calls.filter("last").select(
        "episode_id", "trace_id", "span_id", "response_id",
        (pl.col("start") + pl.duration(nanoseconds=pl.col("duration_ns").cast(pl.Int64))).alias("end"),
    )  # fmt: skip
    return transitions, rule_parts, last_calls


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
