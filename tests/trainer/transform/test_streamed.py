"""A window by closed groups, buckets and tasks gives what it gives at once, whatever joins its calls."""

from __future__ import annotations

import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from spanloop_trainer.config import Config
from spanloop_trainer.config.credit import Credit
from spanloop_trainer.config.filters import Filters
from spanloop_trainer.config.rewards import RewardRule
from spanloop_trainer.transform.funnel import Funnel
from spanloop_trainer.transform.pieces.gather import Memory, Pieces
from spanloop_trainer.transform.pieces.parts import Part
from spanloop_trainer.transform.pieces.piece import canonical, together
from spanloop_trainer.transform.pieces.storage import Header, write_piece
from spanloop_trainer.transform.pipeline import Transitions, transform_pieces
from spanloop_trainer.transform.reading.read import Spans
from spanloop_trainer.transform.rewards import Scorer
from spanloop_trainer.transform.streamed import Streamed

from .trees import (
    REWARDS,
    TASKS,
    Buckets,
    Json,
    Recorder,
    numbered_texts,
    result,
    said,
    system,
    used,
    user,
)

CONFIG = Config(
    rewards=(
        RewardRule(name="short", expression="CASE WHEN steps < 3 THEN 1.0 ELSE 0.25 END"),
        RewardRule(name="first", level="call", expression="CASE WHEN step = 0 THEN 0.5 ELSE NULL END"),
    ),
    credit=Credit(method="gigpo"),
)


