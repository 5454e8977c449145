"""Backup and restore: every row comes back with every value, damage is seen, nothing that exists is written over."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from tests.collector.served_endpoint import Served, serving_engine
from tests.helpers.stores import laid

from spanloop_collector.repeats import Repeats
from spanloop_exporter.segments import SegmentLog
from spanloop_store import Engine, Owner, StoreUnavailable, StoreUrl, connect, remove_owner, write_owner
from spanloop_store.archive import Writer
from spanloop_store.backup import TABLES, backup, row_hash
from spanloop_store.errors import BackupError
from spanloop_store.migrate import migrations
from spanloop_store.otlp.signals import Signal
from spanloop_store.restore import restore
from spanloop_store.tables import LOOKUP, read_columns

SPANS = 300


def fill(client: Any) -> None:
    client.command(
        "INSERT INTO otel_traces (Timestamp, TraceId, SpanId, SpanName, SpanAttributes, Events.Timestamp, Events.Name,"
        " Events.Attributes, Links.TraceId, Links.SpanId, Links.TraceState, Links.Attributes)"
        " SELECT toDateTime64('2026-05-01 23:59:00', 9) + number, toString(number % 100), toString(number), 'chat',"
        f" map('text', repeat('ü', number % 5000), 'n', toString(number)), [now64(9)], ['e'], [map('k', 'v')], ['t'], ['s'],"
        f" [''], [map()] FROM numbers({SPANS})"
    )
    client.command(
        "INSERT INTO otel_logs (Timestamp, Body, LogAttributes) VALUES (now64(9), '\\0\\n', map('a', 'b'))"
    )
    client.command(
        "INSERT INTO rewards (id, time, value) VALUES ('a', now64(9), NULL), ('b', now64(9), 0), ('c', now64(9), nan)"
    )
    client.command("INSERT INTO resources (kind, name, version, uri) VALUES ('model', 'm', 1, '/m')")
    client.command(
        "INSERT INTO promotions (kind, name, alias, action, version) VALUES ('model', 'm', 'production', 'promote', 1)"
    )


def contents(client: Any) -> dict[str, Any]:
    """Count and hash of every table, and what the lookup answers."""
    found: dict[str, Any] = {
        name: client.query(
            f"SELECT count(), sum({row_hash(read_columns(client, name))}) FROM {name}"
        ).result_rows
        for name in TABLES
        if name != "audit"  # each backup adds a row
    }
    found[LOOKUP] = client.query(
        f"SELECT TraceId, min(Start), max(End) FROM {LOOKUP} GROUP BY TraceId ORDER BY TraceId"
    ).result_rows
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    url = laid(tmp_path_factory.mktemp("source") / "s")
    with Engine(url) as engine:
        fill(engine.client())
        expected = contents(engine.client())
    return url, expected


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, source: tuple[str, dict[str, Any]]) -> Path:
    folder = tmp_path_factory.mktemp("made") / "b"
    backup(source[0], str(folder))
    return folder


@pytest.mark.parametrize("name", ["folder", "one.tar"])
def test_there_and_back(source: tuple[str, dict[str, Any]], tmp_path: Path, name: str) -> None:
    url, expected = source
    lines: list[str] = []
    done = backup(url, str(tmp_path / "backups" / name), lines.append)
    assert done.rows["otel_traces"] == SPANS
    assert any("otel_traces" in line for line in lines)
    assert not list((tmp_path / "backups").glob("*.part"))
    target = f"chdb://{tmp_path}/restored"
    assert restore(target, str(tmp_path / "backups" / name)).rows == done.rows
    with Engine(target) as engine:
        assert contents(engine.client()) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backups", "restored"]
    with pytest.raises(BackupError, match="not empty"):
        restore(target, str(tmp_path / "backups" / name))
    with pytest.raises(BackupError, match="exists; it is untouched"):
        backup(url, str(tmp_path / "backups" / name))


def test_the_tar_is_one_that_others_read(source: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    backup(source[0], str(tmp_path / "b.tar"))
    with tarfile.open(tmp_path / "b.tar") as tar:
        names = tar.getnames()
        assert names[-1] == "manifest.json"
        assert {"otel_traces/2026-05-01.native.zst", "otel_traces/2026-05-02.native.zst"} < set(names)
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "b.tar", "-C", tmp_path / "out"], check=True)
    assert restore(f"chdb://{tmp_path}/r", str(tmp_path / "out")).rows["otel_traces"] == SPANS


def test_while_up_runs(tmp_path: Path, source: tuple[str, dict[str, Any]]) -> None:
    """Through the endpoint, as a command in another process does it, while rows arrive."""
    url = f"chdb://{tmp_path}/s"
    shutil.copytree(source[0].removeprefix("chdb://"), tmp_path / "s", symlinks=True)
    with Engine(url) as engine, serving_engine(engine, tmp_path) as served:
        other = as_server(served)
        writer = served.client()
        arrived: list[str] = []

        def arrive(line: str) -> None:
            writer.command("INSERT INTO otel_logs (Timestamp, Body) VALUES (now64(9), 'late')")
            arrived.append(line)

        done = backup(other, str(tmp_path / "b"), arrive)
        assert arrived
        assert done.rows["otel_traces"] == SPANS
    restore(f"chdb://{tmp_path}/r", str(tmp_path / "b"))
    with Engine(f"chdb://{tmp_path}/r") as engine:
        found = contents(engine.client())
    assert {**found, "otel_logs": None} == {**source[1], "otel_logs": None}


def as_server(served: Served) -> str:
    """The endpoint by the URL of a server: what a client in another process makes of owner.json."""
    user = served.credentials.writer
    return f"clickhouse://{user.name}:{user.password}@127.0.0.1:{served.port}/default"


def test_into_a_server(tmp_path: Path, made: Path, source: tuple[str, dict[str, Any]]) -> None:
    with Engine(laid(tmp_path / "s")) as engine, serving_engine(engine, tmp_path) as served:
        restore(as_server(served), str(made))
        assert contents(engine.client()) == source[1]
        with pytest.raises(BackupError, match="not empty"):
            restore(as_server(served), str(made))


def test_the_engines_own_backup(tmp_path: Path, source: tuple[str, dict[str, Any]]) -> None:
    copy = tmp_path / "s"
    shutil.copytree(source[0].removeprefix("chdb://"), copy, symlinks=True)
    assert backup(f"chdb://{copy}", "File('today')").rows["otel_traces"] == SPANS
    (tmp_path / "r").mkdir()
    (copy / "backups").rename(tmp_path / "r" / "backups")
    restore(f"chdb://{tmp_path}/r", "File('today')")
    with Engine(f"chdb://{tmp_path}/r") as engine:
        assert contents(engine.client()) == source[1]
    with pytest.raises(BackupError, match="elsewhere"):
        backup(f"chdb://{tmp_path}/r", "File('/elsewhere/x')")


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "manifest", "count"])
def test_damage_is_seen_before_anything_is_restored(made: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(made, tmp_path / "b")
    piece = tmp_path / "b" / "otel_traces" / "2026-05-01.native.zst"
    manifest = tmp_path / "b" / "manifest.json"
    data = piece.read_bytes()
    if damage == "flip":
        piece.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    elif damage == "cut":
        piece.write_bytes(data[:-1])
    elif damage == "missing":
        piece.unlink()
    elif damage == "manifest":
        manifest.unlink()
    else:
        record = json.loads(manifest.read_text())
        record["tables"]["rewards"]["rows"] += 1
        manifest.write_text(json.dumps(record))
    with pytest.raises(BackupError):
        restore(f"chdb://{tmp_path}/r", str(tmp_path / "b"))
    assert not (tmp_path / "r").exists()


def test_a_backup_of_a_later_program_is_refused(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "b")
    manifest = tmp_path / "b" / "manifest.json"
    for key, value in (("schema_version", len(migrations()) + 1), ("format", "spanloop-backup/2")):
        record = json.loads(manifest.read_text())
        manifest.write_text(json.dumps({**record, key: value}))
        with pytest.raises(BackupError) as caught:
            restore(f"chdb://{tmp_path}/r", str(tmp_path / "b"))
        assert "upgrade" in caught.value.hint
        manifest.write_text(json.dumps(record))


def test_a_backup_that_fails_leaves_nothing(tmp_path: Path, source: tuple[str, dict[str, Any]]) -> None:
    def stop(line: str) -> None:
        if "otel_traces" in line:
            raise KeyboardInterrupt

    for name in ("b", "b.tar"):
        with pytest.raises(KeyboardInterrupt):
            backup(source[0], str(tmp_path / name), stop)
    assert list(tmp_path.iterdir()) == []


def test_requests_that_wait_in_the_log_are_not_forgotten(tmp_path: Path) -> None:
    laid(tmp_path / "s")
    log = SegmentLog(tmp_path / "s" / "log", Signal.TRACES)
    log.append([b"acknowledged"])
    log.close()
    with pytest.raises(BackupError, match="1 segments"):
        backup(f"chdb://{tmp_path}/s", str(tmp_path / "b"))
    with pytest.raises(StoreUnavailable, match="no store"):
        backup(f"chdb://{tmp_path}/nothing", str(tmp_path / "b"))
    assert not (tmp_path / "b").exists()


def test_what_the_collector_remembers_is_no_request_that_waits(made: Path, tmp_path: Path) -> None:
    """And it is forgotten with the rows that it stood for."""
    url = StoreUrl.parse(laid(tmp_path / "s"))
    Repeats(url.log_path).close()
    (remembered,) = url.log_path.iterdir()
    assert remembered.stat().st_size
    backup(url, str(tmp_path / "b"))
    restore(url, str(made))
    assert not remembered.exists()


HOLD = """
import sys
from spanloop_store import Engine
with Engine(sys.argv[1]) as engine:
    engine.client().command("INSERT INTO otel_logs (Timestamp, Body) VALUES (now64(9), 'acknowledged')")
