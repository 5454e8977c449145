"""Where batches go: a collector over OTLP/HTTP, or a ClickHouse server. Each attempt ends in one `Answer`, never in a raise."""

from __future__ import annotations

import gzip
import http.client
import tempfile
import time
import zlib
from base64 import b64encode
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from spanloop_exporter.spooling.batches import Answer, Batch, Outcome, Target
from spanloop_exporter.spooling.bounds import REFUSED
from spanloop_exporter.spooling.late import late
from spanloop_exporter.spooling.merging import merge
from spanloop_exporter.spooling.settings import Endpoint, Settings, without_user
from spanloop_store.errors import SpanloopError
from spanloop_store.otlp.frames import frames
from spanloop_store.otlp.signals import Signal

if TYPE_CHECKING:
    from spanloop_store.otlp.insert import SegmentInserter

# OTLP 1.7, "OTLP/HTTP Response", "Retryable Response Codes"; 408 says itself that it may be repeated.
_RETRYABLE: Final = frozenset({408, 429, 502, 503, 504})
# The target is set wrong (token, address), the batch is not: it stays in the spool until somebody sets it right.
_MISDIRECTED: Final = frozenset({301, 302, 303, 307, 308, 401, 403, 404, 407})
_TOO_LARGE: Final = 413
_SERVICES: Final = "opentelemetry.proto.collector"
_RESPONSES: Final = {
    Signal.TRACES: (f"{_SERVICES}.trace.v1.trace_service_pb2", "ExportTraceServiceResponse"),
    Signal.LOGS: (f"{_SERVICES}.logs.v1.logs_service_pb2", "ExportLogsServiceResponse"),
}
_MAX_ANSWER_BYTES: Final = 1 << 16
_MAX_RETRY_AFTER_S: Final = 3600.0  # a slip in a server's configuration should not stop us for days
_GZIP_LEVEL: Final = 3  # of repetitive JSON: two thirds of level 6's gain for a third of its time


def make_target(settings: Settings, signal: Signal) -> Target:
    """The target of a signal, as the environment names it."""
    if settings.store:
        return ClickHouseTarget(settings.store, settings.folder)
    return OtlpTarget(dict(settings.endpoints)[signal])


