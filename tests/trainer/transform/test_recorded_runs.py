"""Runs of several agents as real frameworks record them: who acted, in which run, called by which."""

from __future__ import annotations

from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client

from .test_truth import built, client  # noqa: F401  # a fixture

# A letter a call in the order of start: its run; then the agents in that order, and the run that called a run.
RUNS = {
    "d_agents_chat_basic": ("aaa", ["Triage agent", "Weather agent", "Weather agent"], {}),
    "autogen_team_ollm": ("aaaa", ["planner", "specialist", "specialist", "critic"], {}),
    "pydantic_subagent": (
        "aabbaa",
        ["weather_agent", "weather_agent", "math_agent", "math_agent", "weather_agent", "weather_agent"],
        {"b": "a"},
    ),
    "crew_oi_two_agents": ("aaaab", ["Weather specialist"] * 4 + ["Writer"], {"a": "crew", "b": "crew"}),
    "crew_ollm_tools": ("aa", ["Weather specialist"] * 2, {}),
    "dspy_tools": ("aaa", None, {}),
    "b_stream_concurrent_runs": ("abcabcaa", None, {}),
}


@pytest.mark.parametrize("name", RUNS)
def test_who_acted_in_which_run(client: Client, tmp_path: Path, name: str) -> None:  # noqa: F811
    _, frame = built(client, tmp_path, name)
    frame = frame.sort("start", "trace_id")
    letters = {
        episode: chr(97 + n) for n, episode in enumerate(frame["episode_id"].unique(maintain_order=True))
    }
    runs, agents, called = RUNS[name]
    assert "".join(letters[episode] for episode in frame["episode_id"]) == runs
    if agents is not None:
        assert frame["agent"].to_list() == agents
    parents = {
        letters[episode]: letters.get(parent, "crew")
        for episode, parent in frame.select("episode_id", "parent_episode_id").unique().iter_rows()
        if parent is not None
    }
    assert parents == called
    if "crew" in called.values():
        assert frame["parent_episode_id"].n_unique() == 1
    assert set(frame["failure"]) == {None}


def test_a_called_agent_keeps_the_task_of_its_caller(client: Client, tmp_path: Path) -> None:  # noqa: F811
    _, frame = built(client, tmp_path, "pydantic_subagent")
    assert frame["task_id"].n_unique() == 1
    asked = frame.filter(frame["agent"] == "weather_agent").sort("step")
    assert '"role": "tool"' in asked["observation"][1]
