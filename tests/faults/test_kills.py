"""SIGKILL of the collector under load: what was acknowledged is in `otel_traces`, once. The large run is `python -m bench.faults`."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from bench.faults.kills import kills_at_points, random_kills
from bench.faults.ledger import Ledger, Tally
from bench.faults.load import Shape, request_bytes
from bench.faults.stopping import POINTS
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.helpers.stores import laid

from spanloop_exporter.segments import SegmentLog
from spanloop_store import Engine
from spanloop_store.otlp.insert import SegmentInserter
from spanloop_store.otlp.signals import Signal
from spanloop_store.otlp.transports import Embedded

# A few spans a request, so that the time goes into starts and kills.
LIGHT = Shape(spans=3, text_bytes=200, deep_every=4)


def clean(tally: Tally) -> bool:
    """Something was promised, and all of it was kept."""
    assert tally.acknowledged
    return tally.clean


def test_kills_at_random_moments(tmp_path: Path) -> None:
    laid(tmp_path / "store")
    tally = random_kills(tmp_path / "store", 3, seed=1, threads=3, shape=LIGHT)
    assert clean(tally), tally
    assert tally.notes["resent"], "no request was cut off by a kill"


def test_kills_between_two_steps(tmp_path: Path) -> None:
    laid(tmp_path / "store")
    points = list(POINTS)
    tally = kills_at_points(tmp_path / "store", points, shape=LIGHT)
    assert clean(tally), tally
    assert tally.faults == len(points), "a point was not reached: does its function still have that name?"


def test_the_ledger_sees_what_is_lost_doubled_or_foreign(tmp_path: Path) -> None:
    """Without this the tests above would show nothing."""
    ledger = Ledger()
    for _ in range(3):
        number = ledger.begin()
        ledger.sent(number, 2)
        ledger.acknowledged(number, 2)
    with Engine(laid(tmp_path / "store")) as engine:
        client = engine.client()
        for trace, spans in ((1, (1, 1, 2)), (2, (1,)), (9, (1,))):
            for span in spans:
                client.command(
                    "INSERT INTO otel_traces (Timestamp, TraceId, SpanId) SELECT 1e9,"
                    f" '{trace:032x}', '{span:016x}'"
                )
        client.command(
            f"ALTER TABLE otel_traces_trace_id_ts DELETE WHERE TraceId = '{2:032x}'",
            settings={"mutations_sync": 1},
        )
        tally = ledger.compare(client, "none")
    assert (tally.acknowledged, tally.lost, tally.doubled, tally.foreign, tally.unlisted) == (6, 3, 1, 1, 1)
    assert not tally.clean


def test_a_request_is_the_same_bytes_each_time() -> None:
    """Else a resend would be another request, and nothing would be shown about resends."""
    assert request_bytes(7, 3) == request_bytes(7, 3)
    spans = ExportTraceServiceRequest.FromString(request_bytes(7, 3)).resource_spans[0].scope_spans[0].spans
    assert [span.span_id for span in spans] == [number.to_bytes(8, "big") for number in (1, 2, 3)]


def test_two_writers_do_not_share_a_scratch_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the kills: repeated segments of two threads went through one file, and one's rows were inserted for both."""
    both = threading.Barrier(2, timeout=60)
    real = Embedded._run

    def together(self: Embedded, *arguments: Any) -> None:
        both.wait()  # each has written its file, neither has been read
        real(self, *arguments)

    log = SegmentLog(tmp_path / "log", Signal.TRACES)
    for number in (1, 2):
        log.append([request_bytes(number, 3, Shape(deep_every=1))], items=3)
        log.seal()
    monkeypatch.setattr(Embedded, "_run", together)
    with Engine(laid(tmp_path / "store")) as engine:
        inserters = [
            SegmentInserter(engine.client(), embedded=True, quarantine=tmp_path / "quarantine")
            for _ in range(2)
        ]
        with ThreadPoolExecutor(2) as threads:
            paths = [segment.path for segment in log.sealed()]
            done = list(
                threads.map(
                    lambda inserter, path: inserter.insert(path, Signal.TRACES, again=True), inserters, paths
                )
            )
        assert [one.rows for one in done] == [3, 3]
        rows = (
            engine.client()
            .query("SELECT TraceId, count() FROM otel_traces GROUP BY 1 ORDER BY 1")
            .result_rows
        )
    assert rows == [(f"{1:032x}", 3), (f"{2:032x}", 3)]
