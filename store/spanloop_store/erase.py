"""Takes a trace, a session or a user out of the tables, so that neither a query nor the disk has it any more.

What is asked for becomes whole traces, and each trace a row of `erasures` before anything is deleted. So a run that was killed is
finished by the next one, and what arrives late for an erased id is known: `build` leaves it out, and `sweep` removes it.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from spanloop_store import subjects
from spanloop_store.errors import EraseError
from spanloop_store.otlp.queries import quote
from spanloop_store.subjects import Subject
from spanloop_store.tables import Table, holder, quote_name, read_tables

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

log = logging.getLogger(__name__)

# The order in which rows go: what leads to others goes last, so that a run that was killed can be repeated.
TABLES: Final = ("rewards", "otel_logs", "otel_traces_trace_id_ts", "otel_traces")
CHUNK: Final = 1000  # ids in a query: they travel in its URL
# Two instrumentations report a call within its own time; the gateway's span begins after the agent's.
_COPY_MARGIN: Final = timedelta(minutes=10)
# An agent's span, the gateway's and a second instrumentor's have one response id. One that more traces share is no id: a
# stand-in for a model server may give the same to every call.
_MOST_COPIES: Final = 4
_BEGIN: Final = datetime(1970, 1, 1, tzinfo=UTC)
_END: Final = datetime(2200, 1, 1, tzinfo=UTC)
_PURGE_S: Final = 20.0
_PURGE_PAUSE_S: Final = 0.2
_RESPONSE: Final = "SpanAttributes['gen_ai.response.id']"
_TRACE_COLUMN: Final = {
    "rewards": "trace_id",
    "otel_logs": "TraceId",
    "otel_traces_trace_id_ts": "TraceId",
    "otel_traces": "TraceId",
}


@dataclass(frozen=True)
class Response:
    """A model's answer in an erased trace."""

    id: str
    first: datetime  # copies of it began between these
    last: datetime


@dataclass(frozen=True)
class Found:
    """What an id stands for in the store.

    Args:
        subject: what was asked for.
        traces: its traces, those of `copies` included, sorted.
        copies: traces that hold the same model calls, found by response id.
        responses: the ids of its model calls' answers.
        rows: by table.
        first: when its first span began; None: there are no spans.
        notes: what was seen and not followed.
    """

    subject: Subject
    traces: tuple[str, ...]
    copies: tuple[str, ...] = ()
    responses: tuple[Response, ...] = ()
    rows: dict[str, int] = field(default_factory=dict)
    first: datetime | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Deleted:
    """What became of the rows.

    Args:
        rows: deleted, by table.
        detached: parts that the engine had put aside, of the same days; they were deleted unseen.
        left: what is still on a disk, and until when; empty: nothing.
    """

    rows: dict[str, int]
    detached: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def find(client: Client, subject: Subject, more: Iterable[str] = ()) -> Found:
    """Looks for everything that belongs to a trace, session or user. Changes nothing.

    Args:
        client: of the store, of any user.
        subject: what is meant.
        more: trace ids of it that were found elsewhere (in a spool).
    """
    traces = (
        {subject.id}
        if subject.kind == "trace"
        else {trace for trace, _, _ in _matches(client, subject.kind, subject.ids)}
    )
    traces |= set(more)
    # An earlier run may have deleted the rows that led here.
    known = client.query(
        "SELECT kind, id, first, last FROM erasures WHERE request = {request:String}",
        parameters={"request": str(subject)},
    ).result_rows
    traces |= {row[1] for row in known if row[0] == "trace"}
    responses = {
        row[1]: Response(row[1], _utc(row[2]), _utc(row[3])) for row in known if row[0] == "response"
    }
    first = None
    for chunk in chunks(traces):
        for response, begin, end in client.query(
            f"SELECT {_RESPONSE} AS response, min(Timestamp), max(Timestamp) FROM otel_traces"  # noqa: S608  # constants
            " WHERE TraceId IN {ids:Array(String)} GROUP BY response",
            parameters={"ids": chunk},
        ).result_rows:
            begin, end = _utc(begin), _utc(end)
            first = begin if first is None else min(first, begin)
            if response:
                responses[response] = Response(response, begin - _COPY_MARGIN, end + _COPY_MARGIN)
    copies, notes = _copies(client, responses, traces)
    traces |= copies
    found = Found(
        subject, tuple(sorted(traces)), tuple(sorted(copies)), tuple(responses.values()), {}, first, notes
    )
    found.rows.update(_count(client, found))
    return found


