"""The capture process: receivers, write-ahead log, embedded engine and its HTTP endpoint; `python -m spanloop_collector.capture`."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import click
from aiohttp import web

from spanloop_collector import grpc_receiver
from spanloop_collector.addresses import TOKEN_VARIABLE, reserve, token_for
from spanloop_collector.diagnostics import log_to_stderr
from spanloop_collector.endpoint import Credentials, make_endpoint
from spanloop_collector.http_receiver import make_receiver
from spanloop_collector.intake import Intake
from spanloop_collector.statistics import Statistics
from spanloop_collector.writer import Writer
from spanloop_exporter.segments import SegmentLog
from spanloop_store import Engine, Owner, StoreUrl, connect, remove_owner, write_owner
from spanloop_store.errors import InvalidOtlp, SpanloopError, StoreLocked
from spanloop_store.otlp.check import check_protobuf
from spanloop_store.otlp.insert import PART_SUFFIX, SegmentInserter
from spanloop_store.otlp.signals import Signal

log = logging.getLogger("spanloop_collector.capture")

STOP_S = (
    20.0  # after SIGTERM, how long the store has to take what is in the log; the rest is replayed next time
)
_GRPC_GRACE_S = 2.0
_HTTP_GRACE_S = 2.0


@dataclass(frozen=True)
class Options:
    """What to listen on. Port 0: any free one."""

    store: str | None
    host: str = "127.0.0.1"
    otlp_http_port: int = 4318
    otlp_grpc_port: int = 4317
    clickhouse_port: int = 8123
    gateway: str = ""  # base URL of the gateway, for owner.json; empty: none runs


@dataclass(frozen=True)
class Addresses:
    """Where the process really listens; the ready line of its standard output."""

    pid: int
    store: str
    clickhouse: str  # empty for a server: it has its own
    otlp_http: str
    otlp_grpc: str
    gateway: str


@dataclass(frozen=True)
class Folders:
    """Where capture keeps its own files."""

    log: Path
    quarantine: Path


def folders_for(url: StoreUrl) -> Folders:
    """The store's own folders; for a server, ones under ~/.spanloop that are named after it."""
    if url.embedded:
        return Folders(url.log_path, url.quarantine_path)
    name = hashlib.sha256(url.redacted().encode()).hexdigest()[:16]
    base = Path.home() / ".spanloop" / "collector" / name
    return Folders(base / "log", base / "quarantine")


@contextlib.contextmanager
def open_logs(folders: Folders) -> Iterator[dict[Signal, SegmentLog]]:
    """The write-ahead logs, recovered, and closed in the end; only one process may have them open.

    Raises:
        StoreLocked: another process writes to the same folder.
    """
    folders.log.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folders.log / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreLocked(
                f"another collector writes to {folders.log}; it is untouched",
                "stop it, or name another --store",
            ) from None
        for part in folders.quarantine.glob(f"*{PART_SUFFIX}"):
            part.unlink()
        logs = {kind: SegmentLog(folders.log, kind) for kind in Signal}
        for kind, segments in logs.items():
            found = segments.recover(partial(_is_request, kind), folders.quarantine)
            if found:
                log.info("replaying %d segments of %s, %d bytes", len(found), kind.value, segments.size)
        yield logs
        for segments in logs.values():
            segments.close()
    finally:
        os.close(descriptor)


def _is_request(kind: Signal, payload: bytes) -> bool:
    try:
        check_protobuf(kind, payload)
    except InvalidOtlp:
        return False
    return True


@contextlib.asynccontextmanager
async def running(options: Options) -> AsyncIterator[Addresses]:
    """Everything that capture is, started in order and stopped in reverse.

    Raises:
        StoreLocked: another process has the store.
        ListenError: a port is taken, or the address needs a token.
        StoreUnavailable: the engine cannot open, or the server does not answer.
    """
    url = StoreUrl.parse(options.store)
    token = token_for(options.host, os.environ.get(TOKEN_VARIABLE))
    async with contextlib.AsyncExitStack() as stack:
        # The store first: a second `up` should hear who has it, and not that a port is taken.
        engine = stack.enter_context(Engine(url)) if url.embedded else None
        if engine is None:
            connect(url).close()  # fail now, with a clear message, and bring the schema up to date
        http_socket = reserve(options.host, options.otlp_http_port, "--otlp-http-port")
        stack.callback(http_socket.close)
        clickhouse = ""
        credentials = Credentials.generate()
        if engine is not None:
            endpoint_socket = reserve("127.0.0.1", options.clickhouse_port, "--clickhouse-port")
            stack.callback(endpoint_socket.close)
            clickhouse = f"http://127.0.0.1:{endpoint_socket.getsockname()[1]}"
        folders = folders_for(url)
        logs = stack.enter_context(open_logs(folders))
        statistics = Statistics()

        def open_inserter() -> SegmentInserter:
            client = engine.client() if engine is not None else connect(url)
            return SegmentInserter(
                client,
                embedded=engine is not None,
                quarantine=folders.quarantine,
                collector=f"spanloop-{os.getpid()}",
            )

        writer = Writer(logs, open_inserter, statistics)
        writer.start()
        stack.push_async_callback(_stop_writer, writer)
        if engine is not None:
            await stack.enter_async_context(_site(make_endpoint(engine, credentials), endpoint_socket))
        intake = Intake(logs, writer, statistics)
        server, grpc_port = await grpc_receiver.start_server(
            intake, options.host, options.otlp_grpc_port, token=token
        )
        stack.push_async_callback(server.stop, _GRPC_GRACE_S)
        await stack.enter_async_context(_site(make_receiver(intake, token=token), http_socket))
        shown = f"[{options.host}]" if ":" in options.host else options.host
        addresses = Addresses(
            pid=os.getpid(),
            store=url.redacted(),
            clickhouse=clickhouse,
            otlp_http=f"http://{shown}:{http_socket.getsockname()[1]}",
            otlp_grpc=f"{shown}:{grpc_port}",
            gateway=options.gateway,
        )
        if engine is not None:
            # Last: whoever finds it may use everything that it names.
            write_owner(
                url,
                Owner(
                    pid=os.getpid(),
                    started=time.time(),
                    clickhouse=clickhouse,
                    otlp_http=addresses.otlp_http,
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


async def _stop_writer(writer: Writer) -> None:
    if not await asyncio.to_thread(writer.stop, STOP_S):
        log.warning(
            "the store did not take everything in %g s; the log keeps the rest for the next start", STOP_S
        )


@contextlib.asynccontextmanager
async def _site(app: web.Application, listener: socket.socket) -> AsyncIterator[None]:
    # Bodies are unpacked by the handlers, which know their limits.
    runner = web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=_HTTP_GRACE_S)
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
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
@click.option("--gateway", default="", help="Base URL of the gateway, to be named in owner.json.")
def command(
    store: str | None, host: str, otlp_http_port: int, otlp_grpc_port: int, clickhouse_port: int, gateway: str
) -> None:
    """Receive OTLP, keep it, and serve the embedded store."""
    log_to_stderr(logging.INFO)
    try:
        asyncio.run(serve(Options(store, host, otlp_http_port, otlp_grpc_port, clickhouse_port, gateway)))
    except SpanloopError as error:
        click.echo(f"error: {error.message}\nnext:  {error.hint}", err=True)
        sys.exit(1)
    except OSError as error:  # a full disk before anything is acknowledged
        click.echo(f"error: {error}\nnext:  check the space and the rights there, then start again", err=True)
        sys.exit(1)


if __name__ == "__main__":
    command()
