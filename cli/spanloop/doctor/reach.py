"""Whether the exporter's target takes spans: an empty export with the agent's own headers and certificates."""

from __future__ import annotations

import http.client
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from spanloop.doctor.check import Check
from spanloop.doctor.trial import Processor, Trial
from spanloop_exporter.spooling.settings import Endpoint, read_settings, without_user
from spanloop_exporter.spooling.targets import _authorization
from spanloop_store.otlp.signals import Signal

if TYPE_CHECKING:
    import grpc

REACH_TIMEOUT_S = 5
# Joins by time and the order of steps suffer beyond it; the Date header itself has a second's resolution.
MAX_SKEW_S = 5.0
SPANLOOP_EXPORTER = "SpanloopSpanExporter"
_TOKEN_FIX = "export OTEL_EXPORTER_OTLP_HEADERS='authorization=Bearer%20TOKEN'"  # noqa: S105  # a placeholder
_ENDPOINT_FIX = "check OTEL_EXPORTER_OTLP_ENDPOINT: the base URL, without /v1/traces"
_AUTHORITY_FIX = (
    "export OTEL_EXPORTER_OTLP_CERTIFICATE=/path/to/ca.pem"  # who signed the collector's certificate
)
_MAX_TEXT = 1 << 16  # bytes of an answer
_START_FIX = "spanloop up, or export OTEL_EXPORTER_OTLP_ENDPOINT=http://HOST:4318 where the collector is"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; status 0 and the reason in `text` and `error` where there was none. `skew_s`: our clock minus theirs."""

    status: int
    text: str
    skew_s: float | None = None
    proxy: str = ""  # that it went through; empty: none
    error: Exception | None = None


def check_exporters(trial: Trial, environ: Mapping[str, str]) -> Iterator[Check]:
    """Something takes the spans at the address that the exporter will use."""
    exporters = [processor for processor in trial.processors if processor.exporter]
    if not exporters:
        foreign = [p.processor for p in trial.processors if not p.processor.startswith("spanloop_exporter.")]
        if foreign:
            yield Check("exporter", "warn", f"{', '.join(foreign)} sends to no address that can be checked")
            return
        yield Check("exporter", "FAIL", "none: spans are thrown away", "unset OTEL_TRACES_EXPORTER")
    for exporter in exporters:
        yield from _check_exporter(exporter, environ)


def _check_exporter(exporter: Processor, environ: Mapping[str, str]) -> Iterator[Check]:
    name = exporter.exporter.rpartition(".")[2]
    if name == SPANLOOP_EXPORTER and (store := read_settings(environ).store):
        yield check_server(store)
    elif ".grpc." in exporter.exporter:
        yield from check_grpc(grpc_endpoint(environ, exporter))
    elif ".http." in exporter.exporter or name == SPANLOOP_EXPORTER:
        yield from check_http(endpoint_for(environ, exporter.endpoint))
    elif name == "ConsoleSpanExporter":
        yield Check("exporter", "warn", "spans are printed, and sent nowhere", "unset OTEL_TRACES_EXPORTER")
    else:
        yield Check("exporter", "warn", f"{exporter.exporter} sends to no address that can be checked")


def endpoint_for(environ: Mapping[str, str], url: str = "") -> Endpoint:
    """Where traces go over OTLP/HTTP, as our own exporter reads it; `url` where an exporter names the one that it uses."""
    endpoint = dict(read_settings(environ).endpoints)[Signal.TRACES]
    return replace(endpoint, url=url) if url else endpoint


def grpc_endpoint(environ: Mapping[str, str], exporter: Processor) -> Endpoint:
    """The OTLP/gRPC endpoint; the SDK's exporter keeps host and port alone, and whether it goes without TLS."""
    url = exporter.endpoint
    if "://" not in url:
        said = endpoint_for(environ).url
        plain = exporter.insecure if exporter.insecure is not None else not said.startswith("https://")
        url = f"{'http' if plain else 'https'}://{url}"
    return endpoint_for(environ, url)


def check_http(endpoint: Endpoint) -> Iterator[Check]:
    """OTLP/HTTP: an empty export, then our own collector's health and the clocks."""
    if trouble := _unreadable(endpoint):
        yield Check("exporter", "FAIL", *trouble)
        return
    # An export request without spans is valid OTLP, and leaves nothing behind.
    answer = ask(endpoint, endpoint.url, b"")
    if not 200 <= answer.status < 300:
        yield Check("exporter", "FAIL", *_http_trouble(endpoint, answer))
        return
    yield Check("exporter", "ok", f"{without_user(endpoint.url)} takes spans (OTLP/HTTP)")
    yield _check_health(endpoint)
    if answer.skew_s is not None:
        yield check_skew(answer.skew_s)


