"""Requests' bodies: limits on size, on time, and on the memory that all of them take together."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from spanloop_collector.gateway.errors import ClientError, bad_request, overloaded

# Long enough for 64 MiB over 5 Mbit/s; a body that comes byte by byte holds nothing but its own connection meanwhile.
BODY_TIMEOUT_S: Final = 120.0
# Bodies of the largest size that may be held at one time.
LARGEST_AT_ONCE: Final = 16


class Bodies:
    """Reads bodies; one for the life of the gateway.

    Args:
        max_bytes: of one body.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._free = LARGEST_AT_ONCE * max_bytes

    async def read(self, request: web.Request) -> bytes:
        """The whole body; its room is taken until `release`.

        Raises:
            ClientError: 413 too large, 408 too slow, 503 too many large ones at once.
        """
        length = request.content_length
        if length is not None and length > self._max_bytes:
            raise self._too_large(length)
        taken = [0]
        try:
            if request.content.is_eof():
                return await self._pieces(request, taken)
            async with asyncio.timeout(BODY_TIMEOUT_S):
                return await self._pieces(request, taken)
        except TimeoutError:
            self._free += taken[0]
            raise ClientError(
                408,
                "invalid_request_error",
                f"the request's body did not come within {BODY_TIMEOUT_S:g} s",
                "request_timeout",
            ) from None
        except web.RequestPayloadError as error:
            self._free += taken[0]
            raise bad_request(f"the request's body cannot be read: {error}", "invalid_body") from None
        except BaseException:
            self._free += taken[0]
            raise

    async def _pieces(self, request: web.Request, taken: list[int]) -> bytes:
        """The body; `taken` says how much room it has so far: only what has come takes any, whatever was announced."""
        pieces: list[bytes] = []
        while piece := await request.content.readany():
            if taken[0] + len(piece) > self._max_bytes:
                raise self._too_large(None)
            if len(piece) > self._free:
                raise overloaded("gateway", "too many large requests at once")
            self._free -= len(piece)
            taken[0] += len(piece)
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def release(self, raw: bytes) -> None:
        """The call is over."""
        self._free += len(raw)

    def _too_large(self, length: int | None) -> ClientError:
        size = "more" if length is None else f"{length} bytes"
        return ClientError(
            413,
            "invalid_request_error",
            f"the request's body is {size}, and the limit is {self._max_bytes}. "
            "Next: send less, or raise `max_body_bytes` under [gateway].",
            "request_too_large",
        )
