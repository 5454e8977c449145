"""Which requests the engine's SQL cannot render: the predicate of hard.sql in Python, for stores that take no query on bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from spanloop_store.otlp.signals import Signal

# Go's JSON writes \\u001f, the engine's \\u001F: those escapes whose number has a letter.
_LETTERED_ESCAPE = re.compile("[\x0b\x0e\x0f\x1a-\x1f]")

_PLAIN_BELOW = 1e21  # Go and the engine write an exponent from here on, and Go its sign


def is_hard(signal: Signal, request: Any) -> bool:
    """Whether any value of a decoded request has to be rendered in Python. Walks every attribute."""
    if signal is Signal.TRACES:
        return any(
            _any_hard(resource.resource.attributes)
            or any(
                _any_hard(span.attributes)
                or any(_any_hard(event.attributes) for event in span.events)
                or any(_any_hard(link.attributes) for link in span.links)
                for scope in resource.scope_spans
                for span in scope.spans
            )
            for resource in request.resource_spans
        )
    return any(
        _any_hard(resource.resource.attributes)
        or any(
            _any_hard(scope.scope.attributes)
            or any(_value_hard(record.body) or _any_hard(record.attributes) for record in scope.log_records)
            for scope in resource.scope_logs
        )
        for resource in request.resource_logs
    )


def _any_hard(attributes: Iterable[Any]) -> bool:
    return any(_value_hard(attribute.value) for attribute in attributes)


def _value_hard(value: Any) -> bool:
    if value.HasField("array_value"):
        return any(_inner_hard(item) for item in value.array_value.values)
    if value.HasField("kvlist_value"):
        members = value.kvlist_value.values
        return len({member.key for member in members}) != len(members) or any(
            bool(_LETTERED_ESCAPE.search(member.key)) or _inner_hard(member.value) for member in members
        )
    return value.HasField("double_value") and _double_hard(value.double_value)


def _inner_hard(value: Any) -> bool:
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return _LETTERED_ESCAPE.search(value.string_value) is not None
    if kind == "double_value":
        return _double_hard(value.double_value)
    return kind in ("array_value", "kvlist_value", "bytes_value")


def _double_hard(number: float) -> bool:
    return not abs(number) < _PLAIN_BELOW  # NaN is not below anything
