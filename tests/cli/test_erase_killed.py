"""An erasure that is killed at any stage is finished by the same command, which then says what is true."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.test_erase import MARKER, fill_quarantine, fill_spool, grep, of_user, spans_in
from tests.helpers.commands import report
from tests.helpers.stores import laid

from spanloop_exporter.segments import SegmentLog
from spanloop_store import StoreUrl, connect, registry
from spanloop_store.otlp.signals import Signal

ERASE, PURGING = "spanloop_store.erase", "spanloop_store.purging"
STRIPPING = "spanloop_collector.stripping"
TABLES = ("otel_traces", "otel_logs", "rewards", "otel_traces_trace_id_ts")
# MODULE:FUNCTION, which of its calls, and where: what a run has left when it is killed differs from stage to stage.
STAGES = {
    "after-the-trail": ("spanloop_store.audit:record", 1, "after"),
    "after-the-tombstones": (f"{ERASE}:mark", 1, "after"),
    "a-file-that-is-written-and-not-named": (f"{STRIPPING}:write_synced", 1, "after"),
    "after-the-quarantine": (f"{ERASE}:delete", 1, "before"),
    "rewards-and-logs-gone": (f"{ERASE}:_delete_rows", 2, "after"),
    "rows-gone-and-old-parts-there": (f"{ERASE}:_delete_rows", 4, "after"),
    "in-the-purge": (f"{PURGING}:_drop_old_parts", 1, "before"),
    "after-the-store": (f"{ERASE}:delete", 1, "after"),
    "between-two-spools": (
        f"{STRIPPING}:_replace",
        2,
        "before",
    ),  # of the second spool; the quarantine is done
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, its log, its quarantine and a spool, all with something of u-1 and of u-2, and a dataset of both."""
    home = tmp_path_factory.mktemp("killed")
    with connect(laid(home / "s")) as client:
        for table, column in (
            ("otel_traces", "SpanAttributes"),
            ("otel_logs", "Body"),
            ("rewards", "explanation"),
        ):
            client.command(f"ALTER TABLE {table} MODIFY COLUMN {column} CODEC(NONE)")
        for number, user, text in ((1, "u-1", MARKER), (2, "u-2", "kept")):
            trace = f"{number:032x}"
            client.command(
                "INSERT INTO otel_traces (Timestamp, TraceId, SpanAttributes)"
                f" VALUES (now64(9) - 9, '{trace}', map('user.id', '{user}', 'prompt', '{text}'))"
            )
            client.command(
                f"INSERT INTO otel_logs (Timestamp, TraceId, Body) VALUES (now64(9), '{trace}', '{text}')"
            )
            client.command(
                "INSERT INTO rewards (id, time, trace_id, explanation)"
                f" VALUES ('{number}', now64(9), '{trace}', '{text}')"
            )
        client.command(
            f"INSERT INTO FUNCTION file('{home}/transitions.parquet', Parquet, 'trace_id String, episode_id String')"
            f" VALUES ('{1:032x}', 'e1'), ('{2:032x}', 'e2')"
        )
        registry.record_dataset(client, registry.Dataset("d", str(home), "", 1, 1, {}))
    log = SegmentLog(home / "s" / "log", Signal.TRACES)
    log.append([of_user("u-1", MARKER, 3), of_user("u-2", "kept", 4)], 2)
    log.close()
    fill_quarantine(home / "s" / "quarantine")
    for name, numbers in (("spool-a", (5, 6)), ("spool-b", (7, 8))):
        mine, other = numbers
        fill_spool(home / name, of_user("u-1", MARKER, mine), of_user("u-2", "kept", other)).close()
    return home


# No two that follow one another: each run finds what the one before left at another place of the way.
CHAINS = (tuple(STAGES)[::2], tuple(STAGES)[1::2])


@pytest.mark.parametrize("stages", CHAINS, ids=["odd", "even"])
def test_killed_and_started_again(filled: Path, tmp_path: Path, stages: tuple[str, ...]) -> None:
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True, symlinks=True)
    url = f"chdb://{tmp_path}/s"
    with connect(url) as client:  # its dataset lies here, too
        client.command(f"ALTER TABLE datasets UPDATE uri = '{tmp_path}' WHERE 1 SETTINGS mutations_sync = 2")
    arguments = ["erase", "--user-id", "u-1", "--store", url, "--yes"]
    arguments += ["--spool", str(tmp_path / "spool-a"), "--spool", str(tmp_path / "spool-b")]
    for stage in stages:
        killed = subprocess.run(
            [sys.executable, "-m", "tests.cli.erase_process", *map(str, STAGES[stage]), *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert killed.returncode == -signal.SIGKILL, (stage, killed.stderr)
        assert killed.stdout == ""

    done = report(*arguments)
    assert not done["dry_run"]
    assert done["traces"] == [f"{number:032x}" for number in (1, 3, 5, 7)]
    assert [hit["id"] for hit in done["datasets"]] == ["d"]
    assert all("backups" in line for line in done["left"])
    # No byte of it is left, whatever the engine or a half-written file had kept; and nothing of anybody else is gone.
    places = [tmp_path / name for name in ("s", "spool-a", "spool-b")]
    assert grep(MARKER, *places) == []
    assert not [path for place in places for path in place.rglob("*.erasing")]
    assert spans_in(tmp_path / "spool-a") == [f"{6:032x}"]
    assert spans_in(tmp_path / "spool-b") == [f"{8:032x}"]
    assert not list(StoreUrl.parse(url).log_path.glob("*.otlp"))
    with connect(url) as client:
        rows = {name: client.query(f"SELECT count() FROM {name}").result_rows[0][0] for name in TABLES}
        assert rows == {"otel_traces": 2, "otel_logs": 1, "rewards": 1, "otel_traces_trace_id_ts": 2}
        held = "SELECT count() FROM system.tables WHERE engine_full LIKE '%old_parts_lifetime = 0%'"
        assert client.query(held).result_rows == [(0,)]
        trail = client.query("SELECT subject FROM audit WHERE action = 'erase'").result_rows
        assert set(trail) == {("user:u-1",)}
