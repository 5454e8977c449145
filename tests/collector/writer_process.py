"""Logs four segments, inserts them two at once and dies by SIGKILL where it is told; run by test_writer.py."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from tests.collector.capture_process import trace_request

from spanloop_collector.folders import candidates, recovered
from spanloop_collector.statistics import Statistics
from spanloop_collector.writer import Writer
from spanloop_store import Engine, StoreUrl
from spanloop_store.otlp import transports
from spanloop_store.otlp.insert import SegmentInserter
from spanloop_store.otlp.signals import Signal

# What a thread is about to do when the process dies.
POINTS = ("insert", "record", "remove")


def easy(name: str, trace: int) -> bytes:
    """One span that the engine decodes."""
    return trace_request(name, trace=trace + 1).SerializeToString()


def deep(name: str, trace: int) -> bytes:
    """One that the fallback decodes."""
    request = trace_request(name, trace=trace + 1)
    value = request.resource_spans[0].scope_spans[0].spans[0].attributes.add(key="deep").value
    value.array_value.values.add().array_value.values.add().string_value = "x"
    request.resource_spans[0].scope_spans[0].spans[0].span_id = b"deep" + bytes(4)
    return request.SerializeToString()


# Two that are inserted as a whole, two that both decoders have a part of.
SEGMENTS = (
    [("a", easy)],
    [("b", easy), ("c", deep)],
    [("d", easy)],
    [("e", easy), ("f", deep)],
)


def main(folder: str, point: str) -> None:
    """The first two segments meet at the point, and then one thread goes on while the other kills the process."""
    url = StoreUrl.parse(f"chdb://{folder}")
    together = threading.Barrier(2)

    def die(*_: Any) -> None:
        if together.wait(30) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def wrapped(*args: Any, **settings: Any) -> Any:
            die()
            return real(*args, **settings)

        setattr(owner, name, wrapped)

    with Engine(url) as engine:
        logs = recovered(candidates(url)[0])
        traces = logs.segments[Signal.TRACES]
        for number, segment in enumerate(SEGMENTS):
            traces.append([make(name, number) for name, make in segment], items=len(segment))
            traces.seal()
        if point == "insert":
            before(transports.Embedded, "insert")
        elif point == "record":
            before(SegmentInserter, "_record")
        else:
            for segments in logs.segments.values():
                before(segments, "remove")

        def open_inserter() -> SegmentInserter:
            quarantine = Path(folder) / "quarantine"
            return SegmentInserter(engine.client(), embedded=True, quarantine=quarantine, collector="test")

        writer = Writer(logs.segments, open_inserter, Statistics(), latency_s=0)
        writer.start()
        writer.flush(60)


if __name__ == "__main__":
    main(*sys.argv[1:])