class OtlpTarget:
    """A collector, over OTLP/HTTP with protobuf. The connection is kept open between batches."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._connection: http.client.HTTPConnection | None = None

    @property
    def name(self) -> str:
        """The URL without user and password."""
        return without_user(self._endpoint.url)

    def send(self, batch: Batch) -> Answer:
        """Posts the batch as one export request."""
        body = merge(item.payload for item in frames(batch.data))
        headers = dict(self._endpoint.headers)
        headers |= {"content-type": "application/x-protobuf", "user-agent": "spanloop-exporter"}
        if self._endpoint.compression != "none":
            headers["content-encoding"] = self._endpoint.compression
            body = _compress(self._endpoint.compression, body)
        used = self._connection is not None
        try:
            status, answered, text = self._post(body, headers)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._drop()
            if not used or isinstance(error, TimeoutError):
                return Answer(Outcome.LATER, f"{type(error).__name__}: {error}")
            # The server closed the idle connection, as servers do: that is no failure of its.
            try:
                status, answered, text = self._post(body, headers)
            except (OSError, http.client.HTTPException, ValueError) as fresh:
                self._drop()
                return Answer(Outcome.LATER, f"{type(fresh).__name__}: {fresh}")
        return self._answer(batch.signal, status, answered, text)

    def _post(self, body: bytes, headers: dict[str, str]) -> tuple[int, http.client.HTTPMessage, bytes]:
        if self._connection is None:
            self._connection = _connect(self._endpoint)
        headers = _authorization(self._endpoint.url, "authorization") | headers
        proxy = _proxy(self._endpoint)
        if proxy and self._endpoint.url.startswith("http:"):
            headers = headers | _authorization(proxy, "proxy-authorization")
        cut_off: OSError | None = None
        try:
            self._connection.request("POST", _path(self._endpoint, self._connection), body, headers)
        except (BrokenPipeError, ConnectionResetError) as error:
            cut_off = error  # it may have answered before it read all: a server does whose limit it exceeds
        response = self._connection.getresponse()
        if cut_off is not None and response.status < 400:
            raise cut_off  # it cannot have taken what it did not read
        try:
            text = response.read(_MAX_ANSWER_BYTES)
        except OSError:
            if cut_off is None:
                raise
            text = b""  # the status has come, and says enough
        if response.will_close or not response.isclosed():
            self._drop()
        return response.status, response.headers, text

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _answer(self, signal: Signal, status: int, headers: http.client.HTTPMessage, text: bytes) -> Answer:
        if 200 <= status < 300:
            return _partial_success(signal, headers.get("content-type", ""), text)
        reason = f"HTTP {status} {_message(headers.get('content-type', ''), text)}".strip()
        if status in _RETRYABLE:
            return Answer(Outcome.LATER, reason, retry_after_s=_retry_after(headers.get("retry-after")))
        if status in _MISDIRECTED:
            where = f" (to {headers['location']})" if headers.get("location") else ""
            return Answer(Outcome.LATER, f"{reason}{where}")
        return Answer(Outcome.TOO_LARGE if status == _TOO_LARGE else Outcome.REFUSED, reason)


class ClickHouseTarget:
    """A ClickHouse server: one INSERT a batch, with the batch's name as deduplication token.

    Args:
        url: `clickhouse://…`.
        folder: the spool; what the server cannot decode is put into its `refused` folder.
    """

    def __init__(self, url: str, folder: Path | None) -> None:
        self._url = url
        # Undecodable prompts are for nobody else's eyes.
        self._refused = folder / REFUSED if folder is not None else Path(tempfile.mkdtemp(prefix="spanloop-"))
        self._inserter: SegmentInserter | None = None

    @property
    def name(self) -> str:
        """The URL without its password."""
        from spanloop_store.url import StoreUrl

        try:
            return StoreUrl.parse(self._url).redacted()
        except SpanloopError:
            return "SPANLOOP_STORE"

    def send(self, batch: Batch) -> Answer:
        """Inserts the batch. The server's schema is made where there is none."""
        try:
            if batch.path is not None:
                return self._insert(batch, batch.path)
            # The inserter reads files, and this batch never was one.
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / batch.name
                path.write_bytes(batch.data)
                return self._insert(batch, path)
        except (
            SpanloopError,
            OSError,
            late("clickhouse_connect.driver.exceptions").ClickHouseError,
        ) as error:
            self._inserter = None
            return Answer(Outcome.LATER, error.message if isinstance(error, SpanloopError) else str(error))

    def _insert(self, batch: Batch, path: Path) -> Answer:
        if self._inserter is None:
            self._inserter = _open_inserter(self._url, self._refused)
        done = self._inserter.insert(path, batch.signal, items=batch.items, again=batch.again)
        reason = "the server cannot decode them" if done.quarantined_requests else ""
        return Answer(Outcome.DELIVERED, reason, rejected=done.quarantined_requests)


def _open_inserter(url: str, refused: Path) -> SegmentInserter:
    """clickhouse-connect and protobuf are imported here, in the shipper's thread: together they take 200 ms."""
    for module in ("clickhouse_connect", *(module for module, _ in _RESPONSES.values())):
        late(module)  # before the store asks for it, out of a fork's way
    client = late("spanloop_store.connection").connect(url, migrate=False)
    # An agent's user may well lack the rights for DDL, so it is asked for only where nobody has made the tables.
    if not client.query("EXISTS TABLE ingest_segments").result_rows[0][0]:
        late("spanloop_store.migrate").migrate(client)
    inserter: SegmentInserter = late("spanloop_store.otlp.insert").SegmentInserter(
        client, embedded=False, quarantine=refused, collector="spanloop-exporter"
    )
    return inserter


