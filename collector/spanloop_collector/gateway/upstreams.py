"""Back ends: which one serves a model, and whether it can give token ids and log-probabilities."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import aiohttp
import orjson
from yarl import URL

from spanloop_collector.gateway.errors import GatewayConfigError

_log = logging.getLogger(__name__)

# Servers that say this in GET /v1/models understand `return_token_ids` (vLLM's extension of the protocol).
CAPABLE_OWNERS = frozenset({"vllm", "spanloop"})
# A back end may be replaced by another program on the same port: ask again now and then.
CAPABILITY_TTL_S = 60.0
# After a failed question (still starting, wrong key) ask again soon, but not at every call.
CAPABILITY_RETRY_S = 1.0
CAPABILITY_TIMEOUT_S = 3.0


@dataclass
class Upstream:
    """One back end: its name ("" for the default one) and its base URL, `/v1` included."""

    name: str
    base: str
    # None: not known yet; the value is kept while a refresh runs.
    capable: bool | None = None
    checked: float = field(default=float("-inf"), repr=False)  # time.monotonic() of the last answer, s
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)
    _refresh: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def label(self) -> str:
        """Name for messages."""
        return self.name or "default"

    def url(self, path: str) -> URL:
        """Address of `path` (which begins with a slash, after /v1); percent-encoding is kept as it came."""
        return URL(self.base + path, encoded=True)

    async def gives_token_ids(self, session: aiohttp.ClientSession, authorization: str | None) -> bool:
        """Whether the back end understands `return_token_ids`; asked once, then refreshed beside the traffic."""
        age_s = time.monotonic() - self.checked
        if self.capable is None:
            if age_s > CAPABILITY_RETRY_S:
                async with self._lock:  # one question for all requests that wait for the first answer
                    if self.capable is None and time.monotonic() - self.checked > CAPABILITY_RETRY_S:
                        await self._ask(session, authorization)
        elif age_s > CAPABILITY_TTL_S and (self._refresh is None or self._refresh.done()):
            self._refresh = asyncio.create_task(self._ask(session, authorization))
        return bool(self.capable)

    async def _ask(self, session: aiohttp.ClientSession, authorization: str | None) -> None:
        headers = {"accept-encoding": "identity"}
        if authorization:
            headers["authorization"] = authorization
        try:
            timeout = aiohttp.ClientTimeout(total=CAPABILITY_TIMEOUT_S)
            async with session.get(self.url("/models"), headers=headers, timeout=timeout) as answer:
                if answer.status != 200:
                    _log.info("upstream %s: GET /models answered %d", self.label, answer.status)
                    return
                owners = _owners(await answer.read())
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            _log.info("upstream %s: GET /models failed: %s", self.label, error or type(error).__name__)
            return
        finally:
            self.checked = time.monotonic()
        capable = bool(owners & CAPABLE_OWNERS)
        if capable != self.capable:
            _log.info("upstream %s %s token ids", self.label, "gives" if capable else "does not give")
        self.capable = capable


def _owners(body: bytes) -> set[str]:
    document = orjson.loads(body)
    models = document.get("data") if isinstance(document, dict) else None
    if not isinstance(models, list):
        raise ValueError("no list of models in the answer")
    return {str(model.get("owned_by")) for model in models if isinstance(model, dict)}


class Upstreams:
    """The configured back ends, found by the model's name."""

    def __init__(self, upstreams: Iterable[Upstream]) -> None:
        self._by_name: dict[str, Upstream] = {}
        for upstream in upstreams:
            if upstream.name in self._by_name:
                raise GatewayConfigError(
                    f"two --upstream for {upstream.name or 'the default'}: "
                    f"{self._by_name[upstream.name].base} and {upstream.base}",
                    "name one of them: --upstream NAME=URL",
                )
            self._by_name[upstream.name] = upstream

    @classmethod
    def parse(cls, options: Iterable[str]) -> Upstreams:
        """Read `[NAME=]URL` options.

        Raises:
            GatewayConfigError: not an http(s) URL, or a name given twice.
        """
        return cls(_parse_one(option) for option in options)

    @property
    def default(self) -> Upstream | None:
        """The back end for every model that no other one is named for."""
        return self._by_name.get("")

    @property
    def names(self) -> list[str]:
        """Names of the back ends that are not the default, in the order given."""
        return [name for name in self._by_name if name]

    def __iter__(self) -> Iterator[Upstream]:
        return iter(self._by_name.values())

    def find(self, model: str) -> Upstream | None:
        """The back end of a model called NAME or NAME@…; else the default one; None where there is none."""
        return self._by_name.get(model.partition("@")[0]) or self.default


def _parse_one(option: str) -> Upstream:
    # A URL may hold "=" in its query, so a name only counts where it stands before the scheme.
    name, separator, url = option.partition("=")
    if not separator or "://" in name:
        name, url = "", option
    parsed = URL(url) if "://" in url else None
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host:
        raise GatewayConfigError(
            f"--upstream {option!r} is not [NAME=]URL with an http or https URL",
            "for example --upstream calculator=http://127.0.0.1:8000/v1",
        )
    if "@" in name:
        raise GatewayConfigError(
            f"--upstream {option!r}: a name stands for all versions of a model and holds no '@'",
            f"--upstream {name.partition('@')[0]}={url}",
        )
    return Upstream(name.strip(), url.rstrip("/"))
