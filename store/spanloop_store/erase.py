"""Takes a trace, a session or a user out of the tables, so that neither a query nor the disk has it any more.

What is asked for becomes whole traces, and each trace a row of `erasures` before anything is deleted. So a run that was killed is
finished by the next one, and what arrives late for an erased id is known: `build` leaves it out, and `sweep` removes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from spanloop_store import audit, matching, subjects
from spanloop_store.errors import EraseError
from spanloop_store.matching import COLUMNS, RESPONSE, Response, chunks, loose, utc
from spanloop_store.otlp.queries import quote
from spanloop_store.purging import drop_detached, heal, purge
from spanloop_store.subjects import Subject
from spanloop_store.tables import Table, quote_name, read_tables

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

# The order in which rows go: what leads to others goes last, so that a run that was killed can be repeated.
TABLES: Final = ("rewards", "otel_logs", "otel_traces_trace_id_ts", "otel_traces")
# Two instrumentations report a call within its own time; the gateway's span begins after the agent's.
_COPY_MARGIN: Final = timedelta(minutes=10)
_BEGIN: Final = datetime(1970, 1, 1, tzinfo=UTC)
_END: Final = datetime(2200, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Found:
    """What an id stands for in the store.

    Args:
        subject: what was asked for.
        traces: its traces, those of `copies` included, sorted.
        copies: traces that hold the same model calls, found by response id.
        responses: the ids of its model calls' answers.
        rows: by table.
        first: when its first span began; None: it is not known, since there are no spans, or an earlier run took some.
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
        else {trace for trace, _, _ in matching.named(client, subject.kind, subject.ids)}
    )
    traces |= set(more)
    # An earlier run may have deleted the rows that led here.
    known = client.query(
        "SELECT kind, id, first, last FROM erasures WHERE request = {request:String}",
        parameters={"request": str(subject)},
    ).result_rows
    traces |= {row[1] for row in known if row[0] == "trace"}
    responses = {row[1]: Response(row[1], utc(row[2]), utc(row[3])) for row in known if row[0] == "response"}
    first = None
    for chunk in chunks(traces):
        for response, begin, end in client.query(
            f"SELECT {RESPONSE} AS response, min(Timestamp), max(Timestamp) FROM otel_traces"  # noqa: S608  # constants
            " WHERE TraceId IN {ids:Array(String)} GROUP BY response",
            parameters={"ids": chunk},
        ).result_rows:
            begin, end = utc(begin), utc(end)
            first = begin if first is None else min(first, begin)
            if response:
                responses[response] = Response(response, begin - _COPY_MARGIN, end + _COPY_MARGIN)
    copies, notes = matching.copies(client, responses, traces)
    traces |= copies
    found = Found(
        subject,
        tuple(sorted(traces)),
        tuple(sorted(copies)),
        tuple(responses.values()),
        first=None if known else first,
        notes=notes,
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
        detached = [
            name
            for table in _present(tables)
            for name in drop_detached(client, table, _days(client, table, found))
        ]
        for table in _present(tables):
            if found.rows.get(table.name):
                _delete_rows(client, table, _condition(client, table.name, found.subject))
        # Tables that had no such rows too: a run that was killed had deleted them, and not yet their old parts.
        left = [
            text
            for table in _present(tables)
            if found.rows.get(table.name) or not table.cluster
            for text in purge(client, table, tables)
        ]
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


def sweep(client: Client, who: str | None = None) -> dict[str, int]:
    """Removes what arrived late for ids that were erased before; rows by table.

    Args:
        client: of the store, with every right.
        who: for the audit trail, which has its row before anything is deleted; None: the user of this process.

    Raises:
        AuditError: the audit trail cannot be written; nothing was deleted.
        ClickHouseError: the store does not do it, or does not answer.
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
    loose_ones = [Subject(mark.kind, mark.id) for mark in marks if mark.kind in subjects.ATTRIBUTES]
    tables = read_tables(client)
    conditions = {table.name: _condition(client, table.name, *loose_ones) for table in _present(tables)}
    counted = {
        name: _number(client, f"SELECT count() FROM {name} WHERE {condition}")  # noqa: S608  # quoted
        for name, condition in conditions.items()
    }
    rows = {name: count for name, count in counted.items() if count}
    if rows:
        audit.record(client, "erase", "late arrivals", {"rows": rows}, who)
    for table in _present(tables):
        if table.name in rows:
            _delete_rows(client, table, conditions[table.name])
            purge(client, table, tables)
        else:
            heal(client, table, tables)
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
    return [_Mark(kind, id, request, utc(first), utc(last)) for kind, id, request, first, last in rows]


def _late(
    client: Client, marks: Sequence[_Mark], window_ns: tuple[int, int] | None = None
) -> Iterator[tuple[str, str]]:
    """(request, trace) of spans and log records that were erased by an earlier request, and are there."""
    responses = {mark.id: mark for mark in marks if mark.kind == "response"}
    for chunk in chunks(responses):
        for trace, response, at in matching.of_responses(client, chunk):
            mark = responses[response]
            if mark.first <= at <= mark.last:
                yield mark.request, trace
    for kind in subjects.ATTRIBUTES:
        # All at once: each look goes through the attributes of the whole table.
        of_kind = {mark.id: mark for mark in marks if mark.kind == kind}
        for chunk in chunks(of_kind):
            for trace, name, at in matching.named(client, kind, chunk, window_ns):
                if of_kind[name].first <= at <= of_kind[name].last:
                    yield of_kind[name].request, trace


def _count(client: Client, found: Found) -> dict[str, int]:
    tables = read_tables(client)
    rows: dict[str, int] = dict.fromkeys((table.name for table in _present(tables)), 0)
    for name in rows:
        columns = COLUMNS[name]
        for chunk in chunks(found.traces):
            sql = f"SELECT count() FROM {name} WHERE {columns.trace} IN {{ids:Array(String)}}"  # noqa: S608  # constants
            rows[name] += _number(client, sql, ids=chunk)
        if not columns.response:
            continue
        own = loose(name, found.subject)
        counted = f"{columns.trace} = ''" + (f" AND NOT ({own})" if own else "")
        for chunk in chunks({response.id for response in found.responses}):
            sql = (
                f"SELECT count() FROM {name} WHERE {columns.response} IN {{ids:Array(String)}} AND {counted}"  # noqa: S608
            )
            rows[name] += _number(client, sql, ids=chunk)
        if own:
            rows[name] += _number(client, f"SELECT count() FROM {name} WHERE {own}")  # noqa: S608  # quoted
    return rows


def _number(client: Client, sql: str, **parameters: Any) -> int:
    return int(client.query(sql, parameters=parameters).result_rows[0][0])


def _condition(client: Client, table: str, *subjects_meant: Subject) -> str:
    """What is deleted from a table: rows of all tombstones, so that it names no id where it need not.

    A mutation's text stays on the disk for a while; ids are in `erasures` as long as that lives.
    """
    erasures = _erasures(client)
    columns = COLUMNS[table]
    marked = f"(SELECT id FROM {erasures} WHERE kind = '%s')"  # noqa: S608  # quoted
    parts = [f"{columns.trace} IN {marked % 'trace'}"]
    if columns.response:
        parts.append(f"({columns.trace} = '' AND {columns.response} IN {marked % 'response'})")
    for subject in subjects_meant:
        names = ", ".join(map(quote, subject.names))
        until = f"(SELECT max(last) FROM {erasures} WHERE kind = {quote(subject.kind)} AND id IN ({names}))"  # noqa: S608
        if own := loose(table, subject, until):
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


def _days(client: Client, table: Table, found: Found) -> set[str]:
    """The partitions in which rows of its traces lie."""
    days: set[str] = set()
    for chunk in chunks(found.traces):
        days |= {
            row[0]
            for row in client.query(
                f"SELECT DISTINCT _partition_id FROM {table.name}"  # noqa: S608  # a constant
                f" WHERE {COLUMNS[table.name].trace} IN {{ids:Array(String)}}",
                parameters={"ids": chunk},
            ).result_rows
        }
    return days


def _present(tables: dict[str, Table]) -> list[Table]:
    return [tables[name] for name in TABLES if name in tables]
