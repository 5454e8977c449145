"""Where a request comes from: a page in a browser on this machine must not reach the engine."""

from __future__ import annotations

from urllib.parse import urlsplit

from aiohttp import web

from spanloop_collector.endpoint.errors import BAD_ARGUMENTS, EndpointError

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def check_place(request: web.Request, hosts: frozenset[str]) -> None:
    """Refuses a `Host` or `Origin` that is none of these names; ports are not looked at.

    Raises:
        EndpointError: a foreign name, or a header that is none.
    """
    if _host_of(f"//{request.host}") not in hosts:
        raise EndpointError(BAD_ARGUMENTS, f"host {request.host!r} is not served here", 403)
    origin = request.headers.get("Origin")
    if origin is not None and _host_of(origin) not in hosts:
        raise EndpointError(BAD_ARGUMENTS, f"origin {origin!r} is not served here", 403)


def _host_of(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:  # "[::1", which a client may well send
        return None
