"""Ingest: INSERT … SELECT of a segment of raw OTLP beside the engine's own Native insert of the same rows, in one run.

    python bench/ingest.py [--spans 20000] [--bytes 3000] [--repeats 5]

Prints spans a second by wall clock and by CPU time (steadier where the machine is shared); best of the repeats.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from spanloop_exporter.segments import SegmentLog
from spanloop_store import Engine
from spanloop_store.otlp.check import check_protobuf
from spanloop_store.otlp.insert import SegmentInserter
from spanloop_store.otlp.queries import hard_query
from spanloop_store.otlp.rows import rows
from spanloop_store.otlp.signals import Signal

_SPANS_A_REQUEST = 64
_START = 1_795_208_087_000_000_000


def make_requests(spans: int, size: int) -> list[bytes]:
    """LLM call spans of about `size` bytes: a dozen short attributes and one long prompt."""
    source = random.Random(1)  # a benchmark's filler
    words = [f"{source.getrandbits(30):x}" for _ in range(5000)]
    requests = []
    for begin in range(0, spans, _SPANS_A_REQUEST):
        request = ExportTraceServiceRequest()
        resource = request.resource_spans.add()
        resource.resource.attributes.add(key="service.name").value.string_value = "bench"
        scope = resource.scope_spans.add()
        scope.scope.name = "opentelemetry.instrumentation.openai.v1"
        for _ in range(min(_SPANS_A_REQUEST, spans - begin)):
            start = _START + source.randrange(10**12)
            span = scope.spans.add(
                trace_id=os.urandom(16),
                span_id=os.urandom(8),
                name="openai.chat",
                kind=3,
                start_time_unix_nano=start,
            )
            span.end_time_unix_nano = start + source.randrange(10**9)
            for key, text in (
                ("operation.name", "chat"),
                ("provider.name", "openai"),
                ("request.model", "m"),
            ):
                span.attributes.add(key=f"gen_ai.{key}").value.string_value = text
            for key in ("usage.input_tokens", "usage.output_tokens", "request.max_tokens"):
                span.attributes.add(key=f"gen_ai.{key}").value.int_value = source.randrange(5000)
            span.attributes.add(key="gen_ai.request.temperature").value.double_value = source.random()
            span.attributes.add(key="gen_ai.request.stream").value.bool_value = False
            span.attributes.add(
                key="gen_ai.response.finish_reasons"
            ).value.array_value.values.add().string_value = "stop"
            text = " ".join(source.choice(words) for _ in range((size - span.ByteSize()) // 9))
            span.attributes.add(key="gen_ai.input.messages").value.string_value = (
                '[{"content":"' + text + '"}]'
            )
        requests.append(request.SerializeToString())
    return requests


def measure(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Best wall and CPU seconds."""
    wall, cpu = [], []
    for _ in range(repeats):
        begin, begin_cpu = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - begin_cpu)
    return min(wall), min(cpu)


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spans", type=int, default=20000)
    parser.add_argument("--bytes", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    requests = make_requests(options.spans, options.bytes)
    with tempfile.TemporaryDirectory() as name, Engine(f"chdb://{name}/store") as engine:
        folder = Path(name)
        client = engine.client()
        inserter = SegmentInserter(client, embedded=True, quarantine=folder / "quarantine")
        log = SegmentLog(folder / "log", Signal.TRACES, max_bytes=1 << 40)
        results: list[tuple[str, tuple[float, float]]] = []
        results.append(
            ("check (parse, ids)", measure(lambda: [check_protobuf(Signal.TRACES, r) for r in requests], 3))
        )

        def append() -> None:
            for request in requests:
                log.append([request])
            log.seal()

        results.append(("append, one sync a request", measure(append, 1)))
        segment = log.sealed()[0].path

        def insert() -> None:
            client.command("TRUNCATE TABLE otel_traces")
            target = segment.with_name(f"traces-{time.time_ns()}.otlp")
            os.link(segment, target)
            inserter.insert(target, Signal.TRACES)
            target.unlink()

        results.append(
            (
                "of the insert: looking for hard values",
                measure(
                    lambda: client.raw_query(hard_query(Signal.TRACES, segment), fmt="Null"), options.repeats
                ),
            )
        )
        results.append(("INSERT … SELECT of the segment", measure(insert, options.repeats)))
        native = folder / "rows.native"
        native.write_bytes(client.raw_query("SELECT * FROM otel_traces", fmt="Native"))

        def insert_native() -> None:
            client.command("TRUNCATE TABLE otel_traces")
            client.command(
                f"INSERT INTO otel_traces SELECT * FROM file('{native}', 'Native')"
                " SETTINGS max_threads = 1, min_insert_block_size_rows = 100000000, min_insert_block_size_bytes = 4294967296"
            )

        results.append(("Native insert of the same rows", measure(insert_native, options.repeats)))
        parse = ExportTraceServiceRequest.FromString
        results.append(
            (
                "rows in Python alone (the fallback)",
                measure(lambda: [list(rows(Signal.TRACES, parse(request))) for request in requests], 1),
            )
        )
        print(f"{options.spans} spans, {segment.stat().st_size / 1e6:.1f} MB, best of {options.repeats}\n")
        print(f"{'':42}{'spans/s, wall':>16}{'spans/s, CPU':>16}")
        for label, (wall, cpu) in results:
            print(f"{label:42}{options.spans / wall:16,.0f}{options.spans / cpu:16,.0f}")
        by_label = dict(results)
        ours, theirs = by_label["INSERT … SELECT of the segment"], by_label["Native insert of the same rows"]
        print(f"\nratio to Native: {theirs[0] / ours[0]:.2f} by wall clock, {theirs[1] / ours[1]:.2f} by CPU")


if __name__ == "__main__":
    main(sys.argv[1:])
