"""The endpoint as clickhouse-go sees it, and with it Grafana's plugin and the stock collector's exporter."""

import json
import re
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.collector.go_client import GoClient, GoError
from tests.collector.served_endpoint import Served, serving
from tests.dashboards.grafana import ALL, Context, Variable, expand

DASHBOARDS = Path(__file__).parents[2] / "dashboards"
COMPRESSIONS = ["none", "lz4", "gzip", "deflate", "br"]
SPANS = 5


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("endpoint")) as served:
        served.client().command(
            "INSERT INTO otel_traces (Timestamp, TraceId, SpanId, SpanName, ServiceName, SpanAttributes, Events.Timestamp,"
            " Events.Name, Events.Attributes, Duration, StatusCode)"
            " SELECT toDateTime64('2026-01-02 03:04:05.5', 9, 'UTC'), 'trace', toString(number), 'chat', 'agent',"
            " map('gen_ai.operation.name', 'chat', 'gen_ai.response.id', toString(number)), [now64(9)], ['e'],"
            f" [map('k', 'v')], 1000000, 'Ok' FROM numbers({SPANS})"
        )
        yield served


def go(served: Served, compression: str = "none", reader: bool = True, **settings: str) -> GoClient:
    user = served.credentials.reader if reader else served.credentials.writer
    return GoClient(served.port, user.name, user.password, compression, **settings)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_the_preflight_is_read_at_the_clients_revision(served: Served, compression: str) -> None:
    client = go(served, compression, enable_http_compression="1")
    assert client.display_name
    assert re.match(r"\d+\.\d+", client.version)
    assert client.query("SELECT 1").rows == [(1,)]  # the driver's ping


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_later_queries_in_many_blocks(served: Served, compression: str) -> None:
    rows = go(served, compression, enable_http_compression="1").query(
        "SELECT number, toString(number) AS s, toLowCardinality(if(number % 2 = 0, 'even', 'odd')) AS l,"
        " CAST(if(number % 3 = 0, NULL, 'x'), 'LowCardinality(Nullable(String))') AS n,"
        " range(number % 4) AS a, map('k', number) AS m, (number, s) AS t, if(number = 1, NULL, number) AS u,"
        " CAST(map('a', s), 'Map(LowCardinality(String), String)') AS p FROM numbers(3500) SETTINGS max_block_size = 1000"
    )
    assert len(rows.rows) == 3500
    for number in (0, 1, 3, 999, 1000, 3499):
        expected = (
            number,
            str(number),
            "odd" if number % 2 else "even",
            None if number % 3 == 0 else "x",
            list(range(number % 4)),
            {"k": number},
            (number, str(number)),
            None if number == 1 else number,
            {"a": str(number)},
        )
        assert rows.rows[number] == expected


def test_whole_spans(served: Served) -> None:
    rows = go(served).query("SELECT * FROM otel_traces ORDER BY SpanId")
    assert len(rows.columns) == 22
    row = dict(zip(rows.columns, rows.rows[0], strict=True))
    assert row["SpanAttributes"] == {"gen_ai.operation.name": "chat", "gen_ai.response.id": "0"}
    assert row["Events.Attributes"] == [{"k": "v"}]
    assert row["Timestamp"] == 1_767_323_045_500_000_000


@pytest.mark.parametrize("waiting", ["0", "1"])
def test_an_empty_answer_has_its_columns(served: Served, waiting: str) -> None:
    rows = go(served).query("SELECT TraceId, Timestamp FROM otel_traces WHERE 0", wait_end_of_query=waiting)
    assert (rows.columns, rows.rows) == (["TraceId", "Timestamp"], [])


@pytest.mark.parametrize(
    "sql", ["SHOW TABLES", "DESCRIBE TABLE otel_traces", "EXISTS TABLE otel_logs", "EXPLAIN SELECT 1"]
)
def test_statements_that_are_no_select(served: Served, sql: str) -> None:
    assert go(served).query(sql).rows


