"""How a segment's bytes reach the engine: it reads the file itself in this process, or a server gets them with the INSERT."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from google.protobuf.message import DecodeError

from spanloop_store.errors import SegmentRefused, StoreOverloaded, StoreUnavailable
from spanloop_store.otlp import queries
from spanloop_store.otlp.hard import is_hard
from spanloop_store.otlp.queries import Reach, TimeRange
from spanloop_store.otlp.signals import Signal, count_items, message_type

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

PART_SUFFIX = ".part"  # scratch files beside a segment; whoever finds one after a crash deletes it

# ClickHouse errors that say "not these bytes": the rest (memory, disk, network, a missing table) may pass, so the
# segment stays in the log and is tried again. CANNOT_PARSE_*, CANNOT_READ_*, TOO_LARGE_STRING_SIZE,
# ARGUMENT_OUT_OF_BOUND, INCORRECT_DATA, TYPE_MISMATCH, CANNOT_CONVERT_TYPE, VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE,
# FUNCTION_THROW_IF_VALUE_IS_NON_ZERO (a value that the SQL does not render), UNKNOWN_PROTOBUF_FORMAT, PROTOBUF_*,
# DECIMAL_OVERFLOW.
_DATA_ERRORS = frozenset(
    {
        6,
        25,
        26,
        27,
        32,
        33,
        38,
        41,
        53,
        69,
        70,
        72,
        117,
        128,
        130,
        131,
        321,
        395,
        407,
        433,
        434,
        436,
        438,
        444,
        617,
        671,
    }
)
_MEMORY_LIMIT_EXCEEDED = 241


class Transport(Protocol):
    """How bytes reach the engine."""

    def hard(self, signal: Signal, segment: Path, payloads: Sequence[memoryview]) -> list[tuple[int, bool]]:
        """(rows, hard) of each request."""

    def insert(
        self,
        signal: Signal,
        fmt: str,
        token: str,
        data: Path | bytes,
        missing: Sequence[TimeRange] | None = None,
        reach: Reach = Reach.ALL,
    ) -> None:
        """One INSERT … SELECT; with a token that was seen already it changes nothing.

        Args:
            missing: insert only rows that the table does not have, whose times lie in these; None: all rows.
            reach: of Protobuf, which values are rendered; any other is a SegmentRefused, and no row is inserted.
        """


class Embedded:
    """The engine in this process reads files."""

    def __init__(self, client: Client, scratch: Path) -> None:
        self._client = client
        self._scratch = scratch

    def hard(self, signal: Signal, segment: Path, payloads: Sequence[memoryview]) -> list[tuple[int, bool]]:
        del payloads  # the engine reads the file
        text = raw_query(self._client, queries.hard_query(signal, segment))
        return [(int(line.split(b"\t")[0]), line.split(b"\t")[1] == b"1") for line in text.splitlines()]

    def insert(
        self,
        signal: Signal,
        fmt: str,
        token: str,
        data: Path | bytes,
        missing: Sequence[TimeRange] | None = None,
        reach: Reach = Reach.ALL,
    ) -> None:
        if isinstance(data, Path):
            self._run(signal, fmt, token, data, missing, reach)
            return
        self._scratch.mkdir(parents=True, exist_ok=True)
        # Several writers insert at a time, and an insert without a token has no name of its own.
        own = f"{os.getpid()}-{threading.get_ident()}"
        part = self._scratch / f"{token or signal.value}.{own}{PART_SUFFIX}"
        try:
            part.write_bytes(data)
            self._run(signal, fmt, token, part, missing, reach)
        finally:
            part.unlink(missing_ok=True)

    def _run(
        self,
        signal: Signal,
        fmt: str,
        token: str,
        path: Path,
        missing: Sequence[TimeRange] | None,
        reach: Reach,
    ) -> None:
        source = queries.file_source(path, fmt, queries.structure(signal, fmt, reach))
        query = queries.insert_query(signal, fmt, source, token, local=True, missing=missing, reach=reach)
        command(self._client, query)


class Server:
    """A ClickHouse server gets the bytes as the INSERT's body: no file lies on its disk."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def hard(self, signal: Signal, segment: Path, payloads: Sequence[memoryview]) -> list[tuple[int, bool]]:
        # input() serves only an INSERT, so a server cannot be asked first: Python walks the values.
        counts = []
        for payload in payloads:
            try:
                request = message_type(signal).FromString(bytes(payload))
            except DecodeError as error:
                raise SegmentRefused(f"{segment.name}: {error}") from error
            counts.append((count_items(signal, request), is_hard(signal, request)))
        return counts

    def insert(
        self,
        signal: Signal,
        fmt: str,
        token: str,
        data: Path | bytes,
        missing: Sequence[TimeRange] | None = None,
        reach: Reach = Reach.ALL,
    ) -> None:
        source = queries.input_source(queries.structure(signal, fmt, reach))
        body = data.read_bytes() if isinstance(data, Path) else data
        query = queries.insert_query(signal, fmt, source, token, local=False, missing=missing, reach=reach)
        # Before the rows, in the body: the query's 9 KB are 13 in a URL, and many a proxy takes 8.
        with _translated():
            # No table: the body is sent as it is.
            self._client.raw_insert("", insert_block=f"{query}\nFORMAT {fmt}\n".encode() + body)


def command(client: Client, sql: str, parameters: Mapping[str, str | int] | None = None) -> None:
    """Runs a statement; its errors say whether the bytes are at fault or the store."""
    with _translated():
        client.command(sql, parameters=dict(parameters or {}))


def raw_query(client: Client, sql: str) -> bytes:
    """A query's answer in TabSeparated, with the same errors."""
    with _translated():
        result: bytes = client.raw_query(sql, fmt="TabSeparated")
    return result


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    from clickhouse_connect.driver.exceptions import ClickHouseError

    try:
        yield
    except ClickHouseError as error:
        raise _translate(error) from error


def _translate(error: Exception) -> SegmentRefused | StoreUnavailable:
    match = re.search(r"Code: (\d+)", str(error))
    message = str(error).partition(": While executing")[0][:500]
    code = int(match[1]) if match else 0
    if code in _DATA_ERRORS:
        return SegmentRefused(message)
    if code == _MEMORY_LIMIT_EXCEEDED:
        return StoreOverloaded(
            f"a segment does not fit into the engine's memory: {message}",
            "the log keeps it; it is tried again in parts; SPANLOOP_ENGINE_MEMORY allows the engine more",
        )
    return StoreUnavailable(
        f"the engine cannot take a segment now: {message}", "the log keeps it; it is tried again"
    )