def tangle(seed: int, calls: int = 24) -> tuple[Recorder, list[Json]]:
    """Small islands of calls and judgements with few different ids, prompts, answers and times: there anything may be joined to anything."""
    dice = random.Random(seed)
    spans = Recorder()
    histories: list[list[Json]] = []
    for number in range(calls):
        at = dice.choice([dice.uniform(0, 90), float(number), float(number // 3)])
        island = number // 3
        if not number % 3:
            histories = []
        trace = f"t{island}-{dice.randrange(3)}"
        history = list(dice.choice(histories)) if histories and dice.random() < 0.7 else []
        if not history:
            history = [user(f"task {island}")] if dice.random() < 0.9 else []
        if dice.random() < 0.3:
            history = [system(f"clock {number}"), *history]
        if len(history) > 2 and dice.random() < 0.1:
            del history[dice.randrange(len(history))]
        tool = f"c{dice.choice([island, number])}-"
        answer = dice.choice(
            [
                used("ls", {}, tool),
                used("add", {"a": island}, tool),
                said("ok"),
                said(f"a{number}"),
            ]
        )
        facts: Json = {"instance": dice.choice(["i", f"i{island}"])}
        if dice.random() < 0.2:
            facts["session"] = f"s{island}"
        if dice.random() < 0.1:
            facts["rollout"] = f"r{island}"
        if dice.random() < 0.3:
            facts["response_id"] = dice.choice([None, f"r{island}"])
        if dice.random() < 0.2:
            facts |= {"flags": 8192, "has_usage": False, "response_id": None}
        if dice.random() < 0.15:
            facts["error_type"] = "Timeout"
        answers = [] if dice.random() < 0.1 else [answer] if dice.random() < 0.9 else [answer, said("else")]
        parent = ""
        if dice.random() < 0.5:
            parent = f"above-{trace}-{dice.randrange(2)}"
            if parent not in {span["span_id"] for span in spans.ancestors}:
                agent = dice.choice([None, "solver", "writer"])
                above = dice.choice(["", f"above-{trace}-0"])
                spans.span(
                    trace, "" if above == parent else above, agent=agent, tool=dice.random() < 0.2, chain=dice.random() < 0.2,
                    session=dice.choice([None, None, f"s{island}"]), at=at - 0.1, name=parent,
                )  # fmt: skip
        elif number % 3 and dice.random() < 0.2:
            last = spans.rows[-1]
            trace, parent = last["trace_id"], last["span_id"]
            if dice.random() < 0.7:
                history, answers, at = histories[-1][:-2], [histories[-1][-2]], float(number - 1)
        name = spans.call(
            trace, history, *answers, at=at, lasts=dice.choice([0.0, 0.5, 9.0]), parent=parent, **facts
        )
        histories.append(
            [
                *history,
                answer,
                result(tool, str(dice.randrange(2))) if "add" in str(answer) else user("go on"),
            ]
        )
        if dice.random() < 0.3:
            shared = dice.random() < 0.5 and (f"g-{island}", trace) not in {
                (g["span_id"], g["trace_id"]) for g in spans.gateway
            }
            spans.gateway.append(
                {
                    "trace_id": trace, "span_id": f"g-{island}" if shared else f"g{number}", "parent_span_id": name,
                    "start": spans.rows[-1]["start"] + timedelta(seconds=0.1), "in_window": True,
                    "response_id": dice.choice([None, spans.rows[-1]["response_id"]]), "served_version": "m@1",
                    "prompt_ids": [1, 2], "completion_ids": [[3]], "logprobs": [[-0.5]],
                }
            )  # fmt: skip
    judged = []
    for number in range(calls // 2):
        row = dice.choice([*spans.rows, *spans.ancestors])
        kind = dice.randrange(6)
        judged.append(
            {
                "id": f"j{number}", "time": row["start"] + timedelta(seconds=dice.choice([0, 1, 30])),
                "trace_id": row["trace_id"] if kind in (0, 1, 5) else "", "span_id": row["span_id"] if kind in (1, 2) else "",
                "response_id": row.get("response_id") or "" if kind in (3, 5) else "",
                "session_id": f"s{dice.randrange(calls // 3)}" if kind in (4, 5) else "", "name": dice.choice(["a", "b"]),
                "value": number / 10, "source": "event", "evaluator": "", "version": "",
            }
        )  # fmt: skip
    return spans, judged


def in_pieces(spans: Spans, folder: Path, seed: int, pieces: int) -> list[Part]:
    """Spans on disk, spread over pieces without regard to traces."""
    found = []
    for number in range(pieces):
        mine = pl.struct("trace_id", "span_id").hash(seed=seed) % pieces == number
        counts = spans.counts if not number else dict.fromkeys(spans.counts, 0)
        some = Spans(*(frame.filter(mine) for frame in (spans.calls, spans.gateway, spans.ancestors)), counts)
        header = Header(number, number + 1, [], 0, 1, "", "", counts)
        write_piece(folder / str(number), canonical(some), header)
        found.append(Part(folder / str(number), header))
    return found


def everything(made: Transitions | Streamed) -> list[Any]:
    """Rows, what was lost, counts, and what goes to the store, in an order that does not depend on how it was made."""
    rows = pl.concat(list(made.frames()))
    computed = [
        one.of_episodes.with_columns(pl.lit("").alias("span_id"))
        for one in made.computed()
    ] + [
        one.of_calls.join(one.calls.select("row", "episode_id", "span_id"), on="row").drop("row") for one in made.computed()
    ]  # fmt: skip
    stored = pl.concat(computed, how="diagonal").sort(pl.all())
    lost, counts = made.funnel.lost_rows(), made.funnel.as_dict()
    return [
        rows.to_dicts(),
        lost.to_dicts(),
        [*counts.items()],
        [*counts["lost"].items()],
        stored.to_dicts(),
        made.splits,
        made.height,
    ]


def compare(
    seed: int, folder: Path, config: Config = CONFIG, *, agents: tuple[str, ...] = (), bin_rows: int = 1
) -> None:
    recorder, judged = tangle(seed)
    spans = recorder.spans()
    rewards = pl.DataFrame(judged, schema=REWARDS, orient="row")
    tasks = pl.DataFrame(schema=TASKS)
    pieces = random.Random(seed).randrange(1, 4)
    parts = in_pieces(spans, folder / "pieces", seed, pieces)
    cut = [canonical(spans)]
    slim = together([piece.slim for piece in cut])
    texts = Buckets(numbered_texts(cut, "texts", "call"), numbered_texts(cut, "tokens", "tokens"), 1_000_000)
    whole = transform_pieces(slim, texts, rewards, tasks, config, agents=agents, funnel=Funnel())
    streamed = Streamed(
        None, Pieces(parts, folder / "scratch", False), rewards, tasks, config, agents=agents, scorer=Scorer(tasks, config),
        watermark=None, memory=Memory(bucket_bytes=800, bin_rows=bin_rows), progress=lambda _: None,
    )  # fmt: skip
    for one, other in zip(everything(streamed), everything(whole), strict=True):
        assert one == other


FILTERED = CONFIG.model_copy(update={"filters": Filters(exact_duplicates=True, episodes_per_task=2)})


@pytest.mark.parametrize(
    ("seed", "config", "agents", "bin_rows"),
    [(9, CONFIG, (), 1), (14, FILTERED, (), 9), (16, CONFIG, ("solver",), 1)],
)
def test_one_group_after_the_other(
    tmp_path: Path, seed: int, config: Config, agents: tuple[str, ...], bin_rows: int
) -> None:
    compare(seed, tmp_path, config, agents=agents, bin_rows=bin_rows)


def test_traces_that_only_content_joins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pair of traces has nothing in common but what was asked and answered."""
    spans = Recorder()
    asked, said_x = [user("q")], said("x")
    unsure: Json = {"flags": 8192, "has_usage": False, "response_id": None}
    for name, first, second in (
        (
            "prefix",
            (asked, said_x, {}),
            ([*asked, said_x, user("more")], said("y"), {"instance": "elsewhere"}),
        ),
        (
            "rewritten",
            (asked, used("ls", {}, "c-rewritten"), {}),
            ([system("2"), *asked, used("ls", {}, "c-rewritten"), result("c-rewritten", "f")], said_x, {}),
        ),
        ("tried again", (asked, None, {"error_type": "Timeout"}), (asked, said_x, {})),
        ("from a cache", (asked, said_x, unsure), (asked, said_x, unsure)),
        ("in two layers", (asked, said_x, {"response_id": None}), (asked, said_x, {"at": 0.5})),
    ):
        for number, (history, answer, facts) in enumerate((first, second)):
            facts = {"at": 3.0 * number, "instance": name} | facts
            prompt = [system(name), *history] if name != "rewritten" else history
            spans.call(f"{name} {number}", prompt, *([answer] if answer else []), lasts=1.0, **facts)
    monkeypatch.setattr(f"{__name__}.tangle", lambda _seed: (spans, []))
    compare(1, tmp_path)