def mark(client: Client, found: Found, who: str) -> None:
    """Writes the tombstones: from now on `build` uses none of it, whatever happens next."""
    now = datetime.now(UTC)
    request = str(found.subject)
    wanted = [("trace", trace, _BEGIN, _END) for trace in found.traces]
    wanted += [("response", response.id, response.first, response.last) for response in found.responses]
    if found.subject.kind != "trace":
        # What a session or a user does after this is not meant.
        wanted += [(found.subject.kind, name, _BEGIN, now) for name in found.subject.names]
    known = {
        (kind, id)
        for kind, id in client.query(
            "SELECT DISTINCT kind, id FROM erasures WHERE request = {request:String}",
            parameters={"request": request},
        ).result_rows
    }
    rows = [
        [kind, id, request, first, last, who]
        for kind, id, first, last in wanted
        if (kind, id) not in known or kind in subjects.ATTRIBUTES
    ]
    if rows:
        client.insert("erasures", rows, column_names=["kind", "id", "request", "first", "last", "who"])


def delete(client: Client, found: Found) -> Deleted:
    """Deletes the rows of what was marked, and waits until their bytes are off the store's disk.

    Raises:
        EraseError: the store did not do it; the tombstones stay, and another run goes on from there.
    """
    from clickhouse_connect.driver.exceptions import ClickHouseError

    tables = read_tables(client)
    try:
        if cluster := next((table.on_cluster for table in _present(tables) if table.cluster), ""):
            # Every node looks up the tombstones in its own copy of them.
            client.command(f"SYSTEM SYNC REPLICA{cluster} {_erasures(client)}")
        detached = [name for table in _present(tables) for name in _drop_detached(client, table, found)]
        touched = []
        for table in _present(tables):
            if found.rows.get(table.name):
                _delete_rows(client, table, _condition(client, table.name, found.subject))
                touched.append(table)
        left = [text for table in touched for text in purge(client, table, tables)]
        left += [
            f"{name}: {rows:,} rows came meanwhile, or a node is behind: run the command again"
            for name, rows in _count(client, found).items()
            if rows
        ]
    except ClickHouseError as error:
        raise EraseError(
            f"the store did not delete everything: {str(error).splitlines()[0]}",
            "what was found is marked, and no build uses it; run the command again to go on",
        ) from error
    return Deleted(found.rows, tuple(detached), tuple(left))


def sweep(client: Client) -> dict[str, int]:
    """Removes what arrived late for ids that were erased before; rows by table.

    Raises:
        EraseError: the store did not do it.
        ClickHouseError: it does not answer.
    """
    known = {
        row[0] for row in client.query("SELECT DISTINCT id FROM erasures WHERE kind = 'trace'").result_rows
    }
    marks = _marks(client)
    if not known and not marks:
        return {}
    late = {(request, trace) for request, trace in _late(client, marks) if trace not in known}
    if late:
        client.insert(
            "erasures",
            [["trace", trace, request, _BEGIN, _END, "late"] for request, trace in sorted(late)],
            column_names=["kind", "id", "request", "first", "last", "who"],
        )
    loose = [Subject(mark.kind, mark.id) for mark in marks if mark.kind in subjects.ATTRIBUTES]
    rows: dict[str, int] = {}
    tables = read_tables(client)
    for table in _present(tables):
        condition = _condition(client, table.name, *loose)
        count = client.query(f"SELECT count() FROM {table.name} WHERE {condition}").result_rows[0][0]  # noqa: S608
        if count:
            _delete_rows(client, table, condition)
            purge(client, table, tables)
            rows[table.name] = int(count)
    return rows


