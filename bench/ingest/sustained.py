"""Resident memory of the capture process while spans arrive at one rate for minutes."""

from __future__ import annotations

import itertools
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.ingest.end_to_end import Load
from bench.ingest.processes import capture
from bench.ingest.senders import over_http, send_all
from bench.ingest.spans import SPANS_A_REQUEST, fresh
from spanloop_store import connect

_SAMPLE_S = 1.0


class Sample(NamedTuple):
    """One look at the process."""

    seconds: float  # since the start
    rss: int  # bytes


class Sustained(NamedTuple):
    """What a run over minutes showed."""

    sent: int
    stored: int
    seconds: float
    samples: list[Sample]


def measure(load: Load, minutes: float, rate: float) -> Sustained:
    """Sends `rate` spans a second for so many minutes, then waits until all are stored."""
    with (
        tempfile.TemporaryDirectory(prefix="spanloop-bench-") as name,
        capture(Path(name) / "store") as process,
    ):
        begin, done = time.monotonic(), threading.Event()
        samples: list[Sample] = []
        sent = 0

        def look() -> None:
            while not done.wait(_SAMPLE_S):
                samples.append(Sample(time.monotonic() - begin, process.rss_bytes))

        def paced() -> Iterator[bytes]:
            nonlocal sent
            # The last request of a cycle may be shorter.
            sizes = [
                min(SPANS_A_REQUEST, load.spans - first) for first in range(0, load.spans, SPANS_A_REQUEST)
            ]
            requests = itertools.cycle(zip(load.requests, load.runs, sizes, strict=True))
            while (now := time.monotonic() - begin) < minutes * 60:
                if sent > now * rate:
                    time.sleep(min(sent / rate - now, 1.0))
                    continue
                request, run, spans = next(requests)
                sent += spans
                yield fresh(request, run)

        looker = threading.Thread(target=look)
        looker.start()
        try:
            send_all(paced(), over_http(f"{process.otlp_http}/v1/traces"))
            client = connect(process.url)
            stored = 0
            while stored < sent and time.monotonic() - begin < minutes * 60 + 300:
                stored = client.query("SELECT count() FROM otel_traces").result_rows[0][0]
                time.sleep(_SAMPLE_S)
            client.close()
        finally:
            done.set()
            looker.join()
        return Sustained(sent, stored, time.monotonic() - begin, samples)


def show(run: Sustained) -> str:
    """Highest and median memory by fifths of the run."""
    lines = [
        f"{run.sent:,} spans sent and {run.stored:,} stored in {run.seconds / 60:.1f} minutes"
        f" ({run.sent / run.seconds:,.0f} a second)",
        "",
        "| part of the run | resident memory, median | highest |",
        "|---|---|---|",
    ]
    for fifth in range(5):
        part = sorted(
            sample.rss for sample in run.samples if int(sample.seconds / run.seconds * 5) == fifth
        ) or [0]
        lines.append(
            f"| {fifth + 1} of 5 | {part[len(part) // 2] / 2**20:,.0f} MiB | {part[-1] / 2**20:,.0f} MiB |"
        )
    return "\n".join(lines)