"""


def test_nobody_begins_to_write_what_is_being_restored(made: Path, tmp_path: Path) -> None:
    url = f"chdb://{tmp_path}/s"
    refused: list[str] = []

    def start_another(line: str) -> None:
        if not refused and line.startswith("restoring"):
            other = subprocess.run(
                [sys.executable, "-c", HOLD, url], capture_output=True, text=True, timeout=60
            )
            refused.append(other.stderr)

    restore(url, str(made), start_another)
    assert "StoreLocked" in refused[0]
    assert f"process {os.getpid()}" in refused[0]
    connect(url).close()


def test_a_restore_that_fails_leaves_what_was_there(made: Path, tmp_path: Path) -> None:
    def stop(line: str) -> None:
        if line.startswith("restoring"):
            raise KeyboardInterrupt

    laid(tmp_path / "old")
    (tmp_path / "old" / "quarantine" / "kept").write_text("x")
    for name in ("old", "new"):
        with pytest.raises(KeyboardInterrupt):
            restore(f"chdb://{tmp_path}/{name}", str(made), stop)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert not (tmp_path / "old" / "restoring").exists()
    assert (tmp_path / "old" / "quarantine" / "kept").exists()
    connect(f"chdb://{tmp_path}/old").close()


def test_a_folder_whose_name_a_url_reads_otherwise(made: Path, tmp_path: Path) -> None:
    """Not the store at the part before the sign."""
    assert restore(f"chdb://{tmp_path}/a%23b%2541", str(made)).rows["otel_traces"] == SPANS
    assert [path.name for path in tmp_path.iterdir()] == ["a#b%41"]


@pytest.mark.parametrize("what", ["table", "file", "bytes", "number"])
def test_a_manifest_that_says_what_none_of_ours_says(made: Path, tmp_path: Path, what: str) -> None:
    """Whoever made it must not have SQL run, or read files from elsewhere."""
    shutil.copytree(made, tmp_path / "b")
    manifest = tmp_path / "b" / "manifest.json"
    record = json.loads(manifest.read_text())
    evil = tmp_path / "evil"
    if what == "table":
        sql = f"FUNCTION file('{evil}', 'TSV', 'a String') SELECT 'x' --"
        pieces = record["tables"]["rewards"]["pieces"]
        record["tables"][sql] = {"columns": {}, "rows": 0, "hash": 0, "pieces": pieces}
    elif what == "file":
        for piece in record["tables"]["rewards"]["pieces"]:
            piece["file"] = f"../b/{piece['file']}"
    elif what == "number":
        record["schema_version"] = "three"
    manifest.write_bytes(b"\xff{" if what == "bytes" else json.dumps(record).encode())
    with pytest.raises(BackupError) as caught:
        restore(f"chdb://{tmp_path}/s", str(tmp_path / "b"))
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("name", ["b", "b.tar"])
def test_two_backups_do_not_write_one_file(
    source: tuple[str, dict[str, Any]], tmp_path: Path, name: str
) -> None:
    target = tmp_path / name
    seen: list[str] = []

    def begin_another(line: str) -> None:
        if "otel_traces" in line:
            with pytest.raises(BackupError, match="another backup") as caught:
                Writer(target)
            seen.append(caught.value.hint)

    backup(source[0], str(target), begin_another)
    assert seen
    assert restore(f"chdb://{tmp_path}/r", str(target)).rows["otel_traces"] == SPANS


@pytest.mark.parametrize("name", ["b", "b.tar"])
def test_what_a_killed_backup_left_is_written_anew(
    source: tuple[str, dict[str, Any]], tmp_path: Path, name: str
) -> None:
    kill = "import os, sys, pathlib; from spanloop_store.archive import Writer; w = Writer(pathlib.Path(sys.argv[1])); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", kill, str(tmp_path / name)]).returncode == 9
    assert (tmp_path / f"{name}.part").exists()
    assert backup(source[0], str(tmp_path / name)).rows["otel_traces"] == SPANS
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_store_that_is_open_elsewhere_is_not_replaced(tmp_path: Path, made: Path) -> None:
    url = f"chdb://{tmp_path}/s"
    with Engine(url):
        write_owner(url, Owner(1, 1.0, "http://127.0.0.1:1"))
        try:
            with pytest.raises(BackupError, match="open in another process") as caught:
                restore(url, str(made))
        finally:
            remove_owner(url)
    assert "stop" in caught.value.hint
    connect(url).close()


def test_what_was_erased_and_who_did_it_outlive_a_restore(tmp_path: Path) -> None:
    """A backup of before an erasure brings the rows back, and what removes them is still known."""
    from spanloop_store import audit, erase
    from spanloop_store.subjects import Subject

    url, trace = laid(tmp_path / "s"), f"{1:032x}"
    with Engine(url) as engine:
        client = engine.client()
        client.command(f"INSERT INTO otel_traces (Timestamp, TraceId) VALUES (now64(9), '{trace}')")
        backup(url, str(tmp_path / "b"))
        found = erase.find(client, Subject("trace", trace))
        erase.mark(client, found, "a test")
        erase.delete(client, found)
        audit.record(client, "erase", f"trace:{trace}", {}, "a test")
    restore(url, str(tmp_path / "b"))
    with Engine(url) as engine:
        client = engine.client()
        assert [entry.action for entry in audit.entries(client)] == [
            "restore",
            "retention",
            "erase",
            "backup",
        ]
        assert erase.sweep(client) == {"otel_traces_trace_id_ts": 1, "otel_traces": 1}
        assert client.query("SELECT name FROM system.tables WHERE name = 'before_restore'").result_rows == []