def erased_traces(client: Client, since_ns: int, until_ns: int) -> list[str]:
    """Traces that still have rows here though they were erased: late ones, which no build may use.

    Args:
        client: of the store, of any user.
        since_ns: spans that began from here …
        until_ns: … to here, in nanoseconds since 1970.
    """
    found = {
        row[0]
        for row in client.query(
            "SELECT DISTINCT TraceId FROM otel_traces WHERE TraceId IN (SELECT id FROM erasures WHERE kind = 'trace')"
        ).result_rows
    }
    found |= {trace for _, trace in _late(client, _marks(client), (since_ns, until_ns))}
    return sorted(found)


def purge(client: Client, table: Table, tables: dict[str, Table]) -> list[str]:
    """Takes the parts that deleted rows lay in off the disk; a line for what stays for now, and until when."""
    local = holder(tables, table.name)
    if table.cluster or local.engine != "MergeTree":
        return [
            f"{table.name}: its servers delete the parts that the rows lay in by themselves, within old_parts_lifetime"
            " (8 minutes by default)"
        ]
    lifetime = _lifetime(client, local)
    if lifetime:
        client.command(f"ALTER TABLE {table.local} MODIFY SETTING old_parts_lifetime = 0")
    try:
        deadline = time.monotonic() + _PURGE_S
        while True:
            # A partition that is none: what this does besides is to delete old parts and finished mutations now.
            client.command(f"ALTER TABLE {table.local} DROP PARTITION ID 'none'")
            left = client.query(
                "SELECT count() FROM system.parts WHERE database = currentDatabase() AND table = {table:String}"
                " AND NOT active",
                parameters={"table": table.name},
            ).result_rows[0][0]
            if not left:
                return []
            if time.monotonic() > deadline:
                return [f"{table.name}: {left} old parts are in use by queries, and go when these end"]
            time.sleep(_PURGE_PAUSE_S)
    finally:
        if lifetime:
            client.command(f"ALTER TABLE {table.local} RESET SETTING old_parts_lifetime")


def chunks(ids: Iterable[str], size: int = CHUNK) -> Iterator[list[str]]:
    """The ids in pieces that a query can carry."""
    whole = sorted(ids)
    for start in range(0, len(whole), size):
        yield whole[start : start + size]


@dataclass(frozen=True)
class _Mark:
    kind: str
    id: str
    request: str
    first: datetime
    last: datetime


def _marks(client: Client) -> list[_Mark]:
    """Tombstones that later rows may fall under by more than their trace."""
    rows = client.query(
        "SELECT kind, id, any(request), min(first), max(last) FROM erasures WHERE kind != 'trace' GROUP BY kind, id"
    ).result_rows
    return [_Mark(kind, id, request, _utc(first), _utc(last)) for kind, id, request, first, last in rows]


def _late(
    client: Client, marks: Sequence[_Mark], window_ns: tuple[int, int] | None = None
) -> Iterator[tuple[str, str]]:
    """(request, trace) of spans and log records that were erased by an earlier request, and are there."""
    responses = {mark.id: mark for mark in marks if mark.kind == "response"}
    for chunk in chunks(responses):
        for trace, response, at in _of_responses(client, chunk):
            mark = responses[response]
            if mark.first <= at <= mark.last:
                yield mark.request, trace
    for kind in subjects.ATTRIBUTES:
        # All at once: each look goes through the attributes of the whole table.
        named = {mark.id: mark for mark in marks if mark.kind == kind}
        for chunk in chunks(named):
            for trace, name, at in _matches(client, kind, chunk, window_ns):
                if named[name].first <= at <= named[name].last:
                    yield named[name].request, trace


