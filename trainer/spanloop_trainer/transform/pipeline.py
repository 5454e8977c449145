"""Spans to transitions, stage by stage.

A. `pieces.canonical`: some of the window's spans → `Piece`; messages are read here, and here only. Needs a part of the spans.
B. `link`: slim rows of all pieces, or of a bin of closed groups → `calls`, one row a distinct call, with row, episode, step, next call, task.
C. `texts.Texts.buckets`: the texts and tokens of a bucket of whole episodes are put beside their calls.
D. `judge`: whatever needs texts of an episode (rules, verifiers, judges; signatures and hits of `selection`) → slim results. Needs one bucket.
E. `settle`: `rows`, one slim row an answer; rewards added up, credit, filters, caps. Needs the rows of whole tasks; with filters all.
F. `Transitions.frames`: rows of the contract, bucket by bucket, in the contract's order. Needs one bucket.

A window that fits in memory is one piece, and these stages are run over all of it here. A larger one is several: then `streamed` runs A, C,
D and F over one part at a time, B over groups of traces that nothing joins, and E over the rows of some tasks. Nothing may depend on how
calls are spread over pieces, bins and buckets: the bytes are the same for any number of them.

Frames (columns that later stages may rely on; `?`: may be null):

`Slim.calls` (before twins are removed): `call` (u64, key in `texts`), `trace_id`, `span_id`, `parent_span_id` (''
for a root), `start`, `duration_ns`, `service`, `instance`, `session?`, `rollout?`, `explicit_task?`, `span_agent?`, `response_id?`,
`error_type?`, `status`, `has_content`, `length` (messages in the prompt), `prompt_code`, `prefixes`, `answers` (list of
`messages.ANSWER`), `answered?`, `answered_key?` and `shown?` (codes of the prompt's last assistant's message and of all behind it), `has_tools`, `refused`, `asked?` (hash of the first user message), `prompt_hash?`, `flags` (of `flavours.Flag`), `own_served_version?`, `own_tokens?` (u64, key in
`tokens`), `own_tokens_code?`, the facts of `flavours.FACTS`.

`calls` after B: the same without `own_*`, and `row` (u32, dense, canonical order), `episode_id`, `step`, `agent`, `kind`, `parent_episode_id?`,
`called` (by an episode that has calls), `lineage?` (the episode whose task it keeps), `failure?`, `taken`, `next_span_id?`,
`next_row?` and `seen?` (what the environment answered: messages of that row from that place on), `last`, `selected` (its agent is learned for: only such
calls make rows), `ends` (the last of them in its episode), `policy?`,
`policy_version?`, `resources`, `served_version?`, `tokens?`, `task_id`, `split`.

A bucket in D and F: those calls, all of whole episodes, and `messages` (list of JSON), `chats`, `texts` (lists, aligned with
`answers`), `tools_json?`, `prompt_ids?`, `completion_ids?`, `logprobs?` (the last two: a list a choice).

`rows` in E: `row`, `choice`, `place` (in `answers`), `episode_id`, `step`, `task_id`, `split`, `agent`, `status`, `start`, `taken` (bool: the episode
went on with this answer), `done`, `policy_version?`, `state_code` (equal: the same prompt), `reward_episode?` and `reward_call?` (null beside the taken answer), `reward?`
(their sum), `return_?`, `advantage?`, `weight`; with `[credit] values`, `value?`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import polars as pl

from spanloop_trainer.config import Config
from spanloop_trainer.transform.calls.distinct import distinct_calls, merge_gateway
from spanloop_trainer.transform.calls.tree import read_tree
from spanloop_trainer.transform.credit import advantages, join_values, read_values
from spanloop_trainer.transform.datasets.assemble import answer_rows, assemble, with_policy
from spanloop_trainer.transform.datasets.dataset import in_order
from spanloop_trainer.transform.datasets.schema import REWARD_PART
from spanloop_trainer.transform.episodes.agents import select_agents
from spanloop_trainer.transform.episodes.assign import assign_episodes
from spanloop_trainer.transform.episodes.chains import link_calls
from spanloop_trainer.transform.episodes.failures import classified, count_failures, stuck
from spanloop_trainer.transform.episodes.steps import next_calls
from spanloop_trainer.transform.episodes.tasks import assign_tasks
from spanloop_trainer.transform.funnel import ANOTHER_AGENT, NO_MODEL_CALL, NOT_READ, Funnel
from spanloop_trainer.transform.pieces.piece import Slim, canonical
from spanloop_trainer.transform.pieces.texts import InMemory, Texts
from spanloop_trainer.transform.reading.read import Spans
from spanloop_trainer.transform.rewards import (
    Found,
    Scorer,
    Scores,
    address,
    name_answers,
    total,
    waited_for,
    watermark_of,
)
from spanloop_trainer.transform.selection import screen as screening
from spanloop_trainer.transform.selection.screen import Screen, Screened, screen_of
from spanloop_trainer.transform.selection.select import select_rows


@dataclass(frozen=True)
class Judged:
    """What D found out, of one bucket or of all: slim."""

    scores: Scores  # what rules, verifiers and the judge gave
    screened: Screened  # what filters look at


@dataclass(frozen=True)
class Settled:
    """What E decided."""

    rows: pl.DataFrame
    credited: pl.DataFrame  # the same before filters
    of_episodes: pl.DataFrame  # `episode_id`, `reward`, `reward_parts`
    of_calls: pl.DataFrame  # `row`, `reward`, `reward_parts`
    found: Found  # what rows of table `rewards` judge


class Computed(NamedTuple):
    """What rules and verifiers said, and the calls (of stage B, whole episodes) of which they said it."""

    of_episodes: pl.DataFrame
    of_calls: pl.DataFrame
    calls: pl.DataFrame


@dataclass(frozen=True)
class Transitions:
    """What a window in memory became; its rows are put together while they are asked for. `streamed.Streamed` is the other one."""

    texts: Texts
    calls: pl.DataFrame
    judged: Judged
    settled: Settled
    funnel: Funnel

    def frames(self) -> Iterator[pl.DataFrame]:
        """Stage F: rows of the contract in the contract's order, a frame a bucket; the funnel is whole after the last."""
        self.funnel.count("usable_with_token_ids", 0)
        for frame in _two_at_a_time(self._finished, self.texts.buckets(self.calls)):
            count_usable(frame, self.funnel)
            yield frame

    def _finished(self, bucket: pl.DataFrame) -> pl.DataFrame:
        rows = self.settled.rows.join(bucket, on="row", how="semi", maintain_order="left")
        return finished(rows, bucket, self.settled.of_episodes, self.settled.of_calls)

    @property
    def height(self) -> int:
        """Rows of the dataset."""
        return self.settled.rows.height

    @property
    def splits(self) -> dict[str, int]:
        """Split → episodes."""
        return episodes_of_splits(self.settled.rows)

    def computed(self) -> Iterator[Computed]:
        """All that goes to the store."""
        yield Computed(self.judged.scores.of_episodes, self.judged.scores.of_calls, self.calls)


