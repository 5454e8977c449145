"""Which call continues which, where nothing but the messages says so."""

from __future__ import annotations

from typing import Any

import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.helpers.examples import few

from .conftest import Agent, Build, Row, called, result, said, user


def loop(agent: Agent, prompt: str, turns: int, *, at: int, every: int, ids: str = "") -> list[Row]:
    """A tool loop of `turns` calls; without `ids` two runs of one prompt are equal to the letter."""
    rows, history = [], [user(prompt)]
    for turn in range(turns):
        answer = said("done") if turn == turns - 1 else called("add", {"turn": turn}, f"call{ids}{turn}")
        rows.append(agent.call(history, answer, at=at + turn * every))
        history = [*history, answer, result(f"call{ids}{turn}", "ok")]
    return rows


def lengths(frame: pl.DataFrame) -> list[int]:
    return sorted(frame.group_by("episode_id").len()["len"].to_list())


def test_interleaved_runs_with_the_same_first_prompt_are_told_apart_by_their_ids(build_rows: Build) -> None:
    agent = Agent()
    _, frame = build_rows(
        [*loop(agent, "p", 3, at=0, every=10, ids="a"), *loop(agent, "p", 4, at=1, every=7, ids="b")]
    )
    assert lengths(frame) == [3, 4]


def test_runs_that_are_equal_to_the_letter_still_make_whole_episodes(build_rows: Build) -> None:
    agent = Agent()
    _, frame = build_rows([row for start in range(4) for row in loop(agent, "p", 3, at=start, every=10)])
    assert lengths(frame) == [3, 3, 3, 3]
    assert frame["task_id"].n_unique() == 1


def test_equal_runs_of_two_processes_are_not_mixed(build_rows: Build) -> None:
    one, two = Agent("i1", "one"), Agent("i2", "two")
    _, frame = build_rows([*loop(one, "p", 3, at=0, every=10), *loop(two, "p", 3, at=1, every=9)])
    assert frame.group_by("episode_id").agg(pl.col("agent").n_unique())["agent"].to_list() == [1, 1]


def test_a_conversation_that_moves_to_another_replica_stays_one_episode(build_rows: Build) -> None:
    one, two = Agent("i1"), Agent("i2")
    first = one.call([user("p")], said("a"), at=0)
    second = two.call([user("p"), said("a"), user("q")], said("b"), at=1)
    _, frame = build_rows([first, second])
    assert lengths(frame) == [2]


def test_a_second_continuation_is_a_fork_that_shares_no_transition(build_rows: Build) -> None:
    agent = Agent()
    first = agent.call([user("p")], said("a"), at=0)
    early = agent.call([user("p"), said("a"), user("q")], said("b"), at=1)
    late = agent.call([user("p"), said("a"), user("r")], said("c"), at=2)
    _, frame = build_rows([first, early, late])
    by_span = dict(frame.select("span_id", "episode_id").iter_rows())
    assert by_span[first["SpanId"]] == by_span[early["SpanId"]] != by_span[late["SpanId"]]
    assert frame.height == 3
    observed = dict(frame.select("span_id", "observation").iter_rows())
    assert observed[first["SpanId"]] == '[{"role": "user", "content": "q"}]'


def test_a_failed_attempt_joins_the_episode_and_does_not_end_it(build_rows: Build) -> None:
    agent = Agent()
    history = [user("p"), said("a"), user("q")]
    rows = [
        agent.call([user("p")], said("a"), at=0),
        agent.call(history, at=1, **{"error.type": "RateLimitError", "gen_ai.response.id": ""}),
        agent.call(history, said("b"), at=2),
    ]
    _, frame = build_rows(rows)
    assert frame.sort("step").select("step", "status").rows() == [(0, "ok"), (1, "error"), (2, "ok")]
    assert frame["episode_id"].n_unique() == 1
    assert frame.sort("step")["next_span_id"][0] == rows[2]["SpanId"]


def test_the_answer_that_was_taken_up_goes_on_and_the_other_ends(build_rows: Build) -> None:
    agent = Agent()
    rows = [
        agent.call([user("p")], said("a"), said("b"), at=0),
        agent.call([user("p"), said("b"), user("q")], said("c"), at=1),
    ]
    _, frame = build_rows(rows)
    found = frame.sort("step", "choice").select("step", "choice", "next_span_id", "done").rows()
    assert found == [(0, 0, None, True), (0, 1, rows[1]["SpanId"], False), (1, 0, None, True)]


def test_numbers_and_text_survive_as_they_were(build_rows: Build) -> None:
    import json

    arguments: dict[str, Any] = {"id": 123456789012345678901234567890, "x": [1, None, {"ü": '"\n'}], "f": 0.1}
    agent = Agent()
    history = [user("p"), called("t", arguments, "c"), result("c", "r")]
    _, frame = build_rows([agent.call(history, called("t", arguments, "d"), at=0)])
    state = json.loads(frame["state"][0])
    assert json.loads(state[1]["tool_calls"][0]["function"]["arguments"]) == arguments
    assert json.loads(json.loads(frame["action"][0])["tool_calls"][0]["function"]["arguments"]) == arguments


@settings(max_examples=few(3), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    runs=st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 4), st.integers(0, 30), st.integers(1, 9)),
        min_size=1,
        max_size=6,
    ),
    data=st.data(),
)
def test_every_call_is_in_one_episode_and_row_order_means_nothing(
    build_rows: Build, runs: list[tuple[int, int, int, int]], data: st.DataObject
) -> None:
    agent = Agent()
    rows = [
        row
        for number, (prompt, turns, at, every) in enumerate(runs)
        for row in loop(agent, f"p{prompt}", turns, at=at, every=every, ids=f"-{number}-")
    ]
    first, frame = build_rows(rows)
    assert sorted(frame["span_id"]) == sorted(row["SpanId"] for row in rows)
    assert lengths(frame) == sorted(turns for _, turns, _, _ in runs)
    shuffled, _ = build_rows(data.draw(st.permutations(rows)))
    assert (shuffled.id, shuffled.sha256) == (first.id, first.sha256)