def _matches(
    client: Client, kind: str, ids: Sequence[str], window_ns: tuple[int, int] | None = None
) -> list[tuple[str, str, datetime]]:
    """(trace id, id, first time) of spans, log records and rewards that name one of these sessions or users."""
    found: list[tuple[str, str, datetime]] = []
    parameters: dict[str, Any] = {"ids": list(ids)}
    window = ""
    if window_ns is not None:
        window = (
            " AND Timestamp >= fromUnixTimestamp64Nano({since:Int64})"
            " AND Timestamp < fromUnixTimestamp64Nano({until:Int64})"
        )
        parameters |= {"since": window_ns[0], "until": window_ns[1]}
    for table in ("otel_traces", "otel_logs"):
        named = (
            f"arrayJoin(arrayIntersect([{', '.join(subjects.values(table, kind))}], {{ids:Array(String)}}))"
        )
        where = subjects.condition(table, kind, "IN {ids:Array(String)}")
        rows = client.query(
            f"SELECT TraceId, {named} AS name, min(Timestamp) FROM {table}"  # noqa: S608  # constants
            f" WHERE TraceId != ''{window} AND ({where}) GROUP BY TraceId, name",
            parameters=parameters,
        ).result_rows
        found += [(trace, name, _utc(at)) for trace, name, at in rows]
    if kind == "session" and window_ns is None:
        rows = client.query(
            "SELECT trace_id, session_id, min(time) FROM rewards"
            " WHERE session_id IN {ids:Array(String)} AND trace_id != '' GROUP BY trace_id, session_id",
            parameters=parameters,
        ).result_rows
        found += [(trace, name, _utc(at)) for trace, name, at in rows]
    return found


def _of_responses(client: Client, ids: Sequence[str]) -> list[tuple[str, str, datetime]]:
    rows = client.query(
        f"SELECT TraceId, {_RESPONSE} AS response, min(Timestamp) FROM otel_traces"  # noqa: S608  # constants
        f" WHERE {_RESPONSE} IN {{ids:Array(String)}} GROUP BY TraceId, response",
        parameters={"ids": list(ids)},
    ).result_rows
    return [(trace, response, _utc(at)) for trace, response, at in rows]


def _copies(
    client: Client, responses: dict[str, Response], traces: set[str]
) -> tuple[set[str], tuple[str, ...]]:
    """Other traces that hold the same calls, and what was not followed."""
    found: dict[str, set[str]] = {}
    for chunk in chunks(responses):
        for trace, response, at in _of_responses(client, chunk):
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


def _count(client: Client, found: Found) -> dict[str, int]:
    tables = read_tables(client)
    rows: dict[str, int] = dict.fromkeys((table.name for table in _present(tables)), 0)
    for name in rows:
        for chunk in chunks(found.traces):
            sql = f"SELECT count() FROM {name} WHERE {_TRACE_COLUMN[name]} IN {{ids:Array(String)}}"  # noqa: S608
            rows[name] += _number(client, sql, ids=chunk)
        loose = {"rewards": "response_id", "otel_logs": "LogAttributes['gen_ai.response.id']"}.get(name)
        if loose is None:
            continue
        own = _of_subject(name, found.subject)
        counted = f"{_TRACE_COLUMN[name]} = ''" + (f" AND NOT ({own})" if own else "")
        for chunk in chunks({response.id for response in found.responses}):
            sql = f"SELECT count() FROM {name} WHERE {loose} IN {{ids:Array(String)}} AND {counted}"  # noqa: S608
            rows[name] += _number(client, sql, ids=chunk)
        if own:
            rows[name] += _number(client, f"SELECT count() FROM {name} WHERE {own}")  # noqa: S608  # quoted
    return rows


def _number(client: Client, sql: str, **parameters: Any) -> int:
    return int(client.query(sql, parameters=parameters).result_rows[0][0])


