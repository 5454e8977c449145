"""A dataset has nothing of what was erased, even while late spans of it lie in the store."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import polars as pl
from tests.helpers.commands import report, spanloop
from tests.helpers.stores import laid

from spanloop_store import connect

RECORDING = Path(__file__).parents[1] / "fixtures" / "otlp" / "a_sync_multi_turn.json"


def test_late_spans_are_in_no_dataset(tmp_path: Path) -> None:
    store = ("--store", laid(tmp_path / "s"))
    assert spanloop("import", RECORDING, *store).exit_code == 0
    before = report("build", "--out", tmp_path / "a", *store)
    traces = pl.read_parquet(tmp_path / "a" / "transitions.parquet")["trace_id"].unique().sort().to_list()
    assert len(traces) > 1
    erased, *kept = traces
    with closing(connect(store[1])) as client:
        rows = client.query(
            "SELECT * FROM otel_traces WHERE TraceId = {id:String}", parameters={"id": erased}
        )
    done = report("erase", "--trace-id", erased, "--spool", tmp_path / "no", "--yes", *store)
    assert done["rows"]["otel_traces"] == len(rows.result_rows) > 0
    assert [hit["rows"] for hit in done["datasets"]] == [
        pl.read_parquet(tmp_path / "a" / "transitions.parquet").filter(pl.col("trace_id") == erased).height
    ]
    with closing(connect(store[1])) as client:
        client.insert("otel_traces", rows.result_rows, column_names=rows.column_names)
    after = report("build", "--out", tmp_path / "b", *store)
    built = pl.read_parquet(tmp_path / "b" / "transitions.parquet")["trace_id"].unique().sort().to_list()
    assert built == kept
    assert after["counts"]["spans"] == before["counts"]["spans"] - len(rows.result_rows)
    assert [entry["action"] for entry in report("audit", *store)] == ["build", "erase", "build"]
