"""Redaction in the agent's process: what lies in the spool, on disk, of spans and log records that held secrets."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import Link, SpanContext, Status, StatusCode, Tracer

from spanloop_exporter.spooling.exporter import SpanloopSpanExporter
from spanloop_exporter.spooling.processor import SpanloopLogProcessor, SpanloopSpanProcessor
from spanloop_exporter.spooling.runs import segments_in
from spanloop_store.otlp.frames import frames

MAIL = "jane.doe" + "@example.org"
TOKEN = "ghp_" + "a1B2" * 9
IDS = {"spanloop.prompt_token_ids": "[1,2,3]", "spanloop.completion_token_ids": "[[4,5]]"}
Make = Callable[..., TracerProvider]


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "spool"
    monkeypatch.setenv("SPANLOOP_SPOOL", str(folder))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")  # nobody: all stays in the spool
    return folder


def tracer(**resource: str) -> Tracer:
    provider = TracerProvider(resource=Resource(resource), shutdown_on_exit=False)
    provider.add_span_processor(SpanloopSpanProcessor())
    return provider.get_tracer("test", "1")


def data_in(folder: Path) -> bytes:
    """Every byte in the folder, whatever the file."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def payloads(folder: Path) -> list[bytes]:
    return [
        bytes(item.payload) for segment in segments_in(folder) for item in frames(segment.path.read_bytes())
    ]


def span_in(folder: Path) -> dict[str, str]:
    (payload,) = payloads(folder)
    span = ExportTraceServiceRequest.FromString(payload).resource_spans[0].scope_spans[0].spans[0]
    return {pair.key: pair.value.string_value for pair in span.attributes}


def test_no_byte_of_the_spool_has_a_secret_of_a_span(spool: Path) -> None:
    link = Link(SpanContext(1, 1, is_remote=True), {"to": MAIL})
    with tracer(owner=MAIL).start_as_current_span(f"for {MAIL}", links=[link]) as span:
        span.set_attribute("list", ["a", MAIL, TOKEN])
        span.set_attribute(
            "gen_ai.input.messages", json.dumps([{"role": "tool", "content": json.dumps({"key": TOKEN})}])
        )
        span.add_event(f"event of {MAIL}", {"text": TOKEN})
        for piece in ("jane.d", "oe@exa", "mple.org"):
            span.add_event("chunk", {"content": piece})
        span.set_status(Status(StatusCode.ERROR, f"refused: {TOKEN}"))
    data = data_in(spool)
    assert data.count(b"~email~") >= 5
    for secret in (MAIL, TOKEN, "oe@exa"):
        assert secret.encode() not in data


def test_no_byte_of_the_spool_has_a_secret_of_a_log_record(spool: Path) -> None:
    provider = LoggerProvider(resource=Resource({"owner": MAIL}), shutdown_on_exit=False)
    provider.add_log_record_processor(SpanloopLogProcessor())
    logger = provider.get_logger("test")
    logger.emit(
        body={"said": [f"my key is {TOKEN}"]},
        attributes={"user": MAIL},
        event_name="gen_ai.evaluation.result",
    )
    (payload,) = payloads(spool)
    record = ExportLogsServiceRequest.FromString(payload).resource_logs[0].scope_logs[0].log_records[0]
    assert record.event_name == "gen_ai.evaluation.result"
    assert MAIL.encode() not in payload
    assert TOKEN.encode() not in payload
    assert payload.count(b"~email~") == 2


CALLS = {
    "the prompt": ({"gen_ai.input.messages": json.dumps([{"content": f"I am {MAIL}"}])}, True),
    "the answer": ({"gen_ai.output.messages": json.dumps([{"content": TOKEN}])}, True),
    "only the server's address": ({"server.address": "10.1.2.3", "gen_ai.input.messages": "[]"}, False),
    "nothing": ({"gen_ai.input.messages": json.dumps([{"content": "hello"}])}, False),
}


@pytest.mark.parametrize(("attributes", "changed"), CALLS.values(), ids=CALLS)
def test_token_ids_of_a_text_that_was_changed_are_left_off(
    spool: Path, attributes: dict[str, str], changed: bool
) -> None:
    """They say what the text said."""
    with tracer().start_as_current_span("chat") as span:
        span.set_attributes({**IDS, **attributes, "after": "them"})
    found = span_in(spool)
    assert found.get("spanloop.redacted", "") == ("true" if changed else "")
    assert (IDS.keys() <= found.keys()) is not changed
    assert found["after"] == "them"


def test_a_secret_that_the_size_limit_would_halve_is_found_first(
    spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPANLOOP_MAX_ATTRIBUTE_BYTES", "100")
    with tracer().start_as_current_span("chat") as span:
        span.set_attributes({**IDS, "gen_ai.input.messages": "x " * 45 + TOKEN})
    found = span_in(spool)
    assert TOKEN[:8] not in found["gen_ai.input.messages"]
    assert len(found["gen_ai.input.messages"]) == 100
    assert found["spanloop.redacted"] == "true"
    assert not IDS.keys() & found.keys()


def test_nothing_passes_where_redaction_cannot_run(
    spool: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SPANLOOP_REDACTION", str(spool / "missing.toml"))
    with caplog.at_level(logging.WARNING):
        exporter = SpanloopSpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        with provider.get_tracer("test").start_as_current_span("chat") as span:
            span.set_attribute("text", "anything")
        for _ in range(3):
            assert exporter.export([span]) is SpanExportResult.FAILURE  # type: ignore[list-item]
    assert not list(segments_in(spool)) if spool.exists() else True
    assert len(exporter.pipeline.memory) == 0
    (said,) = [record.getMessage() for record in caplog.records if "redaction" in record.getMessage()]
    assert "no span leaves this process" in said
    assert "missing.toml" in said


def test_a_span_that_cannot_be_redacted_stays_and_the_next_one_goes(
    spool: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever fails in it: the agent goes on, and hears of it once."""
    our = tracer()
    from spanloop_exporter.redaction import otlp

    whole = otlp.redact_request
    with monkeypatch.context() as broken:
        broken.setattr(otlp, "redact_request", lambda *_: 1 / 0)
        for _ in range(2):
            with our.start_as_current_span("lost"):
                pass
    assert otlp.redact_request is whole
    with our.start_as_current_span("kept"):
        pass
    (payload,) = payloads(spool)
    assert b"kept" in payload
    assert sum("cannot be redacted" in record.getMessage() for record in caplog.records) == 1


def test_off_means_as_it_is(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANLOOP_REDACTION", "off")
    with tracer().start_as_current_span("chat") as span:
        span.set_attribute("text", MAIL)
    assert span_in(spool)["text"] == MAIL
    assert not (spool.parent / "redaction.salt").exists()
