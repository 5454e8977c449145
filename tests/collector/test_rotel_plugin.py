"""An unmodified agent → rotel with our processor → capture → `otel_traces` → `build`; and what the processor does to odd spans."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.collector import capture_process, rotel_process
from tests.collector.capture_process import Capture, trace_request
from tests.collector.rotel_process import PROCESSOR, Rotel
from tests.helpers.openai_stub import openai_stub
from tests.helpers.waiting import until

pytestmark = pytest.mark.skipif(bool(rotel_process.why_not()), reason=rotel_process.why_not() or "it runs")

AGENT = Path(__file__).parents[1] / "exporter" / "agents" / "openai_tools.py"
MAX_BYTES = 2000


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Capture]:
    with capture_process.running(tmp_path_factory.mktemp("store") / "s") as running:
        yield running


def to_capture(capture: Capture) -> tuple[str, ...]:
    return (
        "--exporter",
        "otlp",
        "--otlp-exporter-protocol",
        "http",
        "--otlp-exporter-endpoint",
        capture.otlp_http,
    )


@pytest.fixture(scope="module")
def rotel(capture: Capture, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rotel]:
    log = tmp_path_factory.mktemp("rotel") / "log"
    variables = {"SPANLOOP_RUN_ID": "run-7", "SPANLOOP_MAX_ATTRIBUTE_BYTES": str(MAX_BYTES)}
    with rotel_process.running(log, *to_capture(capture), **variables) as running:
        yield running


def send(rotel: Rotel, signal: str, message: Any) -> None:
    request = urllib.request.Request(
        f"{rotel.url}/v1/{signal}", message.SerializeToString(), {"content-type": "application/x-protobuf"}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert answer.status == 200
    except OSError as error:
        raise AssertionError(f"rotel does not answer: {error}\n{rotel.said}") from error


def rows(capture: Capture, rotel: Rotel, sql: str, enough: Callable[[list[Any]], bool] = bool) -> list[Any]:
    """The query's rows, once they are enough: rotel acknowledges before it sends."""
    deadline = time.monotonic() + 30
    while True:
        capture.flush()
        found = capture.query(sql)
        if enough(found):
            return found
        assert rotel.process.poll() is None, rotel.said
        assert time.monotonic() < deadline, f"{found}\n{rotel.said}"


def run_agent(url: str, service: str) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "SPANLOOP_", "OPENAI_"))}
    with openai_stub(tool=True, owned_by="openai") as stub:
        environ = kept | {
            "OTEL_SERVICE_NAME": service,
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_EXPORTER_OTLP_ENDPOINT": url,
            "OPENAI_BASE_URL": stub.url,
            "OPENAI_API_KEY": "x",
        }
        launcher = Path(sys.executable).with_name("opentelemetry-instrument")
        command = [str(launcher), sys.executable, str(AGENT)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environ, check=False)
    assert ended.returncode == 0, ended.stderr


