"""Which call goes on from which, where conversations are equal to the letter, histories are rewritten, or calls are missing."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers.examples import few

from spanloop_trainer.transform.episodes.chains import _last_open

from .test_episodes import by_span, episodes, flags, loop, sets
from .trees import Json, Recorder, result, run, said, system, used, user

HELLO = [user("hi"), said("hello"), user("q")]


def test_equal_conversations_in_two_traces_are_not_mixed() -> None:
    spans = Recorder()
    one, two = spans.span("one"), spans.span("two")
    spans.call("one", [user("hi")], said("hello"), at=0, name="a0", parent=one)
    spans.call("two", [user("hi")], said("hello"), at=1, name="b0", parent=two)
    spans.call("two", HELLO, said("x"), at=2, name="b1", parent=two)
    spans.call("one", HELLO, said("x"), at=3, name="a1", parent=one)
    # A second answer to the same turn is a fork, though another conversation is open at that place.
    three = spans.span("three")
    spans.call("three", [user("hi")], said("hello"), at=4, name="c0", parent=three)
    spans.call("one", HELLO, said("y"), at=5, name="a2", parent=one)
    frame, _ = run(spans)
    assert episodes(frame) == sets("a0 a1", "b0 b1", "c0", "a2")


def test_a_conversation_that_was_given_up_is_not_taken_up_by_another_run() -> None:
    spans = Recorder()
    spans.call("A", [user("hi")], said("hello"), at=0, name="a0")
    spans.call("B", [user("hi")], said("hello"), at=3600, name="b0")
    spans.call("C", HELLO, said("x"), at=3660, name="b1")
    frame, _ = run(spans)
    assert episodes(frame) == sets("a0", "b0 b1")


def test_a_call_goes_on_from_the_one_that_ended_last() -> None:
    spans = Recorder()
    spans.call("A", [user("hi")], said("hello"), at=0, lasts=2, name="a0")
    spans.call("B", [user("hi")], said("hello"), at=1, lasts=10, name="b0")
    spans.call("C", HELLO, said("x"), at=3, name="a1")
    spans.call("D", HELLO, said("x"), at=12, name="b1")
    frame, _ = run(spans)
    assert episodes(frame) == sets("a0 a1", "b0 b1")


def test_equal_conversations_may_move_between_replicas() -> None:
    spans = Recorder()
    for number, name in enumerate("ab"):
        for turn, prompt in enumerate(([user("hi")], HELLO)):
            answer, instance = said("x" if turn else "hello"), f"i{number}{turn}"
            spans.call(
                f"{name}{turn}",
                prompt,
                answer,
                at=60 * number + turn,
                name=f"{name}{turn}",
                instance=instance,
            )
    frame, _ = run(spans)
    assert episodes(frame) == sets("a0 a1", "b0 b1")


def test_the_span_of_a_stream_may_end_after_the_next_call_began() -> None:
    spans = Recorder()
    for turn in range(3):
        clock(spans, "p", turn, f"c{turn}", turn, "id", lasts=60)
    frame, _ = run(spans)
    assert episodes(frame) == sets("c0 c1 c2")


@pytest.mark.parametrize(("session", "clocked"), [(None, False), ("s", False), ("s", True)])
def test_a_conversation_whose_every_call_goes_to_another_replica_is_one(
    session: str | None, clocked: bool
) -> None:
    spans, history = Recorder(), [user("p")]
    for turn in range(6):
        now = [system(f"It is {turn}.")] if clocked else []
        spans.call(
            f"t{turn}", [*now, *history], said(f"a{turn}"), at=turn, name=f"c{turn}", session=session, instance=f"i{turn % 2}"
        )  # fmt: skip
        history = [*history, said(f"a{turn}"), user(f"u{turn}")]
    frame, _ = run(spans)
    assert episodes(frame) == sets("c0 c1 c2 c3 c4 c5")


def test_of_two_answers_that_are_both_gone_on_from_the_second_is_a_fork() -> None:
    spans = Recorder()
    spans.call("A", [user("p")], said("a"), said("b"), at=0, name="first")
    spans.call("B", [user("p"), said("b"), user("q")], said("x"), at=2, name="early")
    spans.call("C", [user("p"), said("a"), user("q")], said("y"), at=3, name="late")
    frame, _ = run(spans)
    assert episodes(frame) == sets("first early", "late")
    taken = frame.filter(span_id="first").sort("choice").select("choice", "next_span_id", "done").rows()
    assert taken == [(0, None, True), (1, "early", False)]


@pytest.mark.parametrize("place", ["same trace", "no time at all"])
def test_a_first_call_is_sent_again_where_it_failed(place: str) -> None:
    spans = Recorder()
    one, two = spans.span("one"), spans.span("two")
    lasts = 0.5 if place == "same trace" else 0
    spans.call("one", [user("p")], at=0, name="a0", parent=one, lasts=lasts, error_type="E")
    if place == "same trace":
        spans.call("two", [user("p")], said("x"), at=1, name="b0", parent=two)
    spans.call("one", [user("p")], said("x"), at=2, name="a1", parent=one)
    frame, _ = run(spans)
    assert episodes(frame) == (sets("a0 a1", "b0") if place == "same trace" else sets("a0 a1"))


def test_calls_of_one_moment_are_in_the_order_of_their_messages() -> None:
    spans = Recorder()
    loop(spans, "t", "p", "z y x", at=5, every=0)
    frame, _ = run(spans)
    assert by_span(frame, "step") == {"z": 0, "y": 1, "x": 2}
    assert by_span(frame, "next_span_id") == {"z": "y", "y": "x", "x": None}
    assert flags(frame) == {"z": [], "y": [], "x": []}


def clock(spans: Recorder, prompt: str, turn: int, name: str, at: float, ids: str, **facts: Any) -> None:
    """A call of a loop that tells the time in its first message."""
    history: list[Json] = [system(f"It is {at}."), user(prompt)]
    for past in range(turn):
        history += [used("look", {"turn": past}, f"{ids}{past}"), result(f"{ids}{past}", f"saw {past}")]
    answers = [] if "error_type" in facts else [used("look", {"turn": turn}, f"{ids}{turn}")]
    spans.call(f"t-{name}", history, *answers, at=at, name=name, **facts)


@pytest.mark.parametrize("same", ["question", "ids"])
def test_users_who_are_served_at_the_same_time_keep_their_own_runs(same: str) -> None:
    """With a clock in the prompt, messages alone do not tell; either the ids of calls do, or the question."""
    spans = Recorder()
    for turn in range(3):
        for number in range(4):
            prompt, ids = ("p", f"id{number}-") if same == "question" else (f"p{number}", "id-")
            clock(spans, prompt, turn, f"c{number}{turn}", 10 * turn + number, ids)
    frame, _ = run(spans)
    assert episodes(frame) == sets(*(f"c{number}0 c{number}1 c{number}2" for number in range(4)))


def test_a_failed_attempt_does_not_take_the_place_of_the_one_that_worked() -> None:
    spans = Recorder()
    clock(spans, "p", 0, "c0", 0, "id")
    clock(spans, "p", 1, "f1", 1, "id", error_type="RateLimitError")
    clock(spans, "p", 1, "c1", 2, "id")
    clock(spans, "p", 2, "c2", 3, "id")
    frame, _ = run(spans)
    assert episodes(frame) == sets("c0 f1 c1 c2")


def test_a_loop_that_asks_the_same_again_with_a_clock_is_one_run() -> None:
    spans, history = Recorder(), list[Json]()
    for turn in range(4):
        answer = used("check", {}, f"id{turn}")
        spans.call(
            f"t{turn}", [system(f"It is {turn}."), user("p"), *history], answer, at=turn, name=f"c{turn}"
        )
        history += [answer, result(f"id{turn}", f"{turn}0 %")]
    frame, _ = run(spans)
    assert episodes(frame) == sets("c0 c1 c2 c3")


def test_text_under_another_question_is_no_history() -> None:
    spans = Recorder()
    for turn in range(2):
        for number in range(2):
            history = [
                system(f"It is {turn}{number}."),
                user(f"p{number}"),
                *([said("ok"), user("more")] * turn),
            ]
            name = f"c{number}{turn}"
            spans.call(f"t{name}", history, said("bye" if turn else "ok"), at=10 * turn + number, name=name)
    frame, _ = run(spans)
    assert episodes(frame) == sets("c00 c01", "c10 c11")


def test_an_answer_that_the_agent_stripped_is_that_answer() -> None:
    spans = Recorder()
    spans.call("A", [user("hi")], said("hello \n"), at=0, name="a0")
    spans.call("B", HELLO, said("x"), at=2, name="a1")
    frame, _ = run(spans)
    assert episodes(frame) == sets("a0 a1")
    assert flags(frame) == {"a0": [], "a1": ["edited_history"]}
    assert by_span(frame, "observation")["a0"] == '[{"role": "user", "content": "q"}]'


@pytest.mark.parametrize("lost", ["never recorded", "cut", "failed"])
def test_a_call_that_is_missing_in_the_middle_does_not_end_the_run(lost: str) -> None:
    spans, history = Recorder(), [user("p")]
    for turn in range(4):
        facts: Json = {"error_type": "E"} if lost == "failed" else {}
        if turn != 2:
            spans.call(f"t{turn}", history, said(f"a{turn}"), at=turn, name=f"c{turn}")
        elif lost != "never recorded":
            spans.call(f"t{turn}", history, at=turn, name=f"c{turn}", **facts)
        history = [*history, said(f"a{turn}"), user(f"u{turn}")]
    frame, _ = run(spans)
    assert episodes(frame) == sets("c0 c1 c3" if lost == "never recorded" else "c0 c1 c2 c3")
    assert by_span(frame, "next_span_id")["c1"] == "c3"
    assert [message["content"] for message in json.loads(by_span(frame, "observation")["c1"])] == [
        "u1",
        "a2",
        "u2",
    ]


class Told(NamedTuple):
    """A conversation of which something other than its messages says what belongs to it."""

    by: str  # "trace", "process" or "ids" of its tool calls
    turns: int
    at: int
    every: int
    fails: int  # the turn at which an attempt fails first


TOLD = st.builds(
    Told, st.sampled_from(["trace", "process", "ids"]), st.integers(1, 4), st.integers(0, 9), st.integers(1, 9), st.integers(1, 6)
)  # fmt: skip


@settings(max_examples=few(12), deadline=None)
@given(drawn=st.lists(TOLD, min_size=1, max_size=5), clocked=st.booleans(), seed=st.integers(0, 99))
def test_equal_conversations_come_apart_by_ids_trace_or_process(
    drawn: list[Told], clocked: bool, seed: int
) -> None:
    spans, expected = Recorder(), list[str]()
    for number, told in enumerate(drawn):
        instance = f"i{number}" if told.by == "process" else "i"
        parent = spans.span(f"t{number}", name=f"root{number}") if told.by == "trace" else ""
        history, names, at = [user("p")], list[str](), told.at + number / 100
        for turn in range(told.turns):
            call_id = f"{number}-{turn}" if told.by == "ids" else f"call_{turn}"
            answer = used("look", {}, call_id)
            for fails in (True, False) if turn == told.fails else (False,):
                name = f"c{number}-{turn}{fails}"
                clock_ = [system(f"It is {at}.")] if clocked else []
                facts: Json = {"error_type": "E"} if fails else {}
                spans.call(
                    f"t{number}" if parent else f"t{name}", [*clock_, *history], *([] if fails else [answer]), at=at,
                    parent=parent, name=name, instance=instance, **facts,
                )  # fmt: skip
                names.append(name)
                at += told.every
            history = [*history, answer, result(call_id, f"saw {turn}")]
        expected.append(" ".join(names))
    frame, _ = run(spans, seed=seed)
    assert episodes(frame) == sets(*expected)


EVENT = st.tuples(st.integers(0, 9), st.integers(0, 2))


@settings(max_examples=few(60), deadline=None)
@given(
    parents=st.lists(EVENT, min_size=1, max_size=9),
    children=st.lists(EVENT, min_size=1, max_size=9),
    data=st.data(),
)
def test_the_last_open_one_is_taken(
    parents: list[tuple[int, int]], children: list[tuple[int, int]], data: st.DataObject
) -> None:
    rows = data.draw(st.permutations(range(len(parents) + len(children))))
    calls = list(zip(rows, [*parents, *children], strict=True))
    opened, asked = calls[: len(parents)], calls[len(parents) :]
    stacks: dict[int, list[int]] = {}
    expected = set()
    for _, row, key, opens in sorted(
        [(at, row, key, True) for row, (at, key) in opened]
        + [(at, row, key, False) for row, (at, key) in asked]
    ):
        if opens:
            stacks.setdefault(key, []).append(row)
        elif stacks.get(key):
            expected.add((row, stacks[key].pop()))
    frames = [
        pl.DataFrame(
            [(row, at, key) for row, (at, key) in some],
            schema={name: pl.UInt32, time: pl.Int64, "key": pl.UInt64}, orient="row",
        )
        for some, name, time in ((asked, "row", "start"), (opened, "parent", "at"))
    ]  # fmt: skip
    assert set(_last_open(*frames).rows()) == expected
