"""The Vercel AI SDK on Node: a preload switches its telemetry on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.helpers.agents import Tree
from tests.helpers.frameworks import ROOT, run_node, weather
from tests.helpers.otlp_receiver import ReceivedSpan

PRELOAD = ROOT / "exporter" / "node" / "vercel-ai.mjs"


def said(span: ReceivedSpan) -> list[tuple[Any, ...]]:
    """The messages of a call in the SDK's form, and its answer, as (role, text or tool, arguments or result)."""
    told: list[tuple[Any, ...]] = []
    for message in span.json("ai.prompt.messages"):
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts:
            match part["type"]:
                case "text":
                    told.append((message["role"], part["text"]))
                case "tool-call":
                    told.append((message["role"], part["toolName"], part["input"]))
                case "tool-result":
                    told.append((message["role"], part["output"]["value"]))
    if text := span.attributes.get("ai.response.text"):
        told.append(("assistant", text))
    for call in json.loads(span.attributes.get("ai.response.toolCalls", "[]")):
        arguments = call["input"] if isinstance(call["input"], dict) else json.loads(call["input"])
        told.append(("assistant", call["toolName"], arguments))
    return told


def heard(message: dict[str, Any]) -> tuple[Any, ...]:
    """A message of the chat protocol in the same form."""
    if calls := message.get("tool_calls"):
        function = calls[0]["function"]
        return (message["role"], function["name"], json.loads(function["arguments"]))
    return (message["role"], message["content"])


def test_text_streams_and_agents_are_captured(tmp_path: Path) -> None:
    run = run_node("vercel_ai", Path(__file__).parent, weather(), preload=PRELOAD, spool=tmp_path)
    assert run.printed == [f"Paris is sunny, says answer {number}." for number in (2, 4, 6)]
    assert [call.streamed for call in run.stub.calls] == [False, False, True, True, False, False]
    calls = [
        span
        for span in run.spans
        if "ai.response.id" in span.attributes and "ai.prompt.messages" in span.attributes
    ]
    by_id = {span.attributes["ai.response.id"]: span for span in calls}
    assert len(by_id) == len(calls) == len(run.stub.calls)
    for call in run.stub.calls:
        assert said(by_id[call.response_id]) == [heard(m) for m in [*call.request["messages"], *call.answers]]
    tree = Tree(run.spans)
    tree.assert_whole()
    assert sorted(root.name for root in tree.roots()) == [
        "ai.generateText",
        "ai.generateText",
        "ai.streamText",
    ]
    steps = run.tool_steps()
    assert len(steps) == 3
    for step in steps:
        assert step.attributes["ai.toolCall.name"] == "get_weather"
        assert step.json("ai.toolCall.args") == {"city": "Paris"}
        assert step.json("ai.toolCall.result") == "sunny in Paris"
    assert {span.service for span in run.spans} == {"calculator"}


def test_a_commonjs_program_is_captured_too(tmp_path: Path) -> None:
    run = run_node(
        "vercel_ai", Path(__file__).parent, weather(), preload=PRELOAD, spool=tmp_path, agent="agent.cjs"
    )
    (call,) = run.stub.calls
    (span,) = [span for span in run.spans if "ai.prompt.messages" in span.attributes]
    assert said(span) == [heard(m) for m in [*call.request["messages"], *call.answers]]


def test_an_agent_that_handles_sigterm_gets_it_once(tmp_path: Path) -> None:
    run = run_node(
        "vercel_ai", Path(__file__).parent, weather(), preload=PRELOAD, spool=tmp_path, agent="terminated.mjs"
    )
    assert run.printed == ["Paris is sunny, says answer 1.", "asked to end"]
    assert [span.name for span in run.spans if "ai.prompt.messages" in span.attributes] == [
        "ai.generateText.doGenerate"
    ]
