"""The capture process: receivers, write-ahead log, embedded engine and its HTTP endpoint; `python -m spanloop_collector.capture`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from aiohttp import web

from spanloop_collector import grpc_receiver
from spanloop_collector.access import Access, Tokens
from spanloop_collector.addresses import reserve
from spanloop_collector.diagnostics import log_to_stderr
from spanloop_collector.endpoint import Credentials, make_endpoint
from spanloop_collector.erasing import FLUSH_S, Eraser, Place
from spanloop_collector.expiring import Expiring
from spanloop_collector.folders import open_logs
from spanloop_collector.http_receiver import make_receiver
from spanloop_collector.intake import Intake
from spanloop_collector.redacting import Redaction
from spanloop_collector.space import MAX_LOG_BYTES, MIN_FREE_BYTES, Space
from spanloop_collector.statistics import Statistics
from spanloop_collector.tls import Tls
from spanloop_collector.writer import Writer
from spanloop_store import Engine, Owner, StoreUrl, connect, remove_owner, write_owner
from spanloop_store.errors import SpanloopError, StoreUnavailable
from spanloop_store.expiry import Expiry, read_expiry
from spanloop_store.otlp.insert import SegmentInserter
from spanloop_store.otlp.signals import Signal

log = logging.getLogger("spanloop_collector.capture")

STOP_S = (
    20.0  # after SIGTERM, how long the store has to take what is in the log; the rest is replayed next time
)
_GRPC_GRACE_S = 2.0
_HTTP_GRACE_S = 2.0
_MAX_URI_BYTES = (
    1 << 20
)  # ClickHouse's own http_max_uri_size: the query of an insert with a body is in its URL
_FILE = click.Path(path_type=Path)
_BYTES = click.IntRange(0)


@dataclass(frozen=True)
class Options:
    """What to listen on. Port 0: any free one."""

    store: str | None
    host: str = "127.0.0.1"
    otlp_http_port: int = 4318
    otlp_grpc_port: int = 4317
    clickhouse_port: int = 8123
    local_port: int = (
        0  # with TLS: a second OTLP/HTTP listener, plain and on loopback, for programs of this machine
    )
    gateway: str = ""  # base URL of the gateway, for owner.json; empty: none runs
    tls_cert: Path | None = None  # PEM files; None: no TLS
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    log: Path | None = None  # folder of the write-ahead log; None: the store's own
    max_log_bytes: int = MAX_LOG_BYTES
    min_free_bytes: int = MIN_FREE_BYTES


@dataclass(frozen=True)
class Addresses:
    """Where the process really listens; the ready line of its standard output."""

    pid: int
    store: str
    clickhouse: str  # empty for a server: it has its own
    otlp_http: str
    otlp_grpc: str
    gateway: str
    local: str = ""  # the OTLP/HTTP receiver for programs of this machine; the same but for TLS


@contextlib.asynccontextmanager
async def running(options: Options) -> AsyncIterator[Addresses]:
    """Everything that capture is, started in order and stopped in reverse.

    Raises:
        StoreLocked: another process has the store.
        ListenError: a port is taken, or the address needs a token.
        TokenError: two of the tokens are the same.
        TlsError: a certificate or key cannot be used.
        RedactionError: redaction cannot be set up as it is configured.
        StoreUnavailable: the engine cannot open.
        StoreUrlError: the server refuses the user, the password or the database.
    """
    url = StoreUrl.parse(options.store)
    tokens = Tokens.of()
    access = Access.to(options.host, tokens)
    tls = Tls.of(options.tls_cert, options.tls_key, options.tls_client_ca)
    async with contextlib.AsyncExitStack() as stack:
        # The store first: a second `up` should hear who has it, and not that a port is taken.
        engine = stack.enter_context(Engine(url)) if url.embedded else None
        if engine is None:
            _prepare(url)
        http_socket = reserve(options.host, options.otlp_http_port, "--otlp-http-port")
        stack.callback(http_socket.close)
        local_socket = None
        if tls is not None:
            local_socket = reserve("127.0.0.1", options.local_port, "--local-port")
            stack.callback(local_socket.close)
        clickhouse = ""
        credentials = Credentials.generate(tokens=tokens)
        if engine is not None:
            endpoint_socket = reserve("127.0.0.1", options.clickhouse_port, "--clickhouse-port")
            stack.callback(endpoint_socket.close)
            clickhouse = f"http://127.0.0.1:{endpoint_socket.getsockname()[1]}"
        logs = stack.enter_context(open_logs(url, options.log))
        folders = logs.folders
        statistics = Statistics()
        redaction = Redaction.of(folders, statistics)

        def open_inserter() -> SegmentInserter:
            client = engine.client() if engine is not None else connect(url)
            return SegmentInserter(
                client,
                embedded=engine is not None,
                quarantine=folders.quarantine,
                collector=f"spanloop-{socket.gethostname()}-{os.getpid()}",
            )

        writer = Writer(logs.segments, open_inserter, statistics)
        writer.start()
        stack.push_async_callback(_stop_writer, writer)
        if engine is not None:
            await stack.enter_async_context(
                _site(make_endpoint(engine, credentials), endpoint_socket, max_line_bytes=_MAX_URI_BYTES)
            )
        space = Space(
            [folders.log, *([url.folder] if url.embedded else [])],
            max_log_bytes=options.max_log_bytes,
            min_free_bytes=options.min_free_bytes,
        )

        def ask_expiry() -> dict[Signal, Expiry]:
            with contextlib.closing(engine.client() if engine else connect(url, migrate=False)) as client:
                return read_expiry(client)

        expiring = Expiring(ask_expiry)
        await stack.enter_async_context(expiring.kept_up())
        intake = Intake(logs.segments, writer, statistics, logs.repeats, space, expiring, redaction)
        place = Place(
            engine.client if engine is not None else partial(connect, url),
            embedded=engine is not None,
            flush=partial(writer.flush, FLUSH_S),
            quarantine=(folders.quarantine,),
            pseudonym=redaction.redactor.redact_text if redaction.redactor else None,
        )
        eraser = Eraser(place, replace(access, local=credentials.writer.password if engine else None))
        await stack.enter_async_context(eraser.sweeping())
        server, grpc_port = await grpc_receiver.start_server(
            intake, options.host, options.otlp_grpc_port, token=access.write, tls=tls
        )
        stack.push_async_callback(server.stop, _GRPC_GRACE_S)
        receiver = make_receiver(
            intake, quarantine=folders.quarantine, token=access.write, read_token=access.read
        )
        eraser.add_to(receiver)
        context = tls.context() if tls is not None else None
        await stack.enter_async_context(_site(receiver, http_socket, context))
        shown = f"[{options.host}]" if ":" in options.host else options.host
        otlp_http = f"{'https' if tls else 'http'}://{shown}:{http_socket.getsockname()[1]}"
        local = otlp_http
        if local_socket is not None:
            # The gateway, `build` and `import` have no certificate to show, and the name in ours is not 127.0.0.1.
            local = f"http://127.0.0.1:{local_socket.getsockname()[1]}"
            receiver = make_receiver(intake, quarantine=folders.quarantine)
            eraser.add_to(receiver)
            await stack.enter_async_context(_site(receiver, local_socket))
        addresses = Addresses(
            pid=os.getpid(),
            store=url.redacted(),
            clickhouse=clickhouse,
            otlp_http=otlp_http,
            otlp_grpc=f"{shown}:{grpc_port}",
            gateway=options.gateway,
            local=local,
        )
        if engine is not None:
            # Last: whoever finds it may use everything that it names.
            write_owner(
                url,
                Owner(
                    pid=os.getpid(),
                    started=time.time(),
                    clickhouse=clickhouse,
                    otlp_http=addresses.local,
                    otlp_grpc=addresses.otlp_grpc,
                    gateway=options.gateway,
                    user=credentials.writer.name,
                    password=credentials.writer.password,
                    reader_user=credentials.reader.name,
                    reader_password=credentials.reader.password,
                ),
            )
            stack.callback(remove_owner, url)
        yield addresses


def _prepare(url: StoreUrl) -> None:
    """Brings a server's schema up to date, and finds now what is wrong with its URL."""
    try:
        connect(url).close()
    except StoreUnavailable as error:
        # An outage at the start is an outage like any other: agents' spans wait in the log.
        log.warning("%s; what arrives waits in the log until it answers", error.message)


