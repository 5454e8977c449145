"""`spanloop doctor` as a user runs it: a sound environment passes, each broken one is named, and its fix clears it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.otlp_receiver import Receiver, otlp_receiver

OURS = ("OTEL_", "TRACELOOP_", "SPANLOOP_", "OPENINFERENCE_", "TRACEPARENT")


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with otlp_receiver() as running:
        yield running


def sound(receiver: Receiver, tmp_path: Path) -> dict[str, str]:
    """Variables of an environment in which everything is well."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return kept | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
        "OTEL_SERVICE_NAME": "agent",
        # Its library takes seconds to import.
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "openai_agents",
        "SPANLOOP_SPOOL": str(tmp_path / "spool"),
    }


def doctor(
    environ: Mapping[str, str], tmp_path: Path, *options: str
) -> tuple[int, dict[str, dict[str, str]], str]:
    """Exit status, checks by name, and standard error."""
    store = ("--store", f"chdb://{tmp_path}/s")
    command = [sys.executable, "-m", "spanloop.main", "doctor", "--json", *store, *options]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=180, env=dict(environ), check=False
    )
    assert ended.stdout, ended.stderr
    report: dict[str, Any] = json.loads(ended.stdout)
    assert report["ok"] == (ended.returncode == 0)
    return ended.returncode, {check["name"]: check for check in report["checks"]}, ended.stderr


def apply(fix: str, environ: dict[str, str]) -> None:
    """Does to the variables what a user's shell does who pastes the fix."""
    words = shlex.split(fix)
    if words[0] == "unset":
        for name in words[1:]:
            environ.pop(name, None)
    elif words[0] == "export":
        environ.update(word.split("=", 1) for word in words[1:])
    else:
        raise AssertionError(f"no variable: {fix}")


def test_many_things_broken_at_once_are_each_named_and_their_fixes_clear_them(
    receiver: Receiver, tmp_path: Path
) -> None:
    broken = {
        "TRACELOOP_TRACE_CONTENT": "false",
        "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "128",
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "langchain",
        "OTEL_PROPAGATORS": "baggage",
        "OTEL_BSP_SCHEDULE_DELAY": "60000",
        "SPANLOOP_MAX_ATTRIBUTE_BYTES": "plenty",
        "OTEL_SERVICE_NAME": "",
    }
    environ = sound(receiver, tmp_path) | broken
    status, checks, _ = doctor(environ, tmp_path)
    found = {name: check for name, check in checks.items() if check["status"] != "ok" and name != "store"}
    assert status == 1
    assert {name: check["status"] for name, check in found.items()} == {
        "content": "FAIL",
        "limits": "FAIL",
        "langchain": "FAIL",
        "propagation": "warn",
        "queue": "warn",
        "settings": "warn",
        "service name": "warn",
    }
    assert "TRACELOOP_TRACE_CONTENT=false" in found["content"]["detail"]
    assert "128 attributes" in found["limits"]["detail"]
    assert "turned off" in found["langchain"]["detail"]
    for check in found.values():
        apply(check["fix"], environ)
    assert set(environ) & set(broken) == {"OTEL_PROPAGATORS", "OTEL_SERVICE_NAME"}
    status, checks, errors = doctor(environ, tmp_path)
    assert (status, errors) == (0, "")
    assert {name for name, check in checks.items() if check["status"] != "ok"} == set()
    assert "the collector has its own" in checks["store"]["detail"]
    assert "a chat completion and a response left 2 span(s)" in checks["openai"]["detail"]
    assert "left 1 span(s)" in checks["langchain"]["detail"]
    assert "openai-agents is active" in checks["instrumentor openai_agents"]["detail"]
    assert f"{tmp_path}/spool: 0 MiB" in checks["spool"]["detail"]
    # Nothing of it stays anywhere.
    assert receiver.spans == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "failing", "detail", "fix"),
    [
        ({"OTEL_TRACES_EXPORTER": "otlp_typo"}, "instrumentation", "otlp_typo", "OTEL_"),
        (
            {"OTEL_BSP_MAX_QUEUE_SIZE": "100"},
            "queue",
            "a batch of 512 is larger than the queue of 100",
            "unset OTEL_BSP_MAX_QUEUE_SIZE",
        ),
        (
            {"OTEL_TRACES_SAMPLER": "always_off", "OTEL_TRACES_EXPORTER": "none"},
            "openai",
            "the sampler drops every span",
            "unset OTEL_TRACES_SAMPLER",
        ),
    ],
    ids=["no such exporter", "batch over queue", "sampled away and no exporter"],
)
def test_an_agent_that_sends_nothing_at_all(
    receiver: Receiver, tmp_path: Path, variables: dict[str, str], failing: str, detail: str, fix: str
) -> None:
    environ = sound(receiver, tmp_path) | variables
    environ["OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"] += ",langchain"  # takes longer than all the rest
    status, checks, _ = doctor(environ, tmp_path)
    assert status == 1
    assert checks[failing]["status"] == "FAIL"
    assert detail in checks[failing]["detail"]
    assert fix in checks[failing]["fix"]
    if variables.get("OTEL_TRACES_EXPORTER") == "none":
        assert "thrown away" in checks["exporter"]["detail"]