def test_what_cannot_be_framed_is_said_and_not_garbled(served: Served) -> None:
    with pytest.raises(GoError, match=r"AggregateFunction.*toString"):
        go(served).query("SELECT sumState(number) AS s, 1 AS b FROM numbers(3)")
    assert go(served).query("SELECT finalizeAggregation(sumState(number)) FROM numbers(3)").rows == [(3,)]


@pytest.mark.parametrize("compression", ["none", "lz4", "gzip"])
def test_errors_are_read(served: Served, compression: str) -> None:
    with pytest.raises(GoError, match=r"HTTP 404.*UNKNOWN_TABLE"):
        go(served, compression, enable_http_compression="1").query("SELECT * FROM nope")


@pytest.mark.parametrize("compression", ["none", "lz4", "gzip"])
def test_an_error_after_rows_is_an_error(served: Served, compression: str) -> None:
    with pytest.raises(GoError, match=r"throwIf|FUNCTION_THROW"):
        go(served, compression, enable_http_compression="1").query(
            "SELECT throwIf(number = 900000) FROM numbers(1000000)"
        )


@pytest.mark.parametrize("version", ["1", "54404", "54485", "-1", "x"])
def test_revisions_that_are_not_served(served: Served, version: str) -> None:
    status, _, body = served.send("SELECT 1", default_format="Native", client_protocol_version=version)
    assert (status, b"client_protocol_version" in body) == (400, True)
    assert served.send("SELECT 1", client_protocol_version="54454")[2] == b"1\n"


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_batch_as_the_stock_exporter_sends_it(served: Served, compression: str) -> None:
    client = go(served, compression, reader=False)
    described = {row[0]: row[1] for row in client.query("DESCRIBE TABLE `default`.`otel_logs`").rows}
    names = ["Timestamp", "SeverityText", "Body", "LogAttributes"]
    one_key = struct.pack("<QQQQ", 1, 1 << 9, 1, 0)[:24]
    columns = [
        struct.pack("<q", 1_767_323_045_000_000_000),
        one_key + b"\x04INFO" + struct.pack("<QB", 1, 0),
        bytes([len(compression) + 4]) + f"via {compression}".encode(),
        struct.pack("<QQ", 1, 1)
        + struct.pack("<QQ", 1 << 9, 1)
        + b"\x01k"
        + struct.pack("<QB", 1, 0)
        + b"\x01v",
    ]
    client.insert(
        "INSERT INTO `default`.`otel_logs` (" + ", ".join(f"`{name}`" for name in names) + ")",
        names,
        [described[name] for name in names],
        1,
        columns,
    )
    rows = client.query(
        f"SELECT SeverityText, LogAttributes, toString(TimestampTime, 'UTC') FROM otel_logs WHERE Body = 'via {compression}'"
    ).rows
    assert rows == [("INFO", {"k": "v"}, "2026-01-02 03:04:05")]


def panels() -> list[Any]:
    return [
        pytest.param(path.stem, panel["title"], target["rawSql"], id=f"{path.stem}-{panel['title']}-{number}")
        for path in sorted(DASHBOARDS.glob("*.json"))
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]
        for number, target in enumerate(panel.get("targets", []))
    ]


@pytest.mark.parametrize(("dashboard", "title", "sql"), panels())
def test_every_panel_through_the_read_only_user(served: Served, dashboard: str, title: str, sql: str) -> None:
    templating = json.loads((DASHBOARDS / f"{dashboard}.json").read_text(encoding="utf-8"))["templating"]
    variables = {
        variable["name"]: Variable(variable["query"] if variable["type"] == "textbox" else ALL, ["agent"])
        for variable in templating["list"]
    }
    span = Context(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 4, tzinfo=UTC), variables=variables)
    rows = go(served, "gzip", enable_http_compression="1").query(expand(sql, span))
    assert rows.columns, title


def test_the_exporters_default_settings(served: Served) -> None:
    """`async_insert` is on in clickhouseexporter: the row is there when the insert returns all the same."""
    client = go(served, "lz4", reader=False, async_insert="1", wait_for_async_insert="1")
    body = b"\x04last"
    client.insert("INSERT INTO otel_logs (`Body`)", ["Body"], ["String"], 1, [body])
    assert client.query("SELECT count() FROM otel_logs WHERE Body = 'last'").rows == [(1,)]
