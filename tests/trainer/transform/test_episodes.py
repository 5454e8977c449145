"""How calls become episodes, rule by rule; docs/episodes.md has the same in words."""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import Any

import polars as pl
import pytest

from spanloop_trainer.transform.calls.distinct import distinct_calls
from spanloop_trainer.transform.calls.tree import read_tree
from spanloop_trainer.transform.episodes.assign import assign_episodes
from spanloop_trainer.transform.episodes.chains import link_calls
from spanloop_trainer.transform.funnel import Funnel
from spanloop_trainer.transform.pieces.piece import canonical

from .trees import Recorder, result, run, said, system, used, user


def episodes(frame: pl.DataFrame) -> set[frozenset[str]]:
    """The spans of every episode."""
    grouped = frame.group_by("episode_id").agg(pl.col("span_id").unique())
    return {frozenset(spans) for spans in grouped["span_id"].to_list()}


def sets(*names: str) -> set[frozenset[str]]:
    return {frozenset(name.split()) for name in names}


def by_span(frame: pl.DataFrame, column: str) -> dict[str, Any]:
    return dict(frame.select("span_id", column).iter_rows())


def flags(frame: pl.DataFrame) -> dict[str, list[str]]:
    """Of every call, those of its history."""
    of_history = ("edited_history", "compacted")
    return {
        span: [flag for flag in names if flag in of_history]
        for span, names in by_span(frame, "flags").items()
    }


def loop(
    spans: Recorder,
    trace: str,
    prompt: str,
    names: str,
    *,
    at: float,
    parent: str = "",
    every: float = 1,
    **facts: Any,
) -> None:
    """A tool loop below one span, a call a name; `facts` of every call."""
    history = [user(prompt)]
    for turn, name in enumerate(names.split()):
        last = turn == len(names.split()) - 1
        answer = said(f"done {name}") if last else used("look", {"turn": turn}, f"{name}-{turn}")
        spans.call(trace, history, answer, at=at + turn * every, parent=parent, name=name, **facts)
        history = [*history, answer, result(f"{name}-{turn}", f"seen {name}")]


def test_a_rollout_id_goes_before_a_session_and_that_before_a_trace() -> None:
    spans = Recorder()
    for number, facts in enumerate(
        ({"rollout": "r", "session": "s"}, {"rollout": "r"}, {"session": "s"}, {"session": "s"}, {})
    ):
        agent = spans.span(f"t{number}", agent="a")
        spans.call(
            f"t{number}", [user(f"p{number}")], said("x"), at=number, parent=agent, name=f"c{number}", **facts
        )
    frame, _ = run(spans)
    assert episodes(frame) == sets("c0 c1", "c2 c3", "c4")
    assert set(frame["episode_id"]) == {"r", "s@i1", f"t4-{agent}"}


def test_ids_of_a_span_above_count_for_the_calls_below_it() -> None:
    spans = Recorder()
    for number, names in enumerate(({"rollout": "r"}, {"session": "s"}, {"task": "known"})):
        above = spans.span(f"t{number}", **names)  # type: ignore[arg-type]  # each name is text
        spans.call(
            f"t{number}",
            [user("p")],
            said("x"),
            at=number,
            parent=spans.span(f"t{number}", above),
            name=f"c{number}",
        )
    frame, _ = run(spans)
    assert set(frame["episode_id"]) == {"r", "s@i1", "t2-c2"}
    assert by_span(frame, "task_id")["c2"] == "known"


@pytest.mark.parametrize("name", ["session", "rollout", "task"])
def test_an_id_of_white_space_names_nothing(name: str) -> None:
    spans = Recorder()
    for number in range(2):
        own = {"explicit_task" if name == "task" else name: " "}
        spans.call(f"t{number}", [user(f"p{number}")], said("x"), at=number, name=f"own{number}", **own)
        above = spans.span(f"u{number}", spans.span(f"u{number}", agent="a", task="known"), **{name: "\t"})  # type: ignore[arg-type]
        spans.call(f"u{number}", [user("q")], said("x"), at=number, name=f"below{number}", parent=above)
    frame, _ = run(spans)
    assert episodes(frame) == sets("own0", "own1", "below0", "below1")
    assert by_span(frame, "task_id")["below0"] == "known"
    assert frame["task_id"].n_unique() == 3


