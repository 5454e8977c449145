"""Run as a program: the cluster's schema on an engine that is the only node of a cluster; prints what it found as JSON.

Keeper is what one process cannot have: Replicated engines become plain ones and ON CLUSTER goes. Everything else is as printed:
distributed tables over a shard that the engine itself is, views on the local tables, settings, TTLs.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import spanloop_store.engine as engine_module
from spanloop_store import Engine, evaluations, registry
from spanloop_store.connection import _set_up_for_cluster
from spanloop_store.ddl import Layout, cluster_ddl
from spanloop_store.errors import SchemaError
from spanloop_store.migrate import Migration, migrate, migrations, schema_version
from spanloop_store.otlp.frames import frame
from spanloop_store.otlp.insert import SegmentInserter
from spanloop_store.otlp.signals import Signal, message_type
from spanloop_store.retention import read_retention, set_retention
from spanloop_store.tables import read_columns, read_tables

CLUSTER = """
  <tcp_port>9000</tcp_port>
  <remote_servers><one><shard><replica><host>127.0.0.1</host><port>9000</port></replica></shard></one></remote_servers>
  <profiles>"""


def alone(statement: str) -> str:
    """A statement without what needs Keeper."""
    plain = re.sub(r"ReplicatedMergeTree\('[^']*', '[^']*'\)", "MergeTree", statement).replace(
        " ON CLUSTER 'one'", ""
    )
    window = r"\breplicated_deduplication_window = (\d+), replicated_deduplication_window_seconds = \d+"
    return re.sub(window, r"non_replicated_deduplication_window = \1", plain)


def made(client: Any) -> list[str]:
    """Names of rewards that were made of events, here and as all nodes have them."""
    sql = "SELECT name FROM {} WHERE id != 'r'"
    return [
        str(row[0])
        for table in ("rewards", "rewards_local")
        for row in client.query(sql.format(table)).result_rows
    ]


def main(folder: Path) -> None:
    engine_module._ACCESS_XML = engine_module._ACCESS_XML.replace("<profiles>", CLUSTER.strip(), 1)
    engine_module.migrate = lambda client: 0  # type: ignore[assignment]  # the schema comes from the DDL alone
    with Engine(f"chdb://{folder}/s") as engine:
        client = engine.client()
        statements = cluster_ddl(Layout("one", days=30))
        for _ in range(2):  # each can run twice
            for statement in statements:
                client.command(alone(statement))
        _set_up_for_cluster(client)
        found: dict[str, object] = {"version": schema_version(client), "migrate": migrate(client)}
        try:
            later = Migration(len(migrations()) + 1, "later", ("SELECT 1",))
            migrate(client, [*migrations(), later])
        except SchemaError as error:
            found["later"] = str(error)
        tables = read_tables(client)
        found["columns"] = {name: read_columns(client, name) for name in tables}
        found["engines"] = {name: table.engine for name, table in tables.items()}

        request = message_type(Signal.TRACES)()
        spans = request.resource_spans.add().scope_spans.add().spans
        for number in range(20):
            span = spans.add()
            span.trace_id, span.span_id = number.to_bytes(16, "big"), (number + 1).to_bytes(8, "big")
            span.start_time_unix_nano = span.end_time_unix_nano = 1_900_000_000_000_000_000
        segment = folder / "segment"
        segment.write_bytes(frame(request.SerializeToString()))
        inserter = SegmentInserter(client, embedded=True, quarantine=folder / "q")
        for again in (False, False, True):
            inserter.insert(segment, Signal.TRACES, again=again)
        client.command("INSERT INTO rewards (id, time, trace_id) VALUES ('r', now64(9), 't')")
        # An evaluation event goes through the views of the local tables; an upgrade makes what they have not seen.
        request = message_type(Signal.LOGS)()
        record = request.resource_logs.add().scope_logs.add().log_records.add(event_name=evaluations.EVENT)
        record.time_unix_nano = 1_900_000_000_000_000_000
        for key, text in (("gen_ai.evaluation.name", "n"), ("gen_ai.evaluation.score.value", "1")):
            record.attributes.add(key=key).value.string_value = text
        segment.write_bytes(frame(request.SerializeToString()))
        found["evaluation events"] = []
        upgrade = cluster_ddl(Layout("one", days=30), since=evaluations.VERSION - 1)
        for again in (False, True):
            inserter.insert(segment, Signal.LOGS, again=again)
            found["evaluation events"] += [made(client)]
            client.command("DELETE FROM rewards_local WHERE id != 'r'")
            for statement in upgrade:
                client.command(alone(statement))
            found["evaluation events"] += [made(client)]
        registry.register_model(client, "m", "/m")
        registry.point_alias(client, "m", "candidate", 1, action="point")
        found["counts"] = {
            name: int(client.command(f"SELECT count() FROM {name}"))
            for name in (
                "otel_traces",
                "otel_traces_local",
                "otel_traces_trace_id_ts",
                "rewards",
                "rewards_local",
            )
        }
        found["model"] = registry.resolve(client, "m@candidate").id
        # Two distributed tables in one query: refused by default, not by our connections.
        found["join"] = client.query(
            "SELECT count() FROM otel_traces WHERE TraceId IN (SELECT TraceId FROM otel_traces_trace_id_ts)"
        ).result_rows[0][0]
        found["kept"] = [[kept.table, kept.days] for kept in read_retention(client)]
        real = client.command
        client.command = lambda sql, *args, **more: real(sql.replace(" ON CLUSTER `one`", ""), *args, **more)
        found["kept after"] = [[kept.table, kept.days] for kept in set_retention(client, 7)]
        print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
