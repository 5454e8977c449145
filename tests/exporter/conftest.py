"""A target, a spool, and providers between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from tests.helpers.otlp_target import Target, otlp_target
from tests.helpers.spooling import RESOURCE, Provide

from spanloop_exporter.spooling.processor import SpanloopSpanProcessor


@pytest.fixture
def target() -> Iterator[Target]:
    with otlp_target() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPANLOOP_SPOOL", str(tmp_path / "spool"))
    return tmp_path / "spool"


@pytest.fixture
def provide(folder: Path, target: Target, monkeypatch: pytest.MonkeyPatch) -> Iterator[Provide]:
    """A provider whose spans go to the target; what is sent is sent by flushes alone."""
    made = []

    def provide(**variables: str) -> TracerProvider:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", target.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
        provider.add_span_processor(SpanloopSpanProcessor())
        made.append(provider)
        return provider

    yield provide
    for provider in made:
        provider.shutdown()
