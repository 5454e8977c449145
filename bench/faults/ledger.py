"""What senders know: which spans they sent, which were acknowledged; and what the table says to that."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from clickhouse_connect.driver.client import Client


@dataclass
class Tally:
    """One fault's result, in spans.

    Args:
        fault: what was done.
        faults: how often.
        sent: distinct spans handed to the collector (or ended in the agent).
        acknowledged: of those, the ones that somebody promised to keep.
        found: distinct (TraceId, SpanId) in `otel_traces`.
        lost: acknowledged and not found.
        doubled: rows beyond one for a (TraceId, SpanId).
        foreign: found and never sent.
        unlisted: traces of `otel_traces` that `otel_traces_trace_id_ts` does not know.
        notes: what else was counted.
    """

    fault: str
    faults: int = 0
    sent: int = 0
    acknowledged: int = 0
    found: int = 0
    lost: int = 0
    doubled: int = 0
    foreign: int = 0
    unlisted: int = 0
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Whether the promise was kept."""
        return not (self.lost or self.doubled or self.foreign or self.unlisted)

    def add(self, other: Tally) -> None:
        """Sums up a further part of the same run."""
        for name, value in asdict(other).items():
            if isinstance(value, int):
                setattr(self, name, getattr(self, name) + value)
        for name, value in other.notes.items():
            self.notes[name] = self.notes.get(name, 0) + value


class Ledger:
    """Requests by number: request N is trace N, and its spans are 1, 2, … Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next = 0
        self._sent: dict[int, int] = {}
        self._acknowledged: dict[int, int] = {}
        self._changed = threading.Condition(self._lock)
        self.refused: dict[str, int] = {}
        self.resent = 0

    def begin(self) -> int:
        """The next request's number, from 1: a trace id of zeros is invalid."""
        with self._lock:
            self._next += 1
            return self._next

    def sent(self, number: int, spans: int) -> None:
        """The request is about to leave for the first time."""
        with self._lock:
            self._sent[number] = spans

    def again(self) -> None:
        """A request without an answer leaves once more."""
        with self._lock:
            self.resent += 1

    def refuse(self, status: str) -> None:
        """The collector said no, and that the sender may try again."""
        with self._changed:
            self.refused[status] = self.refused.get(status, 0) + 1
            self._changed.notify_all()

    def acknowledged(self, number: int, spans: int) -> None:
        """The collector promised to keep it."""
        with self._changed:
            self._acknowledged[number] = spans
            self._changed.notify_all()

    @property
    def requests(self) -> int:
        """Requests acknowledged."""
        with self._lock:
            return len(self._acknowledged)

    def wait_for(self, requests: int, timeout_s: float) -> bool:
        """Until so many requests are acknowledged; False: time ran out."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._acknowledged) >= requests, timeout_s)

    def wait_for_refusals(self, count: int, timeout_s: float) -> bool:
        """Until the collector has said no so often; False: time ran out."""
        with self._changed:
            return self._changed.wait_for(lambda: sum(self.refused.values()) >= count, timeout_s)

    def compare(self, client: Client, fault: str) -> Tally:
        """Reads the table and counts what is missing, twice there, or was never sent."""
        with self._lock:
            sent, acknowledged = dict(self._sent), dict(self._acknowledged)
        return compare(
            client,
            fault,
            sent={trace_id(number): span_ids(spans) for number, spans in sent.items()},
            acknowledged={trace_id(number): span_ids(spans) for number, spans in acknowledged.items()},
            notes={"resent": self.resent, **{f"refused with {key}": n for key, n in self.refused.items()}},
        )


def trace_id(number: int) -> str:
    """As `otel_traces` writes it."""
    return f"{number:032x}"


def span_ids(spans: int) -> frozenset[str]:
    """The span ids of a request with so many spans."""
    return frozenset(f"{number:016x}" for number in range(1, spans + 1))


def compare(
    client: Client,
    fault: str,
    *,
    sent: Mapping[str, Iterable[str]],
    acknowledged: Mapping[str, Iterable[str]],
    notes: dict[str, int] | None = None,
) -> Tally:
    """Span ids by trace id, against the rows of `otel_traces`.

    Args:
        client: of the store.
        fault: the tally's name.
        sent: all that anybody ever sent.
        acknowledged: what must be there; part of `sent`.
        notes: further counts.
    """
    tally = Tally(fault, notes={key: value for key, value in (notes or {}).items() if value})
    tally.sent = sum(len(set(spans)) for spans in sent.values())
    found: dict[str, frozenset[str]] = {}
    query = "SELECT TraceId, count(), groupUniqArray(SpanId) FROM otel_traces GROUP BY TraceId"
    with client.query_rows_stream(query) as rows:
        for trace, count, spans in rows:
            found[trace] = frozenset(spans)
            tally.found += len(spans)
            tally.doubled += count - len(spans)
            tally.foreign += len(found[trace] - frozenset(sent.get(trace, ())))
    for trace, spans in acknowledged.items():
        wanted = frozenset(spans)
        tally.acknowledged += len(wanted)
        tally.lost += len(wanted - found.get(trace, frozenset()))
    listed = "SELECT count() FROM (SELECT DISTINCT TraceId FROM otel_traces) WHERE TraceId NOT IN (SELECT TraceId FROM otel_traces_trace_id_ts)"
    tally.unlisted = int(client.query(listed).result_rows[0][0])
    return tally
