"""Which version a model name stands for now: the registry's aliases, polled beside the traffic."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spanloop_collector.gateway.errors import ClientError, unknown_model
from spanloop_collector.gateway.prompts.book import Book, BookReader

if TYPE_CHECKING:
    from spanloop_store import StoreUrl

_log = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.5
# While the store is away, its owner's file is looked for less often.
RETRY_INTERVAL_S = 1.0
PRODUCTION = "production"
# Of a version's number; Python refuses to read thousands of digits.
_MAX_DIGITS = 10


@dataclass(frozen=True)
class Snapshot:
    """What the registry said at one moment. Requests hold one snapshot, so that a swap never mixes one request."""

    # name → version numbers that exist
    versions: dict[str, frozenset[int]] = field(default_factory=dict)
    # (name, alias) → version number
    aliases: dict[tuple[str, str], int] = field(default_factory=dict)
    # system prompts; None: not read
    prompts: Book | None = field(default=None, compare=False)

    @classmethod
    def of(
        cls,
        versions: Iterable[tuple[str, int]],
        aliases: Iterable[tuple[str, str, int]],
        prompts: Book | None = None,
    ) -> Snapshot:
        """Build from (name, version) and (name, alias, version) rows."""
        grouped: dict[str, set[int]] = {}
        for name, version in versions:
            grouped.setdefault(name, set()).add(version)
        return cls(
            {name: frozenset(numbers) for name, numbers in grouped.items()},
            {(name, alias): version for name, alias, version in aliases},
            prompts,
        )

    def names(self) -> list[str]:
        """Every model name that a client may ask for: NAME with a production alias, NAME@ALIAS, NAME@VERSION."""
        served = [name for name in sorted(self.versions) if (name, PRODUCTION) in self.aliases]
        served += [f"{name}@{alias}" for name, alias in sorted(self.aliases)]
        return served + [f"{name}@{n}" for name in sorted(self.versions) for n in sorted(self.versions[name])]

    def resolve(self, model: str) -> str | None:
        """NAME@VERSION for NAME, NAME@ALIAS or NAME@VERSION; None for a name that has no registry entry.

        Raises:
            ClientError: 404, the name is registered but not in this version or under this alias.
        """
        name, _, selector = model.partition("@")
        known = self.versions.get(name)
        if known is None:
            return None
        if selector.isascii() and selector.isdigit():
            number = int(selector) if len(selector) <= _MAX_DIGITS else None
            version = number if number in known else None
        else:
            version = self.aliases.get((name, selector or PRODUCTION))
        if version is None:
            raise unknown_model(model, [n for n in self.names() if n.partition("@")[0] == name])
        return f"{name}@{version}"


Reader = Callable[[], Snapshot | None]


class StoreReader:
    """Reads snapshots through `spanloop_store`, and reconnects after a failure.

    An embedded store is read only while its owner lives: opening the engine here would take the lock that
    the collector needs.
    """

    def __init__(self, url: str | None) -> None:
        self._text = url
        self._url: StoreUrl | None = None
        self._client: Any = None
        self._prompts = BookReader()

    def __call__(self) -> Snapshot | None:
        """The registry now, or None while the store has no live owner.

        Raises:
            SpanloopError, or the database driver's error: the store did not answer.
        """
        # Imported here, in the polling thread: the database driver takes 160 ms that no first request should wait for.
        import spanloop_store as store
        from spanloop_store import registry

        if self._url is None:
            self._url = store.StoreUrl.parse(self._text)
        if self._client is None:
            if self._url.kind == "chdb" and store.read_owner(self._url) is None:
                return None
            # It may die between that look and this call.
            self._client = store.connect(self._url, migrate=False, served=True)
        try:
            return Snapshot.of(
                [(version.name, version.version) for version in registry.versions(self._client)],
                [(alias.name, alias.alias, alias.version) for alias in registry.aliases(self._client)],
                self._prompts(self._client),
            )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Drop the connection."""
        client, self._client = self._client, None
        if client is not None:
            client.close()


class Versions:
    """Keeps the newest snapshot; a thread refreshes it, requests only read it.

    The last known snapshot stays in force while the store is away.
    """

    def __init__(self, read: Reader) -> None:
        self._read = read
        self._snapshot: Snapshot | None = None
        self._updated = float("-inf")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="spanloop-registry", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._reachable: bool | None = None
        self._polled = False

    def start(self) -> None:
        """Begin to poll; call from the event loop that serves requests."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End the thread (it may still wait for the store, and is a daemon for that reason)."""
        self._stop.set()

    @property
    def snapshot(self) -> Snapshot | None:
        """The newest snapshot; None until the store answered for the first time."""
        return self._snapshot

    def health(self) -> dict[str, object]:
        """For /healthz: whether the store answered last time, and the snapshot's age in seconds."""
        age_s = None if self._snapshot is None else round(time.monotonic() - self._updated, 3)
        return {"reachable": bool(self._reachable), "age_s": age_s}

    async def resolve(self, model: str) -> str | None:
        """As `Snapshot.resolve`; waits for one poll before it says that something does not exist.

        Raises:
            ClientError: 404 as there; 503 for NAME@ALIAS while the registry has never been reached.
        """
        if not self._polled:  # only at the start: with a store that never comes, no call may wait for it
            await self._next_poll()
        snapshot = self._snapshot
        if snapshot is None:
            if "@" in model and not model.rpartition("@")[2].isdigit():
                raise ClientError(
                    503,
                    "api_error",
                    f"model {model!r} is an alias, and the registry has not been reached yet. "
                    "Next: `spanloop status` shows the store; the gateway tries again by itself.",
                    "registry_unavailable",
                )
            return None
        try:
            return snapshot.resolve(model)
        except ClientError:
            # It may have been registered within the last half second.
            await self._next_poll()
            return (self._snapshot or snapshot).resolve(model)

    async def _next_poll(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            # A store that hangs must not hang the request.
            await asyncio.wait_for(waiter, timeout=2 * RETRY_INTERVAL_S)
        except TimeoutError:
            _log.debug("the registry did not answer in time")

    def _wake(self) -> None:
        self._polled = True
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _poll(self) -> None:
        assert self._loop is not None, "start() sets the loop first"
        while not self._stop.is_set():
            reachable = False
            try:
                snapshot = self._read()
                if snapshot is not None:
                    reachable = True
                    self._changed(snapshot)
                self._note(reachable, "it has no live owner; `spanloop up` is one")
            except Exception as error:  # the poll must survive whatever the database driver raises
                self._note(False, str(error))
            try:
                self._loop.call_soon_threadsafe(self._wake)
            except RuntimeError:  # the loop has closed: the process is going down
                return
            self._stop.wait(POLL_INTERVAL_S if reachable else RETRY_INTERVAL_S)

    def _changed(self, snapshot: Snapshot) -> None:
        before = self._snapshot
        if before is not None:
            for key, version in snapshot.aliases.items():
                if before.aliases.get(key) != version:
                    _log.info("%s@%s is now version %d", key[0], key[1], version)
        self._snapshot = snapshot
        self._updated = time.monotonic()

    def _note(self, reachable: bool, reason: str) -> None:
        if reachable != self._reachable:
            if reachable:
                _log.info("registry reached")
            else:
                kept = "the last known aliases stay in force" if self._snapshot else "no alias is known yet"
                _log.warning("registry not reachable (%s): %s", kept, reason)
        self._reachable = reachable