def _unreadable(endpoint: Endpoint) -> tuple[str, str] | None:
    """Detail and fix, where a file that TLS needs is not there or holds no certificate."""
    for variable, path in (
        ("CERTIFICATE", endpoint.certificate),
        ("CLIENT_CERTIFICATE", endpoint.client_certificate),
        ("CLIENT_KEY", endpoint.client_key),
    ):
        if not path:
            continue
        fix = f"export OTEL_EXPORTER_OTLP_{variable}=/path/to/file.pem"
        try:
            with open(path, "rb"):  # noqa: PTH123  # what TLS does with it
                pass
        except OSError as error:
            return f"OTEL_EXPORTER_OTLP_{variable}={path} cannot be read: {error.strerror}", fix
        try:
            if variable != "CLIENT_KEY":  # it is loaded with its certificate
                _context(replace(endpoint, certificate=path if variable == "CERTIFICATE" else ""))
        except ssl.SSLError as error:
            return f"OTEL_EXPORTER_OTLP_{variable}={path} cannot be used: {error}", fix
    return None


def _http_trouble(endpoint: Endpoint, answer: Answer) -> tuple[str, str]:
    """Detail and fix for a target that does not take spans."""
    url = without_user(endpoint.url)
    through = f" through the proxy {answer.proxy}" if answer.proxy else ""
    if answer.error is None:
        if answer.status in (401, 403):
            shown = "authorization" in dict(endpoint.headers)
            said = "the token was refused" if shown else "no token was shown"
            return f"{url}{through} answers {answer.status}: {said}", _TOKEN_FIX
        return f"{url}{through} answers {answer.status}: {answer.text[:120]}".rstrip(": "), (
            f"export NO_PROXY={urlsplit(url).hostname}" if answer.proxy else _ENDPOINT_FIX
        )
    if isinstance(answer.error, ssl.SSLCertVerificationError):
        return f"{url}: TLS fails: {answer.text}", _AUTHORITY_FIX
    if answer.proxy:
        return f"{url} does not answer{through}: {answer.text}", f"export NO_PROXY={urlsplit(url).hostname}"
    if isinstance(answer.error, ssl.SSLError):
        return f"{url}: TLS fails: {answer.text}", f"{_ENDPOINT_FIX}, and http:// where there is no TLS"
    if answer.text.startswith("Invalid header"):  # what follows is the header, and may be a token
        return f"{url} cannot be asked: a header holds what HTTP does not allow", _TOKEN_FIX
    if isinstance(answer.error, http.client.InvalidURL | ValueError):
        return f"{url} is no address: {answer.text}", "export OTEL_EXPORTER_OTLP_ENDPOINT=http://HOST:4318"
    if isinstance(answer.error, http.client.HTTPException):
        return f"{url} answers, but not in HTTP: a port of gRPC (4317), or of TLS?", (
            f"export OTEL_EXPORTER_OTLP_ENDPOINT=http://{urlsplit(url).hostname}:4318"
        )
    return f"{url} does not answer: {answer.text}", _START_FIX


def _check_health(endpoint: Endpoint) -> Check:
    base = without_user(endpoint.url).removesuffix("/v1/traces")
    health = ask(endpoint, f"{base}/healthz")
    if health.status in (404, 405):
        return Check("collector", "ok", f"{base} is a collector, but not Spanloop's (no /healthz)")
    state, reasons = _state(health.text)
    if health.status == 200 and state in ("", "ok"):
        return Check("collector", "ok", f"{base}/healthz is well")
    said = f"is {state}: {reasons}" if state else f"answers {health.status or 'nothing'}: {health.text[:120]}"
    return Check("collector", "warn", f"{base}/healthz {said}".rstrip(": "), "spanloop status")


def _state(body: str) -> tuple[str, str]:
    """What our own /healthz says: a word, and why it is not `ok`; empty where it is somebody else's."""
    try:
        found = json.loads(body)
    except ValueError:
        return "", ""
    if not isinstance(found, dict) or not isinstance(found.get("status"), str):
        return "", ""
    reasons = [f"{part}: {found[part]}" for part in ("store", "disk") if found.get(part, "ok") != "ok"]
    quarantine = found.get("quarantine")
    if isinstance(quarantine, dict) and quarantine.get("files"):
        reasons.append(f"{quarantine['files']} requests in quarantine")
    return found["status"], "; ".join(reasons)


def check_skew(skew_s: float) -> Check:
    """The clocks of agent and collector agree; spans carry the agent's."""
    if abs(skew_s) <= MAX_SKEW_S:
        return Check("clock", "ok", "agrees with the collector's")
    side = "ahead of" if skew_s > 0 else "behind"
    return Check(
        "clock",
        "warn",
        f"this machine is {abs(skew_s):.0f} s {side} the collector",
        "sudo timedatectl set-ntp true",
    )


