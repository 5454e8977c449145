"""OTLP values as text in Python, equal to values.sql and to the collector's `pcommon.Value.AsString`."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

# The second is an index into a dictionary that only profiles have (common.proto).
_NO_VALUE = (None, "string_value_strindex")


def as_text(value: Any) -> str:
    """An AnyValue as the exporter writes it into a Map(String, String)."""
    kind = value.WhichOneof("value")
    if kind in _NO_VALUE:
        return ""
    if kind == "string_value":
        return str(value.string_value)
    if kind == "double_value" and not math.isfinite(value.double_value):
        return f"json: unsupported value: {_go_non_finite(value.double_value)}"
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode()
    try:
        return _json(value)
    except _Unsupported:
        return ""  # Go's json.Marshal fails on NaN and infinities, and AsString drops its error


def attribute_pairs(attributes: Iterable[Any]) -> list[tuple[str, str]]:
    """Attributes as (key, text), sorted as the exporter sorts them; equal keys in the order of their texts."""
    return sorted((attribute.key, as_text(attribute.value)) for attribute in attributes)


def double_text(number: float) -> str:
    """A finite double as Go's encoding/json writes it (ES6: plain from 1e-6 up to below 1e21)."""
    text = repr(number)
    if number != 0 and not 1e-6 <= abs(number) < 1e21:
        mantissa, _, exponent = text.partition("e")
        sign = "-" if exponent.startswith("-") else "+"
        return f"{mantissa.removesuffix('.0')}e{sign}{exponent.lstrip('+-').lstrip('0')}"
    if "e" in text:
        text = format(Decimal(text), "f")
    return text.removesuffix(".0")


class _Unsupported(ValueError):
    pass


def _go_non_finite(number: float) -> str:
    return "NaN" if math.isnan(number) else "+Inf" if number > 0 else "-Inf"


def _json(value: Any) -> str:
    kind = value.WhichOneof("value")
    if kind in _NO_VALUE:
        return "null"
    if kind == "string_value":
        return _string(value.string_value)
    if kind == "bool_value":
        return "true" if value.bool_value else "false"
    if kind == "int_value":
        return str(value.int_value)
    if kind == "double_value":
        if not math.isfinite(value.double_value):
            raise _Unsupported
        return double_text(value.double_value)
    if kind == "bytes_value":
        # Go copies an empty slice to nil, and nil is null in JSON.
        return f'"{base64.b64encode(value.bytes_value).decode()}"' if value.bytes_value else "null"
    if kind == "array_value":
        return f"[{','.join(_json(item) for item in value.array_value.values)}]"
    # Of a key that comes twice the last one wins.
    members = {item.key: _json(item.value) for item in value.kvlist_value.values}
    return "{" + ",".join(f"{_string(key)}:{members[key]}" for key in sorted(members)) + "}"


def _string(text: str) -> str:
    # Go escapes the two line separators that JavaScript cannot read, whatever else it is told.
    return json.dumps(text, ensure_ascii=False).replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
