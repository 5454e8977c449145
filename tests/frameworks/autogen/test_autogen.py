"""AutoGen: its own spans for agents and tools, the client's for model calls."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.helpers.agents import Tree, assert_every_call_once
from tests.helpers.frameworks import run_python, weather


def test_a_team_is_captured(tmp_path: Path) -> None:
    run = run_python(
        "autogen",
        Path(__file__).parent,
        weather(),
        spool=tmp_path,
        AUTOGEN_DISABLE_RUNTIME_TRACING="true",
    )
    assert run.printed == ["Paris is sunny, says answer 3."]
    assert_every_call_once(run.stub, run.calls)
    tree = Tree(run.spans)
    tree.assert_whole()
    assert Counter(tree.agent(call) for call in run.calls) == {"researcher": 2, "writer": 1}
    (step,) = run.tool_steps()
    assert step.attributes["gen_ai.tool.name"] == "get_weather"
    assert tree.agent(step) == "researcher"
    assert not any(
        span.scope.startswith("autogen ") for span in run.spans
    )  # one span a message, without content
