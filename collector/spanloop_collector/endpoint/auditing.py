"""The trail of the administrator's token at the endpoint: a row a statement, written before the statement runs.

What the same client says again within a minute is counted, and the count written once the minute is over: a dashboard or an
exporter that uses the token (and should not) must not fill the table. The values of a statement are left out.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from spanloop_store import Engine, audit
from spanloop_store.errors import AuditError

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

log = logging.getLogger(__name__)

SHOWN_CHARACTERS: Final = 300
COUNTED_S: Final = 60.0
_MOST_KNOWN: Final = 1000  # statements that are counted at a time
_VALUES = re.compile(r"\bVALUES\b.*", re.IGNORECASE | re.DOTALL)
_LITERAL = re.compile(r"'(?:[^'\\]|\\.|'')*'|\b\d[\w.]*")
_SPACE = re.compile(r"\s+")


def shown(statement: str) -> str:
    """A statement without the values in it, its first 300 characters on one line. `statement` is latin-1, as the guard has it."""
    text = statement.encode("latin-1", "replace").decode("utf-8", "replace")
    text = _LITERAL.sub("?", _VALUES.sub("VALUES …", text))
    return _SPACE.sub(" ", text).strip()[:SHOWN_CHARACTERS]


@dataclass
class _Repeated:
    written: float  # monotonic, when its last row was written
    count: int = 0  # uses since


class AdminTrail:
    """Rows of one endpoint; used from worker threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._known: dict[tuple[str, str], _Repeated] = {}

    def used(self, who: str, statement: str) -> None:
        """The token was used for this statement, which has not run yet.

        Raises:
            AuditError: that cannot be written down, so it must not run.
        """
        key = (who, shown(statement))
        with self._lock:
            known = self._known.get(key)
            if known is not None and time.monotonic() - known.written < COUNTED_S:
                known.count += 1
                return
            self._write(key, known.count if known else 0)
            self._known[key] = _Repeated(time.monotonic())
            if len(self._known) > _MOST_KNOWN:
                self._settle(next(iter(self._known)))

    def sweep(self, everything: bool = False) -> None:
        """Writes the counts whose minute is over; all of them when the endpoint stops."""
        with self._lock:
            now = time.monotonic()
            for key, known in list(self._known.items()):
                if everything or now - known.written >= COUNTED_S:
                    # Their statements ran a minute ago: what is lost is how often, and not that.
                    with contextlib.suppress(AuditError):
                        self._settle(key)

    def close(self) -> None:
        """Writes what is counted, and lets go of the engine."""
        self.sweep(everything=True)
        with self._lock:
            if self._client is not None:
                self._client.close()
            self._client = None

    def _settle(self, key: tuple[str, str]) -> None:
        if count := self._known.pop(key).count:
            self._write(key, count)

    def _write(self, key: tuple[str, str], repeats: int) -> None:
        who, subject = key
        self._client = self._client or self._engine.client()
        details = {"repeats": repeats} if repeats else {}
        audit.record(self._client, "query", subject, details, who)
