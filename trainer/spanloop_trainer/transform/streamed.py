"""A window that is not held in memory at once: the stages of `pipeline` over what has to be looked at together, one after the other.

| stage | sees at a time | its rows go to |
| --- | --- | --- |
| B, and judgements by others | a bin of closed groups of traces (`pieces.groups`) | their bucket |
| C and D | a bucket: a range of episode ids | their bucket |
| E | the rows of some tasks; all of them where `[filters]` or `[credit] values` look at all | their bucket |
| F | a bucket | the dataset |

In between, rows lie on disk (`pieces.exchange`). A number or two stay in memory for each trace, call and episode. The result is that of
`pipeline.transform_pieces`, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import polars as pl

from spanloop_trainer.config import Config
from spanloop_trainer.config.filters import Filters
from spanloop_trainer.transform.datasets.assemble import answer_rows
from spanloop_trainer.transform.episodes.failures import FAILURES
from spanloop_trainer.transform.funnel import Funnel
from spanloop_trainer.transform.pieces.exchange import Exchange
from spanloop_trainer.transform.pieces.gather import Memory, Pieces
from spanloop_trainer.transform.pieces.groups import closed_bins
from spanloop_trainer.transform.pieces.parts import with_pending
from spanloop_trainer.transform.pieces.piece import Slim, numbered, without_copies
from spanloop_trainer.transform.pieces.storage import read_slim
from spanloop_trainer.transform.pieces.texts import bucket_of, fetch, first_of_buckets, shuffle
from spanloop_trainer.transform.pipeline import (
    Computed,
    Judged,
    count_rows,
    count_spans,
    count_usable,
    episodes_of_splits,
    finished,
    judge,
    judged_by_others,
    link_group,
    with_credit,
)
from spanloop_trainer.transform.rewards import (
    Found,
    Scorer,
    Scores,
    total,
    waited_for,
)
from spanloop_trainer.transform.selection import screen as screening
from spanloop_trainer.transform.selection.screen import screen_of
from spanloop_trainer.transform.selection.select import select_rows

_SLIM = ("calls", "gateway", "ancestors")
# Of a call, beside the rows of stage E: what a loss is told by.
_WHERE = ("trace_id", "span_id", "error_type")


class Streamed:
    """What a window became; its counterpart in memory is `pipeline.Transitions`.

    Attributes:
        height: rows of the dataset.
        splits: split → episodes.
        funnel: whole after the last of `frames`.
    """

    def __init__(
        self,
        client: Any,
        pieces: Pieces,
        rewards: pl.DataFrame,
        tasks: pl.DataFrame,
        config: Config,
        *,
        agents: tuple[str, ...],
        scorer: Scorer,
        watermark: datetime | None,
        memory: Memory,
        progress: Callable[[str], None],
    ) -> None:
        """Stages B to E.

        Args:
            pieces: of the window; their scratch folder takes about twice what they do.
            rewards, tasks, config, agents, scorer: as of `pipeline.transform_pieces`.
            watermark: of `rewards.watermark_of`.
            memory: how much is looked at at a time.
        """
        self._client, self._parts, self._scratch, self._older = client, *pieces
        self._tasks, self._config, self._agents, self._scorer = tasks, config, agents, scorer
        self._watermark, self._memory, self._progress = watermark, memory, progress
        self._exchanges: dict[str, Exchange] = {}
        self._whole = config.filters != Filters() or config.values_path() is not None
        self.funnel, self.height, self.splits = Funnel(), 0, dict[str, int]()
        bins = self._gather(rewards)
        outside = self._link(bins)
        self._shuffle(bins)
        judged = self._judge(outside)
        self._settle(judged)

    def frames(self) -> Iterator[pl.DataFrame]:
        """Stage F: rows of the contract in the contract's order, a frame a bucket."""
        self.funnel.count("usable_with_token_ids", 0)
        for bucket in self._buckets():
            rows, *parts = (self._at(name).take(bucket) for name in ("credited", "sums", "sums-calls"))
            frame = finished(rows, self._with_texts(bucket, last=True), parts[0], parts[1])
            count_usable(frame, self.funnel)
            yield frame

    def computed(self) -> Iterator[Computed]:
        """What goes to the store, a bucket at a time."""
        for bucket in self._buckets():
            names = ("scores", "scores-calls", "calls-linked")
            yield Computed(*(self._at(name).take(bucket) for name in names))

    def _at(self, name: str) -> Exchange:
        return self._exchanges.setdefault(name, Exchange(self._scratch / name))

    def _tasks_at_once(self) -> int:
        """In how many parts credit is given."""
        return 1 + self._calls_linked // self._memory.bin_rows

    def _buckets(self) -> range:
        return range(self._firsts.len() + 1)

    def _with_texts(self, bucket: int, *, last: bool = False) -> pl.DataFrame:
        texts, tokens = (self._at(name).take(bucket, last=last) for name in ("texts", "tokens"))
        return fetch(self._at("calls-linked").take(bucket), texts, tokens)

    def _gather(self, rewards: pl.DataFrame) -> int:
        """Slim rows and judgements by bin; the number of bins."""
        self._progress("finding what belongs together")
        bins = closed_bins([part.folder for part in self._parts], rewards, self._memory.bin_rows)
        for number, part in enumerate(self._parts):
            slim = numbered(read_slim(part.folder, part.header), number)
            for kind in _SLIM:
                frame: pl.DataFrame = getattr(slim, kind)
                self._at(kind).put(frame, bins.of(frame["trace_id"]))
        self._at("judgements").put(rewards, bins.of_judgements)
        return bins.number

    def _link(self, bins: int) -> Funnel:
        """Stage B by bin, and what others judge there; the funnel of these judgements."""
        read, first_row, linked, outside = 0, 0, Funnel(), Funnel()
        episodes = []
        for number in range(bins):
            self._progress(f"putting episodes together, {number + 1} of {bins}")
            frames = [self._at(kind).take(number, last=True) for kind in _SLIM]
            slim = without_copies(frames[0], frames[1], frames[2], counts={})
            slim = with_pending(self._client, slim) if self._older else slim
            read += slim.calls.height
            calls, found = self._of_bin(slim, number, linked, outside)
            # Numbered on from the bins before.
            row = pl.col("row") + first_row
            calls = calls.with_columns(row, pl.col("next_row") + first_row)
            episodes.append(calls.group_by("episode_id").agg(pl.col("bytes").sum()))
            self._at("linked").put_whole(calls, number)
            self._at("found").put_whole(found.of_episodes.drop("by"), number)
            self._at("found-calls").put_whole(found.of_calls.drop("by").with_columns(row), number)
            first_row += slim.calls.height
        counts = [part.header.counts for part in self._parts]
        count_spans({name: sum(one[name] for one in counts) for name in counts[0]}, read, self.funnel)
        # Classes of failure are counted where they occur: in the order of the classes, whichever bin has them.
        failures = [f"failure_{name}" for name in FAILURES]
        last = {name: linked.counts.pop(name) for name in failures if name in linked.counts}
        linked.counts |= last
        self.funnel.add(linked)
        self._calls_linked = first_row
        self._firsts = first_of_buckets(pl.concat(episodes), self._memory.bucket_bytes)
        return outside

    def _of_bin(self, slim: Slim, number: int, linked: Funnel, outside: Funnel) -> tuple[pl.DataFrame, Found]:
        funnel = Funnel()
        linked_calls = link_group(slim, self._tasks, agents=self._agents, funnel=funnel)
        calls = waited_for(linked_calls, self._watermark, funnel)
        linked.add(funnel)
        funnel = Funnel()
        judgements = self._at("judgements").take(number, last=True)
        found = judged_by_others(judgements, linked_calls, slim, funnel).within(calls)
        outside.add(funnel)
        return calls, found

    def _shuffle(self, bins: int) -> None:
        """From bins to buckets."""
        where = []
        for number in range(bins):
            calls, found, of_calls = (
                self._at(name).take(number, last=True) for name in ("linked", "found", "found-calls")
            )
            bucket = bucket_of(calls["episode_id"], self._firsts)
            self._at("calls-linked").put(calls, bucket)
            self._at("judgements-found").put(found, bucket_of(found["episode_id"], self._firsts))
            of_rows = calls.select("row", bucket)
            placed = of_calls.join(of_rows, on="row", how="left", maintain_order="left")["bucket"]
            self._at("judgements-calls").put(of_calls, placed)
            where.append(calls.select("call", "tokens", bucket))
        folders = [part.folder for part in self._parts]
        shuffle(folders, pl.concat(where), self._at("texts"), self._at("tokens"))

    def _judge(self, outside: Funnel) -> Judged:
        """Stage D; the scores of buckets are put aside, so that those that it gives are the rankings'."""
        screen, screened, unscored = screen_of(self._config), [], []
        none: list[Scores] = []
        for bucket in self._buckets():
            self._progress(f"looking at episodes, {bucket + 1} of {len(self._buckets())}")
            one = judge(self._with_texts(bucket), self._scorer, screen)
            self._at("scores").put_whole(one.scores.of_episodes, bucket)
            self._at("scores-calls").put_whole(one.scores.of_calls, bucket)
            unscored.append(one.scores.unscored)
            none = [Scores(*(frame.clear() for frame in one.scores))]
            if self._whole:
                screened.append(one.screened)
        scores = self._scorer.finish([none[0]._replace(unscored=pl.concat(unscored))])
        missing = scores.unscored.select("episode_id").unique()
        buckets = bucket_of(missing["episode_id"], self._firsts).unique().sort().to_list() or [0]
        calls = [self._at("calls-linked").take(bucket) for bucket in buckets]
        about = pl.concat([frame.join(missing, on="episode_id", how="semi") for frame in calls])
        self._scorer.count(scores, about, self.funnel)
        self.funnel.add(outside)
        return Judged(scores, screening.together(screened or [one.screened]))

    def _settle(self, judged: Judged) -> None:
        """Stage E: sums by bucket, credit by task, and rows by bucket again."""
        ranked = judged.scores.of_episodes
        ranked_at = bucket_of(ranked["episode_id"], self._firsts)
        tasks = 1 if self._whole else self._tasks_at_once()
        for bucket in self._buckets():
            calls = self._at("calls-linked").take(bucket)
            own, found = (self._at(name).take(bucket) for name in ("scores", "judgements-found"))
            parts = pl.concat([own, ranked.filter(ranked_at == bucket), found])
            of_episodes = total(parts, "episode_id", self._config)
            parts = pl.concat([self._at(name).take(bucket) for name in ("scores-calls", "judgements-calls")])
            of_calls = total(parts, "row", self._config)
            self._at("sums").put_whole(of_episodes, bucket)
            self._at("sums-calls").put_whole(of_calls, bucket)
            where = calls.select("row", *_WHERE, pl.lit(bucket, pl.UInt32).alias("bucket"))
            rows = answer_rows(calls, of_episodes, of_calls)
            rows = rows.join(where, on="row", how="left", maintain_order="left")
            self._at("rows").put(rows, (rows["task_id"].hash() % tasks).alias("part"))
        screen, funnel = screen_of(self._config), Funnel()
        for part in range(tasks):
            self._progress(f"credit, {part + 1} of {tasks}")
            rows = self._at("rows").take(part, last=True).sort("start", "trace_id", "span_id", "place")
            where = rows.select("row", *_WHERE, "bucket").unique("row")
            rows = with_credit(rows.drop(*_WHERE, "bucket"), where, self._config)
            if self._whole:
                calls = pl.concat([self._at("calls-linked").take(bucket) for bucket in self._buckets()])
                rows = select_rows(rows, calls, judged.screened, screen, funnel)
            counted = Funnel()
            count_rows(rows, where, counted)
            funnel.add(counted)
            self.height += rows.height
            for split, episodes in episodes_of_splits(rows).items():
                self.splits[split] = self.splits.get(split, 0) + episodes
            buckets = rows.join(where.select("row", "bucket"), on="row", how="left", maintain_order="left")
            self._at("credited").put(rows, buckets["bucket"])
        self.funnel.add(funnel)
        self.splits = dict(sorted(self.splits.items()))
