"""Counters of a collector, as Prometheus text."""

from __future__ import annotations

import threading
from collections import Counter

_HELP = {
    "spanloop_requests_total": "Export requests, by signal, protocol and outcome.",
    "spanloop_items_acknowledged_total": "Spans and log records that are durable in the log, by signal.",
    "spanloop_items_rejected_total": "Spans and log records refused through partial_success, by signal.",
    "spanloop_items_inserted_total": "Spans and log records in the tables, by signal and decoder.",
    "spanloop_items_quarantined_total": "Spans and log records that nothing could decode, by signal.",
    "spanloop_segments_total": "Segments done, by signal.",
    "spanloop_insert_failures_total": "Inserts that the store did not take and that are tried again.",
}


class Statistics:
    """Thread-safe counters with labels."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()

    def add(self, name: str, count: int = 1, **labels: str) -> None:
        """Counts up; `name` is one of the documented metrics."""
        assert name in _HELP, f"add {name} to _HELP with its meaning"
        with self._lock:
            self._counts[name, tuple(sorted(labels.items()))] += count

    def total(self, name: str) -> int:
        """The sum over all labels."""
        with self._lock:
            return sum(count for (other, _), count in self._counts.items() if other == name)

    def prometheus(self, gauges: dict[str, float]) -> str:
        """The text exposition format, version 0.0.4."""
        lines = []
        with self._lock:
            counts = sorted(self._counts.items())
        for name, text in _HELP.items():
            lines += [f"# HELP {name} {text}", f"# TYPE {name} counter"]
            for (other, labels), count in counts:
                if other == name:
                    shown = ",".join(f'{key}="{value}"' for key, value in labels)
                    lines.append(f"{name}{{{shown}}} {count}" if shown else f"{name} {count}")
        for name, value in gauges.items():
            lines += [f"# TYPE {name} gauge", f"{name} {value:g}"]
        return "\n".join(lines) + "\n"
