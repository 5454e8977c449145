"""Defaults stand only where the user said nothing, and the hook that every agent imports stays light."""

from __future__ import annotations

import subprocess
import sys

import pytest

from spanloop_exporter.defaults import apply_instrumentor_defaults, apply_sdk_defaults


def test_defaults_fill_what_is_unset_or_empty() -> None:
    environ = {"OTEL_LOGS_EXPORTER": ""}
    apply_sdk_defaults(environ)
    apply_instrumentor_defaults(environ)
    assert environ["OTEL_EXPORTER_OTLP_PROTOCOL"] == "http/protobuf"
    assert environ["OTEL_LOGS_EXPORTER"] == environ["OTEL_TRACES_EXPORTER"] == "spanloop"
    assert environ["OTEL_METRICS_EXPORTER"] == "none"
    assert environ["TRACELOOP_METRICS_ENABLED"] == "false"
    assert int(environ["OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"]) >= 1024


@pytest.mark.parametrize(
    ("said", "untouched"),
    [
        ({"OTEL_ATTRIBUTE_COUNT_LIMIT": "64"}, "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"),
        # A batch size of ours above a queue of theirs stops the SDK.
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "10"}, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"),
        ({"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "20000"}, "OTEL_BSP_MAX_QUEUE_SIZE"),
        ({"OTEL_METRICS_EXPORTER": "otlp"}, "TRACELOOP_METRICS_ENABLED"),
    ],
)
def test_what_the_user_says_is_not_worked_around(said: dict[str, str], untouched: str) -> None:
    environ = dict(said)
    apply_sdk_defaults(environ)
    apply_instrumentor_defaults(environ)
    assert untouched not in environ
    assert said.items() <= environ.items()


def test_the_hook_imports_only_the_standard_library() -> None:
    program = """
import sys, logging, os, signal, threading
before = set(sys.modules)
import spanloop_exporter.hooks
print(sorted(name for name in set(sys.modules) - before if not name.startswith("spanloop_exporter")))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    new = eval(ended.stdout)
    assert all(name.partition(".")[0] in sys.stdlib_module_names for name in new), new


def test_a_vendors_distro_is_left_in_charge(monkeypatch: pytest.MonkeyPatch) -> None:
    from spanloop_exporter import launch

    class EntryPoint:
        def __init__(self, name: str) -> None:
            self.name = name

    monkeypatch.delenv("OTEL_PYTHON_DISTRO", raising=False)
    monkeypatch.setattr(launch, "entry_points", lambda group: [EntryPoint("spanloop"), EntryPoint("vendor")])
    launch.choose_distro()
    assert "OTEL_PYTHON_DISTRO" not in launch.os.environ
    monkeypatch.setattr(launch, "entry_points", lambda group: [EntryPoint("spanloop"), EntryPoint("distro")])
    monkeypatch.setenv("OTEL_PYTHON_DISTRO", "distro")
    launch.choose_distro()
    assert launch.os.environ["OTEL_PYTHON_DISTRO"] == "distro"
