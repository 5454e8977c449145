"""Segments into the tables, exactly once: by the engine's own decoder, by Python where it cannot, else quarantined."""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from google.protobuf.message import DecodeError

from spanloop_store.disk import write_synced
from spanloop_store.errors import SegmentRefused, StoreOverloaded
from spanloop_store.otlp import queries
from spanloop_store.otlp.frames import SEGMENT_SUFFIX, count, frame, frames
from spanloop_store.otlp.halves import halves
from spanloop_store.otlp.hard import is_hard
from spanloop_store.otlp.queries import PROTOBUF, ROWS_FORMAT, Reach, TimeRange, time_ranges
from spanloop_store.otlp.rows import rows as python_rows
from spanloop_store.otlp.rows import times
from spanloop_store.otlp.signals import Signal, count_items, message_type
from spanloop_store.otlp.transports import Embedded, Server, Transport, command
from spanloop_store.tables import holder, read_tables

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

log = logging.getLogger(__name__)

# The condition, and not a token, keeps a repeated segment from being counted twice: it needs no window.
_RECORD_SEGMENT = """
INSERT INTO ingest_segments (segment, collector, signal, decoder, requests, rows, bytes)
SELECT {segment:String}, {collector:String}, {signal:String}, {decoder:String}, {requests:UInt64}, {rows:UInt64}, {bytes:UInt64}
WHERE ({segment:String}, {decoder:String}) NOT IN
    (SELECT segment, decoder FROM ingest_segments WHERE segment = {segment:String})
"""


class _Request(NamedTuple):
    """One request of a segment."""

    place: str  # in the segment, from 0; of a part of one, with a letter for each cut
    payload: memoryview | bytes
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
        self._transport: Transport = Embedded(client, quarantine) if embedded else Server(client)
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
        except StoreOverloaded:
            if not again:
                raise
            whole, counts = None, [_look(signal, payload) for payload in payloads]
        requests = [
            _Request(str(place), payload, rows, hard)
            for place, (payload, (rows, hard)) in enumerate(zip(payloads, counts, strict=True))
        ]
        attempt = _Attempt(path, signal, _times_of(signal, payloads) if again else None, len(payloads))
        easy = [request for request in requests if not request.hard]
        # One segment is like the next: where the fallback had work, trying the whole first would be in vain.
        (self._needs_care.discard if len(easy) == len(requests) else self._needs_care.add)(signal)
        self._insert_group(attempt, PROTOBUF, easy, whole=whole if len(easy) == len(requests) else None)
        self._insert_group(attempt, ROWS_FORMAT, [request for request in requests if request.hard])
        if attempt.missing is not None:
            for statement in queries.complete_views(signal, attempt.missing):
                command(self._client, statement)
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

        One that is too much for the engine's memory, twice, is halved until it is not: at last by a request's items.

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
                if whole and isinstance(self._transport, Embedded)
                else b"".join(frame(bytes(request.payload)) for request in group)
                if fmt == PROTOBUF
                else _encode_rows(attempt.signal, [request.payload for request in group])
            )
            token = name if fmt == PROTOBUF else f"{name}.fallback"
            self._transport.insert(attempt.signal, fmt, token, data, attempt.missing)
            if attempt.missing is not None and self._forgetful(attempt.signal):
                # Without a token: the one above may be remembered for rows that a crash took.
                self._transport.insert(attempt.signal, fmt, "", data, attempt.missing)
        except StoreOverloaded as error:
            parts = _in_two(attempt.signal, group)
            # At the first attempt others may have been in the way.
            if attempt.missing is None or len(parts) == 1:
                raise
            log.warning("%s: %d requests are too much at once, halving them: %s", name, len(group), error)
            for each in parts:
                self._insert_group(attempt, fmt, each, part=True)
            return
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
        (self._quarantine / f"{name}{SEGMENT_SUFFIX}.reason.txt").write_text(reason + "\n", encoding="utf-8")
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
            command(
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
    return count_items(signal, request), is_hard(signal, request)


def _times_of(signal: Signal, payloads: Sequence[memoryview]) -> list[TimeRange]:
    """The times in a segment, as the table keeps them."""
    found: list[int] = []
    for payload in payloads:
        # What does not decode has no rows to look for.
        with contextlib.suppress(DecodeError):
            found += times(signal, message_type(signal).FromString(bytes(payload)))
    return time_ranges(found or [0])


def _in_two(signal: Signal, group: Sequence[_Request]) -> list[Sequence[_Request]]:
    """Two halves of a group, or of the one request in it; one part: there is but a single item."""
    if len(group) > 1:
        middle = len(group) // 2
        return [group[:middle], group[middle:]]
    (request,) = group
    return [
        [_Request(f"{request.place}{letter}", payload, rows, request.hard)]
        for letter, (payload, rows) in zip("ab", halves(signal, bytes(request.payload)), strict=False)
    ]


def _encode_rows(signal: Signal, payloads: Iterable[memoryview | bytes]) -> bytes:
    """Rows of whole requests in `ROWS_FORMAT`; ASCII JSON, so that no text can end a row."""
    parse = message_type(signal).FromString
    lines = [json.dumps(row) for payload in payloads for row in python_rows(signal, parse(bytes(payload)))]
    return "\n".join(lines).encode()
