"""Keeps a span's values within a size that every receiver takes, and marks what was cut or dropped as such.

Pure functions on plain mappings: the exporter applies them when it encodes a span, the plugin for other collectors applies
the very same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

CUT: Final = "spanloop.cut"
DROPPED: Final = "spanloop.dropped_attributes"
# Bytes of UTF-8 a value. A prompt of a million tokens is some 4 MB, and receivers refuse requests over 64 MiB.
DEFAULT_MAX_BYTES: Final = 16 << 20
VARIABLE: Final = "SPANLOOP_MAX_ATTRIBUTE_BYTES"

# UTF-8 needs at most four bytes a character: shorter text cannot be too long, and is not measured.
_BYTES_A_CHARACTER: Final = 4
_NUMBERS: Final = frozenset({int, float, bool})


def cut(attributes: Mapping[str, Any], max_bytes: int) -> tuple[dict[str, Any], list[str]]:
    """Cut values that are longer than `max_bytes` bytes of UTF-8; text at a character boundary.

    Of a list, what follows the last element that has room is left out.

    Returns:
        The attributes, and the keys whose values were cut, sorted.

    Raises:
        ValueError: `max_bytes` is negative.
    """
    if max_bytes < 0:
        raise ValueError(f"max_bytes is {max_bytes}: a number of bytes is 0 or more")
    kept: dict[str, Any] = {}
    keys = []
    short = max_bytes // _BYTES_A_CHARACTER
    for key, value in attributes.items():
        kind = type(value)
        if (len(value) <= short) if kind is str else (kind in _NUMBERS):
            kept[key] = value
            continue
        kept[key], size = _within(value, max_bytes)
        if size > max_bytes:
            keys.append(key)
    return kept, sorted(keys)


def mark(
    attributes: dict[str, Any], keys: Sequence[str], *, dropped: int = 0, sdk_length: int | None = None
) -> dict[str, Any]:
    """Note in `attributes` what is not whole: `spanloop.cut` (keys) and `spanloop.dropped_attributes` (a count).

    Marks of an earlier stage are kept. A span on which everything is whole gets no mark.

    Args:
        attributes: changed in place, and returned.
        keys: those that `cut` names.
        dropped: how many attributes the SDK's count limit dropped (`ReadableSpan.dropped_attributes`).
        sdk_length: the SDK's own limit (OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT), in characters; text of exactly that length was
            most likely cut by it.
    """
    if not keys and not dropped and sdk_length is None and CUT not in attributes:
        return attributes  # nearly always
    earlier = attributes.get(CUT, ())
    marked = {*keys, *([earlier] if isinstance(earlier, str) else earlier)}
    if sdk_length is not None:
        marked.update(key for key, value in attributes.items() if _has_length(value, sdk_length))
    if marked:
        attributes[CUT] = sorted(marked)
    if dropped > 0:
        attributes[DROPPED] = dropped
    return attributes


def _within(value: Any, room: int) -> tuple[Any, int]:
    """The value cut to `room` bytes, and its size before (of what was looked at: more than `room` if it was cut)."""
    if isinstance(value, str):
        # A lone surrogate cannot be sent; it takes a byte of a question mark's.
        data = value.encode("utf-8", "replace")
        return (value, len(data)) if len(data) <= room else (_text(data, room), len(data))
    if isinstance(value, bytes):
        return (value, len(value)) if len(value) <= room else (value[:room], len(value))
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
        kept, size = _items([item for _, item in items], room)
        return {
            key: item for (key, _), item in zip(items, kept, strict=False)
        } if size > room else value, size
    if isinstance(value, Sequence):
        kept, size = _items(value, room)
        return (value if size <= room else kept), size
    return value, 0  # numbers and truth values


def _items(values: Sequence[Any], room: int) -> tuple[list[Any], int]:
    kept: list[Any] = []
    total = 0
    for value in values:
        part, size = _within(value, room - total)
        total += size
        if total <= room:
            kept.append(part)
            continue
        if part or not isinstance(part, str | bytes):
            kept.append(part)
        break
    return kept, total


def _text(data: bytes, room: int) -> str:
    # A character that straddles the boundary is left out whole.
    return data[:room].decode("utf-8", "ignore")


def _has_length(value: Any, length: int) -> bool:
    if isinstance(value, str):
        return len(value) == length
    return isinstance(value, list | tuple) and any(
        isinstance(item, str) and len(item) == length for item in value
    )
