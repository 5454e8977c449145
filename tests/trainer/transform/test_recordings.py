"""Recorded traffic of real SDKs, against what the server really received."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest

from .conftest import RECORDINGS, Build, recorded

NAMES = [
    path.stem
    for path in sorted(RECORDINGS.glob("[abc]_*.json"))
    if path.stem != "a_sync_attr_len_limit" and not path.stem.endswith(".logs")
]
REQUESTS = {
    request["span_id"]: request
    for request in map(json.loads, (RECORDINGS / "requests.jsonl").read_text().splitlines())
}


def comparable(message: dict[str, Any]) -> dict[str, Any]:
    """Arguments as values, absent content as null; `name` is in no recorded span."""
    calls = [
        {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
        for call in message.get("tool_calls") or []
    ]
    rest = {
        key: value for key, value in message.items() if key not in ("name", "tool_calls", "reasoning_content")
    }
    return {"content": None, **rest, "tool_calls": calls}


@pytest.fixture(scope="module")
def built() -> dict[str, pl.DataFrame]:
    """Recording → its transitions, once built."""
    return {}


def transitions(build_rows: Build, built: dict[str, pl.DataFrame], name: str) -> pl.DataFrame:
    if name not in built:
        _, built[name] = build_rows(recorded(name))
    return built[name]


@pytest.mark.parametrize("name", NAMES)
def test_state_and_tools_are_what_the_server_received(
    build_rows: Build, built: dict[str, pl.DataFrame], name: str
) -> None:
    frame = transitions(build_rows, built, name)
    compared = 0
    for row in frame.iter_rows(named=True):
        request = REQUESTS.get(row["span_id"])
        if request is None:
            continue
        body = request["body"]
        assert [*map(comparable, json.loads(row["state"]))] == [*map(comparable, body["messages"])]
        offered = [tool["function"]["name"] for tool in body.get("tools", [])]
        assert [tool["function"]["name"] for tool in json.loads(row["tools"] or "[]")] == offered
        if not name.startswith("c_"):  # LangChain's span has the schemas before the client cleans them
            assert json.loads(row["tools"]) == body["tools"]
        assert row["sampling"]["temperature"] == body["temperature"]
        compared += 1
    if any(request["scenario"] == name for request in REQUESTS.values()):
        assert compared


@pytest.mark.parametrize("name", NAMES)
def test_the_answer_comes_back_as_history(
    build_rows: Build, built: dict[str, pl.DataFrame], name: str
) -> None:
    """Where one step follows another by messages: state + action + observation is the next state."""
    frame = transitions(build_rows, built, name)
    states = dict(frame.select("span_id", "state").iter_rows())
    for row in frame.filter(pl.col("observation").is_not_null()).iter_rows(named=True):
        action = json.loads(row["action"])
        action.pop("reasoning_content", None)
        whole = [*json.loads(row["state"]), action, *json.loads(row["observation"])]
        assert whole == json.loads(states[row["next_span_id"]])


def steps(frame: pl.DataFrame) -> list[int]:
    return sorted(frame.group_by("episode_id").len()["len"].to_list())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a_sync_basic", [2]),
        ("a_sync_multi_turn", [7]),
        ("b_stream_concurrent_runs", [2, 2, 4]),
        ("c_langchain_basic", [2]),
        ("c_langchain_multi_turn", [6]),
    ],
)
def test_episodes(build_rows: Build, built: dict[str, pl.DataFrame], name: str, expected: list[int]) -> None:
    frame = transitions(build_rows, built, name)
    assert steps(frame) == expected
    assert frame.filter("done").height == len(expected)


def test_one_group_id_on_four_processes_is_four_episodes_of_one_task(build_rows: Build) -> None:
    _, frame = build_rows(recorded(*(f"a_group7_rollout{number}" for number in range(1, 5))))
    assert steps(frame) == [4, 4, 4, 4]
    assert frame["task_id"].n_unique() == 1


def test_one_thread_id_used_by_unrelated_runs_is_not_one_episode(build_rows: Build) -> None:
    names = [name for name in NAMES if name.startswith("c_")]
    _, frame = build_rows(recorded(*names))
    assert frame["episode_id"].n_unique() == len(names)
    assert set(frame["agent"]) == {"weather_agent"}


def test_two_answers_are_two_transitions(build_rows: Build) -> None:
    _, frame = build_rows(recorded("a_sync_n2"))
    assert frame.select("step", "choice", "done").rows() == [(0, 0, True), (0, 1, True)]


def test_failures_are_rows_and_never_actions(build_rows: Build) -> None:
    manifest, frame = build_rows(
        recorded("a_sync_err429", "b_stream_cut", "a_sync_attr_len_limit", "a_sync_basic")
    )
    by_service = {
        row[0]: row[1:] for row in frame.select("agent", "status", "action", "error_type").iter_rows()
    }
    assert by_service["agent-a_sync_err429"] == ("error", None, "RateLimitError")
    assert by_service["agent-b_stream_cut"] == ("truncated", None, None)
    assert by_service["agent-a_sync_attr_len_limit"] == ("invalid", None, None)
    assert manifest.counts["usable"] == 2
    assert (
        sum(number for reason, number in manifest.counts["lost"].items() if reason.startswith("status")) == 4
    )


def test_conventions_stand_side_by_side(build_rows: Build) -> None:
    names = ("a_sync_basic", "legacy_a_sync", "oi_a_sync")
    manifest, frame = build_rows(recorded(*names))
    assert set(frame["agent"]) == {f"agent-{name}" for name in names}
    assert manifest.counts["usable"] == 2 + 4 + 4
