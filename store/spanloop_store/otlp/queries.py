"""The SQL texts of the insert: files of this folder with their source, schema and settings filled in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import Enum
from functools import cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from spanloop_store.evaluations import fill_statement
from spanloop_store.otlp.rows import COLUMNS
from spanloop_store.otlp.signals import Signal

PROTOBUF = "Protobuf"
ROWS_FORMAT = "JSONCompactEachRow"
_DAY_NS = 86_400 * 10**9
_MAX_RANGES = 64  # in one query
_FOLDER = resources.files("spanloop_store.otlp")

# Column types of the engine's reader over the messages of traces.proto and logs.proto. The order of a tuple's members is
# what the SQL files count on. A number is read as text. Nullable is how a member of a oneof that is set to its zero differs
# from one that is not set (of a text or bytes that is rendered as it is, they are the same); an Array of at most one does
# the same for messages.
_NUMBERS = "int_value Nullable(String), bool_value Nullable(String), double_value Nullable(String)"
_SCALARS = f"string_value String, {_NUMBERS}, bytes_value String"
_INNER = (
    f"Tuple(string_value Nullable(String), {_NUMBERS},"
    " bytes_value Nullable(String), array_value Nullable(String), kvlist_value Nullable(String))"
)
_ARRAY = f"Array(Tuple(values Array({_INNER})))"
_KVLIST = f"Array(Tuple(values Array(Tuple(key String, value {_INNER}))))"
# Enough to see that there is one.
_SOME_ARRAY = "Array(Tuple(values Array(Tuple(int_value String))))"
_SOME_KVLIST = "Array(Tuple(values Array(Tuple(key String))))"


class Reach(Enum):
    """Which values an insert renders; it stops at any other. What it reaches for has to be planned, whether it is there or not.

    Its members: types of array and kvlist in a span's or a resource's attributes, the lambda for them in values.sql, and the
    same for events and links.
    """

    # Nearly all spans: 37 ms to plan.
    COMMON = (_ARRAY, _SOME_KVLIST, "array_text", _SOME_ARRAY, _SOME_KVLIST, "no_text")
    # All that hard.sql does not call hard: 52 ms.
    ALL = (_ARRAY, _KVLIST, "any_text", _ARRAY, _KVLIST, "any_text")


def _value(array: str, kvlist: str) -> str:
    return f"Tuple({_SCALARS}, array_value {array}, kvlist_value {kvlist})"


def _attributes(array: str, kvlist: str) -> str:
    return f"Array(Tuple(key String, value {_value(array, kvlist)}))"


def _traces(reach: Reach) -> str:
    array, kvlist, _, event_array, event_kvlist, _ = reach.value
    own, event = _attributes(array, kvlist), _attributes(event_array, event_kvlist)
    return (
        f"resource_spans Array(Tuple(resource Tuple(attributes {own}),"
        " scope_spans Array(Tuple(scope Tuple(name String, version String), spans Array(Tuple("
        "trace_id String, span_id String, trace_state String, parent_span_id String, name String, kind Int32,"
        f" start_time_unix_nano UInt64, end_time_unix_nano UInt64, attributes {own},"
        f" events Array(Tuple(time_unix_nano UInt64, name String, attributes {event})),"
        f" links Array(Tuple(trace_id String, span_id String, trace_state String, attributes {event})),"
        " status Tuple(message String, code Int32)))))))"
    )


# A log's body is a nested kvlist more often than not: all of it is always declared.
_LOGS = (
    f"resource_logs Array(Tuple(resource Tuple(attributes {_attributes(_ARRAY, _KVLIST)}), schema_url String,"
    f" scope_logs Array(Tuple(scope Tuple(name String, version String, attributes {_attributes(_ARRAY, _KVLIST)}),"
    " schema_url String, log_records Array(Tuple(time_unix_nano UInt64, observed_time_unix_nano UInt64,"
    f" severity_number Int32, severity_text String, body {_value(_ARRAY, _KVLIST)},"
    f" attributes {_attributes(_ARRAY, _KVLIST)}, flags UInt32,"
    " trace_id String, span_id String, event_name String))))))"
)

# What hard.sql reads: no text outside arrays and kvlists, which makes it much cheaper than a full decode.
_HARD_VALUE = f"Tuple(double_value Nullable(String), array_value {_ARRAY}, kvlist_value {_KVLIST})"
_HARD_ATTRIBUTES = f"Array(Tuple(value {_HARD_VALUE}))"
_HARD_STRUCTURES = {
    Signal.TRACES: (
        f"resource_spans Array(Tuple(resource Tuple(attributes {_HARD_ATTRIBUTES}), scope_spans Array(Tuple("
        f"spans Array(Tuple(attributes {_HARD_ATTRIBUTES}, events Array(Tuple(attributes {_HARD_ATTRIBUTES})),"
        f" links Array(Tuple(attributes {_HARD_ATTRIBUTES}))))))))"
    ),
    Signal.LOGS: (
        f"resource_logs Array(Tuple(resource Tuple(attributes {_HARD_ATTRIBUTES}), scope_logs Array(Tuple("
        f"scope Tuple(attributes {_HARD_ATTRIBUTES}), log_records Array(Tuple(body {_HARD_VALUE},"
        f" attributes {_HARD_ATTRIBUTES}))))))"
    ),
}
_HARD = {
    Signal.TRACES: (
        "arraySum(r -> arraySum(s -> length(s.1), r.2), resource_spans)",
        "arrayExists(r -> attributes_hard(r.1.1.1) OR arrayExists(s -> arrayExists(x -> attributes_hard(x.1.1)"
        " OR arrayExists(k -> attributes_hard(k.1), x.2.1) OR arrayExists(k -> attributes_hard(k.1), x.3.1), s.1), r.2), resource_spans)",
    ),
    Signal.LOGS: (
        "arraySum(r -> arraySum(s -> length(s.2), r.2), resource_logs)",
        "arrayExists(r -> attributes_hard(r.1.1.1) OR arrayExists(s -> attributes_hard(s.1.1.1) OR arrayExists("
        "x -> double_hard(x.1.1) OR array_hard(x.1.2) OR kvlist_hard(x.1.3) OR attributes_hard(x.2.1), s.2), r.2), resource_logs)",
    ),
}


# What makes two rows the same one. A log record has no id of its own, and two of them may be equal.
_IDENTITY = {
    Signal.TRACES: "cityHash64(TraceId, SpanId)",
    Signal.LOGS: (
        "cityHash64(Timestamp, TraceId, SpanId, ServiceName, SeverityText, Body, EventName, ScopeName,"
        " toString(ResourceAttributes), toString(ScopeAttributes), toString(LogAttributes))"
    ),
}


class TimeRange(NamedTuple):
    """A closed interval of `Timestamp`, in nanoseconds since 1970."""

    first: int
    last: int


def time_ranges(times: Iterable[int]) -> list[TimeRange]:
    """Few intervals that hold all of these times and little else: a span of 1970 must not have the whole table read."""
    found: dict[int, TimeRange] = {}
    known, width = set(times), _DAY_NS
    while True:
        for time in known:
            place = time // width
            first, last = found.get(place, (time, time))
            found[place] = TimeRange(min(first, time), max(last, time))
        if len(found) <= _MAX_RANGES:
            return sorted(found.values())
        found, width = {}, width * 4


def file_source(path: Path, fmt: str, structure: str) -> str:
    """The source of an insert: a file that the engine reads itself (the embedded engine)."""
    return f"file({quote(str(path))}, {quote(fmt)}, {quote(structure)})"


def input_source(structure: str) -> str:
    """The source of an insert: the body of its own request (a server)."""
    return f"input({quote(structure)})"


def structure(signal: Signal, fmt: str, reach: Reach = Reach.ALL) -> str:
    """The columns of a source in one of the two formats."""
    if fmt == PROTOBUF:
        return _traces(reach) if signal is Signal.TRACES else _LOGS
    return ", ".join(f"`{name}` {kind}" for name, kind in COLUMNS[signal].items())


def insert_query(
    signal: Signal,
    fmt: str,
    source: str,
    token: str,
    *,
    local: bool,
    missing: Sequence[TimeRange] | None = None,
    reach: Reach = Reach.ALL,
) -> str:
    """INSERT … SELECT of a segment's requests (`Protobuf`) or of the fallback's rows, ready but for a FORMAT clause.

    Args:
        signal: what the source holds.
        fmt: `PROTOBUF` or `ROWS_FORMAT`.
        source: from `file_source` or `input_source`, with `structure(signal, fmt, reach)`.
        token: the deduplication token: the same insert with the same token happens once; empty: no deduplication.
        local: the engine runs in this process and reads the schema's file; else the schema travels in the query.
        missing: insert only the rows that the table does not have; their times lie in these. None: all rows.
            Of log records, a day's are inserted where any of them is missing: a day is one part, which is there or not,
            and a record that is there may be another's equal.
        reach: of Protobuf, which values are rendered; the engine throws (code 395) at any other.
    """
    if fmt == PROTOBUF:
        body = _fill(f"{signal.value}.sql", source=source, values=_values(reach))
    else:
        names = ", ".join(f"`{name}`" for name in COLUMNS[signal])
        columns = ", ".join(f"{_column(name, kind)} AS `{name}`" for name, kind in COLUMNS[signal].items())
        body = f"INSERT INTO {signal.table} ({names})\nSELECT {columns}\nFROM {source}"
    if missing is not None:
        body = _only_missing(signal, body, missing, token=bool(token))
    return f"{body}\n{_settings(signal, fmt, local=local)}, {_insert_settings(token)}"


def complete_views(signal: Signal, within: Sequence[TimeRange]) -> list[str]:
    """INSERTs of what `otel_traces_trace_id_ts` and `rewards` lack of a signal's table."""
    rewards = fill_statement(signal, _within(within))
    return (
        [_fill("trace_id_ts.sql", within=_within(within)), rewards] if signal is Signal.TRACES else [rewards]
    )


