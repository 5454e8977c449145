"""Items that the store's retention would delete at once: refused in words, counted, and the rest is kept."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from tests.collector.capture_process import running, trace_request
from tests.collector.otlp_calls import export
from tests.collector.receivers import receivers
from tests.collector.test_capture import post
from tests.collector.test_health import samples

from spanloop.main import cli
from spanloop_collector.expiring import Expiring
from spanloop_store.expiry import Expiry
from spanloop_store.otlp.signals import Signal

DAY_NS = 86_400 * 10**9
NOW_NS = time.time_ns()
GONE = Expiry(((946_684_800 * 10**9, NOW_NS - 30 * DAY_NS),), 30, NOW_NS)


def aged(**days: float | None) -> ExportTraceServiceRequest:
    """A span a name, so many days old; None: its clock was never set."""
    request = trace_request(*days)
    for span, age in zip(request.resource_spans[0].scope_spans[0].spans, days.values(), strict=True):
        span.start_time_unix_nano = 0 if age is None else NOW_NS - int(age * DAY_NS)
        span.end_time_unix_nano = span.start_time_unix_nano + 5
    return request


def names(payload: bytes) -> list[str]:
    request = ExportTraceServiceRequest.FromString(payload)
    return [span.name for span in request.resource_spans[0].scope_spans[0].spans]


def test_they_are_told_over_either_protocol_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expiring = Expiring(lambda: {Signal.TRACES: GONE, Signal.LOGS: GONE})
    expiring.ask()
    with receivers(tmp_path, min_free_bytes=0, expiring=expiring) as both:
        body = aged(old=40, new=1, never=None).SerializeToString()
        answers = [both.post(body=body).body, both.post(body=body).body, export(both.grpc, body)]
        assert len(set(answers)) == 1, "the same request, the same answer"
        partial = ExportTraceServiceResponse.FromString(answers[0]).partial_success
        assert partial.rejected_spans == 1
        assert "the store keeps 30 days; `spanloop store retention" in partial.error_message
        logs = ExportLogsServiceRequest()
        logs.resource_logs.add().scope_logs.add().log_records.add(time_unix_nano=NOW_NS - 40 * DAY_NS)
        answer = ExportLogsServiceResponse.FromString(both.post("/v1/logs", logs.SerializeToString()).body)
        assert answer.partial_success.rejected_log_records == 1
        assert [names(payload) for payload in both.logged()] == [["new", "never"]]
        assert both.logged(Signal.LOGS) == []
        found = samples(both.post("/metrics", method="GET").body.decode())
        assert json.loads(both.post("/healthz", method="GET").body)["expired"] == 4
    assert found["spanloop_items_expired_total", frozenset({("signal", "traces")})] == 3
    assert found["spanloop_items_expired_total", frozenset({("signal", "logs")})] == 1
    said = [record for record in caplog.records if record.name == "spanloop_collector.expiring"]
    assert len(said) == 1


def test_a_store_that_does_not_answer_leaves_what_was_known(caplog: pytest.LogCaptureFixture) -> None:
    answers: list[dict[Signal, Expiry] | Exception] = [
        {Signal.TRACES: GONE}, OSError("away"), OSError("away"), {}
    ]  # fmt: skip

    def ask() -> dict[Signal, Expiry]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    expiring = Expiring(ask)
    found = []
    for _ in range(4):
        expiring.ask()
        found.append(expiring.of(Signal.TRACES))
    assert found == [GONE, GONE, GONE, None]
    assert [record.getMessage() for record in caplog.records] == [
        "how long the store keeps rows is not known now: away"
    ]


def test_what_the_process_acknowledges_is_still_there_after_the_engine_cleaned_up(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with running(store, SPANLOOP_RETENTION_DAYS="30") as capture:
        request = aged(ancient=400, old=31, edge=28, new=0, never=None)
        for _ in range(2):
            status, _, answer = post(f"{capture.otlp_http}/v1/traces", request.SerializeToString())
            partial = ExportTraceServiceResponse.FromString(answer).partial_success
            assert (status, partial.rejected_spans) == (200, 2)
        capture.flush()
        capture.query("OPTIMIZE TABLE otel_traces FINAL")
        assert capture.query("SELECT SpanName FROM otel_traces ORDER BY 1") == [
            ("edge",),
            ("never",),
            ("new",),
        ]
        with urllib.request.urlopen(f"{capture.otlp_http}/healthz") as answer:
            assert json.load(answer)["expired"] == 4
        shown = CliRunner().invoke(cli, ["status", "--store", capture.url]).output
        assert "4 items were refused since its start, older than the store keeps" in shown
