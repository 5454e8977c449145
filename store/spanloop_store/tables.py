"""The tables of a store as the server has them: engine, and where the rows really lie."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

# Upstream's, which other programs may have made before us.
UPSTREAM: Final = ("otel_traces", "otel_traces_trace_id_ts", "otel_logs")
LOOKUP: Final = "otel_traces_trace_id_ts"
LOOKUP_VIEW: Final = "otel_traces_trace_id_ts_mv"
# Keeps no rows: what is inserted goes on to the views behind it.
PASSAGE: Final = "evaluation_events"
REGISTRY: Final = ("resources", "promotions", "datasets", "training_runs", "evaluations")
# Who did what, and what must not come back.
PRIVACY: Final = ("audit", "erasures")
# The time of a row, by which it belongs to a partition (a day).
TIME_COLUMNS: Final = {
    "otel_traces": "Timestamp",
    "otel_traces_trace_id_ts": "Start",
    "otel_logs": "Timestamp",
    "rewards": "time",
}
# What holds one trace together on a cluster.
SHARD_KEYS: Final = {
    "otel_traces": "cityHash64(TraceId)",
    "otel_traces_trace_id_ts": "cityHash64(TraceId)",
    # Logs of no trace would all lie on one shard. Not at random: a repeated insert must send the same rows to each shard.
    "otel_logs": "cityHash64(if(TraceId = '', toString(Timestamp), TraceId))",
    "rewards": "cityHash64(trace_id)",
}
_DISTRIBUTED = re.compile(r"Distributed\('([^']+)', '([^']*)', '([^']+)'")


@dataclass(frozen=True)
class Table:
    """One table.

    Args:
        name: as readers and writers say it.
        engine: `MergeTree`, `ReplicatedMergeTree`, `Distributed`, …
        definition: the engine's clause in full.
        local: the table that holds the rows, quoted with its database; the table itself unless it is distributed.
        cluster: the cluster that a distributed table spreads over; empty: none.
    """

    name: str
    engine: str
    definition: str
    local: str
    cluster: str = ""

    @property
    def on_cluster(self) -> str:
        """The clause that carries an ALTER to every node; empty where there is one."""
        return f" ON CLUSTER {quote_name(self.cluster)}" if self.cluster else ""

    @property
    def has_ttl(self) -> bool:
        """Whether its rows expire; for a distributed table, ask its local one."""
        return " TTL " in self.definition


def read_tables(client: Client) -> dict[str, Table]:
    """The tables of the client's database, by name."""
    rows: Any = client.query(
        "SELECT name, engine, engine_full FROM system.tables WHERE database = currentDatabase()"
    ).result_rows
    found = {}
    for name, engine, definition in rows:
        match = _DISTRIBUTED.match(definition) if engine == "Distributed" else None
        if match is None:
            found[name] = Table(name, engine, definition, quote_name(name))
        else:
            cluster, database, local = match.groups()
            prefix = f"{quote_name(database)}." if database else ""
            found[name] = Table(name, engine, definition, prefix + quote_name(local), cluster)
    return found


def holder(tables: dict[str, Table], name: str) -> Table:
    """The table that holds the rows of `name`: of a distributed one, its local part on this node, where it has one."""
    table = tables[name]
    return tables.get(table.local.split(".")[-1].strip("`"), table) if table.cluster else table


def read_columns(client: Client, table: str) -> dict[str, str]:
    """Names and types of a table's columns, in its order, without those that an INSERT may not name."""
    rows: Any = client.query(
        "SELECT name, type FROM system.columns WHERE database = currentDatabase() AND table = {table:String}"
        " AND default_kind NOT IN ('MATERIALIZED', 'ALIAS') ORDER BY position",
        parameters={"table": table},
    ).result_rows
    return dict(rows)


def quote_name(name: str) -> str:
    """A SQL identifier."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"
