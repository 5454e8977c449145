"""One ended span to the bytes of one OTLP export request, written by hand: no protobuf is imported inside the agent.

Half the time of upstream's encoder, which builds a message object a value (98 µs against 45 µs for a span of 3 KB with 14
attributes), and its import (40 ms) is saved. Field numbers are those of opentelemetry-proto's trace.proto, resource.proto
and common.proto; a test compares every field with what upstream's encoder makes.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from spanloop_store.otlp.wire import SHORT, field, varint

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext

log = logging.getLogger(__name__)

_FIXED64 = struct.Struct("<Q").pack
_FIXED32 = struct.Struct("<I").pack
_DOUBLE = struct.Struct("<d").pack
_UINT64: Final = (1 << 64) - 1
_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1
# Keys repeat from span to span. The bound is for agents that put ids into keys.
_MAX_KEYS: Final = 4096
_MAX_SCOPES: Final = 256
_NO_SCOPE: Final = b"\x0a\x00"
# SpanFlags of trace.proto: whether the parent's remoteness is known, and whether it is remote.
_HAS_IS_REMOTE: Final = 0x100
_IS_REMOTE: Final = 0x200


class SpanEncoder:
    """Encodes spans; remembers the bytes of what repeats (resource, scopes, attribute keys). Threads may share one.

    Args:
        prepare: makes the attributes that are sent from a span's attributes and the number of those that the SDK
            dropped; None: they are sent as they are.
    """

    def __init__(self, prepare: Callable[[Mapping[str, Any], int], Mapping[str, Any]] | None = None) -> None:
        self._prepare = prepare
        self._resource: tuple[Resource, bytes] | None = None
        self._scopes: dict[int, tuple[InstrumentationScope, bytes]] = {}

    def encode(self, span: ReadableSpan) -> bytes:
        """An ExportTraceServiceRequest that holds this span alone, with its resource and scope.

        An attribute that OTLP cannot carry is left out and logged; the span is not lost with it.
        """
        encoded = field(0x12, self._span(span))
        scope = field(0x12, self._scope_prefix(span.instrumentation_scope) + encoded)
        resource = span.resource
        known = self._resource
        if known is None or known[0] is not resource:
            known = self._resource = (resource, _resource_prefix(resource))
        return field(0x0A, known[1] + scope)

    def _scope_prefix(self, scope: InstrumentationScope | None) -> bytes:
        if scope is None:
            return _NO_SCOPE
        known = self._scopes.get(id(scope))
        if known is None or known[0] is not scope:
            if len(self._scopes) >= _MAX_SCOPES:
                self._scopes.clear()
            known = self._scopes[id(scope)] = (scope, _scope_bytes(scope))
        return known[1]

    def _span(self, span: ReadableSpan) -> bytes:
        context = span.get_span_context()
        assert context is not None  # a recording span always has one
        parts = [
            b"\x0a\x10",
            context.trace_id.to_bytes(16, "big"),
            b"\x12\x08",
            context.span_id.to_bytes(8, "big"),
        ]
        if context.trace_state:
            parts.append(
                _text(0x1A, ",".join(f"{key}={value}" for key, value in context.trace_state.items()))
            )
        if span.parent is not None:
            parts += (b"\x22\x08", span.parent.span_id.to_bytes(8, "big"))
        if span.name:
            parts.append(_text(0x2A, span.name))
        # SpanKind counts from INTERNAL = 0, OTLP from UNSPECIFIED = 0.
        parts += (b"\x30", SHORT[span.kind.value + 1])
        parts += (b"\x39", _FIXED64((span.start_time or 0) & _UINT64))
        parts += (b"\x41", _FIXED64((span.end_time or 0) & _UINT64))
        parts.append(self._attributes(span))
        if span.dropped_attributes:
            parts.append(b"\x50" + varint(span.dropped_attributes))
        for event in span.events:
            body = b"\x09" + _FIXED64(event.timestamp & _UINT64) + _text(0x12, event.name)
            body += attribute_fields(0x1A, event.attributes) + _count(0x20, event.dropped_attributes)
            parts.append(field(0x5A, body))
        parts.append(_count(0x60, span.dropped_events))
        for link in span.links:
            body = b"\x0a\x10" + link.context.trace_id.to_bytes(16, "big")
            body += b"\x12\x08" + link.context.span_id.to_bytes(8, "big")
            body += attribute_fields(0x22, link.attributes) + _count(0x28, link.dropped_attributes)
            parts.append(field(0x6A, body + b"\x35" + _FIXED32(_flags(link.context))))
        parts.append(_count(0x70, span.dropped_links))
        status = _text(0x12, span.status.description) if span.status.description else b""
        parts.append(field(0x7A, status + _count(0x18, span.status.status_code.value)))
        parts += (b"\x85\x01", _FIXED32(_flags(span.parent)))
        return b"".join(parts)

    def _attributes(self, span: ReadableSpan) -> bytes:
        # A copy that C makes: to walk the SDK's own mapping takes two calls of Python a key.
        attributes: Mapping[str, Any] = getattr(span.attributes, "copy", dict)()
        if self._prepare is not None:
            attributes = self._prepare(attributes, span.dropped_attributes)
        return attribute_fields(0x4A, attributes)


def _resource_prefix(resource: Resource) -> bytes:
    """All of a ResourceSpans but its scope_spans; the order of fields in a message is free."""
    body = field(0x0A, attribute_fields(0x0A, resource.attributes))
    return body + (_text(0x1A, resource.schema_url) if resource.schema_url else b"")


def _scope_bytes(scope: InstrumentationScope) -> bytes:
    """All of a ScopeSpans but its spans."""
    body = _text(0x0A, scope.name) if scope.name else b""
    body += _text(0x12, scope.version) if scope.version else b""
    body += attribute_fields(0x1A, scope.attributes)
    return field(0x0A, body) + (_text(0x1A, scope.schema_url) if scope.schema_url else b"")


def _flags(context: SpanContext | None) -> int:
    return _HAS_IS_REMOTE | (_IS_REMOTE if context is not None and context.is_remote else 0)


_keys: dict[str, bytes] = {}


def _key(key: str) -> bytes:
    known = _keys.get(key)
    if known is None:
        if len(_keys) >= _MAX_KEYS:
            _keys.clear()
        known = _keys[key] = _text(0x0A, key)
    return known


def attribute_fields(tag: int, attributes: Mapping[str, Any] | None) -> bytes:
    """Repeated KeyValue fields."""
    if not attributes:
        return b""
    parts: list[bytes] = []
    lead = SHORT[tag]
    for key, value in attributes.items():
        try:
            name = _keys.get(key) or _key(key)
            # Nearly all values are text: it is put in place without a call for each layer around it.
            if type(value) is str:
                text = value.encode("utf-8", "replace")
                size = len(text)
                head = _TEXT_HEADS[size] if size < len(_TEXT_HEADS) else _text_head(size)
                size += len(name) + len(head)
                parts += (lead, SHORT[size] if size < 128 else varint(size), name, head, text)
            else:
                body = field(0x12, _value(value))
                parts += (lead, varint(len(name) + len(body)), name, body)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            log.warning("attribute %r is left out, OTLP cannot carry its value: %s", key, error)
    return b"".join(parts)


def _text_head(size: int) -> bytes:
    """What stands before a text of `size` bytes in a KeyValue: the value's field, and in it the string's."""
    inner = b"\x0a" + varint(size)
    return b"\x12" + varint(len(inner) + size) + inner


def _value(value: Any) -> bytes:
    """An AnyValue."""
    if isinstance(value, str):
        return _text(0x0A, value)
    if isinstance(value, bool):
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, int):
        if not _INT64_MIN <= value <= _INT64_MAX:
            raise OverflowError(f"{value} is no 64-bit integer")
        return b"\x18" + varint(value & _UINT64)
    if isinstance(value, float):
        return b"\x21" + _DOUBLE(value)
    if value is None:
        return b""
    if isinstance(value, bytes):
        return field(0x3A, value)
    if isinstance(value, Sequence):
        return field(0x2A, b"".join(field(0x0A, _value(item)) for item in value))
    if isinstance(value, Mapping):
        return field(0x32, attribute_fields(0x0A, {str(key): item for key, item in value.items()}))
    raise TypeError(f"no OTLP value is made of a {type(value).__name__}")


def _text(tag: int, text: str) -> bytes:
    # A lone surrogate (bytes that were no UTF-8) cannot be sent; the rest of the text can.
    data = text.encode("utf-8", "replace")
    return SHORT[tag] + varint(len(data)) + data


def _count(tag: int, number: int) -> bytes:
    return SHORT[tag] + varint(number) if number else b""


# For short texts the heads are made beforehand.
_TEXT_HEADS: Final = [_text_head(size) for size in range(126)]
