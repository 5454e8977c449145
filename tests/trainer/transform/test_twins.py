"""Which spans report one call, which stays, and that no call is lost for an id."""

from __future__ import annotations

import json
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


@pytest.mark.parametrize("every", [0.1, 0.4, 86_400])
def test_one_id_and_one_answer_to_different_prompts_loses_no_call(every: float) -> None:
    """A server of a test that gives all answers one id, asked by an agent that answers yes or no."""
    spans = Recorder()
    for number, text in enumerate("abcd"):
        spans.call(
            f"t{number}", [user(text)], said("yes"), at=every * number, lasts=0.3, name=text, response_id="chatcmpl-1"
        )  # fmt: skip
    assert kept(spans) == (list("abcd"), {})


@pytest.mark.parametrize("nested", [True, False])
def test_one_id_whose_answer_two_layers_write_differently_is_one_call(nested: bool) -> None:
    spans = Recorder()
    outer = spans.call("t", [user("p")], said("x"), at=0, name="outer", response_id="r")
    facts: dict[str, Any] = {"parent": outer} if nested else {"flavour": "events"}
    answer = used("f", {}, "c")
    spans.call(
        "t" if nested else "u", [user("p")], answer, at=0.1, lasts=0.2, name="inner", response_id="r", **facts
    )
    spans.call("t2", [user("p")], said("another"), at=9, name="alone")
    left, lost = kept(spans)
    assert len(left) == 2
    assert sum(lost.values()) == 1


def test_samples_of_one_prompt_under_one_id_are_calls_and_come_from_no_cache() -> None:
    spans = Recorder()
    for number, text in enumerate("xyxy"):
        spans.call(f"t{number}", [user("p")], said(text), at=60 * number, name=f"{number}", response_id="1")
    frame, made = run(spans)
    assert (frame.height, made.funnel.lost, made.funnel.counts["answered_from_a_cache"]) == (4, {}, 0)


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


def test_a_cache_that_answers_at_once_is_no_twin() -> None:
    spans = Recorder()
    spans.call("a", [user("p")], said("x"), at=0, lasts=0.5, name="first", response_id="r")
    spans.call("b", [user("p")], said("x"), at=0.6, lasts=0.01, name="again", response_id="r")
    frame, made = run(spans)
    assert made.funnel.lost == {}
    assert frame.filter(pl.col("flags").list.contains("cached"))["span_id"].to_list() == ["again"]


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


@pytest.mark.parametrize(
    "end", [{"finish_reasons": ["stop"]}, {"has_usage": True}, {"has_usage": True, "error_type": "E"}]
)
def test_a_wrapper_may_know_the_end_of_a_stream_that_the_span_inside_did_not_see(end: dict[str, Any]) -> None:
    spans = Recorder()
    outer = spans.call("t", [user("p")], at=0, name="outer", **end)
    spans.call(
        "t", [user("p")], said("x"), at=0, parent=outer, name="inner", has_usage=False, output=[json.dumps(said("x"))]
    )  # fmt: skip
    frame, _ = run(spans)
    assert frame.select("span_id", "status").rows() == [
        ("inner", "truncated" if "error_type" in end else "ok")
    ]


def test_the_outer_span_stays_where_it_is_richer() -> None:
    spans = Recorder()
    outer = spans.call("t", [user("p")], said("x"), at=0, name="outer")
    spans.call("t", [user("p")], at=0, parent=outer, name="inner")
    assert kept(spans) == (["outer"], {INSIDE: 1})


@pytest.mark.parametrize("answered", [True, False])
def test_a_call_inside_a_call_that_asks_something_else_is_a_call(answered: bool) -> None:
    spans = Recorder()
    outer = spans.call("t", [user("p")], said("x"), at=0, lasts=9, name="outer", response_id=None)
    answers = [said("y")] if answered else []
    spans.call("t", [user("q")], *answers, at=1, parent=outer, name="inner", response_id=None)
    assert kept(spans)[0] == ["inner", "outer"]


