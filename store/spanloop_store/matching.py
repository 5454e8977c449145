"""Which rows are of a session, a user or a model's answer: looks them up, and says it as SQL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from spanloop_store import subjects
from spanloop_store.otlp.queries import quote
from spanloop_store.subjects import Subject

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

CHUNK: Final = 1000  # ids in a query: they travel in its URL
RESPONSE: Final = "SpanAttributes['gen_ai.response.id']"
# An agent's span, the gateway's and a second instrumentor's have one response id. One that more traces share is no id: a
# stand-in for a model server may give the same to every call.
_MOST_COPIES: Final = 4


class Columns(NamedTuple):
    """What a table calls the same things."""

    trace: str
    time: str
    response: str = ""  # of rows that need not have a trace; empty: all have one


COLUMNS: Final[Mapping[str, Columns]] = {
    "rewards": Columns("trace_id", "time", "response_id"),
    "otel_logs": Columns("TraceId", "Timestamp", "LogAttributes['gen_ai.response.id']"),
    "otel_traces_trace_id_ts": Columns("TraceId", "Start"),
    "otel_traces": Columns("TraceId", "Timestamp"),
}


@dataclass(frozen=True)
class Response:
    """A model's answer in an erased trace."""

    id: str
    first: datetime  # copies of it began between these
    last: datetime


def named(
    client: Client, kind: str, ids: Sequence[str], window_ns: tuple[int, int] | None = None
) -> list[tuple[str, str, datetime]]:
    """(trace id, id, first time) of rows that name one of these sessions or users.

    Args:
        client: of the store.
        kind: `session` or `user`.
        ids: as the rows have them.
        window_ns: only spans and log records that began in [from, to), in nanoseconds since 1970; None: all, and rewards.
    """
    found: list[tuple[str, str, datetime]] = []
    parameters: dict[str, Any] = {"ids": list(ids)}
    window = ""
    tables = ["otel_traces", "otel_logs", "rewards"]
    if window_ns is not None:
        tables.remove("rewards")
        window = (
            " AND Timestamp >= fromUnixTimestamp64Nano({since:Int64})"
            " AND Timestamp < fromUnixTimestamp64Nano({until:Int64})"
        )
        parameters |= {"since": window_ns[0], "until": window_ns[1]}
    for table in tables:
        columns = COLUMNS[table]
        name = (
            f"arrayJoin(arrayIntersect([{', '.join(subjects.values(table, kind))}], {{ids:Array(String)}}))"
        )
        where = subjects.condition(table, kind, "IN {ids:Array(String)}")
        rows = client.query(
            f"SELECT {columns.trace} AS trace, {name} AS name, min({columns.time}) FROM {table}"  # noqa: S608  # constants
            f" WHERE {columns.trace} != ''{window} AND ({where}) GROUP BY trace, name",
            parameters=parameters,
        ).result_rows
        found += [(trace, name, utc(at)) for trace, name, at in rows]
    return found


def of_responses(client: Client, ids: Sequence[str]) -> list[tuple[str, str, datetime]]:
    """(trace id, response id, first time) of spans that hold one of these answers."""
    rows = client.query(
        f"SELECT TraceId, {RESPONSE} AS response, min(Timestamp) FROM otel_traces"  # noqa: S608  # constants
        f" WHERE {RESPONSE} IN {{ids:Array(String)}} GROUP BY TraceId, response",
        parameters={"ids": list(ids)},
    ).result_rows
    return [(trace, response, utc(at)) for trace, response, at in rows]


def copies(
    client: Client, responses: dict[str, Response], traces: set[str]
) -> tuple[set[str], tuple[str, ...]]:
    """Other traces that hold the same calls, and what was not followed, which leaves `responses`."""
    found: dict[str, set[str]] = {}
    for chunk in chunks(responses):
        for trace, response, at in of_responses(client, chunk):
            if trace not in traces and responses[response].first <= at <= responses[response].last:
                found.setdefault(response, set()).add(trace)
    notes = []
    for response, others in list(found.items()):
        if len(others) > _MOST_COPIES:
            del found[response]
            del responses[response]
            notes.append(
                f"response id {response!r} is in {len(others)} other traces: it names no single answer, and they stay"
            )
    return set().union(*found.values()), tuple(notes)


def loose(table: str, subject: Subject, until: str = "") -> str:
    """SQL: whether a row has no trace and names the session or user; empty: the table has none such.

    Args:
        table: any of `COLUMNS`.
        subject: what is meant.
        until: SQL of the last time that is meant.
    """
    columns = COLUMNS[table]
    if not columns.response or subject.kind not in subjects.ATTRIBUTES:
        return ""
    bound = f" AND {columns.time} <= {until}" if until else ""
    value = f"IN ({', '.join(map(quote, subject.ids))})"
    return f"{columns.trace} = ''{bound} AND ({subjects.condition(table, subject.kind, value)})"


def chunks(ids: Iterable[str], size: int = CHUNK) -> Iterator[list[str]]:
    """The ids in pieces that a query can carry."""
    whole = sorted(ids)
    for start in range(0, len(whole), size):
        yield whole[start : start + size]


def utc(moment: datetime) -> datetime:
    """A time that names its zone: the store's are UTC."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
