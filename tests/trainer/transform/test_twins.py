"""Which spans report one call, which stays, and that no call is lost for an id."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import polars as pl
import pytest

from .trees import BEGIN, Recorder, result, run, said, used, user


def kept(recorder: Recorder) -> tuple[list[str], dict[str, int]]:
    """Spans that stay, and what was lost for which reason."""
    frame, made = run(recorder)
    lost = {reason: n for reason, n in made.funnel.lost.items() if not reason.startswith("no model call")}
    again, _ = run(recorder, seed=1)
    assert again.equals(frame)
    return frame["span_id"].unique().sort().to_list(), lost


SAME_ID = "twin: another span reports the same response id"
INSIDE = "twin: a span inside another reports the same call"


def test_one_id_in_two_traces_is_one_call() -> None:
    spans = Recorder()
    spans.call("a", [user("p")], said("x"), at=0, name="one", response_id="r")
    spans.call("b", [user("p")], said("x"), at=0.1, name="two", response_id="r", lasts=0.3)
    assert kept(spans) == (["one"], {SAME_ID: 1})


def test_three_spans_of_one_id_are_one_call_and_a_wrapper_without_content_is_no_loss() -> None:
    spans = Recorder()
    spans.call("a", [], at=0, name="wrapper", response_id="r")
    spans.call("b", [user("p")], said("x"), at=0, name="one", response_id="r")
    spans.call("c", [user("p")], at=0.1, name="cut", response_id="r")
    assert kept(spans) == (["one"], {SAME_ID: 2})


def test_a_server_that_numbers_from_one_again_loses_no_call() -> None:
    spans = Recorder()
    for number, text in enumerate("abcd"):
        spans.call(f"t{number}", [user(text)], said(text * 2), at=3600 * number, name=text, response_id="1")
    assert kept(spans) == (list("abcd"), {})


def test_one_id_for_all_answers_loses_no_call_even_at_the_same_time() -> None:
    spans = Recorder()
    for number, text in enumerate("abcd"):
        spans.call(
            f"t{number}", [user(text)], said(text * 2), at=0.1 * number, name=text, response_id="chatcmpl-123"
        )
    assert kept(spans) == (list("abcd"), {})


def test_twins_below_a_reused_id_are_still_found() -> None:
    spans = Recorder()
    for number, text in enumerate("ab"):
        spans.call(f"t{number}", [user(text)], said(text * 2), at=9 * number, name=text, response_id="1")
        spans.call(
            f"u{number}", [user(text)], said(text * 2), at=9 * number, name=f"{text}2", response_id="1"
        )
    assert kept(spans) == (["a", "b"], {SAME_ID: 2})


def test_an_answer_from_a_cache_stays_a_step_and_says_so() -> None:
    spans = Recorder()
    for run_, at in ((1, 0), (2, 100)):
        spans.call(f"a{run_}", [user("p")], used("t", {}, "c"), at=at, response_id="r1", name=f"first{run_}")
        history = [user("p"), used("t", {}, "c"), result("c", f"value {run_}")]
        spans.call(f"b{run_}", history, said("x"), at=at + 1, name=f"second{run_}")
    frame, made = run(spans)
    assert made.funnel.lost == {}
    assert made.funnel.counts["answered_from_a_cache"] == 1
    assert frame.group_by("episode_id").len()["len"].to_list() == [2, 2]
    flagged = frame.filter(pl.col("flags").list.contains("cached"))
    assert flagged["span_id"].to_list() == ["first2"]


@pytest.mark.parametrize("levels", [2, 3])
def test_a_call_inside_a_call_with_the_same_content_is_the_call(levels: int) -> None:
    """Instrumented framework over instrumented client; the inner one stands next to the wire."""
    spans = Recorder()
    parent = spans.span("t", agent="a", name="agent")
    for level in range(levels):
        facts: dict[str, Any] = {} if level == levels - 1 else {"response_id": None}
        parent = spans.call(
            "t", [user("p")], said("x"), at=level / 100, name=f"call{level}", parent=parent, **facts
        )
    assert kept(spans) == ([f"call{levels - 1}"], {INSIDE: levels - 1})


def test_what_only_the_outer_span_knows_is_kept() -> None:
    spans = Recorder()
    outer = spans.call(
        "t", [user("p")], said("x"), at=0, response_id=None, temperature=0.3, explicit_task="task", name="o"
    )
    spans.call("t", [user("p")], said("x"), at=0, parent=outer, name="i")
    frame, _ = run(spans)
    assert frame.select("span_id", "task_id").rows() == [("i", "task")]
    assert frame["sampling"][0]["temperature"] == 0.3


def test_the_outer_span_stays_where_it_is_richer() -> None:
    spans = Recorder()
    outer = spans.call("t", [user("p")], said("x"), at=0, name="outer")
    spans.call("t", [user("p")], at=0, parent=outer, name="inner")
    assert kept(spans) == (["outer"], {INSIDE: 1})


def test_a_call_inside_a_call_that_asks_something_else_is_a_call() -> None:
    spans = Recorder()
    outer = spans.call("t", [user("p")], said("x"), at=0, lasts=9, name="outer", response_id=None)
    spans.call("t", [user("q")], said("y"), at=1, parent=outer, name="inner", response_id=None)
    assert kept(spans) == (["inner", "outer"], {})


def test_two_ids_are_two_calls_even_with_the_same_content() -> None:
    spans = Recorder()
    outer = spans.call("t", [user("p")], said("x"), at=0, lasts=9, name="outer")
    spans.call("t", [user("p")], said("x"), at=1, parent=outer, name="inner")
    assert kept(spans) == (["inner", "outer"], {})


def test_a_failed_attempt_below_a_wrapper_is_no_twin_of_the_one_that_worked() -> None:
    spans = Recorder()
    outer = spans.call("t", [user("p")], said("x"), at=0, lasts=9, name="outer", response_id=None)
    spans.call("t", [user("p")], at=0, parent=outer, name="first", error_type="RateLimitError")
    spans.call("t", [user("p")], said("x"), at=2, parent=outer, name="second")
    assert kept(spans) == (["first", "second"], {"status error: the call failed": 1, INSIDE: 1})


def test_arguments_may_be_written_in_two_ways() -> None:
    spans = Recorder()
    one = {
        "role": "assistant",
        "parts": [{"type": "tool_call", "name": "t", "id": "c", "arguments": '{"a":1, "b": "x"}'}],
    }
    spans.call("a", [user("p")], one, at=0, name="raw", response_id="r")
    spans.call("b", [user("p")], used("t", {"a": 1, "b": "x"}, "c"), at=0.1, name="read", response_id="r")
    assert kept(spans) == (["raw"], {SAME_ID: 1})


def stamp(trace: str, parent: str, at: float, response_id: str, version: str) -> dict[str, Any]:
    return {
        "trace_id": trace, "span_id": f"g-{trace}", "parent_span_id": parent, "start": BEGIN + timedelta(seconds=at),
        "in_window": True, "response_id": response_id, "served_version": version, "prompt_ids": [], "completion_ids": [],
        "logprobs": [],
    }  # fmt: skip


@pytest.mark.parametrize("joined", [True, False], ids=["by trace", "by time"])
def test_a_gateways_stamp_of_a_reused_id_goes_to_its_call(joined: bool) -> None:
    spans = Recorder()
    for number, text in enumerate("ab"):
        trace = f"t{number}"
        spans.call(trace, [user(text)], said(text), at=60 * number, name=text, response_id="1")
        place = (trace, text) if joined else (f"g{number}", "")
        spans.gateway.append(stamp(*place, 60 * number + 0.1, "1", f"m@{number}"))
    frame, made = run(spans)
    assert frame.sort("span_id").select("span_id", "policy_version").rows() == [("a", "m@0"), ("b", "m@1")]
    assert made.funnel.counts["gateway_spans_merged"] == 2