def _connect(endpoint: Endpoint) -> http.client.HTTPConnection:
    parts = urlsplit(endpoint.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"{without_user(endpoint.url)!r} is no address; write it as http://collector-host:4318"
        )
    make = _maker(endpoint, parts.scheme)
    proxy = _proxy(endpoint)
    if not proxy:
        return make(parts.hostname, parts.port)
    through = urlsplit(proxy)
    connection = make(through.hostname or "", through.port)
    if parts.scheme == "https":
        connection.set_tunnel(parts.hostname, parts.port, _authorization(proxy, "proxy-authorization"))
    return connection


def _proxy(endpoint: Endpoint) -> str:
    """The URL of the proxy that the environment names for this endpoint; empty: none."""
    request = late("urllib.request")
    parts = urlsplit(endpoint.url)
    proxy = "" if request.proxy_bypass(parts.hostname) else request.getproxies().get(parts.scheme, "")
    return proxy if "://" in proxy or not proxy else f"http://{proxy}"


def _authorization(url: str, header: str) -> dict[str, str]:
    """The header for user and password of a URL, where it has them (RFC 7617)."""
    parts = urlsplit(url)
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {header: f"Basic {b64encode(pair.encode()).decode()}"}


def _maker(endpoint: Endpoint, scheme: str) -> Callable[[str, int | None], http.client.HTTPConnection]:
    if scheme == "http":
        return lambda host, port: http.client.HTTPConnection(host, port, timeout=endpoint.timeout_s)
    files = endpoint.certificate, endpoint.client_certificate, endpoint.client_key
    try:
        context = late("ssl").create_default_context(cafile=endpoint.certificate or None)
        if endpoint.client_certificate:
            context.load_cert_chain(endpoint.client_certificate, endpoint.client_key or None)
    except OSError as error:  # which names no file
        named = ", ".join(filter(None, files)) or "the system's certificates"
        raise ValueError(f"{named}: {error.strerror or error}") from error
    return lambda host, port: http.client.HTTPSConnection(
        host, port, timeout=endpoint.timeout_s, context=context
    )


def _path(endpoint: Endpoint, connection: http.client.HTTPConnection) -> str:
    parts = urlsplit(endpoint.url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if parts.scheme == "http" and (connection.host, connection.port) != (parts.hostname, parts.port or 80):
        return (
            f"http://{parts.netloc.rpartition('@')[2]}{path}"  # what a proxy wants to see (RFC 9112, 3.2.2)
        )
    return path


def _compress(compression: str, body: bytes) -> bytes:
    # No time in the header: the same batch is the same bytes.
    return (
        gzip.compress(body, _GZIP_LEVEL, mtime=0)
        if compression == "gzip"
        else zlib.compress(body, _GZIP_LEVEL)
    )


def _retry_after(text: str | None) -> float | None:
    """Seconds, or a date (RFC 9110, 10.2.3)."""
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER_S) if seconds == seconds else None


def _partial_success(signal: Signal, content_type: str, text: bytes) -> Answer:
    if not text or "protobuf" not in content_type:
        return Answer(Outcome.DELIVERED)
    module, response = _RESPONSES[signal]
    try:
        partial = getattr(late(module), response).FromString(text).partial_success
    except late("google.protobuf.message").DecodeError as error:
        # It said 2xx; that its answer is none does not undo it.
        return Answer(Outcome.DELIVERED, f"its answer cannot be read: {error}")
    rejected = partial.rejected_spans if signal is Signal.TRACES else partial.rejected_log_records
    return Answer(Outcome.DELIVERED, partial.error_message, rejected=rejected)


def _message(content_type: str, text: bytes) -> str:
    """What an error's body says, in a line: google.rpc.Status, or text."""
    if "protobuf" in content_type:
        try:
            return str(late("google.rpc.status_pb2").Status.FromString(text).message)
        except late("google.protobuf.message").DecodeError:
            return ""
    return " ".join(text[:300].decode("utf-8", "replace").split())
