"""An export request without its secrets: one scan over its bytes, and a walk down to the texts in which something was seen.

A match in the bytes of a whole message proves nothing: it may begin in one text and end in the next, the tag and length before
a text may be letters or digits themselves. So the scan only says where to look, and each text is then judged by itself. All
replacements have the length of what they replace, and no length in the message changes. The numbers of fields are those of
opentelemetry-proto's trace.proto, logs.proto, resource.proto and common.proto.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from typing import Final

from spanloop_exporter import limits
from spanloop_exporter.redaction.redactor import Redactor
from spanloop_exporter.redaction.streams import redact_stream
from spanloop_store.otlp.signals import Signal
from spanloop_store.otlp.wire import field, fields, varint

# Token ids and log-probabilities say what the text said.
TOKEN_KEYS: Final = frozenset(key.encode() for key in limits.TOKEN_KEYS)
_ANY_TOKEN_KEY: Final = re.compile(rb"spanloop\.(?:prompt_token_ids|completion_(?:token_ids|logprobs))")
REDACTED: Final = limits.REDACTED.encode()
_Schema = dict[int, "_Schema | None"]  # by field number: the message there; None: an id
_TEXT: Final[_Schema] = {}
_ANY_VALUE: Final[_Schema] = {1: _TEXT, 7: _TEXT}
_KEY_VALUE: Final[_Schema] = {1: _TEXT, 2: _ANY_VALUE}
_ANY_VALUE[5] = {1: _ANY_VALUE}
_ANY_VALUE[6] = {1: _KEY_VALUE}
_SCOPE: Final[_Schema] = {1: _TEXT, 2: _TEXT, 3: _KEY_VALUE}
_RESOURCE: Final[_Schema] = {1: _KEY_VALUE, 3: {1: _TEXT, 2: _TEXT, 3: _TEXT, 4: _TEXT}}
_EVENT: Final[_Schema] = {2: _TEXT, 3: _KEY_VALUE}
_LINK: Final[_Schema] = {1: None, 2: None, 3: _TEXT, 4: _KEY_VALUE}
_SPAN: Final[_Schema] = {
    1: None,
    2: None,
    3: _TEXT,
    4: None,
    5: _TEXT,
    9: _KEY_VALUE,
    11: _EVENT,
    13: _LINK,
    15: {2: _TEXT},
}
_RECORD: Final[_Schema] = {3: _TEXT, 5: _ANY_VALUE, 6: _KEY_VALUE, 9: None, 10: None, 12: _TEXT}
_SCOPE_SPANS: Final[_Schema] = {1: _SCOPE, 2: _SPAN, 3: _TEXT}
_RESOURCE_SPANS: Final[_Schema] = {1: _RESOURCE, 2: _SCOPE_SPANS, 3: _TEXT}
_SCOPE_LOGS: Final[_Schema] = {1: _SCOPE, 2: _RECORD, 3: _TEXT}
_REQUESTS: Final[dict[Signal, _Schema]] = {
    Signal.TRACES: {1: _RESOURCE_SPANS},
    Signal.LOGS: {1: {1: _RESOURCE, 2: _SCOPE_LOGS, 3: _TEXT}},
}
_ATTRIBUTES, _EVENTS = 9, 11
# What an event looks like in a span: its tag, its length, and the tag of its time, name or attributes.
_EVENT_HEAD: Final = re.compile(rb"\x5a[\x80-\xff]{0,3}[\x00-\x7f][\x09\x12\x1a]")
_MARGIN: Final = 8  # bytes behind a match that may be the tag and length of the text in which another begins


def redact_request(data: bytes, signal: Signal, redactor: Redactor) -> bytes:
    """The request with pseudonyms in it; the same object where there was nothing.

    Every text and every bytes value is looked at: attributes, names, events, links, status, bodies, resource, scope, and what
    we know no field for; at any depth, and so are keys. Ids of traces and spans are not. It has the same length, unless
    prompt or answer of a call that carries token ids changed: these are then left off.

    Args:
        data: a serialised ExportTraceServiceRequest or ExportLogsServiceRequest. Where it cannot be decoded, its bytes are
            taken for one text.
        signal: which of the two.
        redactor: what to look for.
    """
    places = redactor.places(data)
    # Two events at least: something may be cut in two between them, where no scan of the bytes sees it.
    streams = signal is Signal.TRACES and _has_events(data, 0, len(data))
    if not places and not streams and not redactor.needs_context:
        return data
    walk = _Walk(data, redactor, [(0, len(data))] if redactor.needs_context else places, streams)
    walk.message(_REQUESTS[signal], 0, len(data))
    if not walk.replaced:
        return data
    changed = bytes(walk.out)
    return without_token_ids(changed, walk.spans) if walk.spans else changed


def _has_events(data: bytes, start: int, end: int) -> bool:
    """Whether two of them may stand there, so that a text may be cut between them."""
    found = _EVENT_HEAD.search(data, start, end)
    return found is not None and _EVENT_HEAD.search(data, found.end(), end) is not None


class _Walk:
    def __init__(self, data: bytes, redactor: Redactor, places: list[tuple[int, int]], streams: bool) -> None:
        self.out = bytearray(data)
        self.replaced = 0
        self.spans: list[int] = []  # where the bodies of those begin whose token ids have to go
        self._data = data
        self._redactor = redactor
        self._streams = streams
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in places:
            if self._ends and start <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], end + _MARGIN)
            else:
                self._starts.append(start)
                self._ends.append(end + _MARGIN)

    def message(self, schema: _Schema, start: int, end: int) -> None:
        for number, _, first, last in fields(self._data, start, end):
            inner = schema.get(number, _TEXT)
            if inner is None:
                continue
            if inner is _SPAN:
                if self._seen(first, last) or (self._streams and _has_events(self._data, first, last)):
                    self._span(first, last)
            elif inner is _TEXT:
                if self._seen(first, last):
                    self._text(first, last)
            # What is above spans is gone through for their events' sake.
            elif self._seen(first, last) or (
                self._streams and (inner is _RESOURCE_SPANS or inner is _SCOPE_SPANS)
            ):
                self.message(inner, first, last)

    def _seen(self, start: int, end: int) -> bool:
        """Whether a place lies in it, in part at least."""
        index = bisect_right(self._ends, start)
        return index < len(self._starts) and self._starts[index] < end

    def _text(self, start: int, end: int) -> None:
        text = bytes(self.out[start:end])
        index, windows = bisect_right(self._ends, start), []
        while index < len(self._starts) and self._starts[index] < end:
            windows.append((max(0, self._starts[index] - start), self._ends[index] - start))
            index += 1
        changed = self._redactor.redact(text, windows)
        if changed is not text:
            self.out[start:end] = changed
            self.replaced += 1

    def _span(self, start: int, end: int) -> None:
        content = False
        events = []
        for number, _, first, last in fields(self._data, start, end):
            inner = _SPAN.get(number, _TEXT)
            if number == _EVENTS:
                events.append((first, last))
            elif inner is None or not self._seen(first, last):
                continue
            elif inner is _TEXT:
                self._text(first, last)
            else:
                before = self.replaced
                self.message(inner, first, last)
                if number == _ATTRIBUTES and self.replaced > before:
                    content = content or self._is_content(first, last)
        before = self.replaced
        if len(events) > 1:
            self._stream(events)
        for first, last in events:
            if self._seen(first, last):
                self.message(_EVENT, first, last)
        if (
            (content or self.replaced > before)
            and _ANY_TOKEN_KEY.search(self._data, start, end) is not None
            and any(
                number == _ATTRIBUTES and _is_token_key(self._data, first, last)
                for number, _, first, last in fields(self._data, start, end)
            )
        ):
            self.spans.append(start)

    def _stream(self, events: list[tuple[int, int]]) -> None:
        """Looks at what the events of one name say under one key as one text."""
        said: defaultdict[tuple[bytes, bytes], list[tuple[int, int]]] = defaultdict(list)
        for start, end in events:
            name, values = b"", []
            for number, _, first, last in fields(self._data, start, end):
                if number == 2:
                    name = self._data[first:last]
                elif number == 3 and (value := self._string(first, last)):
                    values.append((self._key(first, last), value))
            for key, place in values:
                said[name, key].append(place)
        for places in said.values():
            if len(places) > 1:
                self._joined(places)

    def _joined(self, places: list[tuple[int, int]]) -> None:
        changed = redact_stream([self._data[start:end] for start, end in places], self._redactor)
        if changed is None:
            return
        self.replaced += 1
        for (start, end), text in zip(places, changed, strict=True):
            self.out[start:end] = text

    def _is_content(self, start: int, end: int) -> bool:
        return limits.NO_CONTENT.fullmatch(self._key(start, end).decode("utf-8", "replace")) is None

    def _key(self, start: int, end: int) -> bytes:
        return next(
            (
                self._data[first:last]
                for number, _, first, last in fields(self._data, start, end)
                if number == 1
            ),
            b"",
        )

    def _string(self, start: int, end: int) -> tuple[int, int] | None:
        """Where the text of a KeyValue stands; None: its value is no text."""
        for number, _, first, last in fields(self._data, start, end):
            if number == 2:
                for inner, _, begin, stop in fields(self._data, first, last):
                    if inner == 1:
                        return begin, stop
        return None


def without_token_ids(data: bytes, spans: list[int]) -> bytes:
    """The request without the token ids of some spans, each of which says `spanloop.redacted` instead.

    Args:
        data: a serialised ExportTraceServiceRequest.
        spans: where their bodies begin, in order.
    """
    return _rebuilt(data, 0, len(data), spans, (1, 2, 2))


def _rebuilt(data: bytes, start: int, end: int, spans: list[int], path: tuple[int, ...]) -> bytes:
    parts: list[bytes] = []
    done = start
    ours = not path  # only those are gone down to
    for number, tag, first, last in fields(data, start, end):
        if path:
            if number != path[0] or bisect_left(spans, first) == bisect_left(spans, last):
                continue
            body = _rebuilt(data, first, last, spans, path[1:])
            # All tags on the path are one byte.
            parts += (data[done : tag + 1], varint(len(body)), body)
        elif ours and number == _ATTRIBUTES and _is_token_key(data, first, last):
            parts.append(data[done:tag])
        else:
            continue
        done = last
    parts.append(data[done:end])
    if ours:
        pair = field(0x0A, REDACTED) + field(0x12, field(0x0A, b"true"))
        parts.append(field(0x4A, pair))
    return b"".join(parts)


def _is_token_key(data: bytes, start: int, end: int) -> bool:
    return any(
        number == 1 and data[first:last] in TOKEN_KEYS for number, _, first, last in fields(data, start, end)
    )
