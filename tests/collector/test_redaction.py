"""Redaction in the collector: no secret in a byte of its log, in a row of the store, or through an import."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from tests.collector import capture_process
from tests.collector.capture_process import Capture, trace_request
from tests.collector.test_intake import no_store

from spanloop_collector.importing import import_files
from spanloop_collector.intake import Intake
from spanloop_collector.redacting import Redaction
from spanloop_collector.repeats import Repeats
from spanloop_collector.space import Space
from spanloop_collector.statistics import Statistics
from spanloop_collector.writer import Writer
from spanloop_exporter.redaction.redactor import Redactor
from spanloop_exporter.segments import SegmentLog
from spanloop_store import connect
from spanloop_store.otlp.frames import frames
from spanloop_store.otlp.signals import Signal

MAIL = "jane.doe" + "@example.org"
TOKEN = "ghp_" + "a1B2" * 9
SECRETS = (MAIL.encode(), TOKEN.encode())
MESSAGES = json.dumps([{"role": "user", "content": f"I am {MAIL}, my key is {TOKEN}"}])


def request(name: str = "chat", trace: int = 1) -> Any:
    return trace_request(f"{name} of {MAIL}", trace=trace, **{"gen_ai.input.messages": MESSAGES})


def bytes_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def intake(folder: Path, statistics: Statistics) -> Intake:
    logs = {signal: SegmentLog(folder, signal) for signal in Signal}
    repeats = Repeats(folder)
    for log in logs.values():
        repeats.recover(log.recover(lambda data: True, folder / "quarantine"))
    redaction = Redaction(Redactor(b"a salt of the tests"), statistics)
    writer = Writer(logs, no_store, statistics)
    return Intake(logs, writer, statistics, repeats, Space([]), redaction=redaction)


def test_no_byte_of_the_log_has_a_secret(tmp_path: Path) -> None:
    statistics = Statistics()
    logs = ExportLogsServiceRequest()
    record = (
        logs.resource_logs.add().scope_logs.add().log_records.add(time_unix_nano=1_750_000_000_000_000_000)
    )
    record.body.string_value = MESSAGES
    document = json_format.MessageToDict(request(trace=2))
    span = document["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    span["traceId"], span["spanId"] = "2" * 32, "2" * 16

    async def send() -> None:
        own = intake(tmp_path, statistics)
        await own.take(Signal.TRACES, request().SerializeToString())
        await own.take(Signal.TRACES, json.dumps(document).encode(), is_json=True)
        await own.take(Signal.LOGS, logs.SerializeToString())
        large = request(trace=3)
        large.resource_spans[0].scope_spans[0].spans[0].attributes.add(key="t").value.string_value = (
            "x " * 600_000
        )
        await own.take(Signal.TRACES, large.SerializeToString())

    asyncio.run(send())
    data = bytes_in(tmp_path)
    assert [secret for secret in SECRETS if secret in data] == []
    assert data.count(b"~email~") == 7
    assert statistics.total("spanloop_redactions_total", kind="email") == 7
    assert statistics.total("spanloop_redactions_total", kind="github_token") == 4


def test_a_resend_after_a_crash_is_known_again(tmp_path: Path) -> None:
    """What it is known by has to be the same when it is made anew of the log."""
    body = request().SerializeToString()

    async def send() -> bool:
        return (await intake(tmp_path, Statistics()).take(Signal.TRACES, body)).repeated

    assert [asyncio.run(send()) for _ in range(3)] == [False, True, True]
    assert sum(1 for path in tmp_path.glob("*.otlp") for _ in frames(path.read_bytes())) == 1


class Failing(Redactor):
    """A redactor with a fault."""

    def places(self, data: bytes) -> list[tuple[int, int]]:
        raise ZeroDivisionError


def test_what_cannot_be_redacted_is_not_taken(tmp_path: Path) -> None:
    logs = {Signal.TRACES: SegmentLog(tmp_path, Signal.TRACES)}
    writer = Writer(logs, no_store, Statistics())
    own = Intake(
        logs, writer, Statistics(), Repeats(tmp_path), Space([]), redaction=Redaction(Failing(b"x" * 16))
    )
    with pytest.raises(ZeroDivisionError):
        asyncio.run(own.take(Signal.TRACES, request().SerializeToString()))
    assert not list(tmp_path.glob("*.otlp"))


def rows(capture: Capture) -> str:
    capture.flush()
    found = [
        capture.query(f"SELECT toJSONString(tuple(*)) FROM {table}") for table in ("otel_traces", "otel_logs")
    ]
    return "\n".join(row[0] for table in found for row in table)


def test_no_row_has_a_secret_whichever_way_it_came(tmp_path: Path) -> None:
    with capture_process.running(tmp_path / "store") as capture:
        post = urllib.request.Request(
            f"{capture.otlp_http}/v1/traces",
            request(trace=1).SerializeToString(),
            {"Content-Type": "application/x-protobuf"},
        )
        assert urllib.request.urlopen(post, timeout=20).status == 200
        with grpc.insecure_channel(capture.otlp_grpc) as channel:
            TraceServiceStub(channel).Export(request(trace=2), timeout=20)
        path = tmp_path / "in.pb"
        path.write_bytes(request(trace=3).SerializeToString())
        assert import_files(capture.url, [path], print).spans == 1
        said = rows(capture)
        with urllib.request.urlopen(f"{capture.otlp_http}/metrics", timeout=20) as answer:
            assert 'spanloop_redactions_total{kind="email"} 6' in answer.read().decode()
    assert said.count("~email~") == 6
    assert [secret for secret in SECRETS if secret.decode() in said] == []
    # One value is one pseudonym, whichever way it came.
    assert len({piece[:20] for piece in said.split("~email~")[1:]}) <= 2
    assert (tmp_path / "store" / "redaction.salt").stat().st_mode & 0o777 == 0o600
    # Nor has any file of the store: the engine's own included.
    data = bytes_in(tmp_path / "store")
    assert [secret for secret in SECRETS if secret in data] == []


def test_an_import_without_a_collector_redacts_too(tmp_path: Path) -> None:
    path = tmp_path / "in.pb"
    path.write_bytes(request().SerializeToString())
    url = f"chdb://{tmp_path / 'store'}"
    assert import_files(url, [path], print).spans == 1
    client = connect(url)
    try:
        ((row,),) = client.query("SELECT toJSONString(tuple(*)) FROM otel_traces").result_rows
    finally:
        client.close()
    assert row.count("~email~") == 2
    assert [secret for secret in SECRETS if secret.decode() in row] == []


def test_a_collector_that_cannot_redact_does_not_start(tmp_path: Path) -> None:
    environ = {**os.environ, "SPANLOOP_REDACTION": str(tmp_path / "missing.toml")}
    ended = subprocess.run(
        capture_process.command(tmp_path / "store"),
        capture_output=True,
        text=True,
        timeout=60,
        env=environ,
        check=False,
    )
    assert ended.returncode == 1
    assert "missing.toml: the file cannot be read" in ended.stderr
    assert "next:" in ended.stderr
