"""What the environment says about spool and target; OpenTelemetry's own variables mean what they mean for its exporters."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from spanloop_store.otlp.signals import Signal

log = logging.getLogger(__name__)

DEFAULT_FOLDER: Final = "~/.spanloop/spool"
DEFAULT_MAX_BYTES: Final = 1 << 30
DEFAULT_MAX_AGE_S: Final = 7 * 24 * 3600.0
# The SDK's own default is localhost, which some systems resolve to ::1 first, where no collector of ours listens.
DEFAULT_ENDPOINT: Final = "http://127.0.0.1:4318"
_DEFAULT_TIMEOUT_S: Final = 10.0
_MAX_TIMEOUT_S: Final = 3600.0  # some systems take no number of seconds that is too large
_DEFAULT_DELAY_MS: Final = 1000.0
# A ClickHouse server makes a part of each insert, and merges them all: an agent each second would be too many.
_LEAST_DELAY_TO_A_STORE_S: Final = 5.0


@dataclass(frozen=True)
class Endpoint:
    """Where one signal goes over OTLP/HTTP, and how.

    Args:
        url: with its path (`/v1/traces`).
        headers: sent with every request; they may hold a token, so they are not in the repr.
        timeout_s: of one request. OpenTelemetry's Python SDK reads its variable in seconds, and so do we.
        compression: `none`, `gzip` or `deflate`.
        certificate: file of the authorities that the server's certificate is checked against; empty: the system's.
        client_certificate: file of the certificate that we show; empty: none.
        client_key: file of its key; empty: it is in the certificate's file.
    """

    url: str
    headers: tuple[tuple[str, str], ...] = ()
    timeout_s: float = _DEFAULT_TIMEOUT_S
    compression: str = "none"
    certificate: str = ""
    client_certificate: str = ""
    client_key: str = ""

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"


@dataclass(frozen=True)
class Settings:
    """Everything that exporter, spool and shipper go by.

    Args:
        folder: the spool; None: the user has no home and named none.
        max_bytes: of the spool, over all processes.
        max_age_s: of a segment, in seconds.
        delay_s: how long a span waits for others before the batch is sent.
        store: `clickhouse://…`, where spans go straight into a server; empty: OTLP/HTTP.
        endpoints: for OTLP/HTTP, by signal.
    """

    folder: Path | None
    max_bytes: int
    max_age_s: float
    delay_s: float
    store: str
    endpoints: tuple[tuple[Signal, Endpoint], ...]

    def __repr__(self) -> str:
        return f"Settings({str(self.folder)!r}, {self.endpoints!r})"


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Reads the environment. A value that makes no sense is logged, and its default used: nothing here may stop an agent."""
    environ = os.environ if environ is None else environ
    store = environ.get("SPANLOOP_STORE", "").strip()
    # A chdb:// store is one process's own: the collector's, and that is where OTLP goes.
    store = store if store.startswith(("clickhouse://", "clickhouses://")) else ""
    delay_s = _number(environ, ("OTEL_BSP_SCHEDULE_DELAY",), _DEFAULT_DELAY_MS) / 1000
    return Settings(
        folder=_folder(environ),
        max_bytes=int(_number(environ, ("SPANLOOP_SPOOL_MAX_BYTES",), DEFAULT_MAX_BYTES)),
        max_age_s=_number(environ, ("SPANLOOP_SPOOL_MAX_AGE_S",), DEFAULT_MAX_AGE_S),
        delay_s=max(delay_s, _LEAST_DELAY_TO_A_STORE_S) if store else delay_s,
        store=store,
        endpoints=tuple((signal, _endpoint(environ, signal)) for signal in Signal),
    )


def without_user(url: str) -> str:
    """`url` for messages, without user and password; as it is where it is no URL."""
    before, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{before}{separator}{authority.rpartition('@')[2]}{slash}{path}"


def _folder(environ: Mapping[str, str]) -> Path | None:
    try:
        return Path(environ.get("SPANLOOP_SPOOL") or DEFAULT_FOLDER).expanduser().absolute()
    except (RuntimeError, OSError) as error:  # no home, no working directory
        log.warning("no folder for the spool: %s; set SPANLOOP_SPOOL to one", error)
        return None


def _endpoint(environ: Mapping[str, str], signal: Signal) -> Endpoint:
    def said(name: str) -> str:
        own = environ.get(f"OTEL_EXPORTER_OTLP_{signal.value.upper()}_{name}", "").strip()
        return own or environ.get(f"OTEL_EXPORTER_OTLP_{name}", "").strip()

    base = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip() or DEFAULT_ENDPOINT
    compression = said("COMPRESSION").lower() or "none"
    if compression not in ("none", "gzip", "deflate"):
        log.warning(
            "OTEL_EXPORTER_OTLP_COMPRESSION=%s is not known; sending without compression", compression
        )
        compression = "none"
    names = (f"OTEL_EXPORTER_OTLP_{signal.value.upper()}_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT")
    return Endpoint(
        url=environ.get(f"OTEL_EXPORTER_OTLP_{signal.value.upper()}_ENDPOINT", "").strip()
        or f"{base.rstrip('/')}/v1/{signal.value}",
        headers=_headers(said("HEADERS")),
        timeout_s=min(_number(environ, names, _DEFAULT_TIMEOUT_S), _MAX_TIMEOUT_S),
        compression=compression,
        certificate=said("CERTIFICATE"),
        client_certificate=said("CLIENT_CERTIFICATE"),
        client_key=said("CLIENT_KEY"),
    )


def _headers(text: str) -> tuple[tuple[str, str], ...]:
    if not text:
        return ()
    from opentelemetry.util.re import parse_env_headers

    return tuple(sorted(parse_env_headers(text, liberal=True).items()))


def _number(environ: Mapping[str, str], names: tuple[str, ...], default: float) -> float:
    for name in names:
        text = environ.get(name, "").strip()
        if not text:
            continue
        try:
            number = float(text)
        except ValueError:
            number = -1
        if 0 < number < float("inf"):
            return number
        log.warning("%s=%s is no positive number; using %g", name, text, default)
        return default
    return default
