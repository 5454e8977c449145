"""Runs one query on an engine handle, in a worker thread."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from spanloop_collector.endpoint.errors import (
    UNKNOWN_FORMAT,
    UNKNOWN_TABLE,
    EndpointError,
    from_engine,
)
from spanloop_collector.endpoint.guard import Statement
from spanloop_collector.endpoint.lexer import without_format
from spanloop_collector.endpoint.request import Query
from spanloop_collector.endpoint.running import COMMENT

# chDB encodes every streamed block by itself; only these formats may be put one after the other.
STREAMABLE = frozenset(
    {"native", "tabseparated", "tsv", "csv", "rowbinary", "jsoneachrow", "jsonlines", "ndjson"}
)
_SELECTS = frozenset({"SELECT", "WITH", "(", "FROM"})
# What a format writes before, after or around the rows, it would write with every piece, or not at all.
_AROUND = re.compile(r"\b(totals|extremes|output_format_json_array_of_rows)\b", re.IGNORECASE)
_PYTHON_FORMATS = frozenset({"dataframe", "arrowtable"})  # chDB's own: they are no bytes
_INSERT_CHUNK = 1 << 20  # bytes handed to the engine's parser at a time


@dataclass(frozen=True)
class Answer:
    """A whole result.

    Args:
        body: encoded in `format`.
        format: empty: the statement answers with no rows.
        summary: the numbers of `X-ClickHouse-Summary`, as strings.
    """

    body: bytes
    format: str
    summary: dict[str, str]


def can_stream(query: Query, statement: Statement) -> bool:
    """Whether the result may be sent while it is made; the client may ask to wait for its end instead."""
    form = (statement.format or query.form).lower()
    asked = " ".join((statement.text, *query.settings))
    return (
        statement.kind in _SELECTS
        and form in STREAMABLE
        and not query.flag("wait_end_of_query")
        and not _AROUND.search(asked)
    )


def prepare(handle: Any, query: Query, query_id: str) -> None:
    """Puts a request's database, settings and id on its handle.

    Raises:
        EndpointError: the engine refuses one.
    """
    try:
        if database := query.transport.get("database"):
            handle.query(f"USE {_quote_name(database)}", "Null")
        for name, value in (*query.settings.items(), (COMMENT, query_id)):
            handle.query(f"SET {name} = {_quote_text(value)}", "Null")
    except Exception as error:
        raise from_engine(error) from error


def remember(handle: Any, query: Query, statement: Statement) -> list[str]:
    """What brings a session's handle back to where it was before `prepare`: a request's settings are its own.

    Raises:
        EndpointError: the engine's error.
    """
    if statement.kind in ("SET", "USE"):
        return []  # what it changes is meant to last
    wanted = ["currentDatabase()"]
    # One row of one block: a limit that the session has set would stop anything larger.
    wanted += [f"toString(getSetting({_quote_text(name)}))" for name in query.settings]
    try:
        answer = handle.query(f"SELECT {', '.join(wanted)}", "JSONCompact").bytes()
    except Exception as error:
        raise from_engine(error) from error
    database, *values = json.loads(answer)["data"][0]
    undo = [f"SET {name} = {_quote_text(value)}" for name, value in zip(query.settings, values, strict=True)]
    return [f"USE {_quote_name(database)}", *undo]


def restore(handle: Any, undo: list[str]) -> None:
    """Takes a request's database and settings from its session again.

    Raises:
        EndpointError: the engine's error.
    """
    try:
        for text in undo:
            handle.query(text, "Null")
    except Exception as error:
        raise from_engine(error) from error


def run(handle: Any, query: Query, statement: Statement) -> Answer:
    """Runs a statement to its end.

    Raises:
        EndpointError: the engine's error.
    """
    form = statement.format or query.form
    if form.lower() in _PYTHON_FORMATS:
        raise EndpointError(UNKNOWN_FORMAT, f"Unknown format {form}")
    try:
        if statement.body_start is not None:
            return _insert(handle, query, statement)
        result = handle.query(_sql(statement.text), form, params=query.parameters)
        body = result.bytes() or b""
        if statement.reads and not body and form.lower() == "native":
            body = _empty_block(handle, query, statement)
    except EndpointError:
        raise
    except Exception as error:
        said = from_engine(error)
        if statement.if_exists and said.code == UNKNOWN_TABLE:
            return Answer(b"", "", {})
        raise said from error
    kind = "written" if statement.kind == "INSERT" else "result"
    return Answer(body, form if statement.reads or body else "", _summary(result, kind))


def stream(handle: Any, query: Query, statement: Statement) -> Iterator[tuple[bytes, int]]:
    """A SELECT's result in pieces, each whole blocks of a streamable format, with the rows in it.

    Raises:
        EndpointError: the engine's error, at the first piece or later.
    """
    form = statement.format or query.form
    empty = True
    try:
        result = handle.send_query(_sql(statement.text), form, params=query.parameters)
        try:
            for chunk in result:
                if piece := chunk.bytes():
                    empty = False
                    yield bytes(piece), chunk.rows_read()
        finally:
            result.close()
        if empty and form.lower() == "native":
            yield _empty_block(handle, query, statement), 0
    except EndpointError:
        raise
    except Exception as error:
        raise from_engine(error) from error


def _insert(handle: Any, query: Query, statement: Statement) -> Answer:
    start = statement.body_start or 0
    data = query.text[start:].encode("latin-1")
    inserter = handle.send_insert(_sql(statement.text), statement.format)
    done = False
    try:
        for offset in range(0, len(data), _INSERT_CHUNK):
            inserter.append(data[offset : offset + _INSERT_CHUNK])
        result = inserter.finish()
        done = True
    finally:
        if not done:
            inserter.cancel()
    summary = {
        "read_rows": str(result.rows_written),
        "written_rows": str(result.rows_written),
        "written_bytes": str(result.bytes_written),
        "elapsed_ns": str(int(result.elapsed * 1e9)),
    }
    return Answer(b"", "", summary)


def _empty_block(handle: Any, query: Query, statement: Statement) -> bytes:
    """A Native block without rows: chDB writes nothing for an empty result, where clients expect the columns."""
    if statement.kind not in _SELECTS:
        return b""
    text = without_format(statement.text)
    header = handle.query(_sql(text), "JSONCompact", params=query.parameters).bytes()
    columns = json.loads(header)["meta"]
    block = _length(len(columns)) + _length(0)
    for column in columns:
        for value in (column["name"].encode(), column["type"].encode()):
            block += _length(len(value)) + value
    return block


def _length(number: int) -> bytes:
    """LEB128, as Native writes lengths."""
    result = bytearray()
    while number >= 0x80:
        result.append(number & 0x7F | 0x80)
        number >>= 7
    result.append(number)
    return bytes(result)


def _sql(text: str) -> str:
    return text.encode("latin-1").decode("utf-8", "surrogateescape")


def _summary(result: Any, kind: str) -> dict[str, str]:
    # The engine's counts of a read are of what came out; what went in is told by its progress.
    return {
        f"{kind}_rows": str(result.rows_read()),
        f"{kind}_bytes": str(result.bytes_read()),
        "elapsed_ns": str(int(result.elapsed() * 1e9)),
    }


def _quote_name(name: str) -> str:
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def _quote_text(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
