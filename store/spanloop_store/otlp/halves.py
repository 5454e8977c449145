"""Cuts a request in two, for an engine that has no room for all of its rows at once."""

from __future__ import annotations

from typing import Any

from spanloop_store.otlp.signals import FIELDS, Signal, count_items, keep_only, message_type


def halves(signal: Signal, payload: bytes) -> list[tuple[bytes, int]]:
    """The request as two, each with its own copy of resources and scopes, and how many items are in each.

    Args:
        signal: what the request holds.
        payload: its bytes; they decode.

    Returns:
        Two requests; or the one that there is, if it holds a single item.
    """
    total = count_items(signal, message_type(signal).FromString(payload))
    if total < 2:
        return [(payload, total)]
    found = []
    for first, end in ((0, total // 2), (total // 2, total)):
        half = message_type(signal).FromString(payload)
        _cut(signal, half, first, end)
        found.append((half.SerializeToString(), end - first))
    return found


def _cut(signal: Signal, request: Any, first: int, end: int) -> None:
    """Deletes the items whose place is not in [first, end), and what is empty then."""
    resources, scopes, items = FIELDS[signal]
    place = 0
    for resource in getattr(request, resources):
        for scope in getattr(resource, scopes):
            group = getattr(scope, items)
            size = len(group)
            keep = slice(max(first - place, 0), max(end - place, 0))
            del group[keep.stop :]
            del group[: keep.start]
            place += size
        _drop_empty(getattr(resource, scopes), items)
    _drop_empty(getattr(request, resources), scopes)


def _drop_empty(groups: Any, items: str) -> None:
    # Each would be copied into the half for nothing, and it is their size that is too much.
    full = [group for group in groups if len(getattr(group, items))]
    if len(full) < len(groups):
        keep_only(groups, full)