def build(capture: Capture, out: Path, service: str) -> pl.DataFrame:
    command = [sys.executable, "-m", "spanloop.main", "build", "--out", str(out), "--store", capture.url]
    ended = subprocess.run(
        [*command, "--service", service], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return pl.read_parquet(out / "transitions.parquet").sort("step")


def test_from_an_agent_to_transitions(rotel: Rotel, capture: Capture, tmp_path: Path) -> None:
    run_agent(rotel.url, "behind-rotel")
    calls = "SELECT SpanAttributes FROM otel_traces WHERE ServiceName = 'behind-rotel' AND SpanName = 'openai.chat'"
    spans = [row[0] for row in rows(capture, rotel, calls, lambda found: len(found) == 2)]
    assert [span["spanloop.run.id"] for span in spans] == ["run-7", "run-7"]
    assert json.loads(spans[0]["gen_ai.response.finish_reasons"])
    table = build(capture, tmp_path / "dataset", "behind-rotel")
    assert table["status"].to_list() == ["ok", "ok"]
    assert table["episode_id"].n_unique() == 1
    first, last = (json.loads(text) for text in table["action"])
    assert first["tool_calls"][0]["function"]["name"] == "add"
    assert last["content"]
    assert table["observation"].to_list()[0] is not None


def request_of(*names: str, trace: int, **attributes: str) -> ExportTraceServiceRequest:
    """Spans of just now."""
    request = trace_request(*names, trace=trace, **attributes)
    for span in request.resource_spans[0].scope_spans[0].spans:
        span.start_time_unix_nano = time.time_ns()
        span.end_time_unix_nano = span.start_time_unix_nano + 5
    return request


def odd_request() -> ExportTraceServiceRequest:
    request = request_of("odd", trace=77)
    span = request.resource_spans[0].scope_spans[0].spans[0]
    span.dropped_attributes_count = 3
    pairs = span.attributes
    pairs.add(key="text").value.string_value = "é" * MAX_BYTES
    pairs.add(key="short").value.string_value = "as it is"
    pairs.add(key="number").value.int_value = -5
    pairs.add(key="flag").value.bool_value = True
    pairs.add(key="ratio").value.double_value = 0.5
    pairs.add(key="bytes").value.bytes_value = b"\x00\xff"
    for pair in (pairs.add(key="list"), request.resource_spans[0].resource.attributes.add(key="list")):
        for text in "abc":
            pair.value.array_value.values.add().array_value.values.add().string_value = text
    long_list = pairs.add(key="long list").value.array_value
    for text in ("a" * 1500, "b" * 1500, "c"):
        long_list.values.add().string_value = text
    inner = pairs.add(key="map").value.kvlist_value
    inner.values.add(key="k").value.string_value = "v"
    inner.values.add(key="nothing")  # a pair without a value: rotel panics when a processor reads it
    pairs.add(key="empty map").value.kvlist_value.SetInParent()
    pairs.add(key="empty value").value.SetInParent()
    pairs.add(key="nothing")
    return request


def test_odd_values_are_limited_marked_and_harm_nothing(rotel: Rotel, capture: Capture) -> None:
    request = odd_request()
    span = request.resource_spans[0].scope_spans[0].spans[0]
    sent = {pair.key for pair in span.attributes}
    before = rotel.process.pid
    send(rotel, "traces", request)
    send(rotel, "traces", request_of("after", trace=78, **{"spanloop.run.id": "its own"}))
    sql = "SELECT SpanAttributes, ResourceAttributes FROM otel_traces WHERE SpanName = 'odd'"
    ((odd, resource),) = rows(capture, rotel, sql)
    ((after,),) = rows(capture, rotel, "SELECT SpanAttributes FROM otel_traces WHERE SpanName = 'after'")
    assert set(odd) == sent | {"spanloop.cut", "spanloop.dropped_attributes", "spanloop.run.id"}
    assert odd["text"] == "é" * (MAX_BYTES // 2)
    assert [len(text) for text in json.loads(odd["long list"])] == [1500, 500]
    assert json.loads(odd["spanloop.cut"]) == ["long list", "text"]
    assert odd["spanloop.dropped_attributes"] == "3"
    plain = {
        "short": "as it is",
        "number": "-5",
        "flag": "true",
        "ratio": "0.5",
        "bytes": "AP8=",
        "list": '[["a"],["b"],["c"]]',
    }
    assert {key: odd[key] for key in plain} == plain
    assert resource == {"service.name": "test", "list": plain["list"]}
    assert json.loads(odd["map"])["k"] == "v"
    assert (odd["empty map"], odd["empty value"], odd["nothing"]) == ("{}", "", "")
    assert "spanloop.processor_error" not in odd
    assert after == {"spanloop.run.id": "its own"}
    assert rotel.process.poll() is None
    assert rotel.process.pid == before


def test_log_records_are_limited_too(rotel: Rotel, capture: Capture) -> None:
    request = ExportLogsServiceRequest()
    record = request.resource_logs.add().scope_logs.add().log_records.add(time_unix_nano=time.time_ns())
    record.event_name = "gen_ai.evaluation.result"
    record.body.string_value = "b" * (MAX_BYTES + 1)
    record.attributes.add(key="gen_ai.evaluation.score.value").value.double_value = 0.25
    record.attributes.add(key="gen_ai.evaluation.explanation").value.string_value = "e" * (MAX_BYTES + 1)
    send(rotel, "logs", request)
    ((event, body, attributes),) = rows(
        capture, rotel, "SELECT EventName, Body, LogAttributes FROM otel_logs"
    )
    assert (event, body) == ("gen_ai.evaluation.result", "b" * MAX_BYTES)
    assert attributes["gen_ai.evaluation.score.value"] == "0.25"
    assert attributes["gen_ai.evaluation.explanation"] == "e" * MAX_BYTES
    assert json.loads(attributes["spanloop.cut"]) == ["body", "gen_ai.evaluation.explanation"]


# rotel runs the file once a signal, at the same time and in one namespace: what it says has to bear that.
BROKEN = """

def _broken(attributes, max_bytes):
    raise SystemExit("a fault of ours")


limits.cut = _broken
"""


def test_a_fault_of_ours_costs_no_span(capture: Capture, tmp_path: Path) -> None:
    """rotel ends when a processor raises, and its memory with it."""
    processor = tmp_path / "broken.py"
    processor.write_text(PROCESSOR.read_text() + BROKEN)
    with rotel_process.running(tmp_path / "log", *to_capture(capture), processor=processor) as rotel:
        send(rotel, "traces", request_of("faulty", "faulty", trace=79, text="whole"))
        sql = "SELECT SpanAttributes FROM otel_traces WHERE SpanName = 'faulty'"
        found = rows(capture, rotel, sql, lambda found: len(found) == 2)
        assert [row[0] for row in found] == [{"text": "whole", "spanloop.processor_error": "SystemExit"}] * 2
        assert rotel.said.count("a fault of ours") == 1


def test_rotels_own_clickhouse_exporter_writes_to_our_endpoint(capture: Capture, tmp_path: Path) -> None:
    """It renders lists in a way of its own (see the README), which `build` has to get along with."""
    owner = json.loads((Path(capture.url.removeprefix("chdb://")) / "owner.json").read_text())
    clickhouse = (
        "--exporter", "clickhouse", "--clickhouse-exporter-endpoint", capture.clickhouse,
        "--clickhouse-exporter-database", "default", "--clickhouse-exporter-async-insert", "false",
        "--clickhouse-exporter-user", owner["user"], "--clickhouse-exporter-password", owner["password"],
    )  # fmt: skip
    with rotel_process.running(tmp_path / "log", *clickhouse, SPANLOOP_RUN_ID="direct") as rotel:
        run_agent(rotel.url, "direct")
        sql = (
            "SELECT SpanAttributes FROM otel_traces WHERE ServiceName = 'direct' AND SpanName = 'openai.chat'"
        )
        found = rows(capture, rotel, sql, lambda found: len(found) == 2)
    assert {row[0]["spanloop.run.id"] for row in found} == {"direct"}
    assert build(capture, tmp_path / "dataset", "direct").height == 2


def test_nothing_secret_passes_at_any_place(rotel: Rotel, capture: Capture, tmp_path: Path) -> None:
    """The store's bytes are read here: `capture` would redact as well, so its own redaction is off."""
    secret = "jane.doe@" + "example.org"
    request = request_of(f"span of {secret}", trace=91)
    resource = request.resource_spans[0]
    resource.resource.attributes.add(key="owner").value.string_value = secret
    scope = resource.scope_spans[0]
    scope.scope.name, scope.scope.version = secret, secret
    span = scope.spans[0]
    span.status.message = f"no such user: {secret}"
    for pair in (span.attributes.add(key="list"), span.events.add(name="e").attributes.add(key="list")):
        for text in ("a", secret, "z"):
            pair.value.array_value.values.add().string_value = text
    span.attributes.add(key="gen_ai.input.messages").value.string_value = json.dumps([{"content": secret}])
    span.attributes.add(key="spanloop.prompt_token_ids").value.string_value = "[1,2]"
    twice = span.attributes.add(key="map").value.kvlist_value.values  # no valid OTLP, but senders do it
    for pairs in (span.attributes, span.events.add(name="twice").attributes, twice):
        for text in (secret, "clean"):
            pairs.add(key="twice").value.string_value = text
    span.links.add(trace_id=bytes(15) + b"1", span_id=bytes(7) + b"1").attributes.add(
        key="l"
    ).value.string_value = secret
    for piece in ("they are jane.d", "oe@exam", "ple.org!"):
        span.events.add(name="chunk").attributes.add(key="content").value.string_value = piece
    with (
        capture_process.running(tmp_path / "plain", SPANLOOP_REDACTION="off") as plain,
        rotel_process.running(tmp_path / "log", *to_capture(plain)) as own,
    ):
        send(own, "traces", request)
        columns = "toJSONString(tuple(*)), SpanAttributes['list'], `Events.Attributes`"
        ((row, on_span, on_events),) = rows(plain, own, f"SELECT {columns} FROM otel_traces")
    assert secret not in row
    assert "jane" not in row
    assert row.count("~email~") >= 7
    for items in (
        json.loads(on_span),
        json.loads(next(event["list"] for event in on_events if "list" in event)),
    ):
        assert [items[0], items[2]] == ["a", "z"]
    assert "spanloop.redacted" in row
    assert "prompt_token_ids" not in row


def test_what_cannot_be_redacted_is_taken_out(tmp_path: Path, capture: Capture) -> None:
    with rotel_process.running(
        tmp_path / "log", *to_capture(capture), SPANLOOP_REDACTION=str(tmp_path / "none")
    ) as rotel:
        send(rotel, "traces", request_of("refused", trace=92))
        # rotel acknowledges before its processor runs.
        until(lambda: "redaction cannot run" in rotel.said, lambda: rotel.said)
        assert rotel.process.poll() is None
    capture.flush()
    assert capture.query("SELECT count() FROM otel_traces WHERE SpanName = 'refused'") == [(0,)]
