"""Redaction before the log: for receivers and imports alike, by the settings and with the code of the exporter."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace

from spanloop_collector.folders import Folders
from spanloop_collector.statistics import Statistics
from spanloop_exporter.redaction.otlp import redact_request
from spanloop_exporter.redaction.redactor import Redactor
from spanloop_exporter.redaction.setup import redactor_for
from spanloop_store.otlp.check import Checked
from spanloop_store.otlp.signals import Signal


class Redaction:
    """What a checked request goes through before it is logged.

    Args:
        redactor: None: redaction is off.
        statistics: told what was replaced, by kind; None: nobody asks.
    """

    def __init__(self, redactor: Redactor | None, statistics: Statistics | None = None) -> None:
        self.redactor = redactor
        self._statistics = statistics
        self._told: Counter[str] = Counter()
        self._lock = threading.Lock()  # large requests come from a thread of their own

    @classmethod
    def of(cls, folders: Folders, statistics: Statistics | None = None) -> Redaction:
        """As the environment says; the salt lies where the log does.

        Raises:
            RedactionError: it cannot be set up, and nothing may be taken.
        """
        return cls(redactor_for(folders.log.parent), statistics)

    def __call__(self, signal: Signal, checked: Checked) -> Checked:
        """The request as it may be logged. What it raises must refuse the request."""
        if self.redactor is None:
            return checked
        payload = redact_request(checked.payload, signal, self.redactor)
        if payload is checked.payload:
            return checked
        if self._statistics is not None:
            with self._lock:
                new = self.redactor.counts - self._told
                self._told += new
            for kind, count in new.items():
                self._statistics.add("spanloop_redactions_total", count, kind=kind)
        return replace(checked, payload=payload)