def test_a_call_that_begins_long_after_the_one_above_it_ended_is_a_call() -> None:
    spans = Recorder()
    outer = spans.call("t", [user("p")], said("x"), at=0, name="outer", response_id=None)
    spans.call("t", [user("p")], said("x"), at=60, parent=outer, name="inner", response_id=None)
    assert kept(spans) == (["inner", "outer"], {})


def test_a_wrapper_may_write_the_prompt_in_its_own_way_or_not_at_all() -> None:
    spans = Recorder()
    outer = spans.call("t", [user("p")], said("x"), at=0, lasts=9, name="o1", response_id=None)
    spans.call("t", [{"role": "system", "parts": []}, user("p")], said("x"), at=0, parent=outer, name="i1")
    outer = spans.call("u", [], said("x"), at=20, lasts=9, name="o2", response_id=None, has_content=True)
    spans.call("u", [user("p")], at=20, parent=outer, name="fails", error_type="E")
    spans.call("u", [user("p")], said("x"), at=22, parent=outer, name="i2")
    assert kept(spans) == (["fails", "i1", "i2"], {"status error: the call failed": 1, INSIDE: 2})


@pytest.mark.parametrize(("apart", "calls"), [(0.9, 1), (1.1, 2)])
def test_spans_that_have_no_duration_are_twins_within_a_second(apart: float, calls: int) -> None:
    spans = Recorder()
    for at, name in ((0, "one"), (apart, "two")):
        spans.call(name, [user("p")], said("x"), at=at, lasts=0, name=name, response_id="r")
    assert len(kept(spans)[0]) == calls


@pytest.mark.parametrize(("parents", "calls"), [(("step", "step"), 1), (("step", "other"), 2), (("", ""), 2)])
def test_a_stream_without_an_id_beside_the_clients_span_is_one_call(
    parents: tuple[str, str], calls: int
) -> None:
    """LlamaIndex's agents: the span of the stream and the client's stand below one step."""
    spans = Recorder()
    for name in ("step", "other"):
        spans.span("t", name=name)
    for name, parent, response_id in zip(("stream", "client"), parents, (None, "r"), strict=True):
        spans.call(
            "t", [user("p")], said("x"), at=0.1 * (name == "client"), parent=parent, name=name, response_id=response_id
        )  # fmt: skip
    assert len(kept(spans)[0]) == calls


def test_a_log_of_no_length_tells_the_end_of_a_stream() -> None:
    """Logfire: the stream's span ends when it begins, without an answer; the log has all, for a root in another trace."""
    spans = Recorder()
    for n in (0, 1):  # the same prompt twice: each log is of one stream
        spans.call(f"a{n}", [user("p")], at=n * 10, lasts=1, name=f"open{n}")
        spans.call(f"b{n}", [user("p")], said(f"x{n}"), at=n * 10 + 3, lasts=0, name=f"end{n}")
    spans.call("c", [user("p")], at=30, lasts=1, name="cut")
    spans.call("d", [user("q")], said("x"), at=33, lasts=0, name="another")
    names, lost = kept(spans)
    assert names == ["another", "cut", "end0", "end1"]
    assert lost[INSIDE] == 2


@pytest.mark.parametrize(
    ("tools", "stays"), [("", "inner"), ('[{"type": "function", "name": "f"}]', "outer")]
)
def test_of_twins_without_ids_the_inner_stays_unless_the_other_knows_the_tools(
    tools: str, stays: str
) -> None:
    spans = Recorder()
    outer = spans.call("t", [user("p")], said("x"), at=0, name="outer", response_id=None, tools=tools)
    spans.call("t", [user("p")], said("x"), at=0, parent=outer, name="inner", response_id=None)
    assert kept(spans) == ([stays], {INSIDE: 1})


def test_of_twins_the_one_below_an_agent_says_whose_call_it_is() -> None:
    spans = Recorder()
    agent = spans.span("run", agent="a", name="root")
    spans.call("run", [user("p")], at=0, parent=agent, name="outer", response_id="r")
    spans.call("http", [user("p")], said("x"), at=0, parent=spans.span("http"), name="wire", response_id="r")
    frame, _ = run(spans)
    assert frame.select("span_id", "episode_id", "agent").rows() == [("wire", "run-root", "a")]


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


