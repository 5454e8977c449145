"""Counters of a collector, and gauges beside them, as Prometheus text."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product

_SIGNALS = ("traces", "logs")
_PROTOCOLS = ("http", "grpc")
# What became of a request: all of it stored; all but some items; it held nothing; final refusal; asked to send it again.
OUTCOMES = ("ok", "partial", "empty", "refused", "busy")


@dataclass(frozen=True)
class _Metric:
    text: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # name: the values that begin at 0


_BY_SIGNAL = {"signal": _SIGNALS}
_COUNTERS = {
    "spanloop_requests_total": _Metric(
        "Export requests received, by signal, protocol and outcome.",
        {"signal": (*_SIGNALS, "metrics"), "protocol": _PROTOCOLS, "outcome": OUTCOMES},
    ),
    "spanloop_requests_repeated_total": _Metric(
        "Requests that were logged before and are acknowledged again, by signal.", _BY_SIGNAL
    ),
    "spanloop_received_bytes_total": _Metric(
        "Bytes of request bodies, unpacked, by signal and protocol.",
        {"signal": (*_SIGNALS, "metrics"), "protocol": _PROTOCOLS},
    ),
    "spanloop_items_acknowledged_total": _Metric(
        "Spans and log records that are durable in the log, by signal.", _BY_SIGNAL
    ),
    "spanloop_items_rejected_total": _Metric(
        "Spans and log records refused through partial_success, by signal.", _BY_SIGNAL
    ),
    "spanloop_items_expired_total": _Metric(
        "Of those, spans and log records of times that the store's retention deletes at once, by signal.",
        _BY_SIGNAL,
    ),
    "spanloop_items_inserted_total": _Metric(
        "Spans and log records in the tables, by signal and decoder.",
        {"signal": _SIGNALS, "decoder": ("engine", "fallback")},
    ),
    "spanloop_items_quarantined_total": _Metric(
        "Spans and log records that nothing could decode, by signal.", _BY_SIGNAL
    ),
    "spanloop_redactions_total": _Metric("Values that redaction replaced, by kind.", {}),
    "spanloop_segments_total": _Metric("Segments done, by signal.", _BY_SIGNAL),
    "spanloop_insert_failures_total": _Metric(
        "Inserts that the store did not take and that are tried again.", {}
    ),
}
_GAUGES = {
    "spanloop_log_bytes": "Bytes acknowledged and not yet in the store.",
    "spanloop_log_limit_bytes": "Where new requests are refused until the store has taken some.",
    "spanloop_log_lag_seconds": "Age of the oldest request that is not in the store yet; 0: there is none.",
    "spanloop_disk_free_bytes": "Free space where log and store lie, the least of them.",
    "spanloop_disk_floor_bytes": "Free space below which new requests are refused.",
    "spanloop_quarantine_files": "Requests and torn ends in the quarantine folder.",
    "spanloop_quarantine_bytes": "Bytes in the quarantine folder.",
    "spanloop_in_flight_bytes": "Bytes of requests that are being received or checked.",
    "spanloop_store_up": "1: the store took the last segment; 0: it did not.",
    "spanloop_accepting": "1: new requests are taken; 0: the disk is full or the store is too far behind.",
}
_Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Gauge:
    """A value of now.

    Args:
        name: one of the documented gauges.
        value: the value.
        labels: as in Prometheus.
    """

    name: str
    value: float
    labels: _Labels = ()


class Statistics:
    """Thread-safe counters with labels. Every series that is known beforehand begins at 0, as alerts on rates need it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, _Labels]] = Counter()
        for name, metric in _COUNTERS.items():
            for values in product(*metric.labels.values()):
                self._counts[name, tuple(sorted(zip(metric.labels, values, strict=True)))] = 0

    def add(self, name: str, count: int = 1, **labels: str) -> None:
        """Counts up; `name` is one of the documented metrics."""
        assert name in _COUNTERS, f"add {name} to _COUNTERS with its meaning"
        with self._lock:
            self._counts[name, tuple(sorted(labels.items()))] += count

    def total(self, name: str, **labels: str) -> int:
        """The sum over all series that have these labels."""
        wanted = set(labels.items())
        with self._lock:
            return sum(
                count
                for (other, found), count in self._counts.items()
                if other == name and wanted <= {*found}
            )

    def prometheus(self, gauges: Iterable[Gauge]) -> str:
        """The text exposition format, version 0.0.4."""
        lines: list[str] = []
        with self._lock:
            counts = sorted(self._counts.items())
        for name, metric in _COUNTERS.items():
            lines += [f"# HELP {name} {metric.text}", f"# TYPE {name} counter"]
            lines += [f"{name}{_shown(labels)} {count}" for (other, labels), count in counts if other == name]
        values = list(gauges)
        for name, text in _GAUGES.items():
            mine = [gauge for gauge in values if gauge.name == name]
            if mine:
                lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
                lines += [f"{name}{_shown(gauge.labels)} {gauge.value!r}" for gauge in mine]
        unknown = {gauge.name for gauge in values} - _GAUGES.keys()
        assert not unknown, f"add {unknown} to _GAUGES with their meaning"
        return "\n".join(lines) + "\n"


def _shown(labels: _Labels) -> str:
    return "{" + ",".join(f'{key}="{_escaped(value)}"' for key, value in labels) + "}" if labels else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