def picture(number: int) -> dict[str, Any]:
    image = {"type": "uri", "modality": "image", "uri": f"https://example.org/{number}.png"}
    return {"role": "user", "parts": [{"type": "text", "content": "What is this?"}, image]}


def test_what_was_asked_is_the_task() -> None:
    """Tasks are what runs are compared by: two that only look alike must not be one."""
    spans = Recorder()
    prompts: dict[str, list[dict[str, Any]]] = {
        "text": [user("What is this?")], "picture0": [picture(0)], "picture1": [picture(1)], "again": [picture(1)],
        "system0": [system("Sum up.")], "system1": [system("Translate.")], "unread0": [], "unread1": [],
        "two parts": [{"role": "user", "parts": [{"type": "text", "content": text} for text in ("What is ", "this?")]}],
    }  # fmt: skip
    for at, (name, prompt) in enumerate(prompts.items()):
        spans.call(f"t-{name}", prompt, said("x"), at=at, name=name, invalid=not prompt, has_content=True)
    # The first call of a run cannot be read.
    spans.call("t8", [], said("x"), at=20, name="first", invalid=True, has_content=True, session="s")
    spans.call("t9", [user("What is this?")], said("x"), at=21, name="then", session="s")
    tasks = by_span(run(spans)[0], "task_id")
    alike = [{name for name in tasks if tasks[name] == task} for task in dict.fromkeys(tasks.values())]
    assert sorted(map(sorted, alike)) == [
        ["again", "picture1"], ["first", "text", "then", "two parts"], ["picture0"], ["system0"], ["system1"],
        ["unread0"], ["unread1"],
    ]  # fmt: skip
    given = {"task_id": "pictures", "prompt": "What is this?", "split": "train"}
    named = by_span(run(spans, tasks=[given])[0], "task_id")
    assert {name for name in named if named[name] == "pictures"} == {
        "text", "picture0", "picture1", "again", "first", "then", "two parts"
    }  # fmt: skip


def test_a_prompt_of_the_test_tasks_is_held_out_under_any_id() -> None:
    spans = Recorder()
    for number in range(20):
        spans.call(
            f"t{number}", [user("p")], said("x"), at=number, name=f"c{number}", explicit_task=f"run {number}"
        )
        spans.call(
            f"u{number}", [user("q")], said("x"), at=number, name=f"d{number}", explicit_task=f"run {number}"
        )
    splits = by_span(run(spans, tasks=[{"task_id": "held out", "prompt": "p", "split": "test"}])[0], "split")
    assert {splits[f"c{number}"] for number in range(20)} == {"test"}
    assert {splits[f"d{number}"] for number in range(20)} == {"test", "train"}


def test_agents_that_hand_over_share_the_run_and_keep_their_names() -> None:
    spans = Recorder()
    run_ = spans.span("t", is_agent=True)
    triage = spans.span("t", run_, agent="triage")
    spans.call(
        "t",
        [system("You triage."), user("p")],
        used("transfer_to_weather", {}, "h"),
        at=0,
        parent=triage,
        name="t1",
    )
    weather = spans.span("t", run_, agent="weather")
    history = [
        system("You know weather."),
        user("p"),
        used("transfer_to_weather", {}, "h"),
        result("h", "{}"),
    ]
    spans.call("t", history, used("look", {}, "l"), at=1, parent=weather, name="w1")
    spans.call(
        "t",
        [*history, used("look", {}, "l"), result("l", "sun")],
        said("sun"),
        at=2,
        parent=weather,
        name="w2",
    )
    frame, _ = run(spans)
    assert episodes(frame) == sets("t1 w1 w2")
    assert by_span(frame, "agent") == {"t1": "triage", "w1": "weather", "w2": "weather"}
    assert by_span(frame, "next_span_id") == {"t1": "w1", "w1": "w2", "w2": None}
    assert by_span(frame, "done") == {"t1": False, "w1": False, "w2": True}
    assert frame["parent_episode_id"].to_list() == [None] * 3
    assert flags(frame) == {"t1": [], "w1": [], "w2": []}


