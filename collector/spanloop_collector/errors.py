"""Failures of capture and its supervisor that the user can act on."""

from __future__ import annotations

from spanloop_store.errors import SpanloopError


class ListenError(SpanloopError):
    """A port cannot be listened on, or an address that others can reach has no token."""


class ChildFailed(SpanloopError):
    """A process of `spanloop up` could not be started."""


class ImportFailed(SpanloopError):
    """A file could not be taken."""


class Busy(SpanloopError):
    """The collector cannot take more now; nothing of the request was stored.

    Args:
        message: why.
        retry_after_s: when the sender may try again, in seconds.
    """

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message, f"send it again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Throttled(Busy):
    """Too many requests at once; nothing of this one was stored."""


class TlsError(SpanloopError):
    """A certificate or key cannot be used."""


class TokenError(SpanloopError):
    """Tokens that would open more than they are meant to."""
