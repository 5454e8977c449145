"""Content encodings of request bodies, each with a limit on what it may unpack to."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from typing import Any

import lz4.frame

# lz4 and zstd come with clickhouse-connect.
if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# All have `decompress(data, max_length)`, `eof` and `unused_data`.
_UNPACKERS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(16 + zlib.MAX_WBITS),
    "x-gzip": lambda: zlib.decompressobj(16 + zlib.MAX_WBITS),
    "deflate": zlib.decompressobj,
    "zstd": zstd.ZstdDecompressor,
    "lz4": lz4.frame.LZ4FrameDecompressor,
}


class TooLarge(ValueError):
    """The body unpacks to more than is allowed."""


class BadEncoding(ValueError):
    """The body is not what its Content-Encoding says."""


class UnknownEncoding(BadEncoding):
    """A Content-Encoding that we do not know."""


def decode(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Unpacks a body.

    Args:
        body: as it was sent.
        encoding: the Content-Encoding header: gzip, deflate, zstd or lz4; empty or `identity` for none.
        max_bytes: the most it may unpack to.

    Raises:
        TooLarge: it is a bomb, or simply too much.
        BadEncoding: it is cut or broken.
        UnknownEncoding: nothing that we unpack.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        if len(body) > max_bytes:
            raise TooLarge(f"the body is larger than {max_bytes} bytes")
        return body
    if name not in _UNPACKERS:
        raise UnknownEncoding(
            f"content encoding {name!r} is not supported; send gzip, deflate, zstd, lz4 or none"
        )
    result = bytearray()
    try:
        while body:  # members or frames may follow one another
            unpacker = _UNPACKERS[name]()
            result += unpacker.decompress(body, max_bytes + 1 - len(result))
            if len(result) > max_bytes:
                raise TooLarge(f"the body unpacks to more than {max_bytes} bytes")
            if not unpacker.eof:
                raise BadEncoding(f"the {name} body ends early")
            body = unpacker.unused_data or b""
    except (zlib.error, zstd.ZstdError, RuntimeError) as error:  # RuntimeError: lz4's own
        raise BadEncoding(f"the body is not {name}: {error}") from error
    return bytes(result)