def finished(
    rows: pl.DataFrame,
    bucket: pl.DataFrame,
    of_episodes: pl.DataFrame,
    of_calls: pl.DataFrame,
) -> pl.DataFrame:
    """Stage F, over one bucket.

    Args:
        rows: of stage E, of this bucket.
        of_episodes, of_calls: `reward_parts` by `episode_id` and by `row`.
    """
    return in_order(assemble(rows, bucket, of_episodes, of_calls))


def count_usable(frame: pl.DataFrame, funnel: Funnel) -> None:
    """What only the rows of the contract tell."""
    usable = (pl.col("status") == "ok") & pl.col("completion_ids").is_not_null()
    funnel.add_to("usable_with_token_ids", frame.select(usable.sum()).item())


def _two_at_a_time(
    work: Callable[[pl.DataFrame], pl.DataFrame], items: Iterable[pl.DataFrame]
) -> Iterator[pl.DataFrame]:
    """`map`, the next one begun while the one before is used: many short queries leave a core idle."""
    with ThreadPoolExecutor(2) as pool:
        begun: deque[Future[pl.DataFrame]] = deque()
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) == 2:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


def episodes_of_splits(rows: pl.DataFrame) -> dict[str, int]:
    """Split → episodes."""
    return dict(sorted(rows.group_by("split").agg(pl.col("episode_id").n_unique()).iter_rows()))


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
    scorer: Scorer | None = None,
    watermark: datetime | None = None,
    funnel: Funnel,
) -> Transitions:
    """Stages B to E.

    Args:
        slim: of all pieces together.
        texts: theirs.
        rewards: rows of table `rewards`, as `read.read_rewards` gives them.
        scorer: of these tasks and this configuration; None: one that knows no verdicts of the judge.
        watermark: of `rewards.watermark_of`; None: as the configuration has it, from now.
    """
    screen, scorer = screen_of(config), scorer or Scorer(tasks, config)
    linked = link(slim, tasks, agents=agents, funnel=funnel)
    calls = waited_for(linked, watermark or watermark_of(config.watermark), funnel)
    judged = [judge(bucket, scorer, screen) for bucket in texts.buckets(calls)]
    together = Judged(
        scores=scorer.finish([one.scores for one in judged]),
        screened=screening.together([one.screened for one in judged]),
    )
    scorer.count(together.scores, calls, funnel)
    found = judged_by_others(rewards, linked, slim, funnel).within(calls)
    settled = settle(calls, found, together, config, screen, funnel)
    return Transitions(texts, calls, together, settled, funnel)


def link(slim: Slim, tasks: pl.DataFrame, *, agents: tuple[str, ...], funnel: Funnel) -> pl.DataFrame:
    """Stage B, over the slim rows of all pieces."""
    count_spans(slim.counts, slim.calls.height, funnel)
    return link_group(slim, tasks, agents=agents, funnel=funnel)


