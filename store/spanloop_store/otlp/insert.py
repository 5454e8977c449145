"""Segments into the tables, exactly once: by the engine's own decoder, by Python where it cannot, else quarantined."""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from google.protobuf.message import DecodeError

from spanloop_store.disk import write_synced
from spanloop_store.errors import SegmentRefused, StoreUnavailable
from spanloop_store.otlp import queries
from spanloop_store.otlp.frames import SEGMENT_SUFFIX, count, frame, frames
from spanloop_store.otlp.hard import is_hard
from spanloop_store.otlp.queries import PROTOBUF, ROWS_FORMAT, Reach, TimeRange, time_ranges
from spanloop_store.otlp.rows import rows as python_rows
from spanloop_store.otlp.rows import times
from spanloop_store.otlp.signals import Signal, message_type
from spanloop_store.tables import holder, read_tables

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

log = logging.getLogger(__name__)

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

# The condition, and not a token, keeps a repeated segment from being counted twice: it needs no window.
_RECORD_SEGMENT = """
INSERT INTO ingest_segments (segment, collector, signal, decoder, requests, rows, bytes)
SELECT {segment:String}, {collector:String}, {signal:String}, {decoder:String}, {requests:UInt64}, {rows:UInt64}, {bytes:UInt64}
WHERE ({segment:String}, {decoder:String}) NOT IN
    (SELECT segment, decoder FROM ingest_segments WHERE segment = {segment:String})
"""


class _Request(NamedTuple):
    """One request of a segment."""

    place: int  # in the segment, from 0
    payload: memoryview
    rows: int  # spans or log records in it
    hard: bool  # the engine's SQL cannot render it


@dataclass
class _Attempt:
    """One run over a segment, and what became of its rows so far."""

    path: Path
    signal: Signal
    missing: Sequence[TimeRange] | None  # None: the first attempt, everything is inserted
    requests: int
    engine_rows: int = 0
    fallback_rows: int = 0
    quarantined_rows: int = 0
    quarantined_requests: int = 0

    def result(self) -> Inserted:
        return Inserted(
            segment=self.path.name,
            signal=self.signal,
            requests=self.requests,
            engine_rows=self.engine_rows,
            fallback_rows=self.fallback_rows,
            quarantined_rows=self.quarantined_rows,
            quarantined_requests=self.quarantined_requests,
        )


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
        self._needs_care: set[Signal] = set()  # whose last segment held values for the fallback

    def insert(self, path: Path, signal: Signal, *, items: int = 0, again: bool = False) -> Inserted:
        """Inserts one whole segment; calling it again for the same file changes nothing.

        The segment's name is its deduplication token. The file is left where it is: remove it afterwards.

        Args:
            path: the segment.
            signal: what it holds.
            items: spans or log records in it, where the caller counted them. Then the whole segment is tried with one
                insert first, and nobody looks at its values before; 0: not known.
            again: an earlier attempt may have ended half-way (a crash, an error). The token alone is not enough then:
                MergeTree writes it down *before* the part gets its name, so a process that is killed between the two
                has the token and not the rows. What is missing is looked for in the table and inserted.

        Raises:
            StoreUnavailable: the engine cannot take it now; nothing is lost, try again.
        """
        if items and not again and signal not in self._needs_care and self._insert_common(path, signal):
            requests, size = _measure(path)
            result = Inserted(path.name, signal, requests, items, 0, 0, 0)
        else:
            result, size = self._insert_carefully(path, signal, again=again)
        self._record(result, size)
        return result

    def _insert_common(self, path: Path, signal: Signal) -> bool:
        """The whole segment at once, as long as it holds no uncommon value; False: it does, and nothing was inserted."""
        try:
            reach = Reach.COMMON if signal is Signal.TRACES else Reach.ALL
            self._transport.insert(signal, PROTOBUF, path.name, path, reach=reach)
        except SegmentRefused as error:
            # The block reaches the table when all of it is rendered, so there is nothing of it there.
            log.debug("%s: the engine does not take it as a whole: %s", path.name, error)
            return False
        return True

    def _insert_carefully(self, path: Path, signal: Signal, *, again: bool) -> tuple[Inserted, int]:
        """Request by request where need be: each by the decoder that can; returns the segment's size too."""
        data = path.read_bytes()
        payloads = [item.payload for item in frames(data)]
        whole: Path | None = path
        try:
            counts = self._transport.hard(signal, path, payloads)
            if len(counts) != len(payloads):
                raise SegmentRefused(
                    f"the engine sees {len(counts)} requests in {path.name}, not {len(payloads)}"
                )
        except SegmentRefused as error:
            log.warning("%s: the engine refuses the segment, trying its parts: %s", path.name, error)
            whole, counts = None, [_look(signal, payload) for payload in payloads]
        requests = [
            _Request(place, payload, rows, hard)
            for place, (payload, (rows, hard)) in enumerate(zip(payloads, counts, strict=True))
        ]
        attempt = _Attempt(path, signal, _times_of(signal, payloads) if again else None, len(payloads))
        easy = [request for request in requests if not request.hard]
        # One segment is like the next: where the fallback had work, trying the whole first would be in vain.
        (self._needs_care.discard if len(easy) == len(requests) else self._needs_care.add)(signal)
        self._insert_group(attempt, PROTOBUF, easy, whole=whole if len(easy) == len(requests) else None)
        self._insert_group(attempt, ROWS_FORMAT, [request for request in requests if request.hard])
        if attempt.missing is not None and signal is Signal.TRACES:
            _command(self._client, queries.complete_view(attempt.missing))
        return attempt.result(), len(data)

    def _insert_group(
        self,
        attempt: _Attempt,
        fmt: str,
        group: Sequence[_Request],
        *,
        whole: Path | None = None,
        part: bool = False,
    ) -> None:
        """Requests of one decoder with one insert; a group that is refused is halved until the bad request is alone.

        Args:
            whole: the segment's file, where the group is all of it.
            part: not all of this decoder's requests; its token then names the first and the last.
        """
        if not group:
            return
        name = attempt.path.name + (f".{group[0].place}-{group[-1].place}" if part else "")
        try:
            data = (
                whole
                if whole and isinstance(self._transport, _Embedded)
                else b"".join(frame(bytes(request.payload)) for request in group)
                if fmt == PROTOBUF
                else _encode_rows(attempt.signal, [request.payload for request in group])
            )
            token = name if fmt == PROTOBUF else f"{name}.fallback"
            self._transport.insert(attempt.signal, fmt, token, data, attempt.missing)
            if attempt.missing is not None and self._forgetful(attempt.signal):
                # Without a token: the one above may be remembered for rows that a crash took.
                self._transport.insert(attempt.signal, fmt, "", data, attempt.missing)
        except (SegmentRefused, DecodeError) as error:
            if len(group) > 1:
                log.warning("%s: %d requests are refused, halving them: %s", name, len(group), error)
                middle = len(group) // 2
                self._insert_group(attempt, fmt, group[:middle], part=True)
                self._insert_group(attempt, fmt, group[middle:], part=True)
            elif fmt == PROTOBUF:
                log.warning("%s: decoding in Python, the engine says: %s", name, error)
                self._insert_group(attempt, ROWS_FORMAT, group, part=True)
            else:
                self.quarantine(f"{attempt.path.name}.{group[0].place}", bytes(group[0].payload), str(error))
                attempt.quarantined_rows += group[0].rows
                attempt.quarantined_requests += 1
            return
        rows = sum(request.rows for request in group)
        if fmt == PROTOBUF:
            attempt.engine_rows += rows
        else:
            attempt.fallback_rows += rows

    def _forgetful(self, signal: Signal) -> bool:
        """Whether the table may know a token and not its rows. Replicated ones write both in one step; there a replica that
        lags would say that rows are missing."""
        tables = read_tables(self._client)
        return signal.table in tables and holder(tables, signal.table).engine == "MergeTree"

    def quarantine(self, name: str, payload: bytes, reason: str) -> None:
        """Keeps bytes that nothing can decode, with the reason beside them."""
        self._quarantine.mkdir(parents=True, exist_ok=True)
        (self._quarantine / f"{name}.reason.txt").write_text(reason + "\n", encoding="utf-8")
        # The segment is deleted next.
        write_synced(self._quarantine / f"{name}{SEGMENT_SUFFIX}", payload)
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
        _command(self._client, query)


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
        _send(self._client, f"{query}\nFORMAT {fmt}\n".encode() + body)


