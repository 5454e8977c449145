"""One back end: its address, whether it gives token ids, whether it is well, and how much it has to do."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from spanloop_collector.gateway.jsonedit import load

_log = logging.getLogger(__name__)

# Servers that say this in GET /v1/models understand `return_token_ids` (vLLM's extension of the protocol).
CAPABLE_OWNERS: Final = frozenset({"vllm", "spanloop"})
# A back end may be replaced by another program on the same port: ask again now and then.
CAPABILITY_TTL_S: Final = 60.0
# After a failed question (still starting, wrong key) ask again soon, but not at every call.
CAPABILITY_RETRY_S: Final = 1.0
CAPABILITY_TIMEOUT_S: Final = 3.0
# How long a back end that failed gets no calls while another one can: doubled with every failure in a row.
FIRST_OUT_S: Final = 1.0
LONGEST_OUT_S: Final = 60.0


@dataclass(eq=False)
class Backend:
    """One model server.

    Args:
        base: its base URL, `/v1` included, maybe with user and password, and with a query.
        label: the pool's name for messages.
    """

    base: str
    label: str = ""
    # What it says of itself; "": nothing that gives tokens. None: not known yet. Kept while a refresh runs.
    owner: str | None = None
    in_flight: int = 0
    failures: int = 0  # in a row
    checked: float = field(default=float("-inf"), repr=False)  # time.monotonic() of the last answer, s
    out_until: float = field(default=float("-inf"), repr=False)  # time.monotonic(), s
    # The last failure was an answer: that it still answers is no news, and does not bring it back before its time.
    said_so: bool = field(default=False, repr=False)
    # (endpoint, field) that it refused when asked for tokens
    refused: set[tuple[str, str]] = field(default_factory=set, repr=False)
    # The base URL without user, password and query, which may hold a key: for messages and pages.
    shown: str = field(default="", init=False)
    _authorization: str = field(default="", init=False, repr=False)  # what user and password say
    _query: str = field(default="", init=False, repr=False)  # goes with every request
    _urls: dict[str, URL] = field(default_factory=dict, repr=False)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)
    _refresh: asyncio.Task[None] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        url = URL(self.base)
        if url.user or url.password:
            self._authorization = aiohttp.encode_basic_auth(url.user or "", url.password or "")
        scheme, _, rest = self.base.partition("://")
        rest, _, self._query = rest.partition("?")
        place, slash, path = rest.partition("/")
        self.shown = f"{scheme}://{place.rpartition('@')[2]}{slash}{path}".rstrip("/")

    @property
    def capable(self) -> bool | None:
        """Whether it gives token ids; None: not known yet."""
        return None if self.owner is None else bool(self.owner)

    @property
    def well(self) -> bool:
        """Whether it may have calls while others could take them, too."""
        return time.monotonic() >= self.out_until

    def url(self, path: str) -> URL:
        """Address of `path` (which begins with a slash, after /v1); percent-encoding is kept as it came."""
        path, _, own = path.partition("?")
        query = "&".join(part for part in (self._query, own) if part)
        return URL(f"{self.shown}{path}?{query}" if query else self.shown + path, encoded=True)

    def headers(self, client: CIMultiDict[str]) -> CIMultiDict[str]:
        """A request's headers, with the base URL's user and password, where it has them, in place of the client's key."""
        if not self._authorization:
            return client
        own = client.copy()
        own["authorization"] = self._authorization
        return own

    def endpoint(self, path: str) -> URL:
        """The same for one of the endpoints that are asked again and again."""
        found = self._urls.get(path)
        if found is None:
            found = self._urls[path] = self.url(path)
        return found

    def failed(self, reason: str, *, said_so: bool = False) -> None:
        """It did not answer, or said that it cannot (`said_so`): for a growing while it gets no calls."""
        self.failures += 1
        self.said_so = said_so
        pause_s = min(FIRST_OUT_S * 2 ** (self.failures - 1), LONGEST_OUT_S)
        if self.well:
            _log.warning("upstream %s (%s) is out for %g s: %s", self.label, self.shown, pause_s, reason)
        self.out_until = max(self.out_until, time.monotonic() + pause_s)

    def answered(self) -> None:
        """It works."""
        if self.failures:
            _log.info("upstream %s (%s) is back", self.label, self.shown)
            self.failures, self.out_until = 0, float("-inf")

    async def tokens_from(self, session: aiohttp.ClientSession, authorization: str | None) -> str:
        """The owner, where it gives token ids, else ""; asked once, then refreshed beside the traffic."""
        age_s = time.monotonic() - self.checked
        if self.owner is None:
            if age_s > CAPABILITY_RETRY_S:
                async with self._lock:  # one question for all requests that wait for the first answer
                    if self.owner is None and time.monotonic() - self.checked > CAPABILITY_RETRY_S:
                        await self._ask(session, authorization)
        elif age_s > CAPABILITY_TTL_S and (self._refresh is None or self._refresh.done()):
            self._refresh = asyncio.create_task(self._ask(session, authorization))
        return self.owner or ""

    async def models(
        self, session: aiohttp.ClientSession, authorization: str | None
    ) -> list[Mapping[str, Any]] | None:
        """What it lists at GET /models; None: it gives no list now."""
        headers = CIMultiDict({"accept-encoding": "identity"})
        if authorization:
            headers["authorization"] = authorization
        try:
            timeout = aiohttp.ClientTimeout(total=CAPABILITY_TIMEOUT_S)
            async with session.get(
                self.url("/models"), headers=self.headers(headers), timeout=timeout
            ) as answer:
                if answer.status != 200:
                    _log.info("upstream %s: GET /models answered %d", self.label, answer.status)
                    return None
                document = load(await answer.read())
        except (aiohttp.ClientError, TimeoutError) as error:
            _log.info("upstream %s: GET /models failed: %s", self.label, error or type(error).__name__)
            return None
        models = document.get("data") if isinstance(document, dict) else None
        if not isinstance(models, list):
            _log.info("upstream %s: no list of models in the answer to GET /models", self.label)
            return None
        return [model for model in models if isinstance(model, dict)]

    async def alive(self, session: aiohttp.ClientSession) -> bool:
        """Whether anything but a gateway's error comes back: a wrong key is an answer, too."""
        try:
            timeout = aiohttp.ClientTimeout(total=CAPABILITY_TIMEOUT_S)
            async with session.get(
                self.url("/models"),
                headers=self.headers(CIMultiDict()),
                timeout=timeout,
                allow_redirects=False,
            ) as answer:
                return answer.status < 500
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _ask(self, session: aiohttp.ClientSession, authorization: str | None) -> None:
        models = await self.models(session, authorization)
        self.checked = time.monotonic()
        if models is None:
            return
        owners = {str(model.get("owned_by")) for model in models} & CAPABLE_OWNERS
        owner = min(owners, default="")
        if owner != self.owner:
            _log.info("upstream %s %s token ids", self.label, "gives" if owner else "does not give")
            self.refused.clear()
        self.owner = owner
