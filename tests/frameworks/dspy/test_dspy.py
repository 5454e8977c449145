"""DSPy: OpenInference's spans for modules and tools, the client's for the calls that LiteLLM makes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helpers.agents import Tree, assert_every_call_once
from tests.helpers.frameworks import run_python, values

ANSWERS = (
    {"next_thought": "I look.", "next_tool_name": "get_weather", "next_tool_args": '{"city": "Paris"}'},
    {"next_thought": "I know.", "next_tool_name": "finish", "next_tool_args": "{}"},
    {"reasoning": "The tool said so.", "answer": "Paris is sunny."},
)


def scripted() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """One answer after another, in the fields that DSPy's chat adapter reads."""
    answers = itertools.chain(ANSWERS)

    def respond(_request: dict[str, Any]) -> dict[str, Any]:
        fields = [*next(answers).items(), ("completed", "")]
        return {
            "role": "assistant",
            "content": "\n\n".join(f"[[ ## {name} ## ]]\n{text}" for name, text in fields),
        }

    return respond


def test_a_react_program_is_captured(tmp_path: Path) -> None:
    run = run_python(
        "dspy", Path(__file__).parent, scripted(), spool=tmp_path, LITELLM_LOCAL_MODEL_COST_MAP="True"
    )
    assert run.printed == ["Paris is sunny."]
    assert len(run.stub.calls) == 3
    assert_every_call_once(run.stub, run.calls)
    tree = Tree(run.spans)
    tree.assert_whole()
    assert [root.name for root in tree.roots()] == ["ReAct.forward"]
    look, finish = sorted(run.tool_steps(), key=lambda step: step.start)
    assert (look.name, finish.name) == ("get_weather.__call__", "finish.__call__")
    said = values(look.attributes)
    assert "Paris" in said
    assert "sunny in Paris" in said
