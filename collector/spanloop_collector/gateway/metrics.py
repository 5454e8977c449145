"""Counters of the gateway, as Prometheus reads them (text exposition format 0.0.4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from spanloop_collector.gateway.pools import Pool

# Of the time to an answer's first byte, in seconds.
_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
CONTENT_TYPE: Final = "text/plain; version=0.0.4"


class Metrics:
    """What is counted; labels are names of the configuration, so that their number is bounded."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str, str]] = Counter()  # upstream, operation, HTTP status
        self.errors: Counter[tuple[str, str]] = Counter()  # upstream, error type
        self.retries: Counter[str] = Counter()  # upstream
        self._first_byte: dict[str, list[int]] = {}  # upstream → one count a bucket, and one beyond
        self._first_byte_sum: Counter[str] = Counter()

    def first_byte(self, upstream: str, seconds: float) -> None:
        """One answer began."""
        counts = self._first_byte.get(upstream)
        if counts is None:
            counts = self._first_byte[upstream] = [0] * (len(_BUCKETS) + 1)
        place = 0
        for bound in _BUCKETS:
            if seconds <= bound:
                break
            place += 1
        counts[place] += 1
        self._first_byte_sum[upstream] += seconds  # type: ignore[assignment]  # a Counter of floats

    def text(
        self, pools: Iterable[Pool], *, paused: bool, in_flight: int, spans_waiting: int, spans_lost: int
    ) -> str:
        """The page."""
        pools = list(pools)
        lines: list[str] = []

        def add(name: str, kind: str, what: str, samples: Iterable[tuple[str, float]]) -> None:
            full = f"spanloop_gateway_{name}"
            lines.extend((f"# HELP {full} {what}", f"# TYPE {full} {kind}"))
            lines.extend(f"{full}{labels} {value}" for labels, value in samples)

        add(
            "calls_total",
            "counter",
            "Calls by HTTP status; 0: none was sent.",
            ((_labels(upstream=u, operation=o, status=s), n) for (u, o, s), n in sorted(self.calls.items())),
        )
        add(
            "errors_total",
            "counter",
            "Calls that failed, by error.type.",
            ((_labels(upstream=u, type=t), n) for (u, t), n in sorted(self.errors.items())),
        )
        add(
            "retries_total",
            "counter",
            "Attempts after the first one.",
            ((_labels(upstream=u), n) for u, n in sorted(self.retries.items())),
        )
        backends = [(pool, backend) for pool in pools for backend in pool]
        add(
            "backend_in_flight",
            "gauge",
            "Calls that a back end works on.",
            ((_labels(upstream=p.label, backend=b.shown), b.in_flight) for p, b in backends),
        )
        add(
            "backend_up",
            "gauge",
            "1: it gets calls; 0: it failed and is out.",
            ((_labels(upstream=p.label, backend=b.shown), int(b.well)) for p, b in backends),
        )
        add(
            "waiting",
            "gauge",
            "Calls that wait for a back end.",
            ((_labels(upstream=pool.label), pool.waiting) for pool in pools),
        )
        add("in_flight", "gauge", "Calls in the gateway.", [("", in_flight)])
        add("paused", "gauge", "1: paused.", [("", int(paused))])
        add("spans_waiting", "gauge", "Spans that the collector does not have yet.", [("", spans_waiting)])
        add("spans_lost_total", "counter", "Spans that the collector never took.", [("", spans_lost)])
        lines.extend(self._histogram())
        return "\n".join(lines) + "\n"

    def _histogram(self) -> Iterator[str]:
        name = "spanloop_gateway_first_byte_seconds"
        yield f"# HELP {name} From the call to the first byte of the back end's answer."
        yield f"# TYPE {name} histogram"
        for upstream, counts in sorted(self._first_byte.items()):
            total = 0
            for bound, count in zip((*_BUCKETS, float("inf")), counts, strict=True):
                total += count
                le = "+Inf" if bound == float("inf") else f"{bound:g}"
                yield f"{name}_bucket{_labels(upstream=upstream, le=le)} {total}"
            yield f"{name}_sum{_labels(upstream=upstream)} {self._first_byte_sum[upstream]:.6f}"
            yield f"{name}_count{_labels(upstream=upstream)} {total}"


def _labels(**labels: str) -> str:
    shown = (
        '{}="{}"'.format(name, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n"))
        for name, value in labels.items()
    )
    return "{" + ",".join(shown) + "}"
