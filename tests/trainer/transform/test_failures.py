"""Failure classes of calls, and runs that go in circles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from spanloop_trainer.config import Config
from spanloop_trainer.transform.episodes.failures import FAILURES, LOOP_CALLS, REPEATED_CALLS, STALE_CALLS

from .trees import Recorder, result, run, said, used, user


def failures(frame: pl.DataFrame) -> list[str | None]:
    return frame.sort("step")["failure"].to_list()


@pytest.mark.parametrize(
    ("facts", "status", "failure"),
    [
        ({"error_type": "RateLimitError"}, "error", "error"),
        ({"error_type": "openai.APITimeoutError"}, "error", "timeout"),
        ({"error_type": "httpx.ReadTimeout"}, "error", "timeout"),
        ({"error_type": "deadline exceeded"}, "error", "timeout"),
        ({"error_type": "content_filter"}, "error", "refusal"),
        # Of the network, not of the model.
        ({"error_type": "ConnectionRefusedError"}, "error", "error"),
        ({}, "truncated", "truncated"),
        ({"invalid": True}, "invalid", "invalid"),
    ],
    ids=lambda value: (
        str(value) if not isinstance(value, dict) else "-".join(map(str, value.values())) or "cut"
    ),
)
def test_a_call_without_an_answer(facts: dict[str, Any], status: str, failure: str) -> None:
    spans = Recorder()
    spans.call("t", [user("p")], at=0, **facts)
    frame, made = run(spans)
    assert frame.select("status", "failure", "action").rows() == [(status, failure, None)]
    assert made.funnel.counts[f"failure_{failure}"] == 1


@pytest.mark.parametrize(
    ("answer", "finish"),
    [
        (said(""), "content_filter"),
        (said("I cannot say."), "SAFETY"),
        ({"role": "assistant", "parts": [{"type": "refusal", "content": "no"}]}, "stop"),
    ],
    ids=["filter", "Gemini", "part"],
)
def test_a_refusal_is_an_answer_with_a_name(answer: dict[str, Any], finish: str) -> None:
    spans = Recorder()
    spans.call("t", [user("p")], answer, at=0, finish_reasons=[finish])
    spans.call("u", [user("q")], said('the words "refusal": "no" are no refusal'), at=1)
    frame, _ = run(spans)
    found = frame.sort("start").select("status", "error_type", "failure").rows()
    assert found == [("ok", "refusal", "refusal"), ("ok", None, None)]


def circle(acts: str, results: str, *, agents: str = "", session: bool = False) -> Recorder:
    """One run: a letter a call, what it does, and what it is shown for that."""
    spans = Recorder()
    history = [user("p")]
    for turn, (act, seen) in enumerate(zip(acts, results, strict=True)):
        answer = used("do", {"what": act}, f"c{turn}")
        facts = {"span_agent": agents[turn]} if agents else {}
        spans.call(
            f"t{turn}",
            history,
            answer,
            at=turn,
            name=f"c{turn}",
            **({"session": "s"} if session else {}),
            **facts,
        )
        history = [*history, answer, result(f"c{turn}", seen)]
    return spans


def marked(spans: Recorder) -> str:
    """A letter a call: its class, `.` for none."""
    letters = {None: ".", "repeated_step": "R", "no_progress": "N", "agent_loop": "L"}
    return "".join(letters[name] for name in failures(run(spans)[0]))


@pytest.mark.parametrize(
    ("acts", "results", "expected"),
    [
        ("aaa", "xxx", ".RR"),
        ("aaab", "xxxx", ".RR."),
        ("aa", "xx", ".."),
        ("baaaac", "yxxxxx", "..RRR."),
        ("aaa", "xyz", "..."),  # it waits for something, and sees it change
        ("aba", "xxx", "..."),
        ("ab" * 6, "xy" * 6, "." * 3 + "N" * 9),
        ("abc" * 4, "xyz" * 4, "." * 4 + "N" * 8),
        ("ab" * 3, "xy" * 3, "." * 6),
        ("abababab", "12345678", "." * 8),
    ],
    ids=str,
)
def test_steps_that_are_taken_again(acts: str, results: str, expected: str) -> None:
    assert marked(circle(acts, results)) == expected


def test_of_parallel_tools_each_may_be_what_it_waits_for() -> None:
    spans, history = Recorder(), [user("p")]
    for turn in range(4):
        both = [*used("status", {}, f"a{turn}")["parts"], *used("name", {}, f"b{turn}")["parts"]]
        answer = {"role": "assistant", "parts": both}
        spans.call(f"t{turn}", history, answer, at=turn, name=f"c{turn}")
        history = [*history, answer, result(f"a{turn}", f"{turn}0 %"), result(f"b{turn}", "job")]
    assert marked(spans) == "...."


def test_two_agents_that_send_each_other_the_same() -> None:
    spans = circle("ab" * 4, "xy" * 4, agents="AB" * 4, session=True)
    assert marked(spans) == "..LLLLLL"
    assert marked(circle("ab" * 2, "xy" * 2, agents="AB" * 2, session=True)) == "...."
    assert marked(circle("abcdefgh", "x" * 8, agents="AB" * 4, session=True)) == "." * 8


def test_equal_prompts_sent_together_are_no_circle() -> None:
    spans = Recorder()
    for number in range(12):
        spans.call(f"t{number}", [user("p")], said("x"), at=number / 100, lasts=5, session="s")
    assert marked(spans) == "." * 12


def test_a_class_of_the_call_goes_before_one_of_its_run_and_rules_see_that_of_the_episode() -> None:
    rule = {
        "name": "stuck",
        "expression": "CASE WHEN failure = 'repeated_step' THEN -1 WHEN failure IS NULL THEN 1 ELSE 0 END",
    }
    config = Config.model_validate({"rewards": [rule]})
    for spans, reward in ((circle("aaaab", "xxxxx"), -1.0), (circle("abc", "xyz"), 1.0)):
        frame, _ = run(spans, config=config)
        assert set(frame["reward"]) == {reward}
    spans = circle("aaa", "xxx")
    spans.call("t9", [user("p")], at=9, error_type="Timeout", session="s")
    spans.rows[:] = [{**row, "session": "s"} for row in spans.rows]
    frame, made = run(spans, config=config)
    assert failures(frame) == [None, "repeated_step", "repeated_step", "timeout"]
    assert set(frame["reward"]) == {0.0}
    assert made.funnel.counts["failure_repeated_step"] == 2


def test_classes_and_thresholds_are_in_the_docs() -> None:
    text = (Path(__file__).parents[3] / "docs" / "episodes.md").read_text()
    for name in FAILURES:
        assert f"`{name}`" in text
    for number in (REPEATED_CALLS, LOOP_CALLS, STALE_CALLS):
        assert f"{number} " in text
