"""A client that speaks and reads as clickhouse-go v2 does over HTTP, which is what Grafana's plugin and otelcol use.

Source: ClickHouse/clickhouse-go v2, `conn_http.go` (dial, hello, requests, errors), `conn_http_query.go`, `conn_http_batch.go`,
`lib/proto/block.go` (`Decode`, `decodeBlockInfo`, `Encode`) and `lib/column/*` for the types; the checksums of compressed
blocks are verified as ch-go's `compress/reader.go` does, by an implementation that is not the endpoint's where it is installed.
"""

from __future__ import annotations

import base64
import http.client
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import lz4.block

from spanloop_collector.endpoint.cityhash import checksum

PROTOCOL_VERSION = 54459  # lib/proto/const.go, DBMS_TCP_PROTOCOL_VERSION
CUSTOM_SERIALIZATION = 54454
HELLO = "SELECT displayName(), version(), revision(), timezone()"


class GoError(Exception):
    """What the driver returns as an error."""


@dataclass
class Rows:
    """All blocks of one answer, put together."""

    columns: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    rows: list[tuple[Any, ...]] = field(default_factory=list)


class Reader:
    """ch-go's reader over a body, with its compressed blocks undone where they were asked for."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.position = 0

    def take(self, size: int) -> bytes:
        if self.position + size > len(self.body):
            raise EOFError
        self.position += size
        return self.body[self.position - size : self.position]

    def uvarint(self) -> int:
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def text(self) -> str:
        return self.take(self.uvarint()).decode()

    def boolean(self) -> bool:
        byte = self.take(1)[0]
        if byte not in (0, 1):
            raise GoError(f"bad boolean {byte}")
        return bool(byte)

    def unpack(self, code: str, count: int = 1) -> tuple[Any, ...]:
        form = struct.Struct(f"<{count}{code}")
        return form.unpack(self.take(form.size))


def unframe(body: bytes) -> bytes:
    """`compress/reader.go`: checksum, method, sizes, data; a wrong checksum is an error."""
    result = b""
    while body:
        if len(body) < 25:
            raise GoError("unexpected EOF in a compressed block")
        method, packed, plain = struct.unpack_from("<BII", body, 16)
        block = body[16 : 16 + packed]
        if checksum(block) != body[:16]:
            raise GoError("corrupted data: checksum does not match")
        if method != 0x82:
            raise GoError(f"compression 0x{method:02x} not implemented")
        result += lz4.block.decompress(block[9:], uncompressed_size=plain)
        body = body[16 + packed :]
    return result


def frame(data: bytes) -> bytes:
    """`compress/writer.go`, method LZ4."""
    packed = lz4.block.compress(data, store_size=False)
    block = struct.pack("<BII", 0x82, len(packed) + 9, len(data)) + packed
    return checksum(block) + block


class GoClient:
    """One connection of the driver: `dialHttp` is the constructor.

    Args:
        compression: `none`, `lz4`, `gzip`, `deflate` or `br`.
    """

    def __init__(self, port: int, user: str, password: str, compression: str = "none", **settings: str):
        self._port = port
        self._credential = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._compression = compression
        self._query = {
            "database": "default",
            **settings,
            "default_format": "Native",
            "client_protocol_version": str(PROTOCOL_VERSION),
        }
        # The preflight reads with the driver's own revision, everything later with the server's.
        self._revision = PROTOCOL_VERSION
        hello = self.query(HELLO)
        if len(hello.rows) != 1:
            raise GoError("no rows returned for server hello query")
        self.display_name, self.version, self._revision, self.timezone = hello.rows[0]

    def query(self, sql: str, **settings: str) -> Rows:
        headers = {}
        if self._compression == "lz4":
            settings["compress"] = "1"
        elif self._compression != "none":
            headers["Accept-Encoding"] = self._compression
        response_headers, body = self._post({**self._query, **settings}, sql.encode(), headers)
        return self._decode(self._plain(response_headers, body))

    def insert(self, sql: str, names: list[str], types: list[str], rows: int, columns: list[bytes]) -> None:
        """`httpBatch.Send`: the statement in the URL, one block of revision 0 as the body."""
        block = bytes([len(names), rows]) + b"".join(
            _text(name) + _text(kind) + data for name, kind, data in zip(names, types, columns, strict=True)
        )
        headers = {"Content-Type": "application/octet-stream"}
        settings = {"query": f"{sql} FORMAT Native"}
        if self._compression == "lz4":
            settings |= {"decompress": "1", "compress": "1"}
            block = frame(block)
        elif self._compression != "none":
            headers["Content-Encoding"] = self._compression
            block = {"gzip": _gzip, "deflate": zlib.compress, "br": _brotli}[self._compression](block)
        self._post({**self._query, **settings}, block, headers)

    def _post(
        self, query: dict[str, str], body: bytes, headers: dict[str, str]
    ) -> tuple[dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            headers = {**headers, "Authorization": f"Basic {self._credential}"}
            connection.request("POST", f"/?{urlencode(query)}", body=body, headers=headers)
            response = connection.getresponse()
            try:
                answer = response.read()
            except http.client.IncompleteRead as error:
                answer = error.partial
            found = dict(response.headers)
            if response.status != 200:
                raise GoError(
                    f"[HTTP {response.status}] response body: {self._plain(found, answer).decode()!r}"
                )
            return found, answer
        finally:
            connection.close()

    def _plain(self, headers: dict[str, str], body: bytes) -> bytes:
        """`NewReader`: an encoding is undone only if it is the one that the driver asked for."""
        if self._compression == "lz4":
            if b"__exception__" in body:
                return body
            return unframe(body)
        if headers.get("Content-Encoding") != self._compression:
            return body
        if self._compression == "br":
            import brotli

            plain: bytes = brotli.Decompressor().process(body)
            return plain
        window = 31 if self._compression == "gzip" else 15
        return zlib.decompressobj(window).decompress(body)

    def _decode(self, body: bytes) -> Rows:
        reader = Reader(body)
        result = Rows()
        while reader.position < len(body):
            try:
                self._block(reader, result)
            except (EOFError, GoError, UnicodeDecodeError, struct.error) as error:
                # `readData`: what cannot be decoded may be an error that came after rows.
                if b"__exception__" in body:
                    raise GoError(body.partition(b"__exception__")[2].decode("utf-8", "replace")) from error
                raise
        return result

    def _block(self, reader: Reader, result: Rows) -> None:
        if self._revision > 0:
            reader.uvarint(), reader.boolean(), reader.uvarint(), reader.take(4), reader.uvarint()
        columns, rows = reader.uvarint(), reader.uvarint()
        if rows > 1_000_000_000:
            raise GoError("more than 1 billion rows in block - suspiciously big - preventing OOM")
        names, types, values = [], [], []
        for _ in range(columns):
            names.append(reader.text())
            types.append(reader.text())
            column = make_column(types[-1])
            if self._revision >= CUSTOM_SERIALIZATION and reader.boolean():
                raise GoError(f"custom serialization for column {names[-1]}")
            if rows:
                column.prefix(reader)
                values.append(column.values(reader, rows))
        if not result.columns:
            result.columns, result.types = names, types
        elif (names, types) != (result.columns, result.types):
            raise GoError("a block of other columns")
        result.rows += list(zip(*values, strict=True)) if rows else []


def _text(value: str) -> bytes:
    return bytes([len(value.encode())]) + value.encode()


def _gzip(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=31)
    return stream.compress(data) + stream.flush()


def _brotli(data: bytes) -> bytes:
    import brotli

    packed: bytes = brotli.compress(data)
    return packed


class Fixed:
    def __init__(self, code: str) -> None:
        self.code = code

    def prefix(self, reader: Reader) -> None:
        pass

    def values(self, reader: Reader, rows: int) -> list[Any]:
        return list(reader.unpack(self.code, rows))


class Text(Fixed):
    def values(self, reader: Reader, rows: int) -> list[Any]:
        return [reader.text() for _ in range(rows)]


class Nullable(Fixed):
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def prefix(self, reader: Reader) -> None:
        self.inner.prefix(reader)

    def values(self, reader: Reader, rows: int) -> list[Any]:
        nulls = reader.take(rows)
        return [
            None if null else value
            for null, value in zip(nulls, self.inner.values(reader, rows), strict=True)
        ]


class Array(Nullable):
    def values(self, reader: Reader, rows: int) -> list[Any]:
        ends = reader.unpack("Q", rows)
        inner = self.inner.values(reader, ends[-1]) if ends[-1] else []
        return [inner[begin:end] for begin, end in zip((0, *ends), ends, strict=False)]


class Tuple(Fixed):
    def __init__(self, inner: list[Any]) -> None:
        self.inner = inner

    def prefix(self, reader: Reader) -> None:
        for column in self.inner:
            column.prefix(reader)

    def values(self, reader: Reader, rows: int) -> list[Any]:
        return list(zip(*(column.values(reader, rows) for column in self.inner), strict=True))


class Map(Array):
    def values(self, reader: Reader, rows: int) -> list[Any]:
        return [dict(pairs) for pairs in super().values(reader, rows)]


class LowCardinality(Fixed):
    """`lowcardinality.go`: version 1 in the prefix; index type and flags, keys, and an index a row."""

    def __init__(self, inner: Any, nullable: bool) -> None:
        self.inner = inner
        self.nullable = nullable

    def prefix(self, reader: Reader) -> None:
        (version,) = reader.unpack("Q")
        if version != 1:
            raise GoError("invalid shared dictionary version")

    def values(self, reader: Reader, rows: int) -> list[Any]:
        (flags,) = reader.unpack("Q")
        if flags & 1 << 8:
            raise GoError("global dictionary is not supported")
        if not flags & 1 << 9:
            raise GoError("additional keys bit is missing")
        (count,) = reader.unpack("Q")
        keys = self.inner.values(reader, count)
        if self.nullable:
            keys[0] = None
        (indexes,) = reader.unpack("Q")
        if indexes != rows:
            raise GoError("mismatched index count")
        return [keys[index] for index in reader.unpack("BHIQ"[flags & 0xFF], rows)]


_CODES = {
    "Int8": "b", "UInt8": "B", "Bool": "?", "Int16": "h", "UInt16": "H", "Int32": "i", "UInt32": "I", "Int64": "q",
    "UInt64": "Q", "Float32": "f", "Float64": "d", "Date": "H", "DateTime": "I", "DateTime64": "q", "Nothing": "B",
    "UUID": "16s", "Enum8": "b",
}  # fmt: skip


def make_column(kind: str) -> Any:
    """`Type.Column`: the decoder of a type by its name."""
    name, _, rest = kind.partition("(")
    if name in _CODES:
        return Fixed(_CODES[name])
    if name == "String":
        return Text("")
    inner = _split(rest[:-1])
    if name == "Nullable":
        return Nullable(make_column(inner[0]))
    if name == "Array":
        return Array(make_column(inner[0]))
    if name == "Map":
        return Map(Tuple([make_column(part) for part in inner]))
    if name == "Tuple":
        return Tuple([make_column(part.split(" ", 1)[-1] if " " in part else part) for part in inner])
    if name == "LowCardinality":
        nullable = inner[0].startswith("Nullable(")
        return LowCardinality(make_column(inner[0][9:-1] if nullable else inner[0]), nullable)
    raise GoError(f"unsupported column type {kind!r}")


def _split(text: str) -> list[str]:
    parts, depth, begin = [], 0, 0
    for at, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and not depth:
            parts.append(text[begin:at].strip())
            begin = at + 1
    return [*parts, text[begin:].strip()]
