"""Spans to transitions, stage by stage.

A. `pieces.canonical`: some of the window's spans → `Piece`; messages are read here, and here only. Needs a part of the spans.
B. `link`: slim rows of all pieces → `calls`, one row a distinct call, with row, episode, step, next call, task.
C. `texts.Texts.buckets`: the texts and tokens of a bucket of whole episodes are put beside their calls.
D. `judge`: whatever needs texts of an episode (rules, verifiers, judges, content hashes) → slim results. Needs one bucket.
E. `settle`: `rows`, one slim row an answer; rewards added up, credit, filters, caps. Needs all rows.
F. `Transitions.frames`: rows of the contract, bucket by bucket, in the contract's order. Needs one bucket.

A window that fits in memory is one piece and one bucket. Because A, C, D and F see one part at a time and B and E see slim
columns alone, memory grows with the number of calls and not with their length. Nothing may depend on how calls are spread over
pieces and buckets: the bytes are the same for any number of them.

Frames (columns that later stages may rely on; `?`: may be null):

`Slim.calls` (before twins are removed): `call` (u64, key in `texts`), `trace_id`, `span_id`, `parent_span_id` (''
for a root), `start`, `duration_ns`, `service`, `instance`, `session?`, `rollout?`, `explicit_task?`, `span_agent?`, `response_id?`,
`error_type?`, `status`, `has_content`, `length` (messages in the prompt), `prompt_code`, `prefixes`, `answers` (list of
`messages.ANSWER`), `asked?` (hash of the first user message), `prompt_hash?`, `own_served_version?`, `own_tokens?` (u64, key in
`tokens`), `own_tokens_code?`, the facts of `flavours.FACTS`.

`calls` after B: the same without `own_*`, and `row` (u32, dense, canonical order), `episode_id`, `step`, `agent`, `kind`, `taken`, `next_span_id?`,
`next_row?` and `seen?` (what the environment answered: messages of that row from that place on), `last`, `policy?`,
`policy_version?`, `resources`, `served_version?`, `tokens?`, `task_id`, `split`.

A bucket in D and F: those calls, all of whole episodes, and `messages` (list of JSON), `chats`, `texts` (lists, aligned with
`answers`), `tools_json?`, `prompt_ids?`, `completion_ids?`, `logprobs?` (the last two: a list a choice).

`rows` in E: `row`, `choice`, `place` (in `answers`), `episode_id`, `step`, `task_id`, `split`, `agent`, `status`, `start`, `taken` (bool: the episode
went on with this answer), `done`, `policy_version?`, `state_code` (equal: the same prompt), `reward?`, `return_?`, `advantage?`, `weight`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from spanloop_trainer.config import Config
from spanloop_trainer.transform.assemble import answer_rows, assemble, episode_facts, with_policy
from spanloop_trainer.transform.calls import distinct_calls, merge_gateway
from spanloop_trainer.transform.chains import link_calls
from spanloop_trainer.transform.credit import advantages
from spanloop_trainer.transform.dataset import in_order
from spanloop_trainer.transform.episodes import assign_episodes, next_calls
from spanloop_trainer.transform.funnel import Funnel
from spanloop_trainer.transform.pieces import Slim, canonical
from spanloop_trainer.transform.read import Spans
from spanloop_trainer.transform.rewards import address, name_answers, score_rules, total
from spanloop_trainer.transform.tasks import assign_tasks
from spanloop_trainer.transform.texts import InMemory, Texts


@dataclass(frozen=True)
class Judged:
    """What D found out, of one bucket or of all: slim."""

    parts: pl.DataFrame  # `episode_id` and the fields of a reward part, from rules


@dataclass(frozen=True)
class Settled:
    """What E decided."""

    rows: pl.DataFrame
    of_episodes: pl.DataFrame  # `episode_id`, `reward`, `reward_parts`
    of_calls: pl.DataFrame  # `row`, `reward`, `reward_parts`


@dataclass(frozen=True)
class Transitions:
    """What a window became; its rows are put together while they are asked for."""

    texts: Texts
    calls: pl.DataFrame
    judged: Judged
    settled: Settled
    funnel: Funnel

    def frames(self) -> Iterator[pl.DataFrame]:
        """Stage F: rows of the contract in the contract's order, a frame a bucket; the funnel is whole after the last."""
        with_tokens = 0
        for bucket in self.texts.buckets(self.calls):
            rows = self.settled.rows.join(bucket, on="row", how="semi", maintain_order="left")
            frame = assemble(rows, bucket, self.settled.of_episodes, self.settled.of_calls)
            usable = (pl.col("status") == "ok") & pl.col("completion_ids").is_not_null()
            with_tokens += frame.select(usable.sum()).item()
            yield in_order(frame)
        self.funnel.count("usable_with_token_ids", with_tokens)

    def last_calls(self) -> pl.DataFrame:
        """The last call of every episode: `episode_id`, `trace_id`, `span_id`, `response_id`, `end`."""
        return self.calls.filter("last").select(
            "episode_id", "trace_id", "span_id", "response_id",
            (pl.col("start") + pl.duration(nanoseconds=pl.col("duration_ns").cast(pl.Int64))).alias("end"),
        )  # fmt: skip


