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

# A member copies what follows it (`unused_data`), and one costs 20 bytes to send: all at once and without end, a body of
# 64 MiB would take an hour.
_PIECE_BYTES = 1 << 16
_MAX_MEMBERS = 10_000


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
    place = members = 0
    try:
        while place < len(body):  # members or frames may follow one another
            members += 1
            if members > _MAX_MEMBERS:
                raise BadEncoding(f"the {name} body has more than {_MAX_MEMBERS} members")
            unpacker = _UNPACKERS[name]()
            while not unpacker.eof:
                piece = body[place : place + _PIECE_BYTES]
                if not piece:
                    raise BadEncoding(f"the {name} body ends early")
                result += unpacker.decompress(piece, max_bytes + 1 - len(result))
                if len(result) > max_bytes:
                    raise TooLarge(f"the body unpacks to more than {max_bytes} bytes")
                place += len(piece)
            place -= len(unpacker.unused_data or b"")
    except (zlib.error, zstd.ZstdError, RuntimeError) as error:  # RuntimeError: lz4's own
        raise BadEncoding(f"the body is not {name}: {error}") from error
    return bytes(result)
