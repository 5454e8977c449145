"""An answer on its way to the client: what is taken out of it, and what is noted, in as little work as each event needs."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, Final

from spanloop_collector.gateway.apis.base import Api
from spanloop_collector.gateway.jsonedit import dump, load
from spanloop_collector.gateway.record import Call
from spanloop_collector.gateway.sse import DONE, EventSplitter, data_of, with_data

# An event of this size is none: nothing that a model says in one piece.
MAX_EVENT_BYTES: Final = 32 << 20


class TooLong(Exception):
    """An event does not end."""


class EventReader:
    """The events of one stream.

    `feed` gives what the client shall see of a chunk; `settle` notes what was in it, after the client has it.

    Args:
        api: the endpoint.
        call: where it is noted.
        added: what the gateway asked for.
        owner: of the back end.
        every: whether each event has something to note (tokens that the client asked for itself).
        text: whether what was said is kept, too.
    """

    def __init__(
        self, api: Api, call: Call, added: Mapping[str, Any], owner: str, *, every: bool, text: bool
    ) -> None:
        self._api = api
        self._call = call
        self._added = added
        self._owner = owner
        self._every = every or text
        self._text = text
        self._splitter = EventSplitter()
        self._events: list[bytes] = []  # to be read
        self._documents: list[dict[str, Any]] = []  # to be noted
        self.done = False

    @property
    def halfway(self) -> bool:
        """Whether the client has the beginning of an event and not its end."""
        return not self._added and self._splitter.held > 0

    def feed(self, chunk: bytes) -> bytes:
        """What to send of `chunk` now; what is left of an event follows with its end.

        Raises:
            TooLong: an event grew beyond MAX_EVENT_BYTES.
        """
        events = self._splitter.feed(chunk)
        if self._splitter.held > MAX_EVENT_BYTES:
            raise TooLong(f"an event has more than {MAX_EVENT_BYTES} bytes")
        if not self._added:
            self._events += events
            return chunk
        return b"".join([self._passed(event) for event in events])

    def finish(self) -> bytes:
        """What is left at the end of the stream."""
        rest = self._splitter.rest()
        if not rest:
            return b""
        if not self._added:
            self._events.append(rest)
            return b""  # it was sent already
        return self._passed(rest)

    def settle(self) -> None:
        """Note what has been sent."""
        for event in self._events:
            if b"[DONE]" in event and data_of(event) == DONE:
                self.done = True
            elif self._every or self._call.response_id is None or self._api.has_news(event):
                document = _document(data_of(event))
                if document is not None:
                    self._api.absorb(self._call, document, text=self._text)
        for document in self._documents:
            self._api.absorb(self._call, document, text=self._text)
        self._events.clear()
        self._documents.clear()

    def _passed(self, event: bytes) -> bytes:
        data = data_of(event)
        if data == DONE:
            self.done = True
            return event
        document = _document(data)
        if document is None:
            return event
        passed = self._api.stripped(event, document, self._added, self._owner)
        if passed is not None:
            self._documents.append(document)
            return passed
        self.settle()  # in order
        self._api.absorb(self._call, document, text=self._text)
        self._api.strip(document, self._added, self._owner)
        return with_data(event, dump(document))


def _document(data: bytes | None) -> dict[str, Any] | None:
    document = None if data is None else load(data)
    return document if isinstance(document, dict) else None


def decoded(raw: bytes, encoding: str, limit: int) -> bytes | None:
    """A body without its content encoding; None where we cannot undo it, or it is larger than `limit`."""
    encoding = encoding.lower()
    if encoding in ("", "identity"):
        return raw
    if encoding not in ("gzip", "deflate"):
        return None
    try:
        machine = zlib.decompressobj(wbits=47 if encoding == "gzip" else 15)
        text = machine.decompress(raw, limit)
        return text if machine.eof else None
    except zlib.error:
        return None
