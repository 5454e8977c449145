"""Looks at an export request before it is acknowledged: does it decode, are its ids ids, and would the store keep its rows?"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from spanloop_store.errors import InvalidOtlp
from spanloop_store.expiry import KEEP_MORE, Expiry
from spanloop_store.otlp.rows import record_time, signed
from spanloop_store.otlp.signals import Signal, item_groups, keep_only, message_type
from spanloop_store.otlp.wire import whole_text

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
        expired: of the rejected, those that the store would delete as soon as it has them.
    """

    payload: bytes
    items: int
    rejected: int = 0
    reason: str = ""
    expired: int = 0


def check_protobuf(signal: Signal, body: bytes, expiry: Expiry | None = None) -> Checked:
    """Decodes a request and leaves out the items whose ids are invalid, or which the store would not keep.

    Args:
        signal: what it should be.
        body: its bytes.
        expiry: which times the table deletes at once; None: none.

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
    return _check(signal, request, body, expiry)


def check_json(signal: Signal, body: bytes | str, expiry: Expiry | None = None) -> Checked:
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
    return _check(signal, request, request.SerializeToString(), expiry)


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


def _check(signal: Signal, request: Any, body: bytes, expiry: Expiry | None) -> Checked:
    reasons: Counter[str] = Counter()
    items = expired = 0
    look = _LOOKS[signal]
    first, end = expiry.kept if expiry else (0, 1 << 64)
    for _, group in item_groups(signal, request):
        bad = set()
        for index in look.odd(group, first, end):
            why = look.problem(group[index])
            if not why and expiry and (why := expiry.why(signed(look.time(group[index])))):
                expired += 1
            if why:
                reasons[why] += 1
                bad.add(index)
        items += len(group) - len(bad)
        if bad:
            keep_only(group, [item for index, item in enumerate(group) if index not in bad])
    if reasons:
        body = request.SerializeToString()
    rejected = reasons.total()
    told = [f"{count} with {why}" for why, count in reasons.items()]
    reason = "; ".join(told + [KEEP_MORE] * bool(expired))
    return Checked(body if items else b"", items, rejected, reason, expired)


def _odd_spans(spans: Any, first: int, end: int) -> list[int]:
    # The hot path: one expression, and no call a span.
    return [
        index
        for index, span in enumerate(spans)
        if not (
            len(trace_id := span.trace_id) == 16
            and len(span_id := span.span_id) == 8
            and first <= span.start_time_unix_nano < end
            and trace_id != _ZERO_TRACE
            and span_id != _ZERO_SPAN
        )
    ]


def _odd_records(records: Any, first: int, end: int) -> list[int]:
    return [
        index
        for index, record in enumerate(records)
        if record.trace_id or record.span_id or not first <= record_time(record) < end
    ]


def _span_problem(span: Any) -> str:
    for name, found, zero in (
        ("trace", span.trace_id, _ZERO_TRACE),
        ("span", span.span_id, _ZERO_SPAN),
    ):
        if len(found) != len(zero):
            return f"a {name} id of {len(found)} bytes"
        if found == zero:
            return f"a {name} id of zeros"
    return ""


def _record_problem(record: Any) -> str:
    # A log record need not belong to a span (logs.proto: both ids are optional).
    for name, found, zero in (
        ("trace", record.trace_id, _ZERO_TRACE),
        ("span", record.span_id, _ZERO_SPAN),
    ):
        if found and len(found) != len(zero):
            return f"a {name} id of {len(found)} bytes"
    return ""


def _span_time(span: Any) -> int:
    return int(span.start_time_unix_nano)


class _Look(NamedTuple):
    """What is looked at in one kind of items."""

    odd: Callable[[Any, int, int], list[int]]  # places in a group of those that want a closer look
    problem: Callable[[Any], str]  # what is wrong with the ids of one; empty: nothing
    time: Callable[[Any], int]  # of one, in nanoseconds


_LOOKS = {
    Signal.TRACES: _Look(_odd_spans, _span_problem, _span_time),
    Signal.LOGS: _Look(_odd_records, _record_problem, record_time),
}


def _for_protobuf(value: Any) -> Any:
    """Hex ids as the base64 that protobuf's own JSON mapping expects; an id that is no hex becomes an invalid id."""
    if isinstance(value, str):
        return whole_text(value)
    if isinstance(value, list):
        return [_for_protobuf(item) for item in value]
    if not isinstance(value, dict):
        return value
    # Attribute keys are values here ({"key": ..., "value": ...}), so no user's key is mistaken for an id.
    return {
        whole_text(key): _id(item) if key in _ID_FIELDS else _for_protobuf(item)
        for key, item in value.items()
    }


def _id(text: Any) -> Any:
    import base64

    if not isinstance(text, str):
        return _for_protobuf(text)
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b"?"  # one byte: rejected by its length, and the rest of the request lives
    return base64.b64encode(raw).decode()