async def _stop_writer(writer: Writer) -> None:
    if not await asyncio.to_thread(writer.stop, STOP_S):
        log.warning(
            "the store did not take everything in %g s; the log keeps the rest for the next start", STOP_S
        )


@contextlib.asynccontextmanager
async def _site(
    app: web.Application,
    listener: socket.socket,
    tls: ssl.SSLContext | None = None,
    max_line_bytes: int = 8190,
) -> AsyncIterator[None]:
    # Bodies are unpacked by the handlers, which know their limits.
    runner = web.AppRunner(
        app,
        access_log=None,
        auto_decompress=False,
        shutdown_timeout=_HTTP_GRACE_S,
        max_line_size=max_line_bytes,
    )
    await runner.setup()
    try:
        await web.SockSite(runner, listener, ssl_context=tls).start()
        yield
    finally:
        await runner.cleanup()


async def serve(options: Options) -> None:
    """Runs until SIGTERM or SIGINT; prints one JSON line with the addresses when ready."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(options) as addresses:
        click.echo(json.dumps(asdict(addresses)))
        sys.stdout.flush()
        await stop.wait()
        log.info("stopping: no new requests, inserting what is in the log")


@click.command()
@click.option("--store", envvar="SPANLOOP_STORE", default=None)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--otlp-http-port", default=4318, show_default=True, type=click.IntRange(0, 65535))
@click.option("--otlp-grpc-port", default=4317, show_default=True, type=click.IntRange(0, 65535))
@click.option("--clickhouse-port", default=8123, show_default=True, type=click.IntRange(0, 65535))
@click.option("--local-port", default=0, type=click.IntRange(0, 65535), help="With TLS: plain, on loopback.")
@click.option("--gateway", default="", help="Base URL of the gateway, to be named in owner.json.")
@click.option("--tls-cert", type=_FILE, help="PEM file with the receivers' certificate.")
@click.option("--tls-key", type=_FILE, help="PEM file with its key.")
@click.option("--tls-client-ca", type=_FILE, help="PEM file with the authority of client certificates.")
@click.option("--log", type=_FILE, help="Folder of the write-ahead log.")
@click.option("--max-log", "max_log_bytes", type=_BYTES, default=MAX_LOG_BYTES)
@click.option("--min-free", "min_free_bytes", type=_BYTES, default=MIN_FREE_BYTES)
def command(**options: Any) -> None:
    """Receive OTLP, keep it, and serve the embedded store."""
    log_to_stderr(logging.INFO)
    try:
        asyncio.run(serve(Options(**options)))
    except SpanloopError as error:
        click.echo(f"error: {error.message}\nnext:  {error.hint}", err=True)
        sys.exit(1)
    except OSError as error:  # a full disk before anything is acknowledged
        click.echo(f"error: {error}\nnext:  check the space and the rights there, then start again", err=True)
        sys.exit(1)


if __name__ == "__main__":
    command()
