"""The gateway's side of redaction: its own spans, its error texts, and token ids of texts that hold secrets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from spanloop_store.otlp.signals import Signal

if TYPE_CHECKING:
    from spanloop_exporter.redaction.redactor import Redactor

_DATA_URL: Final = re.compile(r"data:[\w.+-]*/[\w.+-]*(?:;[\w.+=-]*)*;base64,[\w+/=-]*", re.ASCII)
# The server adds to these requests what was said before.
_HELD: Final = ("previous_response_id", "conversation")


class Privacy:
    """What the gateway asks of redaction.

    Args:
        redactor: None: redaction is off.
    """

    def __init__(self, redactor: Redactor | None = None) -> None:
        self._redactor = redactor

    @classmethod
    def of_environment(cls, folder: Path | None) -> Privacy:
        """As the environment says.

        Args:
            folder: the store's, where the salt lies; None: the store is a server.

        Raises:
            RedactionError: it cannot be set up; the gateway must not serve then.
        """
        from spanloop_exporter.redaction.setup import redactor_for

        return cls(redactor_for(folder))

    @property
    def on(self) -> bool:
        """Whether `holds_secrets` may say yes; answers' texts are kept only then."""
        return self._redactor is not None

    def request(self, request: bytes) -> bytes:
        """A serialised export request as it may leave the gateway."""
        if self._redactor is None:
            return request
        from spanloop_exporter.redaction.otlp import redact_request

        return redact_request(request, Signal.TRACES, self._redactor)

    def text(self, text: str) -> str:
        """A text of an error, as it may be recorded."""
        return text if self._redactor is None else self._redactor.redact_text(text)

    def holds_secrets(self, texts: Iterable[str]) -> bool:
        """Whether redaction would change one of these texts: token ids would say what it takes out."""
        redactor = self._redactor
        return redactor is not None and any(redactor.find(text.encode("utf-8", "replace")) for text in texts)


OPEN: Final = Privacy()


def texts_in(value: Any) -> Iterator[str]:
    """Every string of a request's body, each key once; images and the like, in data URLs, are none."""
    waiting, keys = [value], set[str]()  # no recursion: the parser takes what is deeper than Python's stack
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            if not (one.startswith("data:") and _DATA_URL.fullmatch(one)):
                yield one
        elif isinstance(one, dict):
            keys.update(one)
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    yield from keys


def is_held(body: Mapping[str, Any]) -> bool:
    """Whether the server adds earlier turns, which the gateway does not see, to what the model reads."""
    return any(body.get(name) for name in _HELD)
