"""ClickHouse's Native format: where each block and column begins and ends, found without decoding a value."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from spanloop_store.errors import NativeError

# Thresholds of the protocol revision (ClickHouse, src/Core/ProtocolDefines.h) that change how a block is framed.
BLOCK_INFO = 1  # any revision but 0 has it
LOW_CARDINALITY = 54405  # below, it travels as its plain type
CUSTOM_SERIALIZATION = 54454  # a byte after every column's type: 0, nothing special
NEWEST_REVISION = 54484  # above, the layout of strings themselves may change
# is_overflows = false, bucket_num = -1, end of fields.
_BLOCK_INFO_BYTES = b"\x01\x00\x02\xff\xff\xff\xff\x00"

_ADDITIONAL_KEYS = 1 << 9  # flag of a LowCardinality column: its keys travel with it
_KEY_SIZES = (1, 2, 4, 8)
_FIXED = {
    "Bool": 1, "Int8": 1, "UInt8": 1, "Enum8": 1, "Nothing": 1,
    "Int16": 2, "UInt16": 2, "Enum16": 2, "Date": 2, "BFloat16": 2,
    "Int32": 4, "UInt32": 4, "Float32": 4, "Date32": 4, "DateTime": 4, "IPv4": 4, "Decimal32": 4, "Time": 4,
    "Int64": 8, "UInt64": 8, "Float64": 8, "DateTime64": 8, "Decimal64": 8, "Time64": 8,
    "Int128": 16, "UInt128": 16, "UUID": 16, "IPv6": 16, "Decimal128": 16,
    "Int256": 32, "UInt256": 32, "Decimal256": 32,
}  # fmt: skip
_ALIASES = {
    "Point": "Tuple(Float64, Float64)",
    "Ring": "Array(Tuple(Float64, Float64))",
    "LineString": "Array(Tuple(Float64, Float64))",
    "Polygon": "Array(Array(Tuple(Float64, Float64)))",
    "MultiLineString": "Array(Array(Tuple(Float64, Float64)))",
    "MultiPolygon": "Array(Array(Array(Tuple(Float64, Float64))))",
}
_NAME = re.compile(r"\w+")
# An element of a Tuple or Nested may carry a name in front of its type.
_ELEMENT_NAME = re.compile(r"(?:`(?:[^`\\]|\\.)*`|\w+) +(?=[A-Z])")


class Truncated(Exception):
    """The bytes end inside a block: more of them are needed."""


class Column(NamedTuple):
    """One column of a block: `data` is where its values begin, `end` where they end."""

    name: str
    type: str
    header: int
    data: int
    end: int


@dataclass(frozen=True)
class Block:
    """One block within bytes: `body` is where its first column's header begins."""

    start: int
    body: int
    end: int
    rows: int
    columns: tuple[Column, ...]


class _Walker(NamedTuple):
    """How to pass over one type: what precedes all its values, and then `rows` of its values."""

    prefix: Callable[[bytes, int], int]
    values: Callable[[bytes, int, int], int]


def read_block(data: bytes, start: int = 0) -> Block:
    """Finds the columns of the block (revision 0) that begins at `start`.

    Raises:
        Truncated: the bytes end before the block does.
        NativeError: a type whose values cannot be measured.
    """
    try:
        count, position = _varint(data, start)
        rows, position = _varint(data, position)
        body = position
        columns = []
        for _ in range(count):
            header = position
            name, position = _text(data, position)
            kind, position = _text(data, position)
            begin = position
            if rows:
                walker = _walker(kind)
                position = walker.values(data, walker.prefix(data, position), rows)
            columns.append(Column(name, kind, header, begin, position))
    except IndexError:
        raise Truncated from None
    if position > len(data):
        raise Truncated
    return Block(start, body, position, rows, tuple(columns))


def blocks(data: bytes) -> Iterator[Block]:
    """The blocks of a whole Native answer, in order.

    Raises:
        NativeError: a type that cannot be measured, or bytes that end inside a block.
    """
    position = 0
    while position < len(data):
        try:
            block = read_block(data, position)
        except Truncated:
            raise NativeError("a Native answer ends inside a block") from None
        yield block
        position = block.end


def reframe(data: bytes, revision: int, rows: int | None = None) -> bytes:
    """A Native answer of revision 0 as a server writes it for a client of another protocol revision.

    Args:
        data: whole blocks.
        revision: the client's `client_protocol_version`; 0 changes nothing.
        rows: how many rows the engine says it wrote here: if the first block has as many, it is the only one, and where
            only its beginning changes nothing of it need be read.

    Raises:
        NativeError: a revision that cannot be served, or a column type that cannot be measured.
    """
    if revision < BLOCK_INFO:
        return data
    if not LOW_CARDINALITY <= revision <= NEWEST_REVISION:
        raise NativeError(
            f"client_protocol_version {revision} is not served: use 0 or {LOW_CARDINALITY} to {NEWEST_REVISION}"
        )
    if revision < CUSTOM_SERIALIZATION and rows and _first_rows(data) == rows:
        return _BLOCK_INFO_BYTES + data
    result = bytearray()
    for block in blocks(data):
        result += _BLOCK_INFO_BYTES
        if revision < CUSTOM_SERIALIZATION:
            result += data[block.start : block.end]
            continue
        result += data[block.start : block.body]
        for column in block.columns:
            result += data[column.header : column.data]
            result.append(0)
            result += data[column.data : column.end]
    return bytes(result)


