"""The stock collector's configuration has keys that exist, and rows that its ClickHouse exporter writes become transitions."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.collector.capture_process import Capture, running

from spanloop_collector.files import read_requests
from spanloop_collector.importing import import_files
from spanloop_store import connect
from spanloop_store.otlp.signals import Signal

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "collector" / "otelcol" / "config.yaml"
RECORDINGS = ROOT / "tests" / "fixtures"

# Keys of each component, from its documentation as of v0.141.0 (clickhouseexporter, exporterhelper, filestorage,
# otlpreceiver, configgrpc, confighttp, memorylimiterprocessor, healthcheckextension). None: any value.
_RETRY = dict.fromkeys(
    ("enabled", "initial_interval", "randomization_factor", "multiplier", "max_interval", "max_elapsed_time")
)
_QUEUE = {
    **dict.fromkeys(
        ("enabled", "num_consumers", "queue_size", "sizer", "block_on_overflow", "storage", "wait_for_result")
    ),
    "batch": dict.fromkeys(("flush_timeout", "min_size", "max_size", "sizer")),
}
KEYS: Mapping[str, Any] = {
    "extensions": {
        "health_check": dict.fromkeys(("endpoint", "path", "response_body", "tls")),
        "file_storage": {
            **dict.fromkeys(
                ("directory", "timeout", "fsync", "create_directory", "directory_permissions", "recreate")
            ),
            "compaction": dict.fromkeys(
                (
                    "on_start",
                    "on_rebound",
                    "directory",
                    "max_transaction_size",
                    "cleanup_on_start",
                    "rebound_needed_threshold_mib",
                    "rebound_trigger_threshold_mib",
                    "check_interval",
                )
            ),
        },
    },
    "receivers": {
        "otlp": {
            "protocols": {
                "grpc": dict.fromkeys(("endpoint", "max_recv_msg_size_mib", "tls", "auth", "keepalive")),
                "http": dict.fromkeys(
                    ("endpoint", "max_request_body_size", "tls", "auth", "cors", "compression_algorithms")
                ),
            }
        }
    },
    "processors": {
        "memory_limiter": dict.fromkeys(
            ("check_interval", "limit_mib", "spike_limit_mib", "limit_percentage", "spike_limit_percentage")
        )
    },
    "exporters": {
        "clickhouse": {
            **dict.fromkeys(
                (
                    "endpoint",
                    "username",
                    "password",
                    "database",
                    "ttl",
                    "connection_params",
                    "create_schema",
                    "compress",
                    "async_insert",
                    "tls",
                    "logs_table_name",
                    "traces_table_name",
                    "metrics_tables",
                    "cluster_name",
                    "table_engine",
                    "timeout",
                    "json",
                )
            ),
            "sending_queue": _QUEUE,
            "retry_on_failure": _RETRY,
        }
    },
}
# `VALUES` of clickhouseexporter v0.141.0, internal/sqltemplates/traces_insert.sql, in its order.
TRACES_INSERT = (
    "Timestamp", "TraceId", "SpanId", "ParentSpanId", "TraceState", "SpanName", "SpanKind", "ServiceName",
    "ResourceAttributes", "ScopeName", "ScopeVersion", "SpanAttributes", "Duration", "StatusCode", "StatusMessage",
    "Events.Timestamp", "Events.Name", "Events.Attributes",
    "Links.TraceId", "Links.SpanId", "Links.TraceState", "Links.Attributes",
)  # fmt: skip
# The same of logs_insert.sql; EventName where the table has it, which ours does.
LOGS_INSERT = (
    "Timestamp", "TraceId", "SpanId", "TraceFlags", "SeverityText", "SeverityNumber", "ServiceName", "Body",
    "ResourceSchemaUrl", "ResourceAttributes", "ScopeSchemaUrl", "ScopeName", "ScopeVersion", "ScopeAttributes",
    "LogAttributes", "EventName",
)  # fmt: skip
_DURATION = re.compile(r"\d+(ms|s|m|h)")


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    return found


def unknown(found: Any, allowed: Any, path: str = "") -> Iterator[str]:
    """Keys of `found` that are not allowed."""
    if allowed is None:
        return
    for key, value in found.items():
        name = key.partition("/")[0]  # `clickhouse/second` is a component of the type in front of the slash
        if name not in allowed:
            yield f"{path}{key}"
        else:
            yield from unknown(value, allowed[name], f"{path}{key}.")


def test_every_key_is_documented(config: dict[str, Any]) -> None:
    assert set(config) == {*KEYS, "service"}
    assert list(unknown({part: config[part] for part in KEYS}, KEYS)) == []
    config["exporters"]["clickhouse"]["sending_queue"]["batches"] = {}
    assert list(unknown(config["exporters"], KEYS["exporters"])) == ["clickhouse.sending_queue.batches"]
    del config["exporters"]["clickhouse"]["sending_queue"]["batches"]


def test_pipelines_name_what_is_configured(config: dict[str, Any]) -> None:
    service = config["service"]
    assert set(service) == {"extensions", "pipelines"}
    assert set(service["extensions"]) == set(config["extensions"])
    assert set(service["pipelines"]) == {"traces", "logs"}
    for pipeline in service["pipelines"].values():
        for kind in ("receivers", "processors", "exporters"):
            assert pipeline[kind]
            assert set(pipeline[kind]) <= set(config[kind])
        assert pipeline["processors"][0] == "memory_limiter"


def test_what_is_acknowledged_is_on_disk_and_never_given_up(config: dict[str, Any]) -> None:
    exporter = config["exporters"]["clickhouse"]
    queue, retry = exporter["sending_queue"], exporter["retry_on_failure"]
    assert queue["storage"] in config["service"]["extensions"]
    assert config["extensions"]["file_storage"]["fsync"] is True
    # It would hold acknowledged spans in memory in front of the queue.
    assert "batch" not in config["processors"]
    assert queue["batch"]["max_size"] <= queue["queue_size"]
    assert queue["batch"]["max_size"] >= queue["batch"]["min_size"]
    assert queue["block_on_overflow"] is True
    assert (retry["enabled"], retry["max_elapsed_time"]) == (True, "0s")
    assert all(_DURATION.fullmatch(retry[name]) for name in ("initial_interval", "max_interval"))


def test_it_writes_into_our_tables_and_does_not_make_them(config: dict[str, Any], tmp_path: Path) -> None:
    exporter = config["exporters"]["clickhouse"]
    assert exporter["create_schema"] is False
    client = connect(f"chdb://{tmp_path}/s")
    try:
        for table, columns in (("traces", TRACES_INSERT), ("logs", LOGS_INSERT)):
            name = exporter[f"{table}_table_name"]
            described = client.query(f"DESCRIBE TABLE {name}").result_rows
            defaults = {row[0] for row in described if row[2]}
            assert {row[0] for row in described} - defaults == set(columns)
    finally:
        client.close()


# ---- rows as the exporter makes them


def as_string(value: Any) -> str:
    """pcommon.Value.AsString: what an attribute's value is in a Map(String, String)."""
    kind = value.WhichOneof("value")
    if kind is None:
        return ""
    if kind == "bool_value":
        return "true" if value.bool_value else "false"
    if kind == "bytes_value":
        return b64encode(value.bytes_value).decode()
    if kind in ("array_value", "kvlist_value"):
        return json.dumps(as_raw(value), separators=(",", ":"), ensure_ascii=False)
    if kind == "double_value":
        return json.dumps(value.double_value)
    return str(getattr(value, kind))


