"""Cuts a request in two, for an engine that has no room for all of its rows at once."""

from __future__ import annotations

from typing import Any

from spanloop_store.otlp.signals import Signal, message_type

# Names of a message's repeated fields, from the request down to its items (trace_service.proto, logs_service.proto).
_FIELDS = {
    Signal.TRACES: ("resource_spans", "scope_spans", "spans"),
    Signal.LOGS: ("resource_logs", "scope_logs", "log_records"),
}


def halves(signal: Signal, payload: bytes) -> list[tuple[bytes, int]]:
    """The request as two, each with its own copy of resources and scopes, and how many items are in each.

    Args:
        signal: what the request holds.
        payload: its bytes; they decode.

    Returns:
        Two requests; or the one that there is, if it holds a single item.
    """
    request = message_type(signal).FromString(payload)
    total = _walk(signal, request, 0, 1 << 62)
    if total < 2:
        return [(payload, total)]
    found = []
    for first, end in ((0, total // 2), (total // 2, total)):
        half = message_type(signal).FromString(payload)
        found.append((_keep(signal, half, first, end), end - first))
    return found


def _keep(signal: Signal, request: Any, first: int, end: int) -> bytes:
    _walk(signal, request, first, end)
    data: bytes = request.SerializeToString()
    return data


def _walk(signal: Signal, request: Any, first: int, end: int) -> int:
    """Deletes the items whose place is not in [first, end); returns how many there were."""
    resources, scopes, items = _FIELDS[signal]
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
    return place


def _drop_empty(groups: Any, items: str) -> None:
    # Each would be copied into the half for nothing, and it is their size that is too much.
    full = [group for group in groups if len(getattr(group, items))]
    if len(full) < len(groups):
        kept = [type(group).FromString(group.SerializeToString()) for group in full]
        del groups[:]
        groups.extend(kept)
