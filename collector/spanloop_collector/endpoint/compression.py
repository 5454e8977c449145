"""Compression on the wire: request bodies, ClickHouse's own block frames, and answers."""

from __future__ import annotations

import gzip
import struct
import sys
import zlib

import lz4.block
import lz4.frame

from spanloop_collector.encodings import BadEncoding, TooLarge, UnknownEncoding, decode
from spanloop_collector.endpoint.errors import BAD_ARGUMENTS, UNKNOWN_COMPRESSION_METHOD, EndpointError

# Both come with clickhouse-connect.
if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_BODY_BYTES = 1 << 30  # after decompression: a bomb must not take the collector down
# Checksum, method, size with this 9-byte header, size without compression.
_FRAME_HEADER = struct.Struct("<16sBII")
_MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
_METHOD_NONE, _METHOD_LZ4, _METHOD_ZSTD = 0x02, 0x82, 0x90


def decompress_body(data: bytes, encoding: str) -> bytes:
    """A request body as its `Content-Encoding` says.

    aiohttp undoes gzip and zstd by itself unless its runner was told otherwise, and keeps the header: a
    body without the encoding's magic number is plain already.

    Raises:
        EndpointError: an encoding that we do not know, or a body that is not in it.
    """
    encoding = encoding.strip().lower()
    if encoding in _MAGIC and not data.startswith(_MAGIC[encoding]):
        return data
    try:
        return decode(data, encoding, MAX_BODY_BYTES)
    except UnknownEncoding as error:
        raise EndpointError(UNKNOWN_COMPRESSION_METHOD, f"Unknown compression method: {encoding}") from error
    except TooLarge as error:
        raise EndpointError(BAD_ARGUMENTS, str(error), 413) from error
    except BadEncoding as error:
        raise EndpointError(BAD_ARGUMENTS, str(error)) from error


def decompress_frames(data: bytes) -> bytes:
    """ClickHouse's own compressed blocks (`decompress=1`).

    The checksum (CityHash128 of an old revision) is not verified: no client that we serve needs it, and TCP has one.

    Raises:
        EndpointError: a block that is cut, or in a method that we do not know.
    """
    result = bytearray()
    position = 0
    while position < len(data):
        if len(data) - position < _FRAME_HEADER.size:
            raise EndpointError(BAD_ARGUMENTS, "the body ends inside a compressed block")
        _, method, packed, plain = _FRAME_HEADER.unpack_from(data, position)
        block = data[position + _FRAME_HEADER.size : position + 16 + packed]
        if packed < 9 or len(block) != packed - 9 or len(result) + plain > MAX_BODY_BYTES:
            raise EndpointError(BAD_ARGUMENTS, "the body ends inside a compressed block, or is too large")
        result += _block(method, block, plain)
        position += 16 + packed
    return bytes(result)


def _block(method: int, block: bytes, plain: int) -> bytes:
    if method == _METHOD_NONE:
        return block
    try:
        if method == _METHOD_LZ4:
            return bytes(lz4.block.decompress(block, uncompressed_size=plain))
        if method == _METHOD_ZSTD:
            return bytes(zstd.ZstdDecompressor().decompress(block, plain))
    except (RuntimeError, ValueError, zstd.ZstdError) as error:
        raise EndpointError(BAD_ARGUMENTS, f"a compressed block cannot be read: {error}") from error
    raise EndpointError(UNKNOWN_COMPRESSION_METHOD, f"Unknown compression method of a block: {method:#x}")


def choose_encoding(accept: str) -> str:
    """The first encoding of `Accept-Encoding` that we write; empty: none."""
    for part in accept.split(","):
        name = part.split(";")[0].strip().lower()
        if name in ("lz4", "zstd", "gzip", "deflate") and not part.replace(" ", "").endswith(";q=0"):
            return name
    return ""


def compress(data: bytes, encoding: str) -> bytes:
    """An answer's body in an encoding that `choose_encoding` gave."""
    if encoding == "lz4":
        return bytes(lz4.frame.compress(data))
    if encoding == "zstd":
        return bytes(zstd.compress(data, 1))
    if encoding == "gzip":
        return gzip.compress(data, compresslevel=1, mtime=0)
    if encoding == "deflate":
        return zlib.compress(data, 1)
    return data
