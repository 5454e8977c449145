"""HTTP between client, gateway and back end: which headers travel, and requests that pass through as they are."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from spanloop_collector.gateway.errors import unreachable
from spanloop_collector.gateway.upstreams import Upstream

_log = logging.getLogger(__name__)

# Headers of one connection (RFC 9110, section 7.6.1), and those that each HTTP library writes anew.
_OF_ONE_CONNECTION = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
        "content-length",
        "expect",
        "date",
        "server",
    }
)
TOKEN_HEADER = "x-spanloop-token"  # noqa: S105  # a header's name


def forwarded(
    headers: CIMultiDictProxy[str] | Mapping[str, str], *, drop: frozenset[str]
) -> CIMultiDict[str]:
    """The end-to-end headers, less `drop` (lower case)."""
    kept: CIMultiDict[str] = CIMultiDict()
    for name, value in headers.items():
        lower = name.lower()
        if lower not in _OF_ONE_CONNECTION and lower not in drop:
            kept.add(name, value)
    return kept


def bearer(headers: Mapping[str, str]) -> str:
    """The bearer token of the Authorization header, or ""."""
    return headers.get("authorization", "").removeprefix("Bearer ")


def secrets(headers: Mapping[str, str], token: str | None) -> frozenset[str]:
    """Headers that stay here: the gateway's own token, wherever the client put it."""
    if token is not None and bearer(headers) == token:
        return frozenset({TOKEN_HEADER, "authorization"})
    return frozenset({TOKEN_HEADER})


async def pass_through(
    request: web.Request, upstream: Upstream, session: aiohttp.ClientSession, path: str, drop: frozenset[str]
) -> web.StreamResponse:
    """Send a request on to `upstream` and its answer back, both as they come, chunk by chunk.

    Raises:
        ClientError: 502, the back end did not answer. Once its answer has begun, a break closes the client's
            connection instead, so that half an answer is not taken for a whole one.
    """
    url = upstream.url(path)
    if request.rel_url.raw_query_string:
        url = url.with_query(None).join(url.__class__("?" + request.rel_url.raw_query_string, encoded=True))
    try:
        answer = await session.request(
            request.method,
            url,
            headers=forwarded(request.headers, drop=drop),
            data=request.content if request.body_exists else None,
            allow_redirects=False,
        )
    except (aiohttp.ClientError, TimeoutError) as error:
        raise unreachable(upstream.label, upstream.base, error) from error
    async with answer:
        response = web.StreamResponse(
            status=answer.status, reason=answer.reason, headers=forwarded(answer.headers, drop=frozenset())
        )
        if answer.content_length is not None and "content-encoding" not in answer.headers:
            response.content_length = answer.content_length
        await response.prepare(request)
        try:
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
        except (aiohttp.ClientError, TimeoutError) as error:
            _log.warning("upstream %s broke off %s: %s", upstream.label, path, error)
            abort(request)
            return response
        await response.write_eof()
        return response


def abort(request: web.Request) -> None:
    """Close the client's connection at once: the only honest end for an answer that cannot be finished."""
    if request.transport is not None:
        request.transport.close()
