"""The hook of the gateway's plan step: recognise, replace where the registry says so; a thread learns what is new."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import unquote

from spanloop_collector.gateway.prompts.finding import find, tools_of
from spanloop_collector.gateway.prompts.index import ANYBODY
from spanloop_collector.gateway.prompts.known import Caller
from spanloop_collector.gateway.prompts.learning import Learner, Registry
from spanloop_collector.gateway.prompts.placing import Applied, placed

if TYPE_CHECKING:
    from spanloop_collector.gateway.prompts.book import Book
    from spanloop_store.prompts import PromptVersion

_log = logging.getLogger(__name__)

SERVICE_HEADER: Final = "x-spanloop-service"
# A service's or model's name becomes the prompt's, and whoever calls writes it.
MAX_NAME_CHARS: Final = 200
# Longer ones are sent on as they are, and have no name.
MAX_CHARS: Final = 1 << 20
# New texts that wait for the thread; one that finds no room comes again with the next call.
_MAX_WAITING: Final = 256
_MAX_WAITING_CHARS: Final = 16 << 20
_MAX_SEEN: Final = 20_000
_RETRY_S: Final = 1.0
_TURN_S: Final = 0.5
# The thread rests this many times as long as it worked: calls come first.
_REST: Final = 3.0
_MAX_REST_S: Final = 2.0


class Snapshot(Protocol):
    """What the registry said at one moment."""

    @property
    def prompts(self) -> Book | None:
        """Of prompts."""


class Prompts:
    """One for the life of the gateway.

    Args:
        registry: where new versions are recorded; None: only what the registry has is known.
        redact: what must happen to a text before it is stored.
    """

    def __init__(self, registry: Registry | None, redact: Callable[[str], str] = str) -> None:
        self._learner = Learner(registry or _Nowhere(), redact)
        self._learns = registry is not None
        self._index = self._learner.index
        self._book: Book | None = None
        self._waiting: deque[tuple[str, Caller, str]] = deque()
        self._queued: set[tuple[str, int]] = set()
        self._queued_chars = 0
        self._seen: deque[tuple[str, int, str, int]] = deque(maxlen=_MAX_SEEN)
        self._lock = threading.Lock()  # of the learner; calls take it at the start only
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._idle = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spanloop-prompts", daemon=True)
        self._failed = False
        self._broken = False

    def start(self) -> None:
        """Begin to learn."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread (it may still wait for the store, and is a daemon for that reason)."""
        self._stop.set()
        self._wake.set()

    def settle(self, timeout_s: float) -> bool:
        """Wait until all that came before this call is learnt; for tests and commands. Blocks."""
        self._idle.clear()
        self._wake.set()
        return self._idle.wait(timeout_s)

    def apply(
        self,
        body: dict[str, Any],
        snapshot: Snapshot | None,
        headers: Mapping[str, str] | None = None,
        session: str = "",
        *,
        candidate: bool = False,
    ) -> Applied:
        """What to send instead of `body`, which is left as it is. Raises nothing.

        Args:
            body: of a chat completion or a response.
            snapshot: of the registry.
            headers: of the request; they may say which service calls.
            session: which conversation it belongs to; "" where that is not known.
            candidate: send the candidate prompt, where there is one.
        """
        try:
            return self._applied(body, snapshot, headers or {}, session, candidate=candidate)
        except Exception:  # whatever is wrong in here, the agent's call goes on as it is
            if not self._broken:
                self._broken = True
                _log.exception("a system prompt could not be recognised; this is said once")
            return Applied(body)

    def _applied(
        self,
        body: dict[str, Any],
        snapshot: Snapshot | None,
        headers: Mapping[str, str],
        session: str,
        *,
        candidate: bool,
    ) -> Applied:
        book = snapshot.prompts if snapshot is not None else None
        if book is not None and book is not self._book:
            self._take(book)
        found = find(body)
        if found is None or len(found.text) > MAX_CHARS:
            return Applied(body)
        service = service_of(headers)
        known = self._index.find(service, found.text)
        if known is None:
            model = str(body.get("model") or "").partition("@")[0]
            caller = Caller(service, model[:MAX_NAME_CHARS], tools_of(body))
            self._queue(found.text, caller, session)
            return Applied(body, _later=lambda: self._name(service, found.text))
        entry = known.entry
        if self._learns:
            self._seen.append((entry.name, entry.version, session, hash(tuple(known.values.values()))))
        if book is None:
            return Applied(body, _version=entry.id)
        return placed(body, found, known, book, candidate=candidate)

    def _name(self, service: str, text: str) -> str | None:
        known = self._index.find(service, text)
        return known.entry.id if known else None

    def _take(self, book: Book) -> None:
        if self._book is None:
            # The first call after a start gets the promoted prompt, too. Before the thread has the book: while it learns,
            # which may take as long as the store does, it holds the lock.
            self._load(book)
        self._book = book
        self._wake.set()

    def _load(self, book: Book) -> None:
        with self._lock:
            self._learner.load(book.versions.values(), {name for name, _ in book.aliases})
            self._index = self._learner.index

    def _queue(self, text: str, caller: Caller, session: str) -> None:
        key = (caller.service, hash(text))
        if key in self._queued or not self._learns:
            return
        if len(self._waiting) >= _MAX_WAITING or self._queued_chars + len(text) > _MAX_WAITING_CHARS:
            return
        self._queued.add(key)
        self._queued_chars += len(text)
        self._waiting.append((text, caller, session))
        self._wake.set()

    def _run(self) -> None:
        loaded: Book | None = self._book
        while not self._stop.is_set():
            self._wake.wait()
            self._wake.clear()
            began = time.monotonic()
            try:
                book = self._book
                if book is not None and book is not loaded:
                    self._load(book)
                    loaded = book
                if book is not None:  # before that, a new version's number is not known
                    self._learn()
                self._failed = False
            except Exception as error:  # calls go on, whatever it is
                if not self._failed:
                    self._failed = True
                    _log.warning(
                        "new prompts are not recorded for now: %s", error, exc_info=not _passes(error)
                    )
                if not _passes(error) and self._waiting:
                    self._drop()  # it would fail again, and hold up what waits behind it
                self._wake.set()
                self._stop.wait(_RETRY_S)
                continue
            if not self._waiting and not self._seen:
                self._idle.set()
            self._stop.wait(min(_MAX_REST_S, _REST * (time.monotonic() - began)))

    def _learn(self) -> None:
        learner = self._learner
        began = time.monotonic()
        while self._seen or self._waiting:
            with self._lock:
                while self._seen:
                    learner.seen(*self._seen.popleft())
                if self._waiting:
                    text, caller, session = self._waiting[0]
                    learner.learn(text, caller, session)
                    self._drop()
                self._index = learner.index
            if time.monotonic() - began > _TURN_S:
                self._wake.set()
                return

    def _drop(self) -> None:
        text, caller, _ = self._waiting.popleft()
        self._queued.discard((caller.service, hash(text)))
        self._queued_chars -= len(text)


