"""Upstream's tables that another program made: what differs from ours, what does not matter, and what we put right."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from spanloop_store.errors import SchemaError
from spanloop_store.tables import UPSTREAM, Table, quote_name, read_columns, read_tables

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

log = logging.getLogger(__name__)

_MAP = "Map(LowCardinality(String), String)"
_LOW = "LowCardinality(String)"
# As migration 0001 makes them.
COLUMNS: Final[dict[str, dict[str, str]]] = {
    "otel_traces": {
        "Timestamp": "DateTime64(9)", "TraceId": "String", "SpanId": "String", "ParentSpanId": "String",
        "TraceState": "String", "SpanName": _LOW, "SpanKind": _LOW, "ServiceName": _LOW, "ResourceAttributes": _MAP,
        "ScopeName": "String", "ScopeVersion": "String", "SpanAttributes": _MAP, "Duration": "UInt64",
        "StatusCode": _LOW, "StatusMessage": "String", "Events.Timestamp": "Array(DateTime64(9))",
        "Events.Name": f"Array({_LOW})", "Events.Attributes": f"Array({_MAP})", "Links.TraceId": "Array(String)",
        "Links.SpanId": "Array(String)", "Links.TraceState": "Array(String)", "Links.Attributes": f"Array({_MAP})",
    },
    "otel_traces_trace_id_ts": {"TraceId": "String", "Start": "DateTime", "End": "DateTime"},
    "otel_logs": {
        "Timestamp": "DateTime64(9)", "TimestampTime": "DateTime", "TraceId": "String", "SpanId": "String",
        "TraceFlags": "UInt8", "SeverityText": _LOW, "SeverityNumber": "UInt8", "ServiceName": _LOW, "Body": "String",
        "ResourceSchemaUrl": _LOW, "ResourceAttributes": _MAP, "ScopeSchemaUrl": _LOW, "ScopeName": "String",
        "ScopeVersion": _LOW, "ScopeAttributes": _MAP, "LogAttributes": _MAP, "EventName": "String",
    },
}  # fmt: skip
# Nothing of ours reads or writes it: clickhouseexporter v0.151.0 dropped it (#47720), older readers of Grafana's plugin use it.
_NOT_NEEDED: Final = {("otel_logs", "TimestampTime")}
# Without these it is some other table of the same name.
_ESSENTIAL: Final = frozenset({"Timestamp", "TraceId", "SpanId", "Start", "End"})

NOT_NEEDED: Final = "not needed"
COMPATIBLE: Final = "compatible"
ADDED: Final = "added"
WRONG: Final = "wrong"


@dataclass(frozen=True)
class Difference:
    """One column that is not as ours.

    Args:
        has: its type there; empty: it is missing.
        wants: its type with us.
        verdict: `not needed`, `compatible` (reads and writes work), `added` (it will be), or `wrong`.
    """

    table: str
    column: str
    has: str
    wants: str
    verdict: str

    def __str__(self) -> str:
        return f"{self.table}.{self.column} is {self.has or 'missing'}, not {self.wants}: {self.verdict}"


def differences(client: Client) -> list[Difference]:
    """How upstream's tables differ from ours where they exist; columns that only they have are fine."""
    found = []
    present = read_tables(client)
    for table in UPSTREAM:
        if table not in present:
            continue
        columns = read_columns(client, table)
        for column, wants in COLUMNS[table].items():
            has = columns.get(column, "")
            if has != wants:
                found.append(Difference(table, column, has, wants, _verdict(table, column, has, wants)))
    return found


def check(client: Client) -> list[Difference]:
    """The differences, none of which is in the way.

    Raises:
        SchemaError: a column that Spanloop cannot read or write as it is; nothing was changed.
    """
    found = differences(client)
    wrong = [difference for difference in found if difference.verdict == WRONG]
    if wrong:
        table = wrong[0].table
        raise SchemaError(
            "tables that another program made do not fit, and nothing was changed: "
            + "; ".join(map(str, wrong)),
            f"give Spanloop a database of its own, or move the table away: RENAME TABLE {table} TO {table}_before",
        )
    return found


def adopt(client: Client) -> list[Difference]:
    """Adds the columns that are missing; says once what differs. Rows, codecs, indexes and sorting keys stay.

    Raises:
        SchemaError: as `check`.
    """
    found = check(client)
    tables = read_tables(client)
    for difference in found:
        if difference.verdict == ADDED:
            table = tables[difference.table]
            for target in _places(table):
                client.command(
                    f"ALTER TABLE {target}{table.on_cluster}"
                    f" ADD COLUMN IF NOT EXISTS {quote_name(difference.column)} {difference.wants}"
                )
        log.info("%s", difference)
    return found


def _places(table: Table) -> list[str]:
    """A distributed table has columns of its own, beside those of the table that holds the rows."""
    return [table.local, quote_name(table.name)] if table.cluster else [table.local]


def _verdict(table: str, column: str, has: str, wants: str) -> str:
    if column == "Timestamp" and has and not has.startswith("DateTime64(9"):
        return WRONG  # times of spans are nanoseconds
    if not has:
        if (table, column) in _NOT_NEEDED:
            return NOT_NEEDED
        return WRONG if column in _ESSENTIAL else ADDED
    return COMPATIBLE if _family(has) == _family(wants) else WRONG


def _family(kind: str) -> str:
    """Types between which the engine converts without loss of what we keep in them."""
    kind = re.sub(r"LowCardinality\((\w+)\)", r"\1", kind)
    kind = re.sub(r"U?Int\d+", "Int", kind)
    kind = re.sub(r"DateTime64\(9, '[^']*'\)", "DateTime64(9)", kind)
    # The lookup's times were of nanoseconds before upstream's #34245.
    return re.sub(r"^DateTime(64\(9\))?$", "DateTime64(9)", kind)
