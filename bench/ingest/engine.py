"""In one process, in turns: INSERT … SELECT of a segment of raw OTLP beside the engine's own Native insert of the same rows.

What is compared, exactly. Both write the same rows into the same `otel_traces`: all its indexes, its codecs, its view, a sync
of the new part and of its folder, one block, one part, one thread, a deduplication token (without one the engine would hash
all values of a block). The Native side reads a file of one uncompressed block: no client, no network, no compression, nothing
to encode. That is the least that any collector could ask of the engine. The tables are emptied and merges are stopped
in between. Our side is the whole of `SegmentInserter.insert`: the INSERT and its row in `ingest_segments`.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

from spanloop_exporter.segments import SegmentLog
from spanloop_store import Engine
from spanloop_store.otlp.check import check_protobuf
from spanloop_store.otlp.insert import SegmentInserter
from spanloop_store.otlp.rows import rows
from spanloop_store.otlp.signals import Signal, message_type

BLOCK = "max_threads = 1, min_insert_block_size_rows = 100000000, min_insert_block_size_bytes = 4294967296"


class Cost(NamedTuple):
    """Of one run, in seconds."""

    wall: float
    cpu: float


def measure(requests: list[bytes], spans: int, repeats: int, folder: Path) -> dict[str, list[Cost]]:
    """Costs of each step, `repeats` times in turns. Leaves `rows.native` in the folder."""
    with tempfile.TemporaryDirectory(dir=folder) as name, Engine(f"chdb://{name}/store") as engine:
        client = engine.client()
        client.command("SYSTEM STOP MERGES")
        log = SegmentLog(Path(name) / "log", Signal.TRACES, max_bytes=1 << 40)
        inserter = SegmentInserter(client, embedded=True, quarantine=Path(name) / "quarantine")
        for request in requests:
            log.append([request], items=check_protobuf(Signal.TRACES, request).items)
        log.seal()
        (segment,) = log.sealed()
        native = folder / "rows.native"

        def insert() -> None:
            # A name of its own is a token of its own.
            target = segment.path.with_name(f"traces-{time.time_ns()}.otlp")
            os.link(segment.path, target)
            inserter.insert(target, Signal.TRACES, items=segment.items)
            target.unlink()

        def insert_native() -> None:
            client.command(
                f"INSERT INTO otel_traces SELECT * FROM file('{native}', 'Native') SETTINGS {BLOCK},"
                f" deduplicate_blocks_in_dependent_materialized_views = 1, insert_deduplication_token = '{time.time_ns()}'"
            )

        insert()
        native.write_bytes(client.raw_query("SELECT * FROM otel_traces", fmt="Native"))
        parse = message_type(Signal.TRACES).FromString
        steps: dict[str, Callable[[], object]] = {
            "ours": insert,
            "native": insert_native,
            "check": lambda: [check_protobuf(Signal.TRACES, request) for request in requests],
        }
        costs: dict[str, list[Cost]] = {step: [] for step in steps}
        for _ in range(repeats):
            for step, work in steps.items():
                for table in ("otel_traces", "otel_traces_trace_id_ts"):
                    client.command(f"TRUNCATE TABLE {table}")
                costs[step].append(_cost(work))
                if step != "check":
                    found = client.query("SELECT count() FROM otel_traces").result_rows[0][0]
                    assert found == spans, f"{step}: {found} rows, not {spans}"
        costs["fallback"] = [
            _cost(lambda: [list(rows(Signal.TRACES, parse(request))) for request in requests])
        ]
    return costs


def show(costs: dict[str, list[Cost]], spans: int) -> str:
    """A table of spans a second, and the ratio to Native turn by turn."""
    labels = {
        "native": "the engine's own Native insert of the same rows",
        "ours": "INSERT … SELECT of the segment",
        "check": "of the receiver: parse, check ids",
        "fallback": "rows in Python (deeply nested values only)",
    }
    lines = [f"| {'spans a second':48}| wall, median | CPU, median | CPU, best |", "|---|---|---|---|"]
    for step, label in labels.items():
        wall, cpu = (median(cost[column] for cost in costs[step]) for column in (0, 1))
        best = min(cost.cpu for cost in costs[step])
        lines.append(f"| {label:48}| {spans / wall:,.0f} | {spans / cpu:,.0f} | {spans / best:,.0f} |")
    pairs = list(zip(costs["native"], costs["ours"], strict=True))
    wall, cpu = (median(native[column] / ours[column] for native, ours in pairs) for column in (0, 1))
    best = min(cost.cpu for cost in costs["native"]) / min(cost.cpu for cost in costs["ours"])
    lines.append(f"| **ratio of ours to Native** | {wall:.2f} | {cpu:.2f} | {best:.2f} |")
    return "\n".join(lines)


def _cost(work: Callable[[], object]) -> Cost:
    begin, begin_cpu = time.perf_counter(), _cpu()
    work()
    return Cost(time.perf_counter() - begin, _cpu() - begin_cpu)


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
