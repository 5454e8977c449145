"""Frames of a segment as one OTLP request: neighbours of one resource and scope share its bytes, spans stay as they are.

A request is a protobuf message, and the bytes of two messages in a row are their merge; so nothing is decoded here but
the lengths of the outer fields. What comes out depends on the frames alone: a batch that is sent again is the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from spanloop_store.otlp import wire
from spanloop_store.otlp.wire import SHORT, field, read_varint

# Tags, field number and wire type in one: scope_spans in ResourceSpans and spans in ScopeSpans, or scope_logs and
# log_records; resource_spans or resource_logs in an export request.
_ITEMS: Final = 0x12
_RESOURCES: Final = 0x0A


class NotMergeable(ValueError):
    """A message with outer fields that we do not know; its bytes may still be put behind others'."""


def merge(payloads: Iterable[bytes | memoryview]) -> bytes:
    """One request with all that the payloads hold, in order.

    Args:
        payloads: serialised ExportTraceServiceRequests, or all of them ExportLogsServiceRequests.
    """
    # resource bytes → scope bytes → spans; a dict keeps the order of first sight
    resources: dict[bytes, dict[bytes, list[bytes]]] = {}
    rest: list[bytes] = []
    before: tuple[bytes, bytes, list[bytes]] | None = None
    for payload in payloads:
        message = bytes(payload)
        if before is not None and (item := _only_item(message, before[0], before[1])) is not None:
            before[2].append(item)
            continue
        try:
            parsed = [
                (resource, [_split(scope) for scope in scopes])
                for resource, scopes in (_split(item) for item in _resources(message))
            ]
        except NotMergeable:
            rest.append(message)
            continue
        for resource, scopes in parsed:
            known = resources.setdefault(resource, {})
            for scope, items in scopes:
                kept = known.setdefault(scope, [])
                kept.extend(items)
                before = resource, scope, kept
    merged = [
        field(
            _RESOURCES,
            resource + b"".join(field(_ITEMS, scope + _items(items)) for scope, items in scopes.items()),
        )
        for resource, scopes in resources.items()
    ]
    return b"".join(merged + rest)


def _only_item(message: bytes, resource: bytes, scope: bytes) -> bytes | None:
    """The item of a message that holds just one, of this resource and this scope, as most do; None: it is another."""
    offset = 0
    for tag, head in ((_RESOURCES, resource), (_ITEMS, scope), (_ITEMS, b"")):
        if not message.startswith(SHORT[tag], offset):
            return None
        length, offset = read_varint(message, offset + 1, len(message))
        if offset + length != len(message) or not message.startswith(head, offset):
            return None
        offset += len(head)
    return message[offset:]


def _items(items: list[bytes]) -> bytes:
    return b"".join(field(_ITEMS, item) for item in items)


def _resources(message: bytes) -> list[bytes]:
    found = []
    for tag, _, body in _fields(message):
        if tag != _RESOURCES:
            raise NotMergeable(tag)
        found.append(body)
    return found


def _split(message: bytes) -> tuple[bytes, list[bytes]]:
    """The fields that say whose the items are, as they stand; and the items."""
    head, items = [], []
    for tag, whole, body in _fields(message):
        if tag == _ITEMS:
            items.append(body)
        else:
            head.append(whole)
    return b"".join(head), items


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(tag, the field as it stands, body) of each field; all fields of the three outer messages are length-delimited."""
    done = 0
    for number, start, body, end in wire.fields(message, 0, len(message)):
        if number == 0 or start != done:
            raise NotMergeable(start)
        yield number << 3 | wire.LENGTH_DELIMITED, message[start:end], message[body:end]
        done = end
    if done != len(message):
        raise NotMergeable(done)
