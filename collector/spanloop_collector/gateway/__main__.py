"""The gateway's process: `python -m spanloop_collector.gateway --port 8080 --store URL --upstream [NAME=]URL`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

import click
from aiohttp import web

from spanloop_collector.access import Tokens
from spanloop_collector.addresses import TOKEN_VARIABLE, cannot_listen, token_for
from spanloop_collector.diagnostics import log_to_stderr
from spanloop_collector.gateway.app import Gateway, Settings
from spanloop_collector.gateway.auditing import store_audit
from spanloop_collector.gateway.connections import allow_many_files, close_quiet_ones
from spanloop_collector.gateway.privacy import Privacy
from spanloop_collector.gateway.prompts import Prompts, StoreRegistry
from spanloop_collector.gateway.settings import GatewaySettings
from spanloop_collector.gateway.spans import CallTracer
from spanloop_collector.gateway.upstreams import Upstreams
from spanloop_collector.gateway.versions import StoreReader, Versions
from spanloop_store import StoreUrl
from spanloop_store.errors import SpanloopError

_log = logging.getLogger("spanloop_collector.gateway")

# After SIGTERM, answers in flight have this long to finish, in seconds.
DRAIN_S = 30.0
BACKLOG = 1024


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535))
@click.option("--store", envvar="SPANLOOP_STORE", default=None, help="Where the registry is.")
@click.option(
    "--otlp", default="http://127.0.0.1:4318", show_default=True, help="The collector, for the call spans."
)
@click.option("--upstream", "upstreams", multiple=True, metavar="[NAME=]URL", help="A back end; repeatable.")
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), help="spanloop.toml, for its [gateway]."
)
def command(
    host: str, port: int, store: str | None, otlp: str, upstreams: tuple[str, ...], config: Path | None
) -> None:
    """Serve the OpenAI protocol in front of model servers."""
    log_to_stderr(logging.INFO)
    try:
        tokens = Tokens.of()
        token = token_for(host, tokens.write, how="clients send it as OPENAI_API_KEY")
        privacy, limits = Privacy.of_environment(_folder(store)), GatewaySettings.read(config)
        settings = Settings(
            Upstreams.parse(upstreams),
            token,
            tokens.admin,
            tokens.read,
            limits=limits,
            prompts=Prompts(StoreRegistry(store) if limits.learn_prompts else None, privacy.text),
            privacy=privacy,
            audit=store_audit(store),
        )
        asyncio.run(serve(host, port, store, otlp, settings))
    except SpanloopError as error:
        click.echo(f"error: {error.message}\nnext:  {error.hint}", err=True)
        sys.exit(1)


async def serve(host: str, port: int, store: str | None, otlp: str, settings: Settings) -> None:
    """Run until SIGTERM or SIGINT, then finish what is in flight and send the last spans.

    Raises:
        ListenError: the port is taken.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    allow_many_files()
    tracer = CallTracer.to_collector(otlp, os.environ.get(TOKEN_VARIABLE), settings.privacy)
    gateway = Gateway(settings, Versions(StoreReader(store)), tracer)
    # handler_cancellation: a client that goes away cancels its handler, and with it the back end's work.
    runner = web.AppRunner(
        gateway.application(), handler_cancellation=True, access_log=None, shutdown_timeout=DRAIN_S
    )
    await runner.setup()
    assert runner.server is not None, "setup makes it"
    sweep = asyncio.create_task(close_quiet_ones(runner.server, gateway.busy))
    try:
        try:
            await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
        except OSError as error:
            raise cannot_listen(host, port, "--gateway-port", error) from error
        bound = runner.addresses[0][1]
        _log.info("gateway listens on http://%s:%d/v1", host, bound)
        await stop.wait()
        _log.info("stopping: finishing calls in flight")
    finally:
        sweep.cancel()
        await runner.cleanup()
        # In a thread: the last batch may wait for the collector's answer, and signals must still be heard.
        await asyncio.to_thread(tracer.shutdown)


def _folder(store: str | None) -> Path | None:
    """Where the salt of redaction lies, which the collector uses, too; None: the store is a server."""
    url = StoreUrl.parse(store)
    return url.folder if url.embedded else None


if __name__ == "__main__":
    command()
