"""The trial run: `spanloop_exporter.probe`, started as an agent is started, and what it found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# A call of two instrumented libraries, imports included, on a busy machine.
TRIAL_TIMEOUT_S = 120
_LAUNCHER = "from opentelemetry.instrumentation.auto_instrumentation import run; run()"


@dataclass(frozen=True)
class Instrumentor:
    """One entry point of the group `opentelemetry_instrumentor`.

    Args:
        name: the entry point's name; two may share one.
        value: module and class.
        distribution: the package that brings it.
        active: it was loaded and has instrumented its library.
        error: why it cannot be imported; empty: it can.
        missing: its library is not installed, so there is nothing to instrument.
        conflict: the installed library is of a version that it does not instrument; empty: it is not.
    """

    name: str
    value: str
    distribution: str
    active: bool
    error: str
    missing: bool
    conflict: str


@dataclass(frozen=True)
class SpanFacts:
    """A span that a call left; `prompt_in` and `whole_in` are the keys that hold the prompt, cut or whole."""

    name: str
    scope: str
    keys: list[str]
    prompt_in: list[str]
    whole_in: list[str]
    model_call: bool


@dataclass(frozen=True)
class Call:
    """A model call of the trial: what it raised, if it did, and the spans that it left."""

    error: str
    spans: list[SpanFacts]


@dataclass(frozen=True)
class Library:
    """An installed library whose calls were tried, by kind."""

    version: str
    calls: dict[str, Call]


@dataclass(frozen=True)
class Processor:
    """A span processor of the agent's SDK and the exporter behind it; `endpoint` is empty where none can be told."""

    processor: str
    exporter: str
    endpoint: str
    insecure: bool | None


@dataclass(frozen=True)
class Trial:
    """What an agent that is started here has. Numbers are the SDK's limits, None where there is none."""

    sdk: bool
    settings: Mapping[str, str] = field(default_factory=dict)
    instrumentors: list[Instrumentor] = field(default_factory=list)
    libraries: dict[str, Library] = field(default_factory=dict)
    processors: list[Processor] = field(default_factory=list)
    propagates: list[str] = field(default_factory=list)
    sampler: str = ""
    service: str = ""
    max_attributes: int | None = None
    max_length: int | None = None
    max_events: int | None = None

    @classmethod
    def read(cls, report: Mapping[str, Any]) -> Trial:
        """Makes it from the probe's JSON."""
        libraries = {
            name: Library(
                library["version"],
                {
                    kind: Call(call["error"], [SpanFacts(**span) for span in call["spans"]])
                    for kind, call in library["calls"].items()
                },
            )
            for name, library in report["libraries"].items()
        }
        return cls(
            sdk=report["sdk"],
            settings=report["settings"],
            instrumentors=[Instrumentor(**found) for found in report["instrumentors"]],
            libraries=libraries,
            processors=[Processor(**found) for found in report.get("processors", [])],
            propagates=report["propagates"],
            sampler=report.get("sampler") or "",
            service=str(report.get("service") or ""),
            max_attributes=report.get("max_attributes"),
            max_length=report.get("max_length"),
            max_events=report.get("max_events"),
        )


def run_trial() -> tuple[Trial | None, str]:
    """Starts the probe with the variables of this process.

    Returns:
        What it found (None: it did not get that far), and the last line that it complained with.
    """
    with tempfile.TemporaryDirectory(prefix="spanloop-doctor-") as folder:
        out = Path(folder) / "report.json"
        command_line = [sys.executable, "-c", _LAUNCHER, sys.executable, "-m", "spanloop_exporter.probe"]
        try:
            ended = subprocess.run(
                [*command_line, str(out)],
                capture_output=True,
                text=True,
                timeout=TRIAL_TIMEOUT_S,
                check=False,
                cwd=folder,
                # The agent's own spool may hold what a dead process left, and this is not the one to ship it.
                env={**os.environ, "SPANLOOP_SPOOL": folder},
            )
        except subprocess.TimeoutExpired:
            return None, f"the trial run took over {TRIAL_TIMEOUT_S} s"
        complaints = [line for line in ended.stderr.splitlines() if line.strip()]
        trouble = complaints[-1].strip() if complaints else ""
        if not out.exists():
            return None, trouble or f"the trial run ended with status {ended.returncode}"
        return Trial.read(json.loads(out.read_text())), trouble
