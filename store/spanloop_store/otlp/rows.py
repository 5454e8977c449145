"""Rows of `otel_traces` and `otel_logs` from a decoded request, in Python: the fallback's half of the insert."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from spanloop_store.otlp.signals import Signal, item_groups
from spanloop_store.otlp.values import as_text, attribute_pairs

_KINDS = ("Unspecified", "Internal", "Server", "Client", "Producer", "Consumer")
_STATUS = ("Unset", "Ok", "Error")

_NO_ID = (b"", bytes(8), bytes(16))
_PAIRS = "Array(Tuple(String, String))"
# Column → type in which a row travels to the engine; times are nanoseconds, maps are pairs (a key may come twice).
COLUMNS: dict[Signal, dict[str, str]] = {
    Signal.TRACES: {
        "Timestamp": "Int64",
        "TraceId": "String",
        "SpanId": "String",
        "ParentSpanId": "String",
        "TraceState": "String",
        "SpanName": "String",
        "SpanKind": "String",
        "ServiceName": "String",
        "ResourceAttributes": _PAIRS,
        "ScopeName": "String",
        "ScopeVersion": "String",
        "SpanAttributes": _PAIRS,
        "Duration": "UInt64",
        "StatusCode": "String",
        "StatusMessage": "String",
        "Events.Timestamp": "Array(Int64)",
        "Events.Name": "Array(String)",
        "Events.Attributes": f"Array({_PAIRS})",
        "Links.TraceId": "Array(String)",
        "Links.SpanId": "Array(String)",
        "Links.TraceState": "Array(String)",
        "Links.Attributes": f"Array({_PAIRS})",
    },
    Signal.LOGS: {
        "Timestamp": "Int64",
        "TraceId": "String",
        "SpanId": "String",
        "TraceFlags": "UInt8",
        "SeverityText": "String",
        "SeverityNumber": "UInt8",
        "ServiceName": "String",
        "Body": "String",
        "ResourceSchemaUrl": "String",
        "ResourceAttributes": _PAIRS,
        "ScopeSchemaUrl": "String",
        "ScopeName": "String",
        "ScopeVersion": "String",
        "ScopeAttributes": _PAIRS,
        "LogAttributes": _PAIRS,
        "EventName": "String",
    },
}


def rows(signal: Signal, request: Any) -> Iterator[list[Any]]:
    """One list a span or log record, in the order of `COLUMNS[signal]`."""
    return _span_rows(request) if signal is Signal.TRACES else _record_rows(request)


def times(signal: Signal, request: Any) -> Iterator[int]:
    """The time of every row, in nanoseconds, as `Timestamp` has it."""
    for _, items in item_groups(signal, request):
        if signal is Signal.TRACES:
            yield from (signed(span.start_time_unix_nano) for span in items)
        else:
            yield from (signed(record_time(record)) for record in items)


def record_time(record: Any) -> int:
    """The time of a log record: its own, else when it was observed; 0: it has none."""
    return int(record.time_unix_nano or record.observed_time_unix_nano)


def _span_rows(request: Any) -> Iterator[list[Any]]:
    for resource_spans in request.resource_spans:
        resource = attribute_pairs(resource_spans.resource.attributes)
        service = _service_name(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            scope = scope_spans.scope
            for span in scope_spans.spans:
                events, links = span.events, span.links
                yield [
                    signed(span.start_time_unix_nano),
                    _id(span.trace_id),
                    _id(span.span_id),
                    _id(span.parent_span_id),
                    span.trace_state,
                    span.name,
                    _name(_KINDS, span.kind),
                    service,
                    resource,
                    scope.name,
                    scope.version,
                    attribute_pairs(span.attributes),
                    (span.end_time_unix_nano - span.start_time_unix_nano) % 2**64,
                    _name(_STATUS, span.status.code),
                    span.status.message,
                    [signed(event.time_unix_nano) for event in events],
                    [event.name for event in events],
                    [attribute_pairs(event.attributes) for event in events],
                    [_id(link.trace_id) for link in links],
                    [_id(link.span_id) for link in links],
                    [link.trace_state for link in links],
                    [attribute_pairs(link.attributes) for link in links],
                ]


def _record_rows(request: Any) -> Iterator[list[Any]]:
    for resource_logs in request.resource_logs:
        resource = attribute_pairs(resource_logs.resource.attributes)
        service = _service_name(resource_logs.resource.attributes)
        for scope_logs in resource_logs.scope_logs:
            scope = scope_logs.scope
            scope_attributes = attribute_pairs(scope.attributes)
            for record in scope_logs.log_records:
                yield [
                    signed(record_time(record)),
                    _id(record.trace_id),
                    _id(record.span_id),
                    record.flags & 255,
                    record.severity_text,
                    record.severity_number & 255,
                    service,
                    as_text(record.body),
                    resource_logs.schema_url,
                    resource,
                    scope_logs.schema_url,
                    scope.name,
                    scope.version,
                    scope_attributes,
                    attribute_pairs(record.attributes),
                    record.event_name,
                ]


def _service_name(attributes: Any) -> str:
    return next((as_text(item.value) for item in attributes if item.key == "service.name"), "")


def signed(nanoseconds: int) -> int:
    """A fixed64 as the Int64 that DateTime64(9) counts in, as Go converts it."""
    return nanoseconds - 2**64 if nanoseconds >= 2**63 else nanoseconds


def _id(raw: bytes) -> str:
    return "" if raw in _NO_ID else raw.hex()


def _name(names: tuple[str, ...], number: int) -> str:
    return names[number] if 0 <= number < len(names) else ""
