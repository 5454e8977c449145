"""Length-delimited protobuf messages: the framing of a segment, and exactly ClickHouse's `Protobuf` format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from spanloop_store.otlp.wire import read_varint, varint

SEGMENT_SUFFIX = ".otlp"  # of a segment's file name


class Frame(NamedTuple):
    """One message of a segment."""

    start: int  # byte offset of its length prefix
    end: int  # byte offset behind its last byte
    payload: memoryview


def frame(payload: bytes) -> bytes:
    """A message with its length before it, as a varint (protobuf encoding, "Base 128 Varints")."""
    return varint(len(payload)) + payload


def frames(data: bytes | memoryview) -> Iterator[Frame]:
    """The whole frames of `data`, in order; stops silently at the first one that is cut off or no frame.

    An empty frame also stops it: none is ever written, and the zeros that a file system leaves behind a crash would
    read as endless empty messages. Compare the last frame's `end` with the length of `data` to see whether it was all.
    """
    view = memoryview(data)
    offset = 0
    while offset < len(view):
        length, cursor = read_varint(view, offset, len(view))
        end = cursor + length
        if length == 0 or end > len(view):
            return
        yield Frame(offset, end, view[cursor:end])
        offset = end


def count(data: memoryview) -> int:
    """How many whole frames `data` begins with. Keeps no view of it."""
    found = 0
    for item in frames(data):
        found += 1
        item.payload.release()
    return found
