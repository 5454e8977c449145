"""How an answer's bytes travel: the client's Native revision, ClickHouse's compressed blocks, content encoding."""

from __future__ import annotations

import secrets
import string
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import brotli

from spanloop_collector.endpoint.compression import choose_encoding, compress, compress_frames
from spanloop_collector.endpoint.errors import BAD_ARGUMENTS, EndpointError
from spanloop_collector.endpoint.request import Query
from spanloop_store.errors import NativeError
from spanloop_store.native import reframe

TAG_HEADER = "X-ClickHouse-Exception-Tag"
_TAG_LENGTH = 16


@dataclass(frozen=True)
class Wire:
    """What one client asked for.

    Args:
        revision: the protocol revision of Native blocks (`client_protocol_version`); 0: as the engine writes them.
        framed: ClickHouse's own compressed blocks (`compress=1`).
        encoding: the Content-Encoding; empty: none.
        tag: what marks an error that comes after rows, so that no row can be taken for one.
    """

    revision: int
    framed: bool
    encoding: str
    tag: str

    @classmethod
    def of(cls, query: Query, headers: Mapping[str, str]) -> Wire:
        """Reads a request's parameters and headers.

        Raises:
            EndpointError: `client_protocol_version` is no number.
        """
        text = query.transport.get("client_protocol_version") or "0"
        if not text.isdecimal():
            raise EndpointError(BAD_ARGUMENTS, f"client_protocol_version {text!r} is no number")
        framed = query.flag("compress")
        # As in ClickHouse: compressed blocks are not compressed again.
        wanted = query.flag("enable_http_compression") and not framed
        encoding = choose_encoding(headers.get("Accept-Encoding", "")) if wanted else ""
        tag = "".join(secrets.choice(string.ascii_lowercase) for _ in range(_TAG_LENGTH))
        return cls(int(text), framed, encoding, tag)

    def blocks(self, data: bytes, form: str, rows: int | None = None) -> bytes:
        """The engine's bytes as this client reads the format; `rows` as for `reframe`.

        Raises:
            EndpointError: a revision that is not served, or a column that cannot be framed for it.
        """
        if not self.revision or form.lower() != "native":
            return data
        try:
            return reframe(data, self.revision, rows)
        except NativeError as error:
            raise EndpointError(BAD_ARGUMENTS, error.message) from error

    def pack(self, data: bytes, least_bytes: int = 0) -> tuple[bytes, str]:
        """A whole body and its Content-Encoding; what is smaller than `least_bytes` is not worth encoding."""
        if self.framed:
            return compress_frames(data), ""
        if not self.encoding or len(data) < least_bytes:
            return data, ""
        return compress(data, self.encoding), self.encoding

    def packer(self) -> Packer:
        """Packs a body that comes in pieces; every piece can be read once it has arrived."""
        if self.framed:
            return _Chain(compress_frames)
        if self.encoding == "gzip":
            return _Zlib(16 + zlib.MAX_WBITS)
        if self.encoding == "deflate":
            return _Zlib(zlib.MAX_WBITS)
        if self.encoding == "br":
            return _Brotli()
        # Streams of lz4 and zstd may be a chain of frames.
        return _Chain(lambda data: compress(data, self.encoding))

    def late_error(self, text: str) -> bytes:
        """An error after the first rows, as ClickHouse 25.11 and newer mark it."""
        message = text.encode("utf-8", "backslashreplace")
        tag = self.tag.encode()
        return b"\r\n__exception__\r\n%b\r\n%b\n%d %b\r\n__exception__\r\n" % (
            tag,
            message,
            len(message) + 1,
            tag,
        )


class Packer(Protocol):
    """A body in pieces."""

    def pack(self, data: bytes) -> bytes:
        """One more piece, flushed."""

    def finish(self) -> bytes:
        """What ends the body."""


class _Chain:
    def __init__(self, pack: Any) -> None:
        self._pack = pack

    def pack(self, data: bytes) -> bytes:
        return bytes(self._pack(data))

    def finish(self) -> bytes:
        return b""


class _Zlib:
    def __init__(self, window: int) -> None:
        self._stream = zlib.compressobj(1, zlib.DEFLATED, window)

    def pack(self, data: bytes) -> bytes:
        return self._stream.compress(data) + self._stream.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> bytes:
        return self._stream.flush()


class _Brotli:
    def __init__(self) -> None:
        self._stream = brotli.Compressor(quality=1)

    def pack(self, data: bytes) -> bytes:
        return bytes(self._stream.process(data) + self._stream.flush())

    def finish(self) -> bytes:
        return bytes(self._stream.finish())
