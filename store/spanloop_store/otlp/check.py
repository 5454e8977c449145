"""Looks at an export request before it is acknowledged: does it decode, and are its ids ids?"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from spanloop_store.errors import InvalidOtlp
from spanloop_store.otlp.signals import Signal, message_type

_ZERO_TRACE = bytes(16)
_ZERO_SPAN = bytes(8)
_ID_FIELDS = frozenset({"traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"})


@dataclass(frozen=True)
class Checked:
    """A request that may be logged.

    Args:
        payload: the request's protobuf bytes, without what was rejected; empty when nothing is left to store.
        items: spans or log records in `payload`.
        rejected: spans or log records that were left out.
        reason: why, one line; empty when nothing was rejected.
    """

    payload: bytes
    items: int
    rejected: int = 0
    reason: str = ""


def check_protobuf(signal: Signal, body: bytes) -> Checked:
    """Decodes a request and leaves out the items whose ids are invalid.

    Raises:
        InvalidOtlp: the bytes are no export request of this signal.
    """
    from google.protobuf.message import DecodeError

    try:
        request = message_type(signal).FromString(body)
    except DecodeError as error:
        raise InvalidOtlp(
            f"the body is no protobuf {message_type(signal).DESCRIPTOR.name}: {error}",
            f"send OTLP {signal.value}; a metrics or JSON body needs its own path or content type",
        ) from error
    if body and not request.ListFields():
        # Nearly any short text is valid protobuf made of unknown fields, and nothing of it would be stored.
        raise InvalidOtlp(
            f"the body holds no field of {message_type(signal).DESCRIPTOR.name}",
            f"send OTLP {signal.value}; a metrics or JSON body needs its own path or content type",
        )
    return _check(signal, request, body)


def check_json(signal: Signal, body: bytes | str) -> Checked:
    """The same for OTLP's JSON encoding, whose ids are hex (OTLP 1.7, "JSON Protobuf Encoding").

    Raises:
        InvalidOtlp: it is no JSON, or no export request of this signal.
    """
    from google.protobuf import json_format

    document = read_document(body)
    try:
        # Unknown fields are ignored, as the specification asks.
        request = json_format.ParseDict(document, message_type(signal)(), ignore_unknown_fields=True)
    except (json_format.ParseError, RecursionError, UnicodeError) as error:
        raise InvalidOtlp(
            f"the body is no OTLP {signal.value} in JSON: {error}", "check the path and the field"
        ) from error
    return _check(signal, request, request.SerializeToString())


def read_document(body: bytes | str) -> dict[str, Any]:
    """A JSON body as protobuf's JSON mapping takes it: ids in base64, and half a surrogate pair as U+FFFD.

    Such halves are what is left of an emoji where a JavaScript SDK cut a long text; protobuf takes no text that has one.

    Raises:
        InvalidOtlp: it is no JSON object.
    """
    try:
        document = _for_protobuf(json.loads(body))
    except (ValueError, RecursionError) as error:
        raise InvalidOtlp(f"the body is no JSON: {error}", "check the content type") from error
    if not isinstance(document, dict):
        raise InvalidOtlp("the body is JSON but no object", 'send {"resourceSpans": [...]}')
    return document


def _check(signal: Signal, request: Any, body: bytes) -> Checked:
    reasons: Counter[str] = Counter()
    items = 0
    groups = (
        (scope.spans for resource in request.resource_spans for scope in resource.scope_spans)
        if signal is Signal.TRACES
        else (scope.log_records for resource in request.resource_logs for scope in resource.scope_logs)
    )
    problem = _span_problem if signal is Signal.TRACES else _record_problem
    for group in groups:
        bad = []
        for index, item in enumerate(group):
            if why := problem(item.trace_id, item.span_id):
                reasons[why] += 1
                bad.append(index)
        items += len(group) - len(bad)
        for index in reversed(bad):
            del group[index]
    if reasons:
        body = request.SerializeToString()
    rejected = reasons.total()
    reason = "; ".join(f"{count} with {why}" for why, count in reasons.items())
    return Checked(body if items else b"", items, rejected, reason)


def _span_problem(trace_id: bytes, span_id: bytes) -> str:
    if len(trace_id) != 16 or trace_id == _ZERO_TRACE:
        return f"a trace id of {len(trace_id)} bytes" if len(trace_id) != 16 else "a trace id of zeros"
    if len(span_id) != 8 or span_id == _ZERO_SPAN:
        return f"a span id of {len(span_id)} bytes" if len(span_id) != 8 else "a span id of zeros"
    return ""


def _record_problem(trace_id: bytes, span_id: bytes) -> str:
    # A log record need not belong to a span (logs.proto: both ids are optional).
    if trace_id and len(trace_id) != 16:
        return f"a trace id of {len(trace_id)} bytes"
    if span_id and len(span_id) != 8:
        return f"a span id of {len(span_id)} bytes"
    return ""


def _for_protobuf(value: Any) -> Any:
    """Hex ids as the base64 that protobuf's own JSON mapping expects; an id that is no hex becomes an invalid id."""
    if isinstance(value, str):
        return _whole(value)
    if isinstance(value, list):
        return [_for_protobuf(item) for item in value]
    if not isinstance(value, dict):
        return value
    # Attribute keys are values here ({"key": ..., "value": ...}), so no user's key is mistaken for an id.
    return {
        _whole(key): _id(item) if key in _ID_FIELDS else _for_protobuf(item) for key, item in value.items()
    }


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _id(text: Any) -> Any:
    import base64

    if not isinstance(text, str):
        return _for_protobuf(text)
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b"?"  # one byte: rejected by its length, and the rest of the request lives
    return base64.b64encode(raw).decode()
