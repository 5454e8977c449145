"""Switches that wait for an import: nothing is imported for them, and none can fail an agent's import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPORT = "import sys; print('agents' in sys.modules)"


def python(
    program: str, folder: Path, *, launched: bool = False, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run with `folder` first on the path."""
    launcher = [str(Path(sys.executable).parent / "opentelemetry-instrument")] if launched else []
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environment |= {"PYTHONPATH": str(folder), "OTEL_TRACES_EXPORTER": "none", **variables}
    command = [*launcher, sys.executable, "-c", program]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=True, cwd=folder
    )


def library(folder: Path, name: str, source: str) -> None:
    (folder / f"{name}.py").write_text(source, encoding="utf-8")


def test_a_slow_library_is_not_imported_for_its_instrumentor(tmp_path: Path) -> None:
    quick = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "langchain,openai"}
    assert python(REPORT, tmp_path, launched=True, **quick).stdout == "False\n"
    used = "import agents.tracing; print([type(p).__name__ for p in agents.tracing.get_trace_provider()._multi_processor._processors])"
    ended = python(used, tmp_path, launched=True, **quick)
    assert "OpenTelemetryTracingProcessor" in ended.stdout


# Stands in where only the moment and the argument matter; the real library runs in tests/frameworks.
PYDANTIC_AI = """
class InstrumentationSettings:
    def __init__(self, include_content):
        self.include_content = include_content
class Agent:
    @staticmethod
    def instrument_all(settings):
        print("switched on, content", settings.include_content)
"""
SWITCH_ON = "from spanloop_exporter import frameworks; frameworks.switch_on(); print('first'); import pydantic_ai; import json"


@pytest.mark.parametrize(
    ("variables", "printed"),
    [
        ({}, "first\nswitched on, content True\n"),
        ({"TRACELOOP_TRACE_CONTENT": "false"}, "first\nswitched on, content False\n"),
        ({"TRACELOOP_TRACE_CONTENT": "0"}, "first\nswitched on, content False\n"),
        ({"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "redis, pydantic_ai"}, "first\n"),
        ({"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*"}, "first\n"),
    ],
    ids=["default", "no content", "no content by number", "disabled", "all disabled"],
)
def test_a_switch_is_set_at_the_import(variables: dict[str, str], printed: str, tmp_path: Path) -> None:
    library(tmp_path, "pydantic_ai", PYDANTIC_AI)
    ended = python(SWITCH_ON, tmp_path, **variables)
    assert (ended.stdout, ended.stderr) == (printed, "")


def test_a_switch_that_fails_is_said_once_and_harms_no_import(tmp_path: Path) -> None:
    library(tmp_path, "pydantic_ai", "VERSION = 'of another kind'\n")
    ended = python(f"{SWITCH_ON}; print(pydantic_ai.VERSION)", tmp_path)
    assert ended.stdout == "first\nof another kind\n"
    assert ended.stderr.count("pydantic_ai: no spans of its own from here on: AttributeError") == 1
