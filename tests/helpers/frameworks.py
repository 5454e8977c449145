"""Run a framework's scenario in its own environment, and hold its spans against the model server's own log."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.helpers.agents import agent_environment, model_calls
from tests.helpers.openai_stub import Stub, openai_stub, tool_call
from tests.helpers.otlp_receiver import ReceivedSpan, otlp_receiver

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".venv-frameworks"


class Scenario(NamedTuple):
    """What one process left: what it printed, what the server logged, what the collector got."""

    printed: list[str]
    stub: Stub
    spans: list[ReceivedSpan]

    @property
    def calls(self) -> list[ReceivedSpan]:
        """The client's own spans of model calls."""
        return [
            span
            for span in model_calls(self.spans)
            if span.scope.startswith("opentelemetry.instrumentation.openai")
        ]

    def tool_steps(self) -> list[ReceivedSpan]:
        """Spans of any dialect that say they ran a tool."""
        return [
            span
            for span in self.spans
            if span.attributes.get("gen_ai.operation.name") == "execute_tool"
            or span.attributes.get("openinference.span.kind") == "TOOL"
            or span.attributes.get("ai.operationId") == "ai.toolCall"
        ]


def weather() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A model that asks for the weather of Paris where it may and has not yet, then says so; no answer is said twice."""
    numbers = itertools.count(1)

    def respond(request: dict[str, Any]) -> dict[str, Any]:
        number = next(numbers)
        if request.get("tools") and request["messages"][-1]["role"] != "tool":
            return tool_call("get_weather", '{"city": "Paris"}', call_id=f"call_{number}")
        return {"role": "assistant", "content": f"Paris is sunny, says answer {number}."}

    return respond


def run_python(
    name: str,
    folder: Path,
    respond: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    spool: Path,
    **variables: str,
) -> Scenario:
    """`agent.py` of `folder` under `opentelemetry-instrument`, with `variables` beside those that every agent has."""
    binaries = ENVIRONMENTS / name / "bin"
    command = [str(binaries / "opentelemetry-instrument"), str(binaries / "python"), str(folder / "agent.py")]
    return _run(command, folder, respond, spool=spool, **variables)


def run_node(
    name: str,
    folder: Path,
    respond: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    preload: Path,
    spool: Path,
    agent: str = "agent.mjs",
    **variables: str,
) -> Scenario:
    """`agent` of `folder` with `preload`; both are put beside the packages, as they lie in a project."""
    project = ENVIRONMENTS / name
    for file in (folder / agent, preload):
        shutil.copy(file, project)
    command = ["node", agent]
    options = f"--import ./{preload.name}"
    return _run(command, project, respond, spool=spool, NODE_OPTIONS=options, **variables)


def _run(
    command: list[str],
    folder: Path,
    respond: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    spool: Path,
    **variables: str,
) -> Scenario:
    with otlp_receiver() as receiver, openai_stub(respond=respond, responses=True) as stub:
        environment = agent_environment(stub, receiver, SPANLOOP_SPOOL=str(spool), **variables)
        ended = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert ended.returncode == 0, ended.stderr
        spans = receiver.wait(lambda spans: len(_told(spans)) >= len(stub.calls))
        return Scenario(ended.stdout.splitlines(), stub, spans)


def _told(spans: list[ReceivedSpan]) -> set[str]:
    keys = ("gen_ai.response.id", "ai.response.id")
    return {str(span.attributes[key]) for span in spans for key in keys if key in span.attributes}


def values(data: Any) -> set[str]:
    """Every text and every object in `data`, also inside texts that are JSON; objects as JSON with sorted keys."""
    found: set[str] = set()
    match data:
        case dict():
            found.add(json.dumps(data, sort_keys=True))
            for value in data.values():
                found |= values(value)
        case list():
            for value in data:
                found |= values(value)
        case str():
            found.add(data)
            if data[:1] in {"{", "[", '"'}:
                with contextlib.suppress(json.JSONDecodeError):
                    found |= values(json.loads(data))
    return found
