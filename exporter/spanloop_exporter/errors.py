"""Errors of the exporter that a user can act on."""

from __future__ import annotations

from spanloop_store.errors import SpanloopError


class RedactionError(SpanloopError):
    """Redaction cannot be set up as it is configured; nothing is exported or taken in until it can."""
