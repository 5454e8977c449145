"""Server-sent events: splits a byte stream into events at their blank lines, wherever the network cut it.

Source: WHATWG HTML, section 9.2.5 (an event ends with a blank line; lines end with LF, CRLF or CR; `data:` may be
followed by one space).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# Blank line = two line ends in a row. CR alone is legal but no model server sends it, and a CR at the end of a
# network chunk could be half a CRLF: only LF and CRLF end events here; a stream of lone CRs passes as one tail.
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
DONE = b"[DONE]"


class EventSplitter:
    """Holds back the unfinished event between chunks."""

    def __init__(self) -> None:
        self._tail = b""

    @property
    def held(self) -> int:
        """Bytes of the unfinished event."""
        return len(self._tail)

    def feed(self, chunk: bytes) -> list[bytes]:
        """Complete events, each with its ending blank line: joined with `rest()`, all bytes come out as they went in."""
        buffer = self._tail + chunk if self._tail else chunk
        if b"\r" not in buffer:  # every model server that we know; ten times faster than the expression
            *complete, self._tail = buffer.split(b"\n\n")
            return [event + b"\n\n" for event in complete]
        events: list[bytes] = []
        begin = 0
        for blank in _BLANK_LINE.finditer(buffer):
            events.append(buffer[begin : blank.end()])
            begin = blank.end()
        self._tail = buffer[begin:]
        return events

    def rest(self) -> bytes:
        """What came after the last blank line; asked for at the end of the stream."""
        rest, self._tail = self._tail, b""
        return rest


def data_of(event: bytes) -> bytes | None:
    """The event's data (several `data:` lines joined by LF), or None for comments and events without data."""
    if _is_one_data_line(event):
        return event[5:-2].removeprefix(b" ")
    lines = list(_data_lines(event))
    return b"\n".join(lines) if lines else None


def _is_one_data_line(event: bytes) -> bool:
    """True of nearly every event that a model server sends: spares the general path for each token."""
    return event.startswith(b"data:") and event.find(b"\n") == len(event) - 2 and event.endswith(b"\n")


def _data_lines(event: bytes) -> Iterator[bytes]:
    for line in event.splitlines():
        if line.startswith(b"data:"):
            yield line[5:].removeprefix(b" ")


def with_data(event: bytes, data: bytes) -> bytes:
    """`event` with its data replaced; other fields (`event:`, `id:`) stay."""
    if _is_one_data_line(event):
        return b"data: " + data + b"\n\n"
    others = [line for line in event.splitlines() if line and not line.startswith(b"data:")]
    return b"".join(line + b"\n" for line in others) + b"data: " + data + b"\n\n"
