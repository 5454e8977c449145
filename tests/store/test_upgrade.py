"""Stores of every earlier schema version, and tables of stock collectors, become ours with every row they had."""

import itertools
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from chdb import connect
from tests.helpers.stores import laid
from tests.store.raw_store import SNAPSHOTS, fill

import spanloop_store.migrate as migrate_module
from spanloop_store import Engine, SchemaError
from spanloop_store.adopt import ADDED, COLUMNS, COMPATIBLE, NOT_NEEDED, WRONG, differences
from spanloop_store.migrate import migrations, schema_version
from spanloop_store.otlp.frames import frame
from spanloop_store.otlp.insert import SegmentInserter
from spanloop_store.otlp.signals import Signal, message_type
from spanloop_store.retention import ttl_clause
from spanloop_store.tables import UPSTREAM, read_columns, read_tables

VERSIONS = ["version_1", "version_2", "version_2_synced"]
STOCK = ["stock_early", "stock_0_141", "stock_0_151"]
CHANGED = ("non_replicated_deduplication_window", "fsync_after_insert", "fsync_part_directory")


def tables_of(client: Any) -> dict[str, str]:
    """Each table's definition, without what an upgrade may order otherwise."""
    return {
        name: re.sub(r" TTL .*?(?= SETTINGS)", "", table.definition)
        for name, table in read_tables(client).items()
        if name not in ("spanloop_schema",)
    }


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a new store has."""
    with Engine(laid(tmp_path_factory.mktemp("fresh") / "s")) as engine:
        client = engine.client()
        tables = tables_of(client)
        return {"tables": tables, "columns": {name: read_columns(client, name) for name in tables}}


def settings_of(definition: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+) = (\w+)", definition.partition("SETTINGS")[2]))


@pytest.mark.parametrize("snapshot", [*VERSIONS, *STOCK])
def test_what_others_left_becomes_ours(tmp_path: Path, fresh: dict[str, Any], snapshot: str) -> None:
    fill(tmp_path / "s", snapshot)
    with Engine(f"chdb://{tmp_path}/s") as engine:
        client = engine.client()
        assert schema_version(client) == len(migrations())
        no_row_is_lost(client, snapshot)
        if snapshot in VERSIONS:
            tables_are_as_of_a_new_store(client, fresh)
        else:
            tables_are_adopted(client)
        a_segment_goes_in_once(client, tmp_path)


def tables_are_as_of_a_new_store(client: Any, fresh: dict[str, Any]) -> None:
    found = tables_of(client)
    assert found.keys() == fresh["tables"].keys()
    for name, definition in fresh["tables"].items():
        assert read_columns(client, name) == fresh["columns"][name], name
        assert found[name].partition(" SETTINGS")[0] == definition.partition(" SETTINGS")[0], name
        assert settings_of(found[name]) == settings_of(definition), name


def no_row_is_lost(client: Any, snapshot: str) -> None:
    text = (SNAPSHOTS / f"{snapshot}.sql").read_text(encoding="utf-8")
    for table in set(re.findall(r"^INSERT INTO (\w+)", text, re.MULTILINE)) - {"spanloop_schema"}:
        lines = re.findall(rf"^INSERT INTO {table} .*? VALUES (.*);$", text, re.MULTILINE)
        rows = sum(len(re.findall(r"(?:^|, )\((?=')", line)) for line in lines)
        assert rows
        assert client.command(f"SELECT count() FROM {table}") == rows, table
    assert client.query(
        "SELECT TraceId, toUnixTimestamp64Nano(Timestamp) FROM otel_traces ORDER BY Timestamp LIMIT 1"
    ).result_rows == [("trace-1", 1_772_359_200_000_000_001)]
    assert client.command("SELECT count() FROM otel_traces_trace_id_ts WHERE TraceId = 'trace-1'") == 1


def tables_are_adopted(client: Any) -> None:
    for name in UPSTREAM:
        definition = read_tables(client)[name].definition
        assert all(setting in definition for setting in CHANGED), name
    assert not [found for found in differences(client) if found.verdict in (ADDED, WRONG)]


def a_segment_goes_in_once(client: Any, folder: Path) -> None:
    request = message_type(Signal.LOGS)()
    record = request.resource_logs.add().scope_logs.add().log_records.add()
    record.time_unix_nano = 1_772_359_200_000_000_000
    record.body.string_value = "new"
    record.event_name = "an event"
    segment = folder / "segment"
    segment.write_bytes(frame(request.SerializeToString()))
    inserter = SegmentInserter(client, embedded=True, quarantine=folder / "q")
    for again in (False, False, True):
        inserter.insert(segment, Signal.LOGS, again=again)
    assert client.query("SELECT Body, EventName FROM otel_logs WHERE Body = 'new'").result_rows == [
        ("new", "an event")
    ]


def test_a_stock_collectors_ttl_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANLOOP_RETENTION_DAYS", "20000")
    fill(tmp_path / "s", "stock_0_141")
    with Engine(f"chdb://{tmp_path}/s") as engine:
        tables = read_tables(engine.client())
    assert "TTL toDate(Timestamp) + toIntervalDay(20000) " in tables["otel_traces"].definition
    assert ttl_clause("otel_logs", 20000) in tables["otel_logs"].definition


@pytest.mark.parametrize(
    ("snapshot", "at"),
    [
        *itertools.product(["version_1", "version_2"], ["apply_default", "remember_inserts"]),
        *itertools.product(["stock_0_141"], ["adopt", "apply_default", "remember_inserts"]),
    ],
)
def test_an_upgrade_that_was_killed_is_finished(
    tmp_path: Path, fresh: dict[str, Any], snapshot: str, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_client: Any) -> None:
        raise KeyboardInterrupt

    fill(tmp_path / "s", snapshot)
    with monkeypatch.context() as patch:
        patch.setattr(migrate_module, at, killed)
        patch.setitem(migrate_module._AFTER, 3, migrate_module.apply_default)
        with pytest.raises(KeyboardInterrupt):
            Engine(f"chdb://{tmp_path}/s").close()
    with Engine(f"chdb://{tmp_path}/s") as engine:
        client = engine.client()
        assert schema_version(client) == len(migrations())
        no_row_is_lost(client, snapshot)
        if snapshot in VERSIONS:
            tables_are_as_of_a_new_store(client, fresh)
        else:
            tables_are_adopted(client)


def test_two_programs_upgrade_one_server_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "s", "stock_0_141")
    monkeypatch.setattr("spanloop_store.engine.migrate", lambda _client: 0)
    with Engine(f"chdb://{tmp_path}/s") as engine, ThreadPoolExecutor(4) as pool:
        together = threading.Barrier(4)

        def upgrade(client: Any) -> int:
            together.wait(60)
            return migrate_module.migrate(client)

        found = list(pool.map(upgrade, [engine.client() for _ in range(4)]))
        assert found == [len(migrations())] * 4
        client = engine.client()
        no_row_is_lost(client, "stock_0_141")
        tables_are_adopted(client)
        a_segment_goes_in_once(client, tmp_path)


def test_what_differs_is_said(tmp_path: Path) -> None:
    fill(tmp_path / "s", "stock_early")
    fill(tmp_path / "t", "stock_0_151")
    with Engine(f"chdb://{tmp_path}/t") as engine:
        (found,) = differences(engine.client())
        assert (found.column, found.verdict) == ("TimestampTime", NOT_NEEDED)
    with Engine(f"chdb://{tmp_path}/s") as engine:
        verdicts = {found.column: found.verdict for found in differences(engine.client())}
    assert verdicts == {
        "Start": COMPATIBLE,
        "End": COMPATIBLE,
        "TraceFlags": COMPATIBLE,
        "SeverityNumber": COMPATIBLE,
        "TimestampTime": NOT_NEEDED,
    }


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE otel_traces MODIFY COLUMN SpanAttributes String",
        "ALTER TABLE otel_traces DROP INDEX idx_trace_id, DROP COLUMN SpanId",
    ],
    ids=["type", "missing"],
)
def test_tables_that_do_not_fit_are_left_alone(tmp_path: Path, change: str) -> None:
    fill(tmp_path / "s", "stock_0_141")
    connection = connect(str(tmp_path / "s" / "engine"))
    if "SpanAttributes" in change:
        connection.query(
            "ALTER TABLE otel_traces DROP INDEX idx_span_attr_key, DROP INDEX idx_span_attr_value", "Null"
        )
        connection.query("ALTER TABLE otel_traces DROP COLUMN SpanAttributes", "Null")
        change = "ALTER TABLE otel_traces ADD COLUMN SpanAttributes String"
    connection.query(change, "Null")
    connection.close()
    with pytest.raises(SchemaError, match=r"otel_traces\.Span") as caught:
        Engine(f"chdb://{tmp_path}/s")
    assert "nothing was changed" in caught.value.message
    assert "RENAME TABLE" in caught.value.hint
    connection = connect(str(tmp_path / "s" / "engine"))
    tables = connection.query("SHOW TABLES", "TSV").bytes().decode().split()
    connection.close()
    assert "rewards" not in tables


def test_the_list_of_columns_is_the_migrations(fresh: dict[str, Any]) -> None:
    assert {name: fresh["columns"][name] for name in UPSTREAM} == COLUMNS
