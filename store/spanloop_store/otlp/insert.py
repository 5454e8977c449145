"""Segments into the tables, exactly once: by the engine's own decoder, by Python where it cannot, else quarantined."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from google.protobuf.message import DecodeError

from spanloop_store.errors import SegmentRefused, StoreUnavailable
from spanloop_store.otlp import queries
from spanloop_store.otlp.frames import frame, frames
from spanloop_store.otlp.hard import is_hard
from spanloop_store.otlp.queries import PROTOBUF, ROWS_FORMAT
from spanloop_store.otlp.rows import rows as python_rows
from spanloop_store.otlp.signals import Signal, message_type

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

log = logging.getLogger(__name__)

PART_SUFFIX = ".part"  # scratch files beside a segment; whoever finds one after a crash deletes it

# ClickHouse errors that say "not these bytes": the rest (memory, disk, network, a missing table) may pass, so the
# segment stays in the log and is tried again. CANNOT_PARSE_*, CANNOT_READ_*, TOO_LARGE_STRING_SIZE,
# ARGUMENT_OUT_OF_BOUND, INCORRECT_DATA, TYPE_MISMATCH, CANNOT_CONVERT_TYPE, VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE,
# UNKNOWN_PROTOBUF_FORMAT, PROTOBUF_*, DECIMAL_OVERFLOW.
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

# The condition, and not a token, keeps a repeated segment from being counted twice: it needs no window.
_RECORD_SEGMENT = """
INSERT INTO ingest_segments (segment, collector, signal, decoder, requests, rows, bytes)
SELECT {segment:String}, {collector:String}, {signal:String}, {decoder:String}, {requests:UInt64}, {rows:UInt64}, {bytes:UInt64}
WHERE ({segment:String}, {decoder:String}) NOT IN
    (SELECT segment, decoder FROM ingest_segments WHERE segment = {segment:String})
