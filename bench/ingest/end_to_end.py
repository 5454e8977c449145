"""From the first byte sent to the last row queryable, each contender a process of its own, in turns.

What "done" means is the same for all who have a table: a count over ClickHouse's HTTP protocol shows every row, and each row's
part is synced. So rotel, which acknowledges what it only has in memory, is given no credit for that. Agent Lightning has no
table and no disk: it is done when it has acknowledged everything. The engine's own Native insert has no sender: it begins
with rows that somebody else made, in files of one segment's rows.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench.ingest.processes import Missing, Process, capture, lightning, native, rotel
from bench.ingest.senders import Send, over_grpc, over_http, send_all
from bench.ingest.spans import fresh, make_requests
from spanloop_store import connect

_POLL_S = 0.05
_PATIENCE_S = 300.0
LIGHTNING_SHARE = 8  # it gets an eighth of the spans, or a round would take minutes


class Run(NamedTuple):
    """One contender's turn."""

    spans: int
    wall_s: float
    cpu_s: float  # of the processes that receive and store, not of the sender

    @property
    def rate(self) -> float:
        """Spans a second."""
        return self.spans / self.wall_s


class Load(NamedTuple):
    """What is sent."""

    spans: int
    size: int
    requests: list[bytes]
    runs: list[bytes]
    rows: Path  # a Native file of `file_spans` of the same rows
    file_spans: int

    def fresh(self) -> Iterator[bytes]:
        """The requests with new trace ids."""
        return (fresh(request, run) for request, run in zip(self.requests, self.runs, strict=True))


OURS_HTTP = "Spanloop, OTLP/HTTP"
OURS_GRPC = "Spanloop, OTLP/gRPC"
NATIVE = "the engine's own Native insert, alone"
ROTEL = "rotel 0.0.1a15, ClickHouse exporter"
LIGHTNING = "Agent Lightning 0.3.0, in memory"


def measure(
    load: Load, rounds: int, lightning_python: Path | None
) -> tuple[dict[str, list[Run]], dict[str, str]]:
    """Runs of each contender, and why those that could not run did not."""
    contenders: dict[str, Callable[[Path], Run]] = {
        NATIVE: lambda folder: _native(folder, load),
        OURS_HTTP: lambda folder: _ours(folder, load, grpc=False),
        OURS_GRPC: lambda folder: _ours(folder, load, grpc=True),
        ROTEL: lambda folder: _rotel(folder, load),
        LIGHTNING: lambda folder: _lightning(folder, load, lightning_python),
    }
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    missing: dict[str, str] = {}
    for _ in range(rounds):
        for name, run in contenders.items():
            if name in missing:
                continue
            with tempfile.TemporaryDirectory(prefix="spanloop-bench-") as folder:
                try:
                    runs[name].append(run(Path(folder) / "store"))
                except Missing as error:
                    missing[name] = str(error)
    return runs, missing


def show(runs: dict[str, list[Run]], missing: dict[str, str]) -> str:
    """A table: the median of the rounds, and of the rounds' ratios."""
    lines = [
        "| first byte sent → queryable | spans/s, median | from – to | µs of CPU a span | ours (HTTP) to it |",
        "|---|---|---|---|---|",
    ]
    for name, found in runs.items():
        if name in missing:
            lines.append(f"| {name} | not measured: `{missing[name]}` | | | |")
            continue
        rates = [run.rate for run in found]
        ratio = median(ours.rate / run.rate for ours, run in zip(runs[OURS_HTTP], found, strict=True))
        cpu = median(run.cpu_s / run.spans for run in found) * 1e6
        lines.append(
            f"| {name} | {median(rates):,.0f} | {min(rates):,.0f} – {max(rates):,.0f} | {cpu:.0f} | {ratio:.2f} |"
        )
    return "\n".join(lines)


def _native(folder: Path, load: Load) -> Run:
    times = max(round(load.spans / load.file_spans), 1)
    with native(folder, load.rows) as process:
        before = process.cpu_s
        wall = float(process.ask(str(times)))
        return Run(times * load.file_spans, wall, process.cpu_s - before)


def _ours(folder: Path, load: Load, *, grpc: bool) -> Run:
    with capture(folder) as process:
        connection = over_grpc(process.otlp_grpc) if grpc else over_http(f"{process.otlp_http}/v1/traces")
        return _until_queryable(load, connection, process.url, [process])


def _rotel(folder: Path, load: Load) -> Run:
    with capture(folder) as into, rotel(folder, into) as (process, url):
        return _until_queryable(load, over_http(url), into.url, [process, into])


def _until_queryable(
    load: Load, connection: Callable[[], Iterator[Send]], store: str, processes: list[Process]
) -> Run:
    requests = list(load.fresh())
    with contextlib.closing(connect(store)) as client:

        def count() -> int:
            found: int = client.query("SELECT count() FROM otel_traces").result_rows[0][0]
            return found

        count()
        before, begin = sum(process.cpu_s for process in processes), time.perf_counter()
        send_all(requests, connection)
        while (found := count()) < load.spans:
            if time.perf_counter() - begin > _PATIENCE_S:
                raise RuntimeError(f"only {found} of {load.spans} spans arrived in {_PATIENCE_S:g} s")
            time.sleep(_POLL_S)
        wall = time.perf_counter() - begin
        if found != load.spans:
            raise RuntimeError(f"{found} rows of {load.spans} spans")
        return Run(load.spans, wall, sum(process.cpu_s for process in processes) - before)


def _lightning(folder: Path, load: Load, python: Path | None) -> Run:
    spans = max(load.spans // LIGHTNING_SHARE, 1)
    with lightning(python, folder) as (process, url, attributes):
        requests, _ = make_requests(spans, load.size, attributes)
        before, begin = process.cpu_s, time.perf_counter()
        send_all(requests, over_http(url))
        wall, cpu = time.perf_counter() - begin, process.cpu_s - before
        kept = int(process.ask("count"))
        if kept != spans:
            raise RuntimeError(f"{kept} spans of {spans} are in its store")
        return Run(spans, wall, cpu)
