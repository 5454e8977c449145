"""`GET /v1/models`: every name that can be asked for now, and none that cannot."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import aiohttp

from spanloop_collector.gateway.errors import ClientError
from spanloop_collector.gateway.pools import Pool
from spanloop_collector.gateway.upstreams import Upstreams
from spanloop_collector.gateway.versions import Versions

# Not in vLLM's list nor OpenAI's: a gateway must not pass for a back end that can give token ids.
OWNER: Final = "spanloop-gateway"


async def list_models(
    upstreams: Upstreams, versions: Versions, session: aiohttp.ClientSession, authorization: str | None
) -> list[dict[str, Any]]:
    """Names of the registry that some upstream serves, then what upstreams list and the gateway would send them."""
    snapshot = versions.snapshot
    pools = list(upstreams)
    lists = await asyncio.gather(*(_first_list(pool, session, authorization) for pool in pools))
    names = [name for name in (snapshot.names() if snapshot else []) if upstreams.find(name) is not None]
    models = {name: {"id": name, "object": "model", "created": 0, "owned_by": OWNER} for name in names}
    for pool, listed in zip(pools, lists, strict=True):
        own = [{"id": pool.name, "object": "model", "created": 0}] if pool.name else []
        for model in (*listed, *own):
            name = model.get("id")
            if not isinstance(name, str) or name in models or upstreams.find(name) is not pool:
                continue
            try:
                # A registered name is looked up: what it does not resolve to itself is not served under it.
                if snapshot is not None and snapshot.resolve(name) not in (None, name):
                    continue
            except ClientError:
                continue
            models[name] = {**model, "owned_by": OWNER}
    return list(models.values())


async def _first_list(
    pool: Pool, session: aiohttp.ClientSession, authorization: str | None
) -> list[dict[str, Any]]:
    """What the first back end that answers lists."""
    for backend in sorted(pool, key=lambda backend: not backend.well):
        found = await backend.models(session, authorization)
        if found is not None:
            return [dict(model) for model in found]
    return []