def as_raw(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [as_raw(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        pairs = sorted(value.kvlist_value.values, key=lambda pair: pair.key)
        return {pair.key: as_raw(pair.value) for pair in pairs}
    return getattr(value, kind) if kind else None


def as_map(attributes: Any) -> dict[str, str]:
    return {pair.key: as_string(pair.value) for pair in attributes}


def exporter_rows(request: ExportTraceServiceRequest) -> Iterator[list[Any]]:
    """pushTraceData: one row a span, in the order of TRACES_INSERT."""
    kinds = ("Unspecified", "Internal", "Server", "Client", "Producer", "Consumer")
    for resource in request.resource_spans:
        resource_map = as_map(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield [
                    span.start_time_unix_nano,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.trace_state,
                    span.name,
                    kinds[span.kind],
                    resource_map.get("service.name", ""),
                    resource_map,
                    scope.scope.name,
                    scope.scope.version,
                    as_map(span.attributes),
                    span.end_time_unix_nano - span.start_time_unix_nano,
                    ("Unset", "Ok", "Error")[span.status.code],
                    span.status.message,
                    [event.time_unix_nano for event in span.events],
                    [event.name for event in span.events],
                    [as_map(event.attributes) for event in span.events],
                    [link.trace_id.hex() for link in span.links],
                    [link.span_id.hex() for link in span.links],
                    [link.trace_state for link in span.links],
                    [as_map(link.attributes) for link in span.links],
                ]


NAMES = ("a_sync_multi_turn", "a_sync_parallel_tools", "a_sync_err429", "c_langchain_multi_turn", "oi_a_sync")


@pytest.fixture(scope="module")
def paths() -> list[Path]:
    return [RECORDINGS / "otlp" / f"{name}.json" for name in NAMES]


def insert_as_the_exporter_does(capture: Capture, paths: list[Path]) -> int:
    """Through ClickHouse's HTTP protocol, as a native block; the number of rows."""
    found = [
        row
        for path in paths
        for request in read_requests(path)
        if request.signal is Signal.TRACES
        for row in exporter_rows(ExportTraceServiceRequest.FromString(request.checked.payload))
    ]
    with contextlib.closing(connect(capture.url)) as client:
        client.insert("otel_traces", found, column_names=list(TRACES_INSERT))
    return len(found)


ROWS = f"SELECT {', '.join(f'`{name}`' for name in TRACES_INSERT)} FROM otel_traces ORDER BY TraceId, SpanId"


def stored(capture: Capture) -> list[Any]:
    return capture.query(ROWS)


def build(capture: Capture, out: Path) -> pl.DataFrame:
    command = [sys.executable, "-m", "spanloop.main", "build", "--out", str(out), "--store", capture.url]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    return pl.read_parquet(out / "transitions.parquet")


def test_its_rows_are_ours_and_become_transitions(paths: list[Path], tmp_path: Path) -> None:
    with running(tmp_path / "theirs") as theirs:
        count = insert_as_the_exporter_does(theirs, paths)
        their_rows, table = stored(theirs), build(theirs, tmp_path / "dataset")
    ours = f"chdb://{tmp_path}/ours"
    import_files(ours, paths, lambda _line: None)
    with contextlib.closing(connect(ours)) as client:
        our_rows = [tuple(row) for row in client.query(ROWS).result_rows]
    assert len(their_rows) == count
    assert their_rows == our_rows
    assert table.height >= len(NAMES)
    assert set(table["status"].unique()) >= {"ok", "error"}
