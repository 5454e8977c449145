"""A segment whose earlier attempt may have ended half-way: what is missing is found without reading the whole table."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from hypothesis import given
from hypothesis import strategies as st

from spanloop_store import Engine
from spanloop_store.errors import StoreOverloaded
from spanloop_store.otlp import insert
from spanloop_store.otlp.frames import frame
from spanloop_store.otlp.insert import SegmentInserter
from spanloop_store.otlp.queries import time_ranges
from spanloop_store.otlp.signals import Signal, message_type
from spanloop_store.tables import Table, holder, read_tables

NOW_NS = 1_795_000_000 * 10**9
# What a row of 1970 next to one of today would read: all that lies between.
ROWS_BETWEEN = 1_000_000
MEMORY_BYTES = 60_000_000


def segment(folder: Path, *times_ns: int) -> Path:
    request = message_type(Signal.TRACES)()
    spans = request.resource_spans.add().scope_spans.add().spans
    for number, time_ns in enumerate(times_ns, 1):
        spans.add(trace_id=bytes([number] * 16), span_id=bytes([number] * 8), start_time_unix_nano=time_ns)
    path = folder / "segment"
    path.write_bytes(frame(request.SerializeToString()))
    return path


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 10**14), min_size=1, max_size=200))
def test_a_few_ranges_hold_every_time(times: list[int]) -> None:
    ranges = time_ranges(times)
    assert len(ranges) <= 64
    assert all(any(first <= time <= last for first, last in ranges) for time in times)
    assert all(before.last < after.first for before, after in itertools.pairwise(ranges))
    assert {first for first, _ in ranges} | {last for _, last in ranges} <= set(times)


def test_one_span_of_1970_does_not_have_the_whole_table_read(engine: Engine, tmp_path: Path) -> None:
    client = engine.client()
    for table in ("otel_traces", "otel_traces_trace_id_ts"):
        client.command(f"TRUNCATE TABLE {table}")
    client.command(
        "INSERT INTO otel_traces (Timestamp, TraceId, SpanId) SELECT toDateTime64('2026-05-01 00:00:00', 9)"
        f" + number / 1000, hex(cityHash64(number)), toString(number) FROM numbers({ROWS_BETWEEN})"
    )
    client.command(f"SET max_memory_usage = {MEMORY_BYTES}")
    done = SegmentInserter(client, embedded=True, quarantine=tmp_path).insert(
        segment(tmp_path, 0, NOW_NS), Signal.TRACES, again=True
    )
    assert done.engine_rows == 2
    assert client.command("SELECT count() FROM otel_traces") == ROWS_BETWEEN + 2
    assert client.command("SELECT count() FROM otel_traces_trace_id_ts WHERE TraceId LIKE '0%1'") >= 1
    client.close()


@pytest.mark.parametrize("signal", Signal)
def test_what_is_too_much_for_the_memory_at_once_goes_in_parts(
    engine: Engine, signal: Signal, tmp_path: Path
) -> None:
    client = engine.client()
    client.command(f"TRUNCATE TABLE {signal.table}")
    request = message_type(signal)()
    resources = request.resource_spans if signal is Signal.TRACES else request.resource_logs
    for count in (3, 0, 90):
        resource = resources.add()
        # Small on the wire, and once for each of its items in the table.
        resource.resource.attributes.add(key="large").value.string_value = "x" * 300_000
        for number in range(count):
            name = f"{count} {number}"
            if signal is Signal.TRACES:
                spans = (resource.scope_spans or [resource.scope_spans.add()])[0].spans
                spans.add(
                    trace_id=b"t" * 16,
                    span_id=number.to_bytes(8, "big"),
                    start_time_unix_nano=NOW_NS,
                    name=name,
                )
            else:
                records = (resource.scope_logs or [resource.scope_logs.add()])[0].log_records
                records.add(time_unix_nano=NOW_NS).body.string_value = name
    path = tmp_path / "segment"
    path.write_bytes(frame(request.SerializeToString()))
    client.command(f"SET max_memory_usage = {2 * MEMORY_BYTES}")
    inserter = SegmentInserter(client, embedded=True, quarantine=tmp_path)
    with pytest.raises(StoreOverloaded, match="memory"):
        inserter.insert(path, signal, items=93)
    for _ in range(2):
        done = inserter.insert(path, signal, again=True)
        assert (done.rows, done.quarantined_rows) == (93, 0)
    client.command("SET max_memory_usage = 0")
    names = client.query(
        f"SELECT {'SpanName' if signal is Signal.TRACES else 'Body'}, length(ResourceAttributes['large']) FROM {signal.table}"
    ).result_rows
    assert sorted(names) == sorted(
        (f"{count} {number}", 300_000) for count in (3, 90) for number in range(count)
    )
    client.close()


@pytest.mark.parametrize(
    "times_ns",
    [
        (0, 1, 2**63 - 1, 2**63, 2**64 - 1),
        (4_291_747_199 * 10**9, 5_662_310_400 * 10**9, 7_258_118_400 * 10**9),
        tuple(NOW_NS + day * 86_400 * 10**9 for day in range(100)),
    ],
    ids=["ends of the type", "beyond 2105, 2149 and 2199", "a hundred days"],
)
def test_times_of_any_clock_are_found_again(
    times_ns: tuple[int, ...], client: Client, tmp_path: Path
) -> None:
    path = segment(tmp_path, *times_ns)
    inserter = SegmentInserter(client, embedded=True, quarantine=tmp_path)
    for again in (False, True, True):
        inserter.insert(path, Signal.TRACES, again=again)
        assert client.command("SELECT count() FROM otel_traces") == len(times_ns)
        assert client.command("SELECT uniqExact(TraceId) FROM otel_traces_trace_id_ts") == len(times_ns)


@pytest.mark.parametrize("engine_name", ["MergeTree", "ReplicatedMergeTree", "SharedMergeTree"])
def test_only_a_table_that_forgets_rows_is_asked_without_a_token(
    engine_name: str, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that lags says that rows are missing; its token, which all replicas share, says the truth."""
    tables = {
        name: dataclasses.replace(table, engine=engine_name) if name == "otel_traces" else table
        for name, table in read_tables(client).items()
    }
    monkeypatch.setattr(insert, "read_tables", lambda _client: tables)
    inserter = SegmentInserter(client, embedded=True, quarantine=tmp_path)
    real, tokens = inserter._transport.insert, []

    def spy(signal: Signal, fmt: str, token: str, *rest: Any, **more: Any) -> None:
        tokens.append(token)
        real(signal, fmt, token, *rest, **more)

    monkeypatch.setattr(inserter._transport, "insert", spy)
    inserter.insert(segment(tmp_path, NOW_NS), Signal.TRACES, again=True)
    assert tokens == (["segment", ""] if engine_name == "MergeTree" else ["segment"])
    assert client.command("SELECT count() FROM otel_traces") == 1


def test_of_a_distributed_table_its_local_one_holds_the_rows() -> None:
    local = Table("t_local", "ReplicatedMergeTree", "", "`t_local`")
    spread = Table("t", "Distributed", "", "`default`.`t_local`", "c")
    assert holder({"t": spread, "t_local": local}, "t") is local
    assert holder({"t": spread}, "t") is spread
    assert holder({"t_local": local}, "t_local") is local