def called_as_a_tool(*, tool: bool, name: str = "math") -> Recorder:
    """`boss` asks `math`, through a tool's span or without one, and goes on."""
    spans = Recorder()
    boss = spans.span("t", agent="boss", name="boss")
    answer = used("ask_math", {}, "m")
    spans.call("t", [user("what is 6 times 7?")], answer, at=0, parent=boss, name="b1")
    below = spans.span("t", boss, tool=True) if tool else boss
    math = spans.span("t", below, agent=name, name="math")
    loop(spans, "t", "6*7", "m1 m2", at=1, parent=math)
    history = [user("what is 6 times 7?"), answer, result("m", "42")]
    spans.call("t", history, said("42"), at=9, parent=boss, name="b2")
    return spans


@pytest.mark.parametrize("tool", [True, False], ids=["below a tool", "without a tool's span"])
def test_an_agent_that_another_calls_is_a_run_of_its_own_with_parent_and_task(tool: bool) -> None:
    task = {"task_id": "six-times-seven", "prompt": "what is 6 times 7?", "expected": "42", "split": "train"}
    frame, _ = run(called_as_a_tool(tool=tool), tasks=[task])
    assert episodes(frame) == sets("b1 b2", "m1 m2")
    assert set(frame.filter(pl.col("agent") == "math")["parent_episode_id"]) == {"t-boss"}
    assert set(frame.filter(pl.col("agent") == "boss")["parent_episode_id"]) == {None}
    assert set(frame["task_id"]) == {"six-times-seven"}
    assert by_span(frame, "observation")["b1"] == '[{"role": "tool", "tool_call_id": "m", "content": "42"}]'
    assert by_span(frame, "next_span_id")["b1"] == "b2"


def test_an_agent_called_as_a_tool_by_one_that_never_goes_on_is_called_all_the_same() -> None:
    spans = called_as_a_tool(tool=True)
    spans.rows[:] = [row for row in spans.rows if row["span_id"] != "b2"]
    frame, _ = run(spans)
    assert episodes(frame) == sets("b1", "m1 m2")
    assert by_span(frame, "parent_episode_id") == {"b1": None, "m1": "t-boss", "m2": "t-boss"}


def test_what_is_expected_of_a_run_is_not_asked_of_the_agents_that_it_calls() -> None:
    from spanloop_trainer.config import Config

    config = Config.model_validate(
        {"rewards": [{"name": "right", "expression": "CAST(answer = expected AS DOUBLE)"}]}
    )
    task = {"task_id": "six-times-seven", "prompt": "what is 6 times 7?", "expected": "42", "split": "train"}
    frame, _ = run(called_as_a_tool(tool=True), tasks=[task], config=config)
    assert dict(frame.select("agent", "reward").unique().iter_rows()) == {"boss": 1.0, "math": None}


def test_an_inner_span_of_the_same_agent_is_no_agent_called() -> None:
    frame, _ = run(called_as_a_tool(tool=False, name="boss"))
    assert episodes(frame) == sets("b1 b2 m1 m2")