def count_spans(counts: dict[str, int], calls: int, funnel: Funnel) -> None:
    """The top of the funnel.

    Args:
        counts: as `Spans.counts`.
        calls: that were read.
    """
    funnel.count("spans", counts["spans"])
    funnel.count("rows_of_spans_stored_twice", counts["rows_again"])
    funnel.lose(NO_MODEL_CALL, counts["spans"] - counts["gateway"] - counts["model_calls"])
    funnel.count("gateway_spans", counts["gateway"])
    funnel.count("model_calls", counts["model_calls"])
    funnel.lose(NOT_READ, counts["model_calls"] - calls)


def link_group(slim: Slim, tasks: pl.DataFrame, *, agents: tuple[str, ...], funnel: Funnel) -> pl.DataFrame:
    """Stage B, over all calls, or over those of traces that nothing joins to others (see `pieces.groups`)."""
    calls, tree = read_tree(slim.calls, slim.ancestors)
    calls = distinct_calls(calls, tree, funnel)
    calls = classified(merge_gateway(calls, slim.gateway, funnel))
    chains = link_calls(calls)
    calls = assign_episodes(calls, chains, tree)
    calls = stuck(calls.join(next_calls(calls, chains), on="row", how="left", maintain_order="left"))
    calls = with_policy(calls)
    calls = select_agents(calls, chains, agents)
    others = calls.filter(~pl.col("selected")).with_columns(pl.col("agent").alias("detail"))
    funnel.lose(ANOTHER_AGENT, others.height, others)
    funnel.count("calls", calls.height - others.height)
    count_failures(calls.filter("selected"), funnel)
    return calls.join(assign_tasks(calls, tasks), on="episode_id", how="left", maintain_order="left")


def judge(bucket: pl.DataFrame, scorer: Scorer, screen: Screen) -> Judged:
    """Stage D, over one bucket."""
    episodes = scorer.episode_facts(bucket)
    return Judged(scores=scorer.look(bucket, episodes), screened=screen.look(bucket, episodes))


def settle(
    calls: pl.DataFrame,
    found: Found,
    judged: Judged,
    config: Config,
    screen: Screen,
    funnel: Funnel,
) -> Settled:
    """Stage E, over the slim rows of all."""
    scores = judged.scores
    of_episodes = total(pl.concat([scores.of_episodes, found.of_episodes.drop("by")]), "episode_id", config)
    of_calls = total(pl.concat([scores.of_calls, found.of_calls.drop("by")]), "row", config)
    credited = with_credit(answer_rows(calls, of_episodes, of_calls), calls, config)
    rows = select_rows(credited, calls, judged.screened, screen, funnel)
    count_rows(rows, calls, funnel)
    return Settled(rows, credited, of_episodes, of_calls, found)


def judged_by_others(rewards: pl.DataFrame, calls: pl.DataFrame, slim: Slim, funnel: Funnel) -> Found:
    """What rows of table `rewards` judge, among all calls or those of a group."""
    if rewards.is_empty():
        funnel.count("judgements_outside", 0)
        part = REWARD_PART.to_schema()
        return Found(
            pl.DataFrame(schema={"row": pl.UInt32, "by": pl.String, **part}),
            pl.DataFrame(schema={"episode_id": pl.String, "by": pl.String, **part}),
        )
    judgements = name_answers(rewards, slim.calls, slim.gateway, slim.ancestors)
    return address(judgements, calls, slim.ancestors, funnel)


def with_credit(rows: pl.DataFrame, calls: pl.DataFrame, config: Config) -> pl.DataFrame:
    """The rows of whole tasks with `return_` and `advantage`.

    Args:
        calls: `row`, `trace_id`, `span_id`.
    """
    if (values := read_values(config.values_path())) is not None:
        rows = join_values(rows, calls, values)
    return advantages(rows, config.credit)


def count_rows(transitions: pl.DataFrame, calls: pl.DataFrame, funnel: Funnel) -> None:
    """The end of the funnel.

    Args:
        calls: `row`, `trace_id`, `span_id`, `error_type`.
    """
    funnel.count("episodes", transitions["episode_id"].n_unique())
    funnel.count("transitions", transitions.height)
    for status, why in (
        ("error", "status error: the call failed"),
        ("truncated", "status truncated: the stream was cut"),
        ("invalid", "status invalid: recorded JSON does not parse (quarantined)"),
    ):
        lost = transitions.filter(pl.col("status") == status)
        where = calls.select("row", "trace_id", "span_id", pl.col("error_type").alias("detail"))
        funnel.lose(why, lost.height, lost.join(where, on="row", how="left"))
    ok = transitions.filter(pl.col("status") == "ok")
    funnel.count("usable", ok.height)
    funnel.count("usable_scored", ok.filter(pl.col("reward").is_not_null()).height)
    funnel.count("usable_with_token_ids", 0)  # F counts them; its place in the table is here
    funnel.count(
        "episodes_scored", transitions.filter(pl.col("reward").is_not_null())["episode_id"].n_unique()
    )
