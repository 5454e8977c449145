"""The queries that run now, by the id that their clients know, so that each can be ended before its time."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator

from spanloop_collector.endpoint.credentials import User
from spanloop_collector.endpoint.errors import BAD_ARGUMENTS, SAME_QUERY_ID, EndpointError
from spanloop_store import OWNER_ROLE, WRITER_ROLE, Engine

# The engine gives its queries ids of its own; this setting carries the client's into system.processes.
COMMENT = "log_comment"
_KILL = re.compile(
    r"\s*KILL\s+QUERY\s+WHERE\s+query_id\s*=\s*'(?P<id>[^'\\]+)'\s*(?:SYNC|ASYNC)?\s*;?\s*", re.IGNORECASE
)
_QUERY_ID = re.compile(r"[\x21-\x26\x28-\x5b\x5d-\x7e]{1,200}")  # printable, no quote, no backslash


def killed_id(text: str) -> str:
    """The id in `KILL QUERY WHERE query_id = '…'`, the one form that network users may say; empty: it is not that."""
    match = _KILL.fullmatch(text)
    return match["id"] if match else ""


class Running:
    """Queries by id; used from worker threads and the event loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._users: dict[str, User] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def run(self, query_id: str, user: User) -> Iterator[None]:
        """Holds an id while its query runs.

        Raises:
            EndpointError: an id that is none, or one that is running already.
        """
        if not _QUERY_ID.fullmatch(query_id):
            raise EndpointError(BAD_ARGUMENTS, f"query_id {query_id[:50]!r} is none")
        with self._lock:
            if query_id in self._users:
                raise EndpointError(SAME_QUERY_ID, f"Query with id = {query_id} is already running.")
            self._users[query_id] = user
        try:
            yield
        finally:
            with self._lock:
                del self._users[query_id]

    def kill(self, query_id: str, user: User) -> bool:
        """Ends a query of this user (of anyone, for the read-write one); False: there is none such."""
        with self._lock:
            owner = self._users.get(query_id)
        if owner is None or (user.role != WRITER_ROLE and owner.name != user.name):
            return False
        self.end(query_id)
        return True

    def end(self, query_id: str) -> None:
        """Tells the engine to end a query; it stops at its next block."""
        handle = self._engine.handle(OWNER_ROLE)
        try:
            handle.query(f"KILL QUERY WHERE Settings['{COMMENT}'] = '{query_id}' ASYNC", "Null")
        finally:
            handle.close()
