"""HTTP between client, gateway and back end: which headers travel, and requests that pass through as they are."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from spanloop_collector.access import same_text
from spanloop_collector.addresses import shows_token
from spanloop_collector.gateway.backends import Backend
from spanloop_collector.gateway.errors import bad_request, too_slow, unreachable
from spanloop_collector.gateway.routing import SESSION_HEADER
from spanloop_collector.gateway.timing import Clock

_log = logging.getLogger(__name__)

TOKEN_HEADER: Final = "x-spanloop-token"  # noqa: S105  # a header's name
# Headers of one connection (RFC 9110, section 7.6.1), and those that each HTTP library writes anew.
_OF_ONE_CONNECTION: Final = frozenset(
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
# For the gateway alone; and the body is no longer compressed when it is sent on.
_OF_REQUESTS: Final = _OF_ONE_CONNECTION | {TOKEN_HEADER, SESSION_HEADER, "content-encoding"}
# The answer is read on its way, so it must not be compressed between back end and gateway (both usually sit on one
# machine); the gateway's own trace headers replace the client's.
_READ: Final = frozenset({"accept-encoding", "traceparent", "tracestate"})
_OF_READ_REQUESTS: Final = _OF_REQUESTS | _READ


def request_headers(
    headers: CIMultiDictProxy[str], token: str | None, *, read: bool = False
) -> CIMultiDict[str]:
    """What of a request's headers the back end gets: end-to-end ones, without the gateway's own token.

    Args:
        headers: of the request.
        token: the gateway's; it stays here, wherever the client put it.
        read: the answer will be read, and the span's headers will be added.
    """
    drop = (_OF_READ_REQUESTS if read else _OF_REQUESTS) | _named_by_connection(headers)
    return CIMultiDict(
        [
            (name, value)
            for name, value in headers.items()
            # Clients write the scheme before it as they like, and some send their key in a header of its own.
            if name.lower() not in drop and (token is None or value.rpartition(" ")[2] != token)
        ]
    )


def answer_headers(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """What of an answer's headers the client gets."""
    drop = _OF_ONE_CONNECTION | _named_by_connection(headers)
    return CIMultiDict([(name, value) for name, value in headers.items() if name.lower() not in drop])


def _named_by_connection(headers: CIMultiDictProxy[str]) -> frozenset[str]:
    """Further headers of this connection alone, which `Connection` names."""
    named = headers.get("connection")
    if named is None or named.lower() in ("keep-alive", "close"):
        return frozenset()
    return frozenset(
        name.strip().lower() for value in headers.getall("connection") for name in value.split(",")
    )


def shows(headers: Mapping[str, str], token: str | None) -> bool:
    """Whether a request carries the token, as bearer or in our own header; always where none is needed."""
    own = headers.get(TOKEN_HEADER)
    if own and token is not None:
        return same_text(own, token)
    return shows_token(headers.get("authorization"), token)


def inner_path(request: web.Request) -> str:
    """The path below /v1 with its query, as it came.

    Raises:
        ClientError: 400, it would leave /v1 at the back end.
    """
    path = request.rel_url.raw_path.removeprefix("/v1")
    if any(segment in (".", "..") for segment in unquote(path).replace("\\", "/").split("/")):
        raise bad_request("the path has a segment . or ..", "invalid_path")
    query = request.rel_url.raw_query_string
    return f"{path}?{query}" if query else path


async def pass_through(
    request: web.Request,
    backend: Backend,
    session: aiohttp.ClientSession,
    path: str,
    headers: CIMultiDict[str],
    clock: Clock,
) -> web.StreamResponse:
    """Send a request on and its answer back, both as they come, chunk by chunk.

    Raises:
        ClientError: 502, the back end did not answer; 504, not in time. Once its answer has begun, a break closes the
            client's connection instead, so that half an answer is not taken for a whole one.
    """
    response: web.StreamResponse | None = None
    try:
        async with (
            clock.scope,
            session.request(
                request.method,
                backend.url(path),
                headers=backend.headers(headers),
                data=request.content if request.body_exists else None,
                allow_redirects=False,
            ) as answer,
        ):
            clock.heard()
            backend.answered()
            response = web.StreamResponse(
                status=answer.status, reason=answer.reason, headers=answer_headers(answer.headers)
            )
            if answer.content_length is not None:
                response.content_length = answer.content_length
            clock.writing = True
            await response.prepare(request)
            clock.writing = False
            async for chunk in answer.content.iter_any():
                clock.heard()
                clock.writing = True
                await response.write(chunk)
                clock.writing = False
            clock.writing = True
            await response.write_eof()
            return response
    except (aiohttp.ClientError, TimeoutError) as error:
        if clock.writing and not clock.scope.expired():
            raise ConnectionResetError("the client is gone") from error
        if response is None:
            if (broken := request.content.exception()) is not None:  # the client's body, not the back end
                raise bad_request(f"the request's body cannot be read: {broken}", "invalid_body") from error
            backend.failed(str(error) or type(error).__name__)
            if clock.scope.expired():
                raise too_slow(backend.label, backend.shown, clock.phase) from error
            raise unreachable(backend.label, backend.shown, str(error) or type(error).__name__) from error
        _log.warning("upstream %s broke off %s: %s", backend.label, path, error)
        abort(request)
        return response


def abort(request: web.Request) -> None:
    """Close the client's connection at once: the only honest end for an answer that cannot be finished."""
    if request.transport is not None:
        request.transport.close()
