"""On a cluster the local tables are changed, on every node."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TABLES = ("rewards", "otel_logs", "otel_traces_trace_id_ts", "otel_traces")


def test_distributed_tables(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.store.erase_on_cluster", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["traces"] == [f"{1:032x}"]
    assert found["rows"] == found["left"] == dict.fromkeys(TABLES, 1)
    assert found["again"] == dict.fromkeys(TABLES, 0)
    assert found["sweep"] == {}
    # Every node must have the tombstones before it is told to go by them.
    sync, *alters = found["said"]
    assert sync == "SYSTEM SYNC REPLICA ON CLUSTER `one` `default`.erasures"
    for table, sql in zip(TABLES, alters, strict=True):
        assert sql.startswith(f"ALTER TABLE `default`.`{table}_local` ON CLUSTER `one` DELETE WHERE ")
        assert "`default`.erasures" in sql
    assert [line.partition(":")[0] for line in found["waiting"]] == list(TABLES)