def test_a_conversation_id_of_its_own_keeps_a_called_agents_parent() -> None:
    spans = Recorder()
    boss = spans.span("t", agent="boss", session="one")
    spans.call("t", [user("p")], used("ask", {}, "m"), at=0, parent=boss, name="b1")
    math = spans.span("t", spans.span("t", boss, tool=True), agent="math", session="two")
    spans.call("t", [user("q")], said("42"), at=1, parent=math, name="m1")
    frame, _ = run(spans)
    assert by_span(frame, "episode_id") == {"b1": "one@i1", "m1": "two@i1"}
    assert by_span(frame, "parent_episode_id") == {"b1": None, "m1": "one@i1"}


def test_agents_at_work_at_the_same_time_are_runs_of_their_own() -> None:
    spans = Recorder()
    team = spans.span("t", is_agent=True, name="team")
    for number in (1, 2):
        agent = spans.span("t", team, agent=f"a{number}")
        loop(spans, "t", f"p{number}", f"x{number} y{number}", at=number / 10, parent=agent)
    frame, _ = run(spans)
    assert episodes(frame) == sets("x1 y1", "x2 y2")
    assert set(frame["parent_episode_id"]) == {"t-team"}
    assert frame["task_id"].n_unique() == 2


def test_a_task_whose_steps_are_agents_is_their_parent() -> None:
    """CrewAI as OpenInference records it: a CHAIN above agents that work one after another."""
    spans = Recorder()
    crew = spans.span("t", chain=True, name="crew", task="report")
    for number in (1, 2):
        agent = spans.span("t", crew, agent=f"a{number}")
        loop(spans, "t", f"p{number}", f"x{number} y{number}", at=number * 10, parent=agent)
    frame, _ = run(spans)
    assert episodes(frame) == sets("x1 y1", "x2 y2")
    assert set(frame["parent_episode_id"]) == {"t-crew"}
    assert set(frame["task_id"]) == {"report"}


def test_a_model_call_made_by_a_tool_of_a_plain_loop_has_the_loop_as_parent() -> None:
    spans = Recorder()
    request = spans.span("t")
    loop(spans, "t", "p", "a b", at=0, parent=request, every=10)
    tool = spans.span("t", request, tool=True)
    spans.call("t", [user("sum this up")], said("short"), at=5, parent=tool, name="inner")
    frame, _ = run(spans)
    assert episodes(frame) == sets("a b", "inner")
    assert by_span(frame, "parent_episode_id") == {"a": None, "b": None, "inner": "t-a"}


def test_conversations_side_by_side_did_not_call_each_other() -> None:
    spans = Recorder()
    request = spans.span("t")
    loop(spans, "t", "p", "a b", at=0, parent=request)
    loop(spans, "t", "q", "c d", at=5, parent=request)
    frame, _ = run(spans)
    assert episodes(frame) == sets("a b", "c d")
    assert set(frame["parent_episode_id"]) == {None}


def test_of_two_sessions_in_one_tree_only_the_earlier_can_have_called_the_other() -> None:
    spans = Recorder()
    outer = spans.span("t", agent="outer", session="late")
    inner = spans.span("t", spans.span("t", outer, tool=True), agent="inner", session="early")
    spans.call("t", [user("p")], said("x"), at=0, parent=inner, name="i")
    spans.call("t", [user("q")], said("y"), at=1, parent=outer, name="o")
    frame, _ = run(spans)
    assert set(frame["parent_episode_id"]) == {None}


def test_prompts_written_anew_between_tools_are_one_run_below_their_chain() -> None:
    """DSPy's ReAct has no agent's span, and no prompt continues another."""
    spans = Recorder()
    react = spans.span("t", chain=True, name="react")
    for turn in range(3):
        step = spans.span("t", react, chain=True)
        spans.call(
            "t",
            [user(f"trajectory so far: {turn}")],
            said(f"thought {turn}"),
            at=turn,
            parent=step,
            name=f"c{turn}",
        )
        spans.span("t", react, tool=True)
    frame, _ = run(spans)
    assert episodes(frame) == sets("c0 c1 c2")
    assert set(frame["episode_id"]) == {"t-react"}


