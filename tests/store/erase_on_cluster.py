"""Run as a program: an erasure on the cluster's tables, on an engine that is the only node; prints what it found as JSON."""

import json
import sys
from pathlib import Path
from typing import Any

from tests.store.cluster_of_one import CLUSTER, alone

import spanloop_store.engine as engine_module
from spanloop_store import Engine, erase
from spanloop_store.connection import _set_up_for_cluster
from spanloop_store.ddl import Layout, cluster_ddl
from spanloop_store.subjects import Subject

TRACE = f"{1:032x}"


def main(folder: Path) -> None:
    engine_module._ACCESS_XML = engine_module._ACCESS_XML.replace("<profiles>", CLUSTER.strip(), 1)
    engine_module.migrate = lambda client: 0  # type: ignore[assignment]  # the schema comes from the DDL alone
    with Engine(f"chdb://{folder}/s") as engine:
        client: Any = engine.client()
        for statement in cluster_ddl(Layout("one", days=30)):
            client.command(alone(statement))
        _set_up_for_cluster(client)
        for trace in (TRACE, f"{2:032x}"):
            client.command(
                f"INSERT INTO otel_traces_local (Timestamp, TraceId, SpanAttributes) VALUES (now64(9), '{trace}', map('user.id', '{trace[-1]}'))"
            )
            client.command(f"INSERT INTO otel_logs_local (Timestamp, TraceId) VALUES (now64(9), '{trace}')")
            client.command(
                f"INSERT INTO rewards_local (id, time, trace_id) VALUES ('r', now64(9), '{trace}')"
            )
        said: list[str] = []
        real = client.command

        def command(sql: str, *args: Any, **more: Any) -> Any:
            said.append(sql)
            if sql.startswith("SYSTEM SYNC REPLICA"):
                return None  # there is no other
            return real(sql.replace(" ON CLUSTER `one`", ""), *args, **more)

        client.command = command
        found = erase.find(client, Subject("user", "1"))
        erase.mark(client, found, "a test")
        deleted = erase.delete(client, found)
        again = erase.find(client, Subject("user", "1"))
        left = {name: client.query(f"SELECT count() FROM {name}").result_rows[0][0] for name in erase.TABLES}
        print(
            json.dumps(
                {
                    "traces": found.traces,
                    "rows": found.rows,
                    "again": again.rows,
                    "left": left,
                    "said": [sql for sql in said if sql.startswith(("ALTER", "SYSTEM"))],
                    "waiting": deleted.left,
                    "sweep": erase.sweep(client),
                }
            )
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
