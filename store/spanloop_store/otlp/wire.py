"""Protobuf's wire format by hand, for where spans are written and read without the protobuf library ("Encoding", protobuf.dev).

Its import takes 40 ms, an object a value takes longer than the bytes of it; an agent and the gateway pay neither. Tags are field
number and wire type in one, and below 128: no field of OTLP that is written here has a number above 15.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

SHORT: Final = [bytes([number]) for number in range(128)]  # the varints of one byte, and the tags
LENGTH_DELIMITED: Final = 2  # the wire type
_MAX_SHIFT: Final = 70  # bits, of ten bytes of seven: a longer varint is none


def whole_text(text: str) -> str:
    """Half a surrogate pair, which is left of an emoji where a text was cut, becomes U+FFFD: protobuf takes no half."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def varint(number: int) -> bytes:
    """`number`, not negative, as a varint."""
    if number < 128:
        return SHORT[number]
    if number < 16384:
        return bytes((number & 0x7F | 0x80, number >> 7))
    result = bytearray()
    while number > 0x7F:
        result.append(number & 0x7F | 0x80)
        number >>= 7
    result.append(number)
    return bytes(result)


def field(tag: int, body: bytes) -> bytes:
    """A length-delimited field."""
    return SHORT[tag] + varint(len(body)) + body


def read_varint(data: bytes | memoryview, position: int, end: int) -> tuple[int, int]:
    """A varint and the place behind it, which is at most `end`; (0, 0): there is none."""
    number = shift = 0
    while position < end and shift < _MAX_SHIFT:
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7
    return 0, 0


def fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, where its tag begins, where its body begins, where it ends) of each length-delimited field in data[start:end].

    Others are passed over: a gap between two fields, or behind the last, is where they stand. Bytes that are no protobuf come
    as one field with the number 0.
    """
    position = start
    while position < end:
        tag_at = position
        tag = data[position]
        position += 1
        if tag > 0x7F:
            tag, position = read_varint(data, tag_at, end)
        wire = tag & 7
        if wire == LENGTH_DELIMITED:
            if position < end and (length := data[position]) < 0x80:
                position += 1
            else:
                length, position = read_varint(data, position, end)
            last = position + length
            if position <= 0 or last > end or tag < 8:
                yield 0, tag_at, tag_at, end
                return
            yield tag >> 3, tag_at, position, last
            position = last
        elif wire == 0:
            _, position = read_varint(data, position, end)
            if position <= 0:
                yield 0, tag_at, tag_at, end
                return
        elif wire == 1:
            position += 8
        elif wire == 5:
            position += 4
        else:
            yield 0, tag_at, tag_at, end
            return