def hard_query(signal: Signal, path: Path) -> str:
    """SELECT of (rows, hard) for each request of a segment file, in the file's order."""
    rows, hard = _HARD[signal]
    source = file_source(path, PROTOBUF, _HARD_STRUCTURES[signal])
    return (
        _fill("hard.sql", source=source, rows=rows, hard=hard, signal=signal.value, values=_values(Reach.ALL))
        + "\n"
        + _settings(signal, PROTOBUF, local=True)
    )


def quote(text: str) -> str:
    """A SQL string literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _only_missing(signal: Signal, insert: str, missing: Sequence[TimeRange], *, token: bool) -> str:
    """The same INSERT … SELECT without the rows that the table has already."""
    # The names of the table come first, then its SELECT, with or without lambdas in front.
    names, keyword, select = re.split(r"\n(WITH\n|SELECT )", insert, maxsplit=1)
    return _fill(
        f"missing_{signal.value}.sql",
        columns=", ".join(f"`{name}`" for name in COLUMNS[signal]),
        identity=_IDENTITY[signal],
        within=_within(missing),
        # Where the token stands guard: equal records without a time are of many segments.
        anyway="toUnixTimestamp64Nano(Timestamp) = 0" if token else "0",
        insert=names,
        select=keyword + select,
    )


def _within(ranges: Sequence[TimeRange]) -> str:
    return " OR ".join(
        f"(Timestamp >= fromUnixTimestamp64Nano({first}) AND Timestamp <= fromUnixTimestamp64Nano({last}))"
        for first, last in ranges
    )


def _insert_settings(token: str) -> str:
    settings = {
        "insert_deduplicate": "1" if token else "0",
        "deduplicate_blocks_in_dependent_materialized_views": "1" if token else "0",
        "async_insert": "0",
        "min_insert_block_size_rows": "100000000",
        "min_insert_block_size_bytes": str(1 << 32),
        # History that is imported may touch a year of daily partitions at once.
        "max_partitions_per_insert_block": "0",
    }
    if token:
        settings["insert_deduplication_token"] = token
    return _assignments(settings)


def _settings(signal: Signal, fmt: str, *, local: bool) -> str:
    settings = {
        # One thread and one block: what a repeated insert would send is the same block with the same token.
        "max_threads": "1",
        "output_format_json_escape_forward_slashes": "0",
    }
    if fmt == PROTOBUF:
        settings["format_schema_message_name"] = "Request"
        if local:
            # As a string the engine would leave a copy in __cache__ of whatever directory this process works in.
            settings |= {
                "format_schema_source": "file",
                "format_schema": str(_FOLDER.joinpath(f"{signal.value}.proto")),
            }
        else:
            settings |= {"format_schema_source": "string", "format_schema": _proto(signal)}
    return "SETTINGS " + _assignments(settings)


def _assignments(settings: dict[str, str]) -> str:
    return ", ".join(f"{name} = {quote(value)}" for name, value in settings.items())


def _column(name: str, kind: str) -> str:
    nested = kind.startswith("Array(Array(")
    if name.endswith("Timestamp"):
        return (
            f"arrayMap(t -> fromUnixTimestamp64Nano(t), `{name}`)"
            if kind.startswith("Array")
            else f"fromUnixTimestamp64Nano(`{name}`)"
        )
    if "Tuple" in kind:
        target = "Map(LowCardinality(String), String)"
        return f"CAST(`{name}`, 'Array({target})')" if nested else f"CAST(`{name}`, '{target}')"
    return f"`{name}`"


@cache
def _values(reach: Reach) -> str:
    _, _, span_text, _, _, event_text = reach.value
    return _fill("values.sql", span_text=span_text, event_text=event_text)


@cache
def _text(name: str) -> str:
    text = _FOLDER.joinpath(name).read_text(encoding="utf-8")
    return "\n".join(re.sub(r"(^|\s)--.*$", "", line) for line in text.splitlines()).strip()


def _fill(name: str, **parts: str) -> str:
    text = _text(name)
    for key, value in parts.items():
        text = text.replace("{" + key + "}", value)
    return text


@cache
def _proto(signal: Signal) -> str:
    text = _FOLDER.joinpath(f"{signal.value}.proto").read_text(encoding="utf-8")
    return "\n".join(line for line in text.splitlines() if not line.startswith("//"))