"""


@dataclass(frozen=True)
class Inserted:
    """What became of one segment. Rows are spans or log records."""

    segment: str
    signal: Signal
    requests: int
    engine_rows: int
    fallback_rows: int
    quarantined_rows: int
    quarantined_requests: int

    @property
    def rows(self) -> int:
        """Rows that are in the table."""
        return self.engine_rows + self.fallback_rows


class _Transport(Protocol):
    """How bytes reach the engine."""

    def hard(self, signal: Signal, segment: Path, payloads: Sequence[memoryview]) -> list[tuple[int, bool]]:
        """(rows, hard) of each request."""

    def insert(self, signal: Signal, fmt: str, token: str, data: Path | bytes) -> None:
        """One INSERT … SELECT; with a token that was seen already it changes nothing."""


class SegmentInserter:
    """Inserts segments into one store; use it from one thread.

    Args:
        client: a client of the store, with every right on the embedded engine (`Engine.client()`).
        embedded: whether the engine runs in this process and can read the segment's file itself; else the bytes are
            sent as the body of the INSERT.
        quarantine: folder for requests that nothing can decode.
        collector: name of this process in `ingest_segments`.
    """

    def __init__(self, client: Client, *, embedded: bool, quarantine: Path, collector: str = "") -> None:
        self._client = client
        self._transport: _Transport = _Embedded(client, quarantine) if embedded else _Server(client)
        self._quarantine = quarantine
        self._collector = collector

    def insert(self, path: Path, signal: Signal) -> Inserted:
        """Inserts one whole segment; calling it again for the same file changes nothing.

        The segment's name is its deduplication token. The file is left where it is: remove it afterwards.

        Raises:
            StoreUnavailable: the engine cannot take it now; nothing is lost, try again.
        """
        data = path.read_bytes()
        payloads = [item.payload for item in frames(data)]
        try:
            counts = self._transport.hard(signal, path, payloads)
            if len(counts) != len(payloads):
                raise SegmentRefused(
                    f"the engine sees {len(counts)} requests in {path.name}, not {len(payloads)}"
                )
            result = self._insert_whole(path, signal, data, payloads, counts)
        except SegmentRefused as error:
            log.warning(
                "%s: the engine refuses the segment, trying its requests one by one: %s", path.name, error
            )
            result = self._insert_singly(path, signal, payloads)
        self._record(result, len(data))
        return result

    def _insert_whole(
        self,
        path: Path,
        signal: Signal,
        data: bytes,
        payloads: Sequence[memoryview],
        counts: Sequence[tuple[int, bool]],
    ) -> Inserted:
        easy = [payload for payload, (_, hard) in zip(payloads, counts, strict=True) if not hard]
        difficult = [payload for payload, (_, hard) in zip(payloads, counts, strict=True) if hard]
        if not difficult:
            self._transport.insert(
                signal, PROTOBUF, path.name, path if isinstance(self._transport, _Embedded) else data
            )
        else:
            if easy:
                self._transport.insert(
                    signal, PROTOBUF, path.name, b"".join(frame(bytes(item)) for item in easy)
                )
            self._transport.insert(
                signal, ROWS_FORMAT, f"{path.name}.fallback", _encode_rows(signal, difficult)
            )
        return Inserted(
            segment=path.name,
            signal=signal,
            requests=len(payloads),
            engine_rows=sum(rows for rows, hard in counts if not hard),
            fallback_rows=sum(rows for rows, hard in counts if hard),
            quarantined_rows=0,
            quarantined_requests=0,
        )

    def _insert_singly(self, path: Path, signal: Signal, payloads: Sequence[memoryview]) -> Inserted:
        """Each request with a token of its own, so that doing all of this again repeats nothing."""
        engine = fallback = lost_rows = lost_requests = 0
        for index, view in enumerate(payloads):
            payload = bytes(view)
            rows = 0
            try:
                request = message_type(signal).FromString(payload)
                rows = _count(signal, request)
                if not is_hard(signal, request):
                    try:
                        self._transport.insert(signal, PROTOBUF, f"{path.name}.{index}", frame(payload))
                        engine += rows
                        continue
                    except SegmentRefused as error:
                        log.warning(
                            "%s, request %d: decoding in Python, the engine says: %s", path.name, index, error
                        )
                self._transport.insert(
                    signal, ROWS_FORMAT, f"{path.name}.{index}.fallback", _encode_rows(signal, [view])
                )
                fallback += rows
            except (SegmentRefused, DecodeError) as error:
                self.quarantine(f"{path.name}.{index}", payload, str(error))
                lost_rows += rows
                lost_requests += 1
        return Inserted(path.name, signal, len(payloads), engine, fallback, lost_rows, lost_requests)

    def quarantine(self, name: str, payload: bytes, reason: str) -> None:
        """Keeps bytes that nothing can decode, with the reason beside them."""
        self._quarantine.mkdir(parents=True, exist_ok=True)
        (self._quarantine / f"{name}.otlp").write_bytes(payload)
        (self._quarantine / f"{name}.reason.txt").write_text(reason + "\n", encoding="utf-8")
        log.error("quarantined %s (%d bytes) in %s: %s", name, len(payload), self._quarantine, reason)

    def _record(self, result: Inserted, size: int) -> None:
        counts = {
            "engine": result.engine_rows,
            "fallback": result.fallback_rows,
            "quarantine": result.quarantined_rows,
        }
        for decoder, rows in counts.items():
            requests = result.quarantined_requests if decoder == "quarantine" else result.requests
            if not rows and not (decoder == "quarantine" and requests):
                continue
            _command(
                self._client,
                _RECORD_SEGMENT,
                parameters={
                    "segment": result.segment,
                    "collector": self._collector,
                    "signal": result.signal.value,
                    "decoder": decoder,
                    "requests": requests,
                    "rows": rows,
                    "bytes": size,
                },
            )


class _Embedded:
    """The engine in this process reads files."""

    def __init__(self, client: Client, scratch: Path) -> None:
        self._client = client
        self._scratch = scratch

    def hard(self, signal: Signal, segment: Path, payloads: Sequence[memoryview]) -> list[tuple[int, bool]]:
        del payloads  # the engine reads the file
        text = _raw_query(self._client, queries.hard_query(signal, segment))
        return [(int(line.split(b"\t")[0]), line.split(b"\t")[1] == b"1") for line in text.splitlines()]

    def insert(self, signal: Signal, fmt: str, token: str, data: Path | bytes) -> None:
        if isinstance(data, Path):
            self._run(signal, fmt, token, data)
            return
        self._scratch.mkdir(parents=True, exist_ok=True)
        part = self._scratch / f"{token}.{os.getpid()}{PART_SUFFIX}"
        try:
            part.write_bytes(data)
            self._run(signal, fmt, token, part)
        finally:
            part.unlink(missing_ok=True)

    def _run(self, signal: Signal, fmt: str, token: str, path: Path) -> None:
        source = queries.file_source(path, fmt, queries.structure(signal, fmt))
        _command(self._client, queries.insert_query(signal, fmt, source, token, local=True))


class _Server:
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
            counts.append((_count(signal, request), is_hard(signal, request)))
        return counts

    def insert(self, signal: Signal, fmt: str, token: str, data: Path | bytes) -> None:
        source = queries.input_source(queries.structure(signal, fmt))
        body = data.read_bytes() if isinstance(data, Path) else data
        _command(
            self._client,
            f"{queries.insert_query(signal, fmt, source, token, local=False)}\nFORMAT {fmt}",
            body,
        )


def _count(signal: Signal, request: Any) -> int:
    if signal is Signal.TRACES:
        return sum(len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans)
    return sum(len(scope.log_records) for resource in request.resource_logs for scope in resource.scope_logs)


def _encode_rows(signal: Signal, payloads: Iterable[memoryview]) -> bytes:
    """Rows of whole requests in `ROWS_FORMAT`; ASCII JSON, so that no text can end a row."""
    parse = message_type(signal).FromString
    lines = [json.dumps(row) for payload in payloads for row in python_rows(signal, parse(bytes(payload)))]
    return "\n".join(lines).encode()


def _command(
    client: Client, sql: str, data: bytes | None = None, parameters: dict[str, str | int] | None = None
) -> None:
    from clickhouse_connect.driver.exceptions import ClickHouseError

    try:
        client.command(sql, parameters=parameters, data=data)
    except ClickHouseError as error:
        raise _translate(error) from error


def _raw_query(client: Client, sql: str) -> bytes:
    from clickhouse_connect.driver.exceptions import ClickHouseError

    try:
        result: bytes = client.raw_query(sql, fmt="TabSeparated")
    except ClickHouseError as error:
        raise _translate(error) from error
    return result


def _translate(error: Exception) -> SegmentRefused | StoreUnavailable:
    match = re.search(r"Code: (\d+)", str(error))
    message = str(error).partition(": While executing")[0][:500]
    if match and int(match[1]) in _DATA_ERRORS:
        return SegmentRefused(message)
    return StoreUnavailable(
        f"the engine cannot take a segment now: {message}", "the log keeps it; it is tried again"
    )