def test_conversations_below_one_chain_stay_apart() -> None:
    spans = Recorder()
    batch = spans.span("t", chain=True)
    spans.span("t", batch, tool=True)
    for number in (1, 2):
        loop(spans, "t", f"p{number}", f"x{number} y{number}", at=number * 10, parent=batch)
    frame, _ = run(spans)
    assert episodes(frame) == sets("x1 y1", "x2 y2")


def test_a_first_call_that_failed_is_the_first_step_of_the_run_that_its_retry_began() -> None:
    spans = Recorder()
    spans.call("t1", [user("p")], at=0, name="fails", error_type="RateLimitError")
    spans.call("t2", [user("p")], at=2, name="fails2", error_type="RateLimitError")
    loop(spans, "t3", "p", "a b", at=4)
    spans.call("t4", [user("p")], at=3600, name="other", error_type="RateLimitError")
    spans.call("t5", [user("p")], said("x"), at=7200, name="again")
    frame, _ = run(spans)
    assert episodes(frame) == sets("fails fails2 a b", "other", "again")
    assert by_span(frame, "step") == {"fails": 0, "fails2": 1, "a": 2, "b": 3, "other": 0, "again": 0}
    assert by_span(frame, "next_span_id")["fails"] == "fails2"


def history(turns: int) -> list[dict[str, Any]]:
    messages = [user("p")]
    for turn in range(turns):
        messages += [used("look", {"turn": turn}, f"c{turn}"), result(f"c{turn}", f"saw {turn}")]
    return messages


def test_a_clock_in_the_system_prompt_does_not_break_a_run() -> None:
    spans = Recorder()
    for turn in range(3):
        messages = [system(f"It is {turn} o'clock."), *history(turn)]
        spans.call(f"t{turn}", messages, used("look", {"turn": turn}, f"c{turn}"), at=turn, name=f"c{turn}")
    frame, _ = run(spans)
    assert episodes(frame) == sets("c0 c1 c2")
    assert flags(frame) == {"c0": [], "c1": ["edited_history"], "c2": ["edited_history"]}
    seen = json.loads(by_span(frame, "observation")["c0"])
    assert seen == [{"role": "tool", "tool_call_id": "c0", "content": "saw 0"}]


def test_a_history_that_was_summed_up_is_a_fork_of_the_same_task() -> None:
    spans = Recorder()
    for turn in range(3):
        spans.call(
            f"t{turn}", history(turn), used("look", {"turn": turn}, f"c{turn}"), at=turn, name=f"c{turn}"
        )
    short = [user("You looked twice."), used("look", {"turn": 2}, "c2"), result("c2", "saw 2")]
    spans.call("t3", short, used("look", {"turn": 3}, "c3"), at=3, name="c3")
    spans.call(
        "t4", [*short, used("look", {"turn": 3}, "c3"), result("c3", "saw 3")], said("done"), at=4, name="c4"
    )
    frame, _ = run(spans)
    assert episodes(frame) == sets("c0 c1 c2", "c3 c4")
    assert flags(frame)["c3"] == ["compacted"]
    assert frame["task_id"].n_unique() == 1
    assert frame["parent_episode_id"].to_list() == [None] * 5
    assert set(frame["status"]) == {"ok"}


def test_examples_in_a_prompt_are_no_history() -> None:
    spans = Recorder()
    examples = [system("Classify."), user("great"), said("good"), user("awful"), said("bad")]
    for number in range(4):
        spans.call(
            f"t{number}", [*examples, user(f"text {number}")], said("bad"), at=number, name=f"c{number}"
        )
    frame, _ = run(spans)
    assert episodes(frame) == sets("c0", "c1", "c2", "c3")
    assert set(map(tuple, flags(frame).values())) == {()}


