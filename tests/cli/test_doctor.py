"""`spanloop doctor` as a user runs it: a sound environment passes, and each broken one is named with its fix."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.otlp_receiver import Receiver, otlp_receiver

from spanloop.commands.doctor import versions_match


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with otlp_receiver() as running:
        yield running


def doctor(receiver: Receiver, tmp_path: Path, *options: str, **variables: str) -> tuple[int, dict[str, Any]]:
    """Exit status and checks by name."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "TRACELOOP_", "SPANLOOP_"))}
    environment = (
        kept | {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_SERVICE_NAME": "agent"} | variables
    )
    command = [
        sys.executable,
        "-m",
        "spanloop.main",
        "doctor",
        "--json",
        "--store",
        f"chdb://{tmp_path}/s",
        *options,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment, check=False)
    assert ended.stdout, ended.stderr
    report = json.loads(ended.stdout)
    assert report["ok"] == (ended.returncode == 0)
    return ended.returncode, {check["name"]: check for check in report["checks"]}


def test_a_sound_environment_passes_and_leaves_nothing_behind(receiver: Receiver, tmp_path: Path) -> None:
    status, checks = doctor(receiver, tmp_path)
    assert status == 0
    assert {name for name, check in checks.items() if check["status"] != "ok"} == {"store"}
    assert "nobody serves it" in checks["store"]["detail"]
    assert "a call left" in checks["openai"]["detail"]
    assert "a call left" in checks["langchain"]["detail"]
    assert receiver.spans == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "check", "detail", "fix"),
    [
        ({"TRACELOOP_TRACE_CONTENT": "false"}, "content", "no messages", "TRACELOOP_TRACE_CONTENT"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, "exporter", "does not answer", "spanloop up"),
        ({"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "128"}, "limits", "128 attributes", "unset"),
        ({"OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "4000"}, "limits", "4000 characters", "unset"),
        ({"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "openai"}, "openai", "turned off", "unset"),
        ({"OTEL_TRACES_EXPORTER": "none"}, "exporter", "thrown away", "OTEL_TRACES_EXPORTER"),
        ({"OTEL_TRACES_EXPORTER": "otlp_typo"}, "instrumentation", "otlp_typo", "OTEL_"),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, "openai", "sampler", "OTEL_TRACES_SAMPLER"),
        ({"OTEL_SDK_DISABLED": "true"}, "openai", "not instrumented", "OTEL_SDK_DISABLED"),
    ],
)
def test_each_broken_environment_is_named_with_its_fix(
    receiver: Receiver, tmp_path: Path, variables: dict[str, str], check: str, detail: str, fix: str
) -> None:
    status, checks = doctor(receiver, tmp_path, **variables)
    assert status == 1
    assert checks[check]["status"] == "FAIL"
    assert detail in checks[check]["detail"]
    assert fix in checks[check]["fix"]


def test_an_instrumentor_that_cannot_be_imported_is_found(receiver: Receiver, tmp_path: Path) -> None:
    """OpenTelemetry skips it with at most a line in the log, and the agent runs on without spans."""
    broken = tmp_path / "path" / "openai"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('half an upgrade')\n")
    status, checks = doctor(receiver, tmp_path, PYTHONPATH=str(broken.parent))
    assert status == 1
    assert "half an upgrade" in checks["openai"]["detail"]
    assert checks["langchain"]["status"] == "ok"


def test_a_store_that_is_none_is_reported(receiver: Receiver, tmp_path: Path) -> None:
    status, checks = doctor(receiver, tmp_path, "--store", "mysql://x/y")
    assert status == 1
    assert checks["store"]["status"] == "FAIL"
    assert "mysql" in checks["store"]["detail"]


@pytest.mark.parametrize(
    ("sdk", "instrumentation", "distro", "match"),
    [
        ("1.45.1", "0.66b1", "0.66b1", True),
        ("1.27.0", "0.48b0", "0.48b0", True),
        ("1.45.1", "0.66b1", "0.48b0", False),
        ("1.45.1", "0.65b0", "0.65b0", False),
    ],
)
def test_versions_belong_together(sdk: str, instrumentation: str, distro: str, match: bool) -> None:
    assert versions_match(sdk, instrumentation, distro) is match