TWIN = '''
import openai.resources.chat.completions as completions
from opentelemetry import trace
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor


class TwinInstrumentor(BaseInstrumentor):
    """Another vendor's, for the same client."""

    def instrumentation_dependencies(self):
        return ["openai >= 1"]

    def _instrument(self, **kwargs):
        tracer, original = trace.get_tracer("twin.openai"), completions.Completions.create

        def create(self, *arguments, **named):
            with tracer.start_as_current_span("twin chat") as span:
                span.set_attribute("llm.model_name", named["model"])
                return original(self, *arguments, **named)

        completions.Completions.create = create

    def _uninstrument(self, **kwargs):
        pass
'''

EXTEND = "from pkgutil import extend_path\n__path__ = extend_path(__path__, __name__)\n"


def test_instrumentors_that_fight_or_do_not_load_are_found_in_a_real_run(
    receiver: Receiver, tmp_path: Path
) -> None:
    """OpenTelemetry loads both of the first kind, and skips the second kind with at most a line in the log."""
    path = tmp_path / "path"
    install(path, "twin-openai", "3.1", {"opentelemetry_instrumentor": "openai = twin:TwinInstrumentor"})
    (path / "twin.py").write_text(TWIN)
    install(path, "half-upgraded", "2.0", {"opentelemetry_instrumentor": "agentlib = half:HalfInstrumentor"})
    (path / "half.py").write_text("raise ImportError('half an upgrade')\n")
    # In front of the real one; a regular package is found before it only where the namespace is a package too.
    broken = path / "opentelemetry" / "instrumentation" / "langchain"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("import opentelemetry._gone\n")
    for folder in (broken.parent.parent, broken.parent):
        (folder / "__init__.py").write_text(EXTEND)
    environ = sound(receiver, tmp_path) | {"PYTHONPATH": str(path), "OTEL_TRACES_EXPORTER": "otlp"}
    status, checks, _ = doctor(environ, tmp_path)
    assert status == 1
    assert "spool" not in checks
    assert "twin-openai 3.1 both instrument" in checks["instrumentor conflict"]["detail"]
    assert checks["instrumentor conflict"]["fix"] == "pip uninstall --yes twin-openai"
    assert checks["reported once"]["fix"] == "pip uninstall --yes twin-openai"
    assert "twin.openai" in checks["reported once"]["detail"]
    assert (
        "half-upgraded is installed and not active: ImportError: half an upgrade"
        in (checks["instrumentor agentlib"]["detail"])
    )
    assert (
        "opentelemetry-instrumentation-langchain cannot be imported: ModuleNotFoundError"
        in (checks["langchain"]["detail"])
    )
    assert checks["langchain"]["fix"] == "pip install --upgrade opentelemetry-instrumentation-langchain"


def install(path: Path, name: str, version: str, entry_points: Mapping[str, str], *requires: str) -> None:
    """Metadata of a distribution, as pip leaves it; on PYTHONPATH it counts as installed."""
    folder = path / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}"]
    (folder / "METADATA").write_text(
        "\n".join([*lines, *(f"Requires-Dist: {text}" for text in requires)]) + "\n"
    )
    points = "".join(f"[{group}]\n{text}\n" for group, text in entry_points.items())
    (folder / "entry_points.txt").write_text(points)