def _of_subject(table: str, subject: Subject, until: str = "") -> str:
    """Rows without a trace that name the session or user; empty: the table has none such.

    Args:
        until: SQL of the last time that is meant.
    """
    value = f"IN ({', '.join(map(quote, subject.ids))})"
    if table == "otel_logs" and subject.kind in subjects.ATTRIBUTES:
        bound = f" AND Timestamp <= {until}" if until else ""
        return f"TraceId = ''{bound} AND ({subjects.condition(table, subject.kind, value)})"
    if table == "rewards" and subject.kind == "session":
        bound = f" AND time <= {until}" if until else ""
        return f"trace_id = ''{bound} AND session_id {value}"
    return ""


def _condition(client: Client, table: str, *loose: Subject) -> str:
    """What is deleted from a table: rows of all tombstones, so that it names no id where it need not.

    A mutation's text stays on the disk for a while; ids are in `erasures` as long as that lives.
    """
    erasures = _erasures(client)
    column = _TRACE_COLUMN[table]
    marked = f"(SELECT id FROM {erasures} WHERE kind = '%s')"  # noqa: S608  # quoted
    parts = [f"{column} IN {marked % 'trace'}"]
    of_answer = {"rewards": "response_id", "otel_logs": "LogAttributes['gen_ai.response.id']"}.get(table)
    if of_answer:
        parts.append(f"({column} = '' AND {of_answer} IN {marked % 'response'})")
    for subject in loose:
        names = ", ".join(map(quote, subject.names))
        until = f"(SELECT max(last) FROM {erasures} WHERE kind = {quote(subject.kind)} AND id IN ({names}))"  # noqa: S608
        if own := _of_subject(table, subject, until):
            parts.append(f"({own})")
    return " OR ".join(parts)


def _erasures(client: Client) -> str:
    database: str = client.query("SELECT currentDatabase()").result_rows[0][0]
    return f"{quote_name(database)}.erasures"


def _delete_rows(client: Client, table: Table, condition: str) -> None:
    client.command(
        f"ALTER TABLE {table.local}{table.on_cluster} DELETE WHERE {condition}"
        # Done when this returns, on every replica; the subquery reads a table that only grows.
        " SETTINGS mutations_sync = 2, allow_nondeterministic_mutations = 1"
    )


def _drop_detached(client: Client, table: Table, found: Found) -> list[str]:
    """Deletes parts that the engine has put aside, of days on which erased rows lie: nobody can look into them."""
    parts = client.query(
        "SELECT name FROM system.detached_parts WHERE database = currentDatabase() AND table = {table:String}",
        parameters={"table": table.local.split(".")[-1].strip("`")},
    ).result_rows
    if not parts:
        return []
    days: set[str] = set()
    for chunk in chunks(found.traces):
        days |= {
            row[0]
            for row in client.query(
                f"SELECT DISTINCT _partition_id FROM {table.name}"  # noqa: S608  # a constant
                f" WHERE {_TRACE_COLUMN[table.name]} IN {{ids:Array(String)}}",
                parameters={"ids": chunk},
            ).result_rows
        }
    dropped = []
    for (name,) in parts:
        if days & set(re.findall(r"(?<!\d)\d{8}(?!\d)", name)):
            client.command(
                f"ALTER TABLE {table.local}{table.on_cluster} DROP DETACHED PART {quote(name)}"
                " SETTINGS allow_drop_detached = 1"
            )
            dropped.append(f"{table.name}: {name}")
    return dropped


def _lifetime(client: Client, table: Table) -> int:
    """Seconds that the engine keeps a part that nobody needs."""
    if own := re.search(r"old_parts_lifetime = (\d+)", table.definition):
        return int(own[1])
    return _number(
        client, "SELECT toUInt64(value) FROM system.merge_tree_settings WHERE name = 'old_parts_lifetime'"
    )


def _present(tables: dict[str, Table]) -> list[Table]:
    return [tables[name] for name in TABLES if name in tables]


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