def ask(endpoint: Endpoint, url: str, body: bytes | None = None) -> Answer:
    """One request as the exporter makes it; POST where there is a body.

    With its headers, certificates and proxy, and user and password of its URL; no redirect is followed.
    """
    url = without_user(url)
    proxy = ""
    try:
        headers = _authorization(endpoint.url, "authorization") | dict(endpoint.headers)
        headers |= {} if body is None else {"content-type": "application/x-protobuf"}
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("it begins with http:// or https:// and a host")
        if not urllib.request.proxy_bypass(parts.hostname):
            proxy = without_user(urllib.request.getproxies().get(parts.scheme, ""))
        opener = urllib.request.build_opener(
            _NoRedirect, urllib.request.HTTPSHandler(context=_context(endpoint))
        )
        request = urllib.request.Request(url, data=body, headers=headers)  # noqa: S310  # checked above
        with opener.open(request, timeout=REACH_TIMEOUT_S) as answer:
            return Answer(
                answer.status, _text(answer.read(_MAX_TEXT)), _skew(answer.headers.get("date")), proxy
            )
    except urllib.error.HTTPError as error:
        return Answer(error.code, _text(error.read(_MAX_TEXT)), _skew(error.headers.get("date")), proxy)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        return Answer(0, str(reason), proxy=proxy, error=reason if isinstance(reason, Exception) else error)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """None: a redirect is the answer."""


def _text(body: bytes) -> str:
    # A refusal may be a protobuf Status; its message is the readable part.
    return "".join(c for c in body.decode(errors="replace") if c.isprintable()).strip()


def _context(endpoint: Endpoint) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=endpoint.certificate or None)
    if endpoint.client_certificate:
        context.load_cert_chain(endpoint.client_certificate, endpoint.client_key or None)
    return context


def _skew(date: str | None) -> float | None:
    if not date:
        return None
    try:
        # The header is cut to a whole second: its middle is the best guess.
        return time.time() - (parsedate_to_datetime(date).timestamp() + 0.5)
    except ValueError:
        return None


def check_grpc(endpoint: Endpoint) -> Iterator[Check]:
    """OTLP/gRPC: an empty export, with what is installed here."""
    try:
        import grpc
    except ImportError:
        yield Check(
            "exporter",
            "FAIL",
            f"{endpoint.url} is gRPC, and grpcio is not installed",
            "export OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf OTEL_EXPORTER_OTLP_ENDPOINT=http://HOST:4318",
        )
        return
    if trouble := _unreadable(endpoint):
        yield Check("exporter", "FAIL", *trouble)
        return
    parts = urlsplit(endpoint.url)
    with _channel(endpoint, parts.netloc) as channel:
        export = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
        try:
            export(b"", timeout=REACH_TIMEOUT_S, metadata=endpoint.headers)
        except grpc.RpcError as error:
            yield Check("exporter", "FAIL", *_grpc_trouble(endpoint, error.code(), error.details() or ""))
            return
    yield Check(
        "exporter",
        "warn",
        f"{endpoint.url} takes spans (OTLP/gRPC), but many receivers refuse requests over 4 MiB",
        "export OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf OTEL_EXPORTER_OTLP_ENDPOINT=http://HOST:4318",
    )


def _channel(endpoint: Endpoint, target: str) -> grpc.Channel:
    import grpc

    if urlsplit(endpoint.url).scheme != "https":
        return grpc.insecure_channel(target)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_bytes(endpoint.certificate),
        private_key=_bytes(endpoint.client_key),
        certificate_chain=_bytes(endpoint.client_certificate),
    )
    return grpc.secure_channel(target, credentials)


def _bytes(path: str) -> bytes | None:
    if not path:
        return None
    with open(path, "rb") as file:  # noqa: PTH123  # as above
        return file.read()


def _grpc_trouble(endpoint: Endpoint, code: grpc.StatusCode, details: str) -> tuple[str, str]:
    import grpc

    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return f"{endpoint.url} refuses ({code.name}): {details[:120]}", _TOKEN_FIX
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        hint = "spanloop up, or export OTEL_EXPORTER_OTLP_ENDPOINT=http://HOST:4317 where the collector is"
        return f"{endpoint.url} does not answer: {details[:160]}", hint
    return f"{endpoint.url} answers {code.name}: {details[:120]}", _ENDPOINT_FIX


def check_server(url: str) -> Check:
    """A ClickHouse server as the exporter's own target: it answers, takes the password, and has the tables."""
    import spanloop_store as store
    from spanloop_store.errors import SpanloopError

    try:
        parsed = store.StoreUrl.parse(url)
        client = store.connect(parsed, migrate=False)
        try:
            has = {row[0] for row in client.query("SHOW TABLES").result_rows}
        finally:
            client.close()
    except SpanloopError as error:
        return Check("exporter", "FAIL", error.message, error.hint)
    # The exporter makes the tables where this one is missing.
    if "ingest_segments" not in has or "otel_traces" not in has:
        made = "ingest_segments" not in has
        detail = (
            "has no tables yet: the exporter makes them, where its user may" if made else "has no otel_traces"
        )
        fix = 'spanloop status --store "$SPANLOOP_STORE"' if made else "restore the table from a backup"
        return Check("exporter", "warn" if made else "FAIL", f"{parsed.redacted()} {detail}", fix)
    return Check("exporter", "ok", f"{parsed.redacted()} takes spans (ClickHouse)")
