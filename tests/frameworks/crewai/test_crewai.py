"""CrewAI: OpenInference's spans for crew, agents and tools, the client's for model calls."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.helpers.agents import Tree, assert_every_call_once
from tests.helpers.frameworks import run_python, values, weather


def test_a_crew_of_two_is_captured(tmp_path: Path) -> None:
    run = run_python(
        "crewai",
        Path(__file__).parent,
        weather(),
        spool=tmp_path / "spool",
        CREWAI_DISABLE_TELEMETRY="true",
        CREWAI_STORAGE_DIR=str(tmp_path / "storage"),
    )
    assert run.printed[-1] == "Paris is sunny, says answer 3."
    assert_every_call_once(run.stub, run.calls)
    tree = Tree(run.spans)
    tree.assert_whole()
    assert len(tree.roots()) == 1
    agents = {
        span.span_id: span.name.partition(".")[0]
        for span in run.spans
        if span.attributes.get("openinference.span.kind") == "AGENT"
    }
    assert Counter(agents[call.parent_id] for call in run.calls) == {"Researcher": 2, "Writer": 1}
    (step,) = run.tool_steps()
    assert agents[step.parent_id] == "Researcher"
    assert step.attributes["tool.name"] == "get_weather"
    said = values(step.attributes)
    assert '{"city": "Paris"}' in said
    assert "sunny in Paris" in said