def transform(
    spans: Spans,
    rewards: pl.DataFrame,
    tasks: pl.DataFrame,
    config: Config,
    *,
    agents: tuple[str, ...] = (),
    funnel: Funnel,
) -> Transitions:
    """Spans in memory to transitions; no store, no disk."""
    piece = canonical(spans)
    texts = InMemory(piece.texts, piece.tokens)
    return transform_pieces(piece.slim, texts, rewards, tasks, config, agents=agents, funnel=funnel)


def transform_pieces(
    slim: Slim,
    texts: Texts,
    rewards: pl.DataFrame,
    tasks: pl.DataFrame,
    config: Config,
    *,
    agents: tuple[str, ...] = (),
    funnel: Funnel,
) -> Transitions:
    """Stages B to E.

    Args:
        slim: of all pieces together.
        texts: theirs.
        rewards: rows of table `rewards`, as `read.read_rewards` gives them.
    """
    calls = link(slim, tasks, agents=agents, funnel=funnel)
    judged = [judge(bucket, tasks, config) for bucket in texts.buckets(calls)]
    together = Judged(parts=pl.concat([one.parts for one in judged]))
    return Transitions(texts, calls, together, settle(calls, slim, rewards, together, config, funnel), funnel)


def link(slim: Slim, tasks: pl.DataFrame, *, agents: tuple[str, ...], funnel: Funnel) -> pl.DataFrame:
    """Stage B, over the slim rows of all pieces."""
    counts = slim.counts
    funnel.count("spans", counts["spans"])
    funnel.count("rows_of_spans_stored_twice", counts["rows_again"])
    funnel.lose(
        "no model call (tools, agents, HTTP, …)", counts["spans"] - counts["gateway"] - counts["model_calls"]
    )
    funnel.count("gateway_spans", counts["gateway"])
    funnel.count("model_calls", counts["model_calls"])
    funnel.lose("model call of a flavour that is not read", counts["model_calls"] - slim.calls.height)
    calls = distinct_calls(slim.calls, funnel)
    calls = merge_gateway(calls, slim.gateway, funnel)
    links = link_calls(calls)
    calls = assign_episodes(calls, links, slim.ancestors)
    calls = calls.join(next_calls(calls, links), on="row", how="left", maintain_order="left")
    calls = with_policy(calls)
    if agents:
        kept = calls.filter(pl.col("agent").is_in(agents))
        funnel.lose("call of another agent", calls.height - kept.height)
        calls = kept
    funnel.count("calls", calls.height)
    return calls.join(assign_tasks(calls, tasks), on="episode_id", how="left", maintain_order="left")


def judge(bucket: pl.DataFrame, tasks: pl.DataFrame, config: Config) -> Judged:
    """Stage D, over one bucket."""
    of_tasks = bucket.select("episode_id", "task_id", "split").unique("episode_id", maintain_order=True)
    episodes = (
        episode_facts(bucket)
        .join(of_tasks, on="episode_id", how="left", maintain_order="left")
        .join(tasks.drop("prompt", "split"), on="task_id", how="left", maintain_order="left")
    )
    return Judged(parts=score_rules(episodes, config))


def settle(
    calls: pl.DataFrame, slim: Slim, rewards: pl.DataFrame, judged: Judged, config: Config, funnel: Funnel
) -> Settled:
    """Stage E, over the slim rows of all."""
    judgements = name_answers(rewards, slim.calls, slim.gateway)
    call_parts, episode_parts = address(judgements, calls, slim.ancestors, funnel)
    of_episodes = total(pl.concat([judged.parts, episode_parts]), "episode_id", config)
    of_calls = total(call_parts, "row", config)
    rows = answer_rows(calls, of_episodes, of_calls)
    rows = advantages(rows, config.credit.method)
    _count(rows, funnel)
    return Settled(rows, of_episodes, of_calls)


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
    funnel.count("usable_with_token_ids", 0)  # F counts them; its place in the table is here
    funnel.count(
        "episodes_scored", transitions.filter(pl.col("reward").is_not_null())["episode_id"].n_unique()
    )
