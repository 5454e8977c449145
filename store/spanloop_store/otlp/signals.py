"""The two signals that are stored, the protobuf message of each, and the walk over its items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from functools import cache
from typing import Any, Final


class Signal(StrEnum):
    """What a segment holds. The value is used in file names, `ingest_segments` and the SQL file names."""

    TRACES = "traces"
    LOGS = "logs"

    @property
    def table(self) -> str:
        """The table that its rows go to."""
        return f"otel_{self.value}"


@cache
def message_type(signal: Signal) -> Any:
    """The export request's class (opentelemetry-proto, collector/*/v1), imported on first use."""
    if signal is Signal.TRACES:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        return ExportTraceServiceRequest
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    return ExportLogsServiceRequest


# Names of a request's repeated fields, down to its items (trace_service.proto, logs_service.proto).
FIELDS: Final = {
    Signal.TRACES: ("resource_spans", "scope_spans", "spans"),
    Signal.LOGS: ("resource_logs", "scope_logs", "log_records"),
}


def item_groups(signal: Signal, request: Any) -> Iterator[tuple[Any, Any]]:
    """(the resource's attributes, the spans or log records of one scope), one after the other; items may be changed."""
    resources, scopes, items = FIELDS[signal]
    for group in getattr(request, resources):
        attributes = group.resource.attributes
        for scope in getattr(group, scopes):
            yield attributes, getattr(scope, items)


def count_items(signal: Signal, request: Any) -> int:
    """Spans or log records in a request."""
    return sum(len(items) for _, items in item_groups(signal, request))


def keep_only(repeated: Any, kept: Sequence[Any]) -> None:
    """Leaves these of a repeated field's messages; not one by one, where each deletion moves all that follow it."""
    del repeated[:]
    repeated.extend(kept)
