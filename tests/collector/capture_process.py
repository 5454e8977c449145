"""The capture process, started as `spanloop up` starts it, for tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.helpers.stores import laid

from spanloop_store import connect


@dataclass
class Capture:
    """A running capture process and its addresses."""

    process: subprocess.Popen[str]
    url: str
    otlp_http: str
    otlp_grpc: str
    clickhouse: str

    def flush(self) -> dict[str, int]:
        request = urllib.request.Request(f"{self.otlp_http}/flush?timeout_s=60", method="POST", data=b"")
        with urllib.request.urlopen(request, timeout=70) as answer:
            result: dict[str, int] = json.load(answer)
        return result

    def query(self, sql: str) -> list[Any]:
        with contextlib.closing(connect(self.url)) as client:
            return [tuple(row) for row in client.query(sql).result_rows]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(60)


def command(folder: Path, *more: str) -> list[str]:
    ports = ("--otlp-http-port", "0", "--otlp-grpc-port", "0", "--clickhouse-port", "0")
    return [sys.executable, "-m", "spanloop_collector.capture", "--store", f"chdb://{folder}", *ports, *more]


@contextlib.contextmanager
def running(folder: Path, *more: str, **environment: str) -> Iterator[Capture]:
    """On the store in this folder, or on a new one; stopped in the end."""
    if (
        "SPANLOOP_RETENTION_DAYS" not in environment
        and "--store" not in more
        and not (folder / "engine").exists()
    ):
        laid(folder)
    process = subprocess.Popen(
        command(folder, *more), stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"capture ended with {process.wait(10)}"
        ready = json.loads(line)
        yield Capture(
            process, f"chdb://{folder}", ready["otlp_http"], ready["otlp_grpc"], ready["clickhouse"]
        )
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)
        if process.stdout is not None:
            process.stdout.close()


def trace_request(*names: str, trace: int = 1, **attributes: str) -> ExportTraceServiceRequest:
    """A request with one span a name; span ids count up from 1."""
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "test"
    spans = resource.scope_spans.add().spans
    for index, name in enumerate(names, 1):
        span = spans.add(name=name, trace_id=trace.to_bytes(16, "big"), span_id=index.to_bytes(8, "big"))
        span.start_time_unix_nano = 1_750_000_000_000_000_000 + index
        span.end_time_unix_nano = span.start_time_unix_nano + 5
        for key, text in attributes.items():
            span.attributes.add(key=key).value.string_value = text
    return request
