"""What rules see of an episode and of a call, from calls made by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from spanloop_trainer.transform.reading.messages import ANSWER
from spanloop_trainer.transform.rewards.episode import Call, Episode
from spanloop_trainer.transform.rewards.facts import call_facts, episode_facts

START = datetime(2026, 1, 1)
TASKS = pl.DataFrame(
    {"task_id": ["t"], "prompt": ["p"], "expected": ["4"], "split": ["train"], "task_level": ["easy"]}
)


def call(row: int, texts: list[str], *, at: float, seconds: float, **columns: Any) -> dict[str, Any]:
    """A call of episode `e` at `at` seconds; its answer has two tool calls."""
    answers = [
        {"choice": n, "finish": "stop", "tool_calls": 2, "code": n, "act": n} for n in range(len(texts))
    ]
    return {
        "row": row, "episode_id": "e", "task_id": "t", "agent": "a", "service": "s", "split": "train", "span_id": f"s{row}",
        "policy_version": f"v{row}", "answers": answers, "texts": texts, "taken": 0, "status": "ok", "error_type": None,
        "failure": None, "parent_episode_id": None, "called": False, "start": START + timedelta(seconds=at),
        "duration_ns": int(seconds * 1e9), "step": row, "last": False, "length": 1, "messages": ['{"m": 0}'], "next_row": None,
        "seen": None, **columns,
    }  # fmt: skip


def frame(*calls: dict[str, Any]) -> pl.DataFrame:
    types: dict[str, Any] = {
        "row": pl.UInt32, "next_row": pl.UInt32, "seen": pl.Int64, "start": pl.Datetime("ns"), "duration_ns": pl.UInt64,
        "failure": pl.String, "error_type": pl.String, "parent_episode_id": pl.String, "answers": pl.List(ANSWER),
        "texts": pl.List(pl.String),
    }  # fmt: skip
    return pl.DataFrame(calls, schema_overrides=types, infer_schema_length=None)


def test_an_episode_is_what_its_last_call_left() -> None:
    """Its answer, failure and model; its time ends with the call that ended last, whichever began it."""
    calls = frame(
        call(0, ["4"], at=0, seconds=9, failure="timeout", status="error"),
        call(1, ["no", "yes"], at=1, seconds=1, taken=1, status="truncated"),
        call(2, ["5", "4"], at=3, seconds=2, taken=1),
    )
    (facts,) = episode_facts(calls, TASKS).to_dicts()
    seen = ("answer", "policy_version", "failure", "status", "steps", "errors", "tool_calls", "duration_s")
    assert [facts[name] for name in seen] == ["4", "v2", None, "ok", 3, 2, 6, 9.0]
    assert (facts["expected"], facts["task_level"]) == ("4", "easy")


def test_a_failure_is_of_the_last_call_or_of_a_run_in_circles() -> None:
    failed = call(1, ["4"], at=1, seconds=1, status="error", failure="timeout")
    (facts,) = episode_facts(frame(call(0, ["4"], at=0, seconds=1), failed), TASKS).to_dicts()
    assert (facts["answer"], facts["failure"], facts["errors"]) == (None, "timeout", 1)
    circles = call(0, ["4"], at=0, seconds=1, failure="no_progress")
    (facts,) = episode_facts(frame(circles, call(1, ["5"], at=1, seconds=1)), TASKS).to_dicts()
    assert (facts["answer"], facts["failure"]) == ("5", "no_progress")


def test_a_run_that_another_called_is_not_measured_by_the_task() -> None:
    called = call(0, ["4"], at=0, seconds=1, called=True, parent_episode_id="boss")
    (facts,) = episode_facts(frame(called), TASKS).to_dicts()
    assert (facts["expected"], facts["task_level"], facts["parent_episode_id"]) == (None, "easy", "boss")


def test_a_call_knows_what_came_back_and_what_the_whole_was() -> None:
    calls = frame(
        call(0, ["a"], at=0, seconds=1, next_row=1, seen=1, length=3),
        call(
            1,
            ["b"],
            at=2,
            seconds=0.5,
            messages=['{"m": 0}', '{"m": 1}', '{"m": 2}'],
            status="error",
            last=True,
        ),
    )
    facts = call_facts(calls, episode_facts(calls, TASKS)).to_dicts()
    assert [row["observation"] for row in facts] == ['[{"m": 1},{"m": 2}]', None]
    assert [row["answer"] for row in facts] == ["a", None]
    assert [(row["messages"], row["duration_s"], row["last"]) for row in facts] == [
        (3, 1.0, False),
        (1, 0.5, True),
    ]
    assert {(row["episode_steps"], row["episode_errors"], row["expected"]) for row in facts} == {(2, 1, "4")}


def test_an_episode_shows_its_last_readable_call() -> None:
    """A prompt that was not read, and an answer that is missing, leave what was before."""

    def one(*messages: dict[str, Any], answer: dict[str, Any] | None = None, tool: str = "x") -> Call:
        return Call("s", 0, "ok", None, messages, answer, ({"name": tool},), 0.1)

    system, asked, said = ({"role": role, "content": role} for role in ("system", "user", "assistant"))
    run = Episode(
        id="e", task_id="t", expected=None, task={}, agent="a", service="s", policy_version=None, split="train", answer=None,
        status="ok", finish_reason=None, duration_s=1.0,
        calls=(one(system), one(system, asked, answer=said), one(asked), one(answer=said, tool="y")),
    )  # fmt: skip
    assert run.messages == (asked,)
    assert replace(run, calls=run.calls[:2]).messages == (system, asked, said)
    assert (run.prompt, run.tools) == ("user", ({"name": "y"},))