def _measure(path: Path) -> tuple[int, int]:
    """(requests, bytes) of a segment, without reading what is in the requests."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        view = memoryview(data)
        try:
            return count(view), len(view)
        finally:
            view.release()


def _look(signal: Signal, payload: memoryview) -> tuple[int, bool]:
    """(rows, hard) of one request, found in Python; what does not decode is hard, with no rows."""
    try:
        request = message_type(signal).FromString(bytes(payload))
    except DecodeError:
        return 0, True
    return _count(signal, request), is_hard(signal, request)


def _times_of(signal: Signal, payloads: Sequence[memoryview]) -> list[TimeRange]:
    """The times in a segment, as the table keeps them."""
    found: list[int] = []
    for payload in payloads:
        # What does not decode has no rows to look for.
        with contextlib.suppress(DecodeError):
            found += times(signal, message_type(signal).FromString(bytes(payload)))
    return time_ranges(found or [0])


def _count(signal: Signal, request: Any) -> int:
    if signal is Signal.TRACES:
        return sum(len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans)
    return sum(len(scope.log_records) for resource in request.resource_logs for scope in resource.scope_logs)


def _encode_rows(signal: Signal, payloads: Iterable[memoryview]) -> bytes:
    """Rows of whole requests in `ROWS_FORMAT`; ASCII JSON, so that no text can end a row."""
    parse = message_type(signal).FromString
    lines = [json.dumps(row) for payload in payloads for row in python_rows(signal, parse(bytes(payload)))]
    return "\n".join(lines).encode()


def _send(client: Client, body: bytes) -> None:
    """An INSERT with its data behind it."""
    from clickhouse_connect.driver.exceptions import ClickHouseError

    try:
        client.raw_insert("", insert_block=body)  # no table: the body is sent as it is
    except ClickHouseError as error:
        raise _translate(error) from error


def _command(client: Client, sql: str, parameters: Mapping[str, str | int] | None = None) -> None:
    from clickhouse_connect.driver.exceptions import ClickHouseError

    try:
        client.command(sql, parameters=dict(parameters or {}))
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
