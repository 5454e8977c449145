"""The schema: upstream's layout to the letter, twice is once, newer is refused."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spanloop_store import Engine, SchemaError
from spanloop_store.migrate import Migration, migrate, migrations, schema_version, split_statements

MAP = "Map(LowCardinality(String), String)"
LOW = "LowCardinality(String)"
TRACES = [
    ("Timestamp", "DateTime64(9)"),
    ("TraceId", "String"),
    ("SpanId", "String"),
    ("ParentSpanId", "String"),
    ("TraceState", "String"),
    ("SpanName", LOW),
    ("SpanKind", LOW),
    ("ServiceName", LOW),
    ("ResourceAttributes", MAP),
    ("ScopeName", "String"),
    ("ScopeVersion", "String"),
    ("SpanAttributes", MAP),
    ("Duration", "UInt64"),
    ("StatusCode", LOW),
    ("StatusMessage", "String"),
    ("Events.Timestamp", "Array(DateTime64(9))"),
    ("Events.Name", f"Array({LOW})"),
    ("Events.Attributes", f"Array({MAP})"),
    ("Links.TraceId", "Array(String)"),
    ("Links.SpanId", "Array(String)"),
    ("Links.TraceState", "Array(String)"),
    ("Links.Attributes", f"Array({MAP})"),
]
LOGS = [
    ("Timestamp", "DateTime64(9)"),
    ("TimestampTime", "DateTime"),
    ("TraceId", "String"),
    ("SpanId", "String"),
    ("TraceFlags", "UInt8"),
    ("SeverityText", LOW),
    ("SeverityNumber", "UInt8"),
    ("ServiceName", LOW),
    ("Body", "String"),
    ("ResourceSchemaUrl", LOW),
    ("ResourceAttributes", MAP),
    ("ScopeSchemaUrl", LOW),
    ("ScopeName", "String"),
    ("ScopeVersion", LOW),
    ("ScopeAttributes", MAP),
    ("LogAttributes", MAP),
    ("EventName", "String"),
]
LOOKUP = [("TraceId", "String"), ("Start", "DateTime"), ("End", "DateTime")]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Any]:
    with Engine(f"chdb://{tmp_path}/s") as engine:
        yield engine.client()


@pytest.mark.parametrize(
    ("table", "columns"), [("otel_traces", TRACES), ("otel_logs", LOGS), ("otel_traces_trace_id_ts", LOOKUP)]
)
def test_upstream_columns(client: Any, table: str, columns: list[tuple[str, str]]) -> None:
    rows = client.query(
        "SELECT name, type FROM system.columns WHERE database = 'default' AND table = {t:String} ORDER BY position",
        parameters={"t": table},
    ).result_rows
    assert [tuple(row) for row in rows] == columns


def test_deduplication_window(client: Any) -> None:
    for table in ("otel_traces", "otel_logs", "otel_traces_trace_id_ts", "rewards"):
        assert "non_replicated_deduplication_window" in client.command(f"SHOW CREATE TABLE {table}")


def test_rows_that_the_log_forgets_are_synced(client: Any) -> None:
    for table in ("otel_traces", "otel_logs", "otel_traces_trace_id_ts"):
        assert "fsync_after_insert = 1, fsync_part_directory = 1" in client.command(
            f"SHOW CREATE TABLE {table}"
        )


def test_the_lookup_view_fills_the_lookup_table(client: Any) -> None:
    client.command(
        "INSERT INTO otel_traces (Timestamp, TraceId, ServiceName) VALUES (100, 't', 's'), (200, 't', 's')"
    )
    assert client.query(
        "SELECT TraceId, count() FROM otel_traces_trace_id_ts GROUP BY TraceId"
    ).result_rows == [("t", 1)]


def test_twice_is_once(client: Any) -> None:
    before = client.query("SELECT version, name FROM spanloop_schema ORDER BY version").result_rows
    assert migrate(client) == before[-1][0] == len(migrations())
    assert client.query("SELECT version, name FROM spanloop_schema ORDER BY version").result_rows == before


def test_a_newer_schema_is_refused(client: Any) -> None:
    client.command("INSERT INTO spanloop_schema (version, name) VALUES (999, 'future')")
    with pytest.raises(SchemaError, match="999"):
        migrate(client)


def test_a_failing_migration_is_not_recorded(client: Any) -> None:
    version = schema_version(client)
    with pytest.raises(SchemaError, match="broken"):
        migrate(client, [*migrations(), Migration(version + 1, "broken", ("CREATE TABLE broken",))])
    assert schema_version(client) == version


def test_a_stock_collectors_tables_are_kept(client: Any) -> None:
    create = client.command("SHOW CREATE TABLE otel_logs").replace("\\n", "\n").replace("\\'", "'")
    client.command("DROP TABLE otel_logs")
    stock = re.sub(r", (non_replicated_deduplication_window|fsync_\w+) = \d+", "", create)
    assert stock != create
    client.command(stock)
    client.command("INSERT INTO otel_logs (Body) VALUES ('kept')")
    client.command("TRUNCATE TABLE spanloop_schema")
    migrate(client)
    assert client.command("SELECT Body FROM otel_logs") == "kept"
    for setting in ("non_replicated_deduplication_window", "fsync_after_insert", "fsync_part_directory"):
        assert setting not in stock
        assert setting in client.command("SHOW CREATE TABLE otel_logs")


def test_numbers_have_no_gaps() -> None:
    assert [step.version for step in migrations()] == list(range(1, len(migrations()) + 1))


def test_statements_are_split_at_line_ends_only() -> None:
    text = "-- a; comment\nSELECT ';' AS a,\n  1;\n\nSELECT 2 -- ; no end here\n  ;\nSELECT 3"
    assert list(split_statements(text)) == [
        "SELECT ';' AS a,\n  1",
        "SELECT 2 -- ; no end here\n  ",
        "SELECT 3",
    ]
