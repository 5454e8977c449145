"""Engine handles: a fresh one for every request, or one that lasts where a client names a session."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from spanloop_collector.endpoint.auditing import AdminTrail
from spanloop_collector.endpoint.credentials import User
from spanloop_collector.endpoint.errors import (
    BAD_ARGUMENTS,
    SESSION_IS_LOCKED,
    SESSION_NOT_FOUND,
    EndpointError,
)
from spanloop_store import READER_ROLE, Engine

log = logging.getLogger(__name__)

DEFAULT_TIMEOUT_S = 60
MAX_TIMEOUT_S = 3600
MAX_SESSIONS = 200  # of one user; each keeps an engine handle


def open_handle(engine: Engine, role: str) -> Any:
    """A handle in a role (about 3 ms). Settings, USE and temporary tables die with it, so no request sees another's."""
    handle = engine.handle(role)
    if role == READER_ROLE:
        # Beside the role: readonly=2 lets settings be changed, but not itself. Data cannot be.
        handle.query("SET readonly = 2", "Null")
    return handle


@dataclass
class _Session:
    handle: Any
    timeout_s: int
    idle_since: float
    busy: threading.Lock = field(default_factory=threading.Lock)


class Sessions:
    """The named sessions of an endpoint; used from worker threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sessions: dict[tuple[str, str], _Session] = {}
        self._lock = threading.Lock()

    def take(self, user: User, name: str, timeout_s: int, *, must_exist: bool, make: bool) -> _Session | None:
        """The user's session of that name, held until `give`; None: there is none, and `make` does not ask for one.

        clickhouse-connect names a session in every client, and hardly any client has something to keep in it.

        Raises:
            EndpointError: it is in use, there is none though there must be, or there are too many.
        """
        if not 0 < timeout_s <= MAX_TIMEOUT_S:
            raise EndpointError(BAD_ARGUMENTS, f"session_timeout must be from 1 to {MAX_TIMEOUT_S} seconds")
        self.sweep()
        key = (user.name, name)
        with self._lock:
            session = self._sessions.get(key)
            if session is None:
                if must_exist:
                    raise EndpointError(SESSION_NOT_FOUND, f"Session {name} not found")
                if not make:
                    return None
                if sum(owner == user.name for owner, _ in self._sessions) >= MAX_SESSIONS:
                    raise EndpointError(
                        BAD_ARGUMENTS, f"there are {MAX_SESSIONS} sessions already; close some"
                    )
                session = _Session(open_handle(self._engine, user.role), timeout_s, time.monotonic())
                self._sessions[key] = session
            if not session.busy.acquire(blocking=False):
                raise EndpointError(SESSION_IS_LOCKED, f"Session {name} is locked by a concurrent client")
            session.timeout_s = timeout_s
            return session

    def give(self, session: _Session) -> None:
        """Lets go of a session; its time-out runs from now."""
        session.idle_since = time.monotonic()
        session.busy.release()

    def sweep(self, everything: bool = False) -> None:
        """Closes the sessions whose time is up; all idle ones when the endpoint stops."""
        now = time.monotonic()
        with self._lock:
            over = [
                key
                for key, session in self._sessions.items()
                if (everything or now - session.idle_since > session.timeout_s)
                and session.busy.acquire(blocking=False)
            ]
            sessions = [self._sessions.pop(key) for key in over]
        for session in sessions:
            session.handle.close()


async def sweep_forever(*swept: Sessions | AdminTrail, every_s: float = 5.0) -> None:
    """Ends what is over its time, until cancelled."""
    while True:
        await asyncio.sleep(every_s)
        for each in swept:
            await asyncio.to_thread(each.sweep)
