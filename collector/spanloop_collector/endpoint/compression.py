"""Compression on the wire: request bodies, ClickHouse's own block frames, and answers."""

from __future__ import annotations

import gzip
import struct
import sys
import zlib

import brotli
import lz4.block
import lz4.frame

from spanloop_collector.encodings import BadEncoding, TooLarge, UnknownEncoding, decode
from spanloop_collector.endpoint.cityhash import checksum
from spanloop_collector.endpoint.errors import BAD_ARGUMENTS, UNKNOWN_COMPRESSION_METHOD, EndpointError

# Both come with clickhouse-connect.
if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_BODY_BYTES = 1 << 30  # after decompression: a bomb must not take the collector down
# Checksum, method, size with this 9-byte header, size without compression.
_FRAME_HEADER = struct.Struct("<16sBII")
_FRAME_SIZES = struct.Struct("<BII")
_MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
_LZ4_MOST = 255  # the format's best ratio; its decompressor allocates at once whatever size a block claims
_METHOD_NONE, _METHOD_LZ4, _METHOD_ZSTD = 0x02, 0x82, 0x90
_BLOCK_BYTES = 1 << 20  # what ClickHouse puts into one compressed block, before compression


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
    if encoding == "br":
        return _unpack_brotli(data)
    try:
        return decode(data, encoding, MAX_BODY_BYTES)
    except UnknownEncoding as error:
        raise EndpointError(UNKNOWN_COMPRESSION_METHOD, f"Unknown compression method: {encoding}") from error
    except TooLarge as error:
        raise EndpointError(BAD_ARGUMENTS, str(error), 413) from error
    except BadEncoding as error:
        raise EndpointError(BAD_ARGUMENTS, str(error)) from error


def _unpack_brotli(data: bytes) -> bytes:
    unpacker = brotli.Decompressor()
    try:
        result: bytes = unpacker.process(data, output_buffer_limit=MAX_BODY_BYTES)
    except brotli.error as error:
        raise EndpointError(BAD_ARGUMENTS, f"the body is not br: {error}") from error
    if not unpacker.is_finished():
        raise EndpointError(BAD_ARGUMENTS, "the br body ends early, or is too large")
    return result


def decompress_frames(data: bytes) -> bytes:
    """ClickHouse's own compressed blocks (`decompress=1`).

    Their checksum is not verified: it would cost more than reading them, and TCP has one.

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
            if plain > _LZ4_MOST * len(block) + _LZ4_MOST:
                raise EndpointError(BAD_ARGUMENTS, f"a block of {len(block)} bytes cannot hold {plain}")
            return bytes(lz4.block.decompress(block, uncompressed_size=plain))
        if method == _METHOD_ZSTD:
            return bytes(zstd.ZstdDecompressor().decompress(block, plain))
    except (lz4.block.LZ4BlockError, RuntimeError, ValueError, OverflowError, zstd.ZstdError) as error:
        raise EndpointError(BAD_ARGUMENTS, f"a compressed block cannot be read: {error}") from error
    raise EndpointError(UNKNOWN_COMPRESSION_METHOD, f"Unknown compression method of a block: {method:#x}")


def compress_frames(data: bytes) -> bytes:
    """Data as ClickHouse's own compressed blocks (`compress=1`), LZ4, with the checksum that clients verify."""
    result = bytearray()
    for start in range(0, len(data), _BLOCK_BYTES):
        plain = data[start : start + _BLOCK_BYTES]
        packed = lz4.block.compress(plain, store_size=False)
        block = _FRAME_SIZES.pack(_METHOD_LZ4, len(packed) + _FRAME_SIZES.size, len(plain)) + packed
        result += checksum(block) + block
    return bytes(result)


def choose_encoding(accept: str) -> str:
    """The first encoding of `Accept-Encoding` that we write; empty: none."""
    for part in accept.split(","):
        name = part.split(";")[0].strip().lower()
        if name in ("lz4", "zstd", "br", "gzip", "deflate") and not part.replace(" ", "").endswith(";q=0"):
            return name
    return ""


def compress(data: bytes, encoding: str) -> bytes:
    """An answer's body in an encoding that `choose_encoding` gave."""
    if encoding == "lz4":
        return bytes(lz4.frame.compress(data))
    if encoding == "zstd":
        return bytes(zstd.compress(data, 1))
    if encoding == "br":
        return bytes(brotli.compress(data, quality=1))
    if encoding == "gzip":
        return gzip.compress(data, compresslevel=1, mtime=0)
    if encoding == "deflate":
        return zlib.compress(data, 1)
    return data