def _first_rows(data: bytes) -> int:
    return _varint(data, _varint(data, 0)[1])[0]


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """LEB128."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _text(data: bytes, position: int) -> tuple[str, int]:
    length, position = _varint(data, position)
    if position + length > len(data):
        raise Truncated
    return data[position : position + length].decode("utf-8", "surrogateescape"), position + length


def _uint64(data: bytes, position: int) -> int:
    if position + 8 > len(data):
        raise Truncated
    return int.from_bytes(data[position : position + 8], "little")


def _no_prefix(_data: bytes, position: int) -> int:
    return position


@cache
def _walker(kind: str) -> _Walker:
    """How to pass over a type, from its name.

    Raises:
        NativeError: its size is known only to the engine.
    """
    kind = _ALIASES.get(kind, kind)
    match = _NAME.match(kind)
    name = match[0] if match else kind
    if name == "String":
        return _Walker(_no_prefix, _pass_strings)
    if name.startswith("Interval"):
        return _fixed(8)
    if name == "FixedString":
        return _fixed(int(_arguments(kind)[0]))
    if name == "Decimal":
        precision = int(_arguments(kind)[0])
        return _fixed(next(size for size, most in ((4, 9), (8, 18), (16, 38), (32, 76)) if precision <= most))
    if name in _FIXED:
        return _fixed(_FIXED[name])
    make = _COMPOSED.get(name)
    if make is None:
        raise NativeError(
            f"a column of type {kind} cannot be sent to this client: wrap it in toString() or CAST it"
        )
    return make(_arguments(kind))


def _fixed(size: int) -> _Walker:
    return _Walker(_no_prefix, lambda _data, position, rows: position + size * rows)


def _pass_strings(data: bytes, position: int, rows: int) -> int:
    # The one loop that runs once a value: kept flat.
    for _ in range(rows):
        length = data[position]
        position += 1
        if length >= 0x80:
            length, position = _varint(data, position - 1)
        position += length
    return position


def _nullable(arguments: list[str]) -> _Walker:
    inner = _walker(arguments[0])
    return _Walker(inner.prefix, lambda data, position, rows: inner.values(data, position + rows, rows))


def _array(arguments: list[str]) -> _Walker:
    inner = _walker(arguments[0])

    def values(data: bytes, position: int, rows: int) -> int:
        if not rows:
            return position
        position += 8 * rows
        # Offsets are cumulative: the last one counts all elements.
        elements = _uint64(data, position - 8)
        return inner.values(data, position, elements) if elements else position

    return _Walker(inner.prefix, values)


def _tuple(arguments: list[str]) -> _Walker:
    inner = [_walker(_ELEMENT_NAME.sub("", argument, count=1)) for argument in arguments]
    if not inner:
        return _fixed(1)

    def prefix(data: bytes, position: int) -> int:
        for walker in inner:
            position = walker.prefix(data, position)
        return position

    def values(data: bytes, position: int, rows: int) -> int:
        for walker in inner:
            position = walker.values(data, position, rows)
        return position

    return _Walker(prefix, values)


def _low_cardinality(arguments: list[str]) -> _Walker:
    kind = arguments[0]
    # NULL is a key of its own: the keys are of the plain type.
    keys = _walker(_arguments(kind)[0] if kind.startswith("Nullable(") else kind)

    def values(data: bytes, position: int, rows: int) -> int:
        if not rows:
            return position
        flags = _uint64(data, position)
        position += 8
        if flags & _ADDITIONAL_KEYS:
            count = _uint64(data, position)
            position = keys.values(data, position + 8, count)
        count = _uint64(data, position)
        return position + 8 + _KEY_SIZES[flags & 3] * count

    return _Walker(lambda _data, position: position + 8, values)


_COMPOSED: dict[str, Callable[[list[str]], _Walker]] = {
    "Nullable": _nullable,
    "Array": _array,
    "Tuple": _tuple,
    "Nested": lambda arguments: _array([f"Tuple({', '.join(arguments)})"]),
    "Map": lambda arguments: _array([f"Tuple({', '.join(arguments)})"]),
    "LowCardinality": _low_cardinality,
    "SimpleAggregateFunction": lambda arguments: _walker(arguments[1]),
}


def _arguments(kind: str) -> list[str]:
    """`A, B(C, D)` of `X(A, B(C, D))`, split at the outer commas; quotes are passed over."""
    inside = kind[kind.index("(") + 1 : kind.rindex(")")] if "(" in kind else ""
    result: list[str] = []
    depth = begin = position = 0
    while position < len(inside):
        character = inside[position]
        if character in "'`":
            position += 1
            while inside[position] != character:
                position += 2 if inside[position] == "\\" else 1
        elif character == "(":
            depth += 1
        elif character == ")":
            depth -= 1
        elif character == "," and not depth:
            result.append(inside[begin:position].strip())
            begin = position + 1
        position += 1
    if inside.strip():
        result.append(inside[begin:].strip())
    return result