class StoreRegistry:
    """Records versions in the store; connects when it is first needed, and again after a failure.

    Args:
        url: of the store; None: the default one.
    """

    def __init__(self, url: str | None) -> None:
        self._url = url
        self._client: Any = None

    def register(self, name: str, content: str, parent: str, metadata: dict[str, Any]) -> PromptVersion:
        """The next version of a name.

        Raises:
            SpanloopError, or the database driver's error: the store did not answer.
        """
        from spanloop_store.prompts import register_prompt

        return self._with_client(
            lambda client: register_prompt(client, name, content, parent=parent, metadata=metadata)
        )

    def revise(
        self, version: PromptVersion, *, content: str | None = None, same_as: str = ""
    ) -> PromptVersion:
        """What a version turned out to be.

        Raises:
            SpanloopError, or the database driver's error: the store did not answer.
        """
        from spanloop_store.prompts import revise_prompt

        return self._with_client(
            lambda client: revise_prompt(client, version, content=content, same_as=same_as)
        )

    def _with_client(self, work: Callable[[Any], PromptVersion]) -> PromptVersion:
        # Late, in the thread: the database driver takes 160 ms that no first request should wait for.
        import spanloop_store as store

        if self._client is None:
            self._client = store.connect(store.StoreUrl.parse(self._url), migrate=False, served=True)
        try:
            return work(self._client)
        except BaseException:
            client, self._client = self._client, None
            client.close()
            raise


class _Nowhere:
    """A registry for those who learn nothing."""

    def register(self, name: str, content: str, parent: str, metadata: dict[str, Any]) -> PromptVersion:
        raise NotImplementedError

    def revise(
        self, version: PromptVersion, *, content: str | None = None, same_as: str = ""
    ) -> PromptVersion:
        raise NotImplementedError


def _passes(error: Exception) -> bool:
    """Whether the store is away or refuses for now, so that the same may be tried again."""
    from clickhouse_connect.driver.exceptions import ClickHouseError

    from spanloop_store.errors import RegistryError, SpanloopError

    return isinstance(error, SpanloopError | ClickHouseError | OSError) and not isinstance(
        error, RegistryError
    )


def service_of(headers: Mapping[str, str]) -> str:
    """The calling service: our header, else the baggage's `service.name`; "" where neither says."""
    service = _said_service(headers)[:MAX_NAME_CHARS]
    return "" if service == ANYBODY else service  # nobody is everybody


def _said_service(headers: Mapping[str, str]) -> str:
    if service := headers.get(SERVICE_HEADER):
        return service
    baggage = headers.get("baggage")
    for member in baggage.split(",") if baggage else ():
        key, _, value = member.partition(";")[0].partition("=")
        if key.strip() == "service.name":
            return unquote(value.strip())
    return ""