def test_thoughts_that_vanish_from_the_history_do_not_break_a_run() -> None:
    spans = Recorder()
    thought = {
        "role": "assistant",
        "parts": [{"type": "reasoning", "content": "hm"}, *used("look", {}, "c")["parts"]],
    }
    spans.call("a", [user("p")], thought, at=0, name="a")
    spans.call("b", [user("p"), used("look", {}, "c"), result("c", "saw")], said("x"), at=1, name="b")
    frame, _ = run(spans)
    assert episodes(frame) == sets("a b")
    assert flags(frame) == {"a": [], "b": []}


def test_in_a_session_the_next_call_is_of_the_same_agent() -> None:
    spans = Recorder()
    for at, (name, agent) in enumerate((("a1", "a"), ("b1", "b"), ("a2", "a"), ("b2", "b"))):
        spans.call(
            f"t{at}", [user(f"{name} alone")], said(name), at=at, name=name, span_agent=agent, session="s"
        )
    frame, _ = run(spans)
    assert by_span(frame, "next_span_id") == {"a1": "a2", "b1": "b2", "a2": "b2", "b2": None}
    assert by_span(frame, "done") == {"a1": False, "b1": False, "a2": False, "b2": True}


@pytest.mark.parametrize("depth", [1, 40, 1100])
def test_an_agent_far_above_is_found(depth: int) -> None:
    spans = Recorder()
    above = spans.span("t", agent="far", name="top")
    for _ in range(depth):
        above = spans.span("t", above)
    spans.call("t", [user("p")], said("x"), at=0, parent=above, name="c")
    frame, _ = run(spans, seed=3)
    assert frame.select("episode_id", "agent").rows() == [("t-top", "far")]


def test_a_cycle_of_parents_harms_nothing_beside_it() -> None:
    spans = Recorder()
    for span, parent, agent in (
        ("a", "c", "loop"),
        ("b", "a", None),
        ("c", "b", None),
        ("self", "self", "own"),
    ):
        spans.span("t", parent, name=span, agent=agent)
    spans.call("t", [user("p")], said("x"), at=0, parent="c", name="in")
    spans.call("t", [user("q")], said("y"), at=1, parent="self", name="on")
    spans.call(
        "u", [user("r")], said("z"), at=2, parent=spans.span("u", agent="fine", name="fine"), name="beside"
    )
    results = [run(spans, seed=seed)[0] for seed in range(4)]
    assert all(frame.equals(results[0]) for frame in results)
    assert by_span(results[0], "episode_id") == {"in": "t-a", "on": "t-self", "beside": "u-fine"}


def test_a_parent_that_was_never_recorded_and_a_missing_time_lose_no_call() -> None:
    spans = Recorder()
    spans.call("t", [user("p")], said("x"), at=0, parent="gone", name="a")
    for name in ("b", "c"):
        spans.call("u", [user(name)], said("x"), at=0, lasts=0, parent=spans.span("u", "gone too"), name=name)
    for row in spans.rows:
        row["start"] = datetime(1970, 1, 1)
    frame, _ = run(spans)
    assert episodes(frame) == sets("a", "b", "c")
    assert frame["step"].to_list() == [0, 0, 0]


def test_ten_thousand_spans_nested_in_each_other() -> None:
    """No time is asserted here (bench/transform.py has it); this would take minutes if parents were followed one by one."""
    spans = Recorder()
    above = spans.span("t", agent="top", name="top")
    for number in range(10_000):
        if number % 4:
            above = spans.span("t", above)
        else:
            above = spans.call(
                "t", [user(f"p{number}")], said("x"), at=number, parent=above, name=f"c{number}"
            )
    piece = canonical(spans.spans())
    begun = time.perf_counter()
    calls, tree = read_tree(piece.slim.calls, piece.slim.ancestors)
    calls = distinct_calls(calls, tree, Funnel())
    placed = assign_episodes(calls, link_calls(calls), tree)
    print(f"2,500 calls among 10,000 nested spans: {time.perf_counter() - begun:.3f} s")
    assert placed["episode_id"].unique().to_list() == ["t-top"]
    assert placed["step"].to_list() == list(range(2500))
