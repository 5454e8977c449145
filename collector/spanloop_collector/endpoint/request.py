"""One HTTP request as a query: text, parameters, settings and session, as ClickHouse's handler reads them."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from aiohttp import web

from spanloop_collector.endpoint.closed import check_setting
from spanloop_collector.endpoint.compression import decompress_body, decompress_frames
from spanloop_collector.endpoint.errors import BAD_ARGUMENTS, EndpointError
from spanloop_collector.endpoint.sessions import DEFAULT_TIMEOUT_S

_LEAST_PROGRESS_INTERVAL_S = 0.01
# What the HTTP transport itself reads, and what chDB has no use for. Everything else is a setting.
_TRANSPORT = frozenset(
    {
        "query",
        "user",
        "password",
        "quota_key",
        "database",
        "default_format",
        "session_id",
        "session_timeout",
        "session_check",
        "query_id",
        "compress",
        "decompress",
        "buffer_size",
        "wait_end_of_query",
        "client_protocol_version",
        "stacktrace",
        "close_session",
        "send_progress_in_http_headers",
        "http_headers_progress_interval_ms",
        "enable_http_compression",
        "http_zlib_compression_level",
        "cancel_http_readonly_queries_on_client_close",
        "add_http_cors_header",
        "log_comment",  # the endpoint's own mark of a query
    }
)


@dataclass
class Query:
    """What a request asks.

    Args:
        text: the `query` parameter and the body, one after the other, bytes read as latin-1.
        parameters: server-side bindings, `param_` taken off.
        settings: the query's settings.
        transport: the parameters that the transport itself reads.
    """

    text: str
    parameters: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    transport: dict[str, str] = field(default_factory=dict)

    def flag(self, name: str) -> bool:
        """Whether a transport parameter is set and not 0."""
        return self.transport.get(name, "0").lower() not in ("", "0", "false")

    @property
    def form(self) -> str:
        """The format of an answer whose statement names none.

        Raises:
            EndpointError: `default_format` is no name.
        """
        name = self.transport.get("default_format") or "TabSeparated"
        if not re.fullmatch(r"[A-Za-z0-9_]+", name):
            raise EndpointError(BAD_ARGUMENTS, f"default_format {name[:50]!r} is none")
        return name

    @property
    def progress_interval_s(self) -> float | None:
        """How often a running query's progress is sent in headers, in seconds; None: not at all.

        Raises:
            EndpointError: the interval is no whole number of milliseconds.
        """
        if not self.flag("send_progress_in_http_headers"):
            return None
        text = self.transport.get("http_headers_progress_interval_ms") or "100"
        if not text.isdecimal():
            raise EndpointError(
                BAD_ARGUMENTS, f"http_headers_progress_interval_ms {text!r} is no number of milliseconds"
            )
        return max(int(text) / 1000, _LEAST_PROGRESS_INTERVAL_S)

    @property
    def session_timeout_s(self) -> int:
        """Seconds that an idle session lives.

        Raises:
            EndpointError: it is no whole number.
        """
        text = self.transport.get("session_timeout", str(DEFAULT_TIMEOUT_S))
        if not text.isdecimal():
            raise EndpointError(BAD_ARGUMENTS, f"session_timeout {text!r} is no number of seconds")
        return int(text)


def read_query(pairs: Iterable[tuple[str, str]], body: bytes) -> Query:
    """Sorts a request's parameters (URL first, then form fields) and joins its SQL.

    Raises:
        EndpointError: a setting that is closed, or a `role`.
    """
    query = Query("")
    pieces: list[bytes] = []
    for name, value in pairs:
        if name == "query":
            pieces.append(value.encode("utf-8", "surrogateescape"))
        elif name.startswith("param_"):
            query.parameters[name.removeprefix("param_")] = value
        elif name in _TRANSPORT:
            query.transport[name] = value
        else:
            check_setting(name)
            query.settings[name] = value
    sql = b"\n".join(pieces)
    joined = sql + b"\n" + body if sql.strip() and body else sql or body
    query.text = joined.decode("latin-1")
    return query


async def read_request(
    request: web.Request, in_thread: Callable[[Callable[[], bytes]], Awaitable[bytes]]
) -> Query:
    """Reads a request's body, unpacked, or its form, and sorts it.

    Args:
        request: what came.
        in_thread: runs what takes a while.

    Raises:
        EndpointError: a body that is not what its headers say, or a setting that is closed.
    """
    pairs = list(request.query.items())
    # As ClickHouse does: a body that curl calls a urlencoded form, which it does by itself, is the query.
    if request.content_type == "multipart/form-data" and request.can_read_body:
        try:
            form = await request.post()
        except (ValueError, LookupError) as error:  # no boundary; a charset that is none
            raise EndpointError(BAD_ARGUMENTS, f"the form cannot be read: {error}") from error
        for name, value in form.items():
            if not isinstance(value, str):
                raise EndpointError(BAD_ARGUMENTS, "external data is not supported by the embedded engine")
            pairs.append((name, value))
        return read_query(pairs, b"")
    raw = await request.read()
    encoding = request.headers.get("Content-Encoding", "")
    framed = request.query.get("decompress", "0") not in ("", "0")
    if not encoding and not framed:
        return read_query(pairs, raw)

    def plain() -> bytes:
        body = decompress_body(raw, encoding)
        return decompress_frames(body) if framed else body

    return read_query(pairs, await in_thread(plain))
