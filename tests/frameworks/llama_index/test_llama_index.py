"""LlamaIndex: OpenInference's spans for agent and tools, which OpenTelemetry alone would leave out; the client's for calls."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.agents import Tree, assert_every_call_once
from tests.helpers.frameworks import run_python, values, weather


def test_an_agent_with_a_tool_is_captured(tmp_path: Path) -> None:
    run = run_python("llama_index", Path(__file__).parent, weather(), spool=tmp_path)
    assert run.printed == ["Paris is sunny, says answer 2."]
    assert_every_call_once(run.stub, run.calls)
    tree = Tree(run.spans)
    tree.assert_whole()
    assert [root.name for root in tree.roots()] == ["FunctionAgent.run"]
    assert {call.trace_id for call in run.calls} == {tree.roots()[0].trace_id}
    (step,) = run.tool_steps()
    assert step.attributes["tool.name"] == "get_weather"
    said = values(step.attributes)
    assert '{"city": "Paris"}' in said
    assert "sunny in Paris" in said
