"""Pydantic AI: its own spans are switched on without a line in the program."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.agents import Tree, assert_every_call_once, model_calls, without_ids
from tests.helpers.frameworks import run_python, weather


def test_runs_and_streams_are_captured(tmp_path: Path) -> None:
    run = run_python("pydantic_ai", Path(__file__).parent, weather(), spool=tmp_path)
    assert run.printed == ["Paris is sunny, says answer 2.", "Paris is sunny, says answer 4."]
    assert [call.streamed for call in run.stub.calls] == [False, False, True, True]
    assert_every_call_once(run.stub, run.calls, without_ids)
    native = [span for span in model_calls(run.spans) if span.scope == "pydantic-ai"]
    assert [
        span.attributes["gen_ai.response.id"] for span in sorted(native, key=lambda span: span.start)
    ] == [call.response_id for call in run.stub.calls]
    tree = Tree(run.spans)
    tree.assert_whole()
    assert [root.name for root in tree.roots()] == ["invoke_agent forecaster"] * 2
    assert {tree.agent(call) for call in run.calls} == {"forecaster"}
    steps = run.tool_steps()
    assert [step.attributes["gen_ai.tool.name"] for step in steps] == ["get_weather"] * 2
    for step in steps:
        assert step.json("gen_ai.tool.call.arguments") == {"city": "Paris"}
        assert step.attributes["gen_ai.tool.call.result"] == "sunny in Paris"


def test_its_switch_keeps_content_out_where_the_user_says_so(tmp_path: Path) -> None:
    run = run_python(
        "pydantic_ai", Path(__file__).parent, weather(), spool=tmp_path, TRACELOOP_TRACE_CONTENT="false"
    )
    assert len(run.tool_steps()) == 2
    assert not any("Paris" in str(value) for span in run.spans for value in span.attributes.values())
