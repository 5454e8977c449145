"""Content encodings of request bodies, each with a limit on what it may unpack to."""

from __future__ import annotations

import sys
import zlib

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_CHUNK_BYTES = 1 << 20


class TooLarge(ValueError):
    """The body unpacks to more than is allowed."""


class BadEncoding(ValueError):
    """The body is not what its Content-Encoding says, or that is none we know."""


def decode(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Unpacks a body.

    Args:
        body: as it was sent.
        encoding: the Content-Encoding header; empty or `identity` for none. `gzip`, `deflate` and `zstd` are known.
        max_bytes: the most it may unpack to.

    Raises:
        TooLarge: it is a bomb, or simply too much.
        BadEncoding: broken or unknown.
    """
    match encoding.strip().lower():
        case "" | "identity":
            data = body
        case "gzip" | "x-gzip":
            data = _inflate(body, 16 + zlib.MAX_WBITS, max_bytes)
        case "deflate":
            data = _inflate(body, zlib.MAX_WBITS, max_bytes)
        case "zstd":
            data = _zstd(body, max_bytes)
        case other:
            raise BadEncoding(
                f"content encoding {other!r} is not supported; send gzip, deflate, zstd or none"
            )
    if len(data) > max_bytes:
        raise TooLarge(f"the body is larger than {max_bytes} bytes")
    return data


def _inflate(body: bytes, window_bits: int, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    rest = body
    try:
        while rest:  # a gzip body may have several members
            unpacker = zlib.decompressobj(window_bits)
            while rest and not unpacker.eof:
                part = unpacker.decompress(rest, _CHUNK_BYTES)
                rest = unpacker.unconsumed_tail
                size += len(part)
                if size > max_bytes:
                    raise TooLarge(f"the body unpacks to more than {max_bytes} bytes")
                parts.append(part)
            parts.append(unpacker.flush())
            if not unpacker.eof:
                raise BadEncoding("the compressed body ends early")
            rest = unpacker.unused_data
    except zlib.error as error:
        raise BadEncoding(f"the body does not unpack: {error}") from error
    return b"".join(parts)


def _zstd(body: bytes, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    rest = body
    try:
        while rest:
            unpacker = zstd.ZstdDecompressor()
            feed = rest
            while not unpacker.eof:
                part = unpacker.decompress(feed, max_length=_CHUNK_BYTES)
                feed = b""
                size += len(part)
                if size > max_bytes:
                    raise TooLarge(f"the body unpacks to more than {max_bytes} bytes")
                parts.append(part)
                if not unpacker.eof and unpacker.needs_input:
                    raise BadEncoding("the compressed body ends early")
            rest = unpacker.unused_data
    except zstd.ZstdError as error:
        raise BadEncoding(f"the body does not unpack: {error}") from error
    return b"".join(parts)