def test_of_two_attempts_that_both_agree_with_a_wrapper_the_last_is_its_twin() -> None:
    spans = Recorder()
    wrapper: dict[str, Any] = {"response_id": None, "temperature": 0.3}
    outer = spans.call("t", [user("p")], said("x"), at=0, lasts=9, name="outer", **wrapper)
    for at, name in ((0, "first"), (2, "last")):
        spans.call("t", [user("p")], said("x"), at=at, parent=outer, name=name)
    frame, _ = run(spans)
    of_span = {
        span: sampling["temperature"] for span, sampling in frame.select("span_id", "sampling").iter_rows()
    }
    assert of_span == {"first": None, "last": 0.3}


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


def test_of_two_stamps_near_a_call_the_nearest_is_its_own() -> None:
    """The other is of a service that the build does not read."""
    spans = Recorder()
    for number, text in enumerate("ab"):
        spans.call(f"t{number}", [user(text)], said(text), at=60 * number, name=text, response_id="1")
        spans.gateway.append(stamp(f"g{number}", "", 60 * number + 0.1, "1", f"m@{number}"))
        spans.gateway.append(stamp(f"h{number}", "", 60 * number - 3, "1", "other"))
    frame, _ = run(spans, seed=1)
    assert dict(frame.select("span_id", "policy_version").iter_rows()) == {"a": "m@0", "b": "m@1"}


def test_a_stamp_of_another_day_is_not_that_of_the_one_call_with_its_id() -> None:
    spans = Recorder()
    spans.call("t", [user("a")], said("a"), at=86_400, name="a", response_id="1")
    spans.gateway += [stamp("g0", "", 0.1, "1", "old"), stamp("g1", "", 86_400.1, "1", "new")]
    frame, _ = run(spans)
    assert frame["policy_version"].to_list() == ["new"]


def test_a_spans_id_may_be_in_two_traces() -> None:
    spans = Recorder()
    for number in range(3):
        trace = f"t{number}"
        parent = spans.span(trace, agent=f"agent{number}", name="root")
        spans.call(trace, [user(f"p{number}")], said("x"), at=60 * number, name="c", parent=parent)
        if number < 2:
            spans.gateway.append(
                {**stamp(trace, "c", 60 * number + 0.1, f"r-{trace}-c", f"m@{number}"), "span_id": "g"}
            )
    spans.gateway.append({**stamp("t9", "c", 999, "nobody's", "m@9"), "span_id": "g"})
    frame, made = run(spans)
    assert frame.sort("start").select("agent", "policy_version").rows() == [
        ("agent0", "m@0"), ("agent1", "m@1"), ("agent2", "m")
    ]  # fmt: skip
    assert made.funnel.counts["gateway_spans_merged"] == 2
    assert made.funnel.lost == {
        "no model call (tools, agents, HTTP, …)": 3,
        "gateway span without the agent's span (among the services asked for)": 1,
    }


def test_a_stream_without_an_id_is_the_call_that_its_client_reports_in_another_trace() -> None:
    """LangChain's span and the client's, both of OpenInference, over a stream."""
    spans = Recorder()
    spans.call("a", [user("p")], said("x"), at=0, lasts=2, name="outer", response_id=None)
    spans.call("b", [user("p")], said("x"), at=0.5, lasts=1, name="client")
    # As like as two calls can be, of one instrumentation: neither is the other's.
    spans.call("c", [user("q")], said("x"), at=10, lasts=2, name="one", response_id=None)
    spans.call("d", [user("q")], said("x"), at=10.5, lasts=1, name="two", response_id=None)
    spans.call("e", [user("r")], said("x"), at=20, lasts=2, name="three")
    spans.call("f", [user("r")], said("x"), at=20.5, lasts=1, name="four")
    assert kept(spans) == (["client", "four", "one", "three", "two"], {INSIDE: 1})
