"""Redaction on the way into the spool. What it cannot be done to stays here: that is said once, and nothing passes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spanloop_exporter.errors import RedactionError
from spanloop_exporter.redaction.settings import read_redaction
from spanloop_store.otlp.signals import Signal

if TYPE_CHECKING:
    from spanloop_exporter.redaction.redactor import Redactor

log = logging.getLogger(__name__)


class Redaction:
    """What the environment asks for, set up once. Threads may share it.

    Args:
        folder: the spool; None: there is none.
    """

    def __init__(self, folder: Path | None) -> None:
        self.redactor: Redactor | None = None
        self.error: RedactionError | None = None  # why nothing passes; None: it runs, or is off
        self._told = False
        try:
            if read_redaction() is None:
                return
            # Late: an agent without redaction does not pay for it.
            from spanloop_exporter.redaction.setup import redactor_for

            self.redactor = redactor_for(folder)
        except RedactionError as error:
            self.error = error
            log.error(
                "no span leaves this process, since redaction cannot run: %s\n  next: %s",
                error.message,
                error.hint,
            )

    def __call__(self, signal: Signal, payloads: Sequence[bytes]) -> list[bytes]:
        """The export requests that may pass, redacted."""
        if self.error is not None:
            return []
        if self.redactor is None:
            return list(payloads)
        from spanloop_exporter.redaction.otlp import redact_request

        passed = []
        for payload in payloads:
            try:
                passed.append(redact_request(payload, signal, self.redactor))
            except Exception:  # whatever it is: the agent goes on, and the span does not
                if not self._told:
                    self._told = True
                    log.exception("a span is lost: it cannot be redacted; further ones are not logged")
        return passed
