"""Stage D of rewards: what rules, verifiers and the judge say about the episodes of one bucket after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from spanloop_trainer.config import Config
from spanloop_trainer.transform.datasets.schema import REWARD_PART
from spanloop_trainer.transform.funnel import Funnel
from spanloop_trainer.transform.rewards.episode import episodes_of
from spanloop_trainer.transform.rewards.facts import blank, call_facts, episode_facts
from spanloop_trainer.transform.rewards.rules import check_rules, score_rules
from spanloop_trainer.transform.rewards.verifiers import UNSCORED, Unscored, find_verifiers, verify

if TYPE_CHECKING:
    from spanloop_trainer.transform.rewards.judge.memory import Memory
    from spanloop_trainer.transform.rewards.judge.verdicts import Judging, LastCall, Scored

# Episodes named in the manifest for each reason.
_EXAMPLES = 3
# Python objects of so many episodes are alive at a time.
_AT_ONCE = 256


class Scores(NamedTuple):
    """What was computed, of one bucket or of all.

    Attributes:
        of_episodes: `episode_id` and the fields of a reward part.
        of_calls: `row` and the same.
        unscored: `verifiers.UNSCORED`: who has no reward of a name, and why.
    """

    of_episodes: pl.DataFrame
    of_calls: pl.DataFrame
    unscored: pl.DataFrame


class Scorer:
    """What one build computes rewards with."""

    def __init__(
        self,
        tasks: pl.DataFrame,
        config: Config,
        memory: Memory | None = None,
        progress: Callable[[str], None] = lambda _: None,
        *,
        may_ask: bool = True,
    ) -> None:
        """
        Args:
            tasks: of `tasks.read_tasks`.
            memory: where verdicts of the judge are kept; None: nowhere.
            may_ask: False: the judge is not asked; what it said before holds.

        Raises:
            TransformError: an expression that is wrong.
            ConfigError: a verifier that there is not, or that does not take its options.
        """
        self._tasks, self._config, self._progress = tasks, config, progress
        rules = [rule for rule in config.rewards if rule.expression]
        self._over_episodes = [rule for rule in rules if rule.level == "episode"]
        self._over_calls = [rule for rule in rules if rule.level == "call"]
        check_rules(self._over_episodes, blank("episode", tasks))
        check_rules(self._over_calls, blank("call", tasks))
        self._checks = find_verifiers(config)
        self._judging = _judging(config, memory, may_ask=may_ask)

    def episode_facts(self, calls: pl.DataFrame) -> pl.DataFrame:
        """One row an episode of a bucket, as expressions see it."""
        return episode_facts(calls, self._tasks)

    def look(self, calls: pl.DataFrame, facts: pl.DataFrame) -> Scores:
        """Score a bucket.

        Args:
            calls: a bucket of whole episodes.
            facts: of `episode_facts`.

        Raises:
            TransformError: an expression that is wrong for what it meets.
            JudgeError: the judge cannot be asked.
        """
        of_episodes = [score_rules(self._over_episodes, facts, "episode_id")]
        unscored: list[Unscored] = []
        if self._checks or self._judging is not None:
            last_calls = _last_calls(calls) if self._judging is not None else {}
            episodes = episodes_of(calls, facts)
            while some := list(islice(episodes, _AT_ONCE)):
                parts, failed = verify(self._checks, some)
                of_episodes.append(parts)
                unscored += failed
                if self._judging is not None:
                    asked = [one for one in some if one.id in last_calls]
                    parts, failed = self._parts(self._judging.look(asked, last_calls))
                    of_episodes.append(parts)
                    unscored += failed
        if self._over_calls:
            of_calls = score_rules(self._over_calls, call_facts(calls, facts), "row")
        else:
            of_calls = pl.DataFrame(schema={"row": calls.schema["row"], **REWARD_PART.to_schema()})
        return Scores(pl.concat(of_episodes), of_calls, pl.DataFrame(unscored, schema=UNSCORED, orient="row"))

    def finish(self, scores: Sequence[Scores]) -> Scores:
        """All buckets together, and what needs all of them: rankings.

        Raises:
            JudgeError: the judge cannot be asked.
        """
        whole = Scores(*(pl.concat(frames) for frames in zip(*scores, strict=True)))
        if self._judging is None:
            return whole
        ranked, failed = self._parts(self._judging.finish())
        asker, verdicts = self._judging.asker, self._judging.verdicts.values()
        cost = asker.cost(sum(v.prompt_tokens for v in verdicts), sum(v.completion_tokens for v in verdicts))
        self._progress(
            f"judge: {len(verdicts):,} verdicts that cost {cost:.4g} in all; {asker.asked:,} requests now, for {asker.spent:.4g}"
        )
        return Scores(
            pl.concat([whole.of_episodes, ranked]),
            whole.of_calls,
            pl.concat([whole.unscored, pl.DataFrame(failed, schema=UNSCORED, orient="row")]),
        )

    def count(self, scores: Scores, calls: pl.DataFrame, funnel: Funnel) -> None:
        """Note who has no reward, and what the verdicts took.

        Args:
            scores: of `finish`.
            calls: of stage B.
        """
        if self._judging is not None:
            verdicts = self._judging.verdicts.values()
            funnel.count("judge_verdicts", len(verdicts))
            funnel.count("judge_prompt_tokens", sum(verdict.prompt_tokens for verdict in verdicts))
            funnel.count("judge_answer_tokens", sum(verdict.completion_tokens for verdict in verdicts))
        where = calls.filter("last").select("episode_id", "task_id", "trace_id", "span_id", "start")
        unscored = scores.unscored.join(where, on="episode_id").sort("name", "reason", "episode_id")
        for (name, reason), rows in unscored.group_by("name", "reason", maintain_order=True):
            why = f"unscored by {name}: {reason}"
            funnel.lose(why, rows.height, rows)
            funnel.examples[why] = rows.select("episode_id", "detail").head(_EXAMPLES).to_dicts()

    def _parts(self, judged: Iterable[Scored | Unscored]) -> tuple[pl.DataFrame, list[Unscored]]:
        assert self._config.judge is not None
        rows, unscored = [], []
        for one in judged:
            if isinstance(one, Unscored):
                unscored.append(one)
            else:
                rows.append(
                    (
                        one.episode_id,
                        one.rule.name,
                        one.value,
                        "judge",
                        self._config.judge.model,
                        one.rule.version,
                    )
                )
        schema = {"episode_id": pl.String, **REWARD_PART.to_schema()}
        return pl.DataFrame(rows, schema=schema, orient="row"), unscored


def scorer_of(
    client: Any, tasks: pl.DataFrame, config: Config, progress: Callable[[str], None], *, may_ask: bool = True
) -> Scorer:
    """One that keeps the judge's verdicts in the store.

    Args:
        may_ask: as of `Scorer`.

    Raises:
        TransformError, ConfigError: as `Scorer`.
    """
    if config.judge is None:
        return Scorer(tasks, config)
    from spanloop_trainer.transform.rewards.judge.memory import StoreMemory

    return Scorer(tasks, config, StoreMemory(client), progress, may_ask=may_ask)


def _judging(config: Config, memory: Memory | None, *, may_ask: bool) -> Judging | None:
    if config.judge is None or not any(rule.rubric for rule in config.rewards):
        return None
    # The client of OpenAI's protocol takes half a second to import.
    from spanloop_trainer.transform.rewards.judge.memory import Forgetful
    from spanloop_trainer.transform.rewards.judge.verdicts import Judging

    return Judging(config, config.judge, memory or Forgetful(), may_ask=may_ask)


def _last_calls(calls: pl.DataFrame) -> dict[str, LastCall]:
    """Of the episodes that make rows: what the judge says about others' would cost as much."""
    from spanloop_trainer.transform.rewards.judge.verdicts import LastCall

    end = pl.col("start") + pl.duration(nanoseconds=pl.col("duration_ns").cast(pl.Int64))
    rows = calls.filter(pl.col("selected").any().over("episode_id")).filter("last").select(
        "episode_id", "trace_id", "span_id", pl.col("response_id").fill_null(""), end.dt.cast_time_unit("us").alias("end")
    )  # fmt: skip
    return {row[0]: LastCall(row[1], row[2], row[3], row[4].replace(tzinfo=UTC)) for row in rows.iter_rows()}
