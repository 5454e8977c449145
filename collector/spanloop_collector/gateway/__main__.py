"""The gateway's process: `python -m spanloop_collector.gateway --port 8080 --store URL --upstream [NAME=]URL`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

import click
from aiohttp import web

from spanloop_collector.addresses import TOKEN_VARIABLE, cannot_listen, token_for
from spanloop_collector.diagnostics import log_to_stderr
from spanloop_collector.gateway.app import Gateway, Settings
from spanloop_collector.gateway.spans import CallTracer
from spanloop_collector.gateway.upstreams import Upstreams
from spanloop_collector.gateway.versions import StoreReader, Versions
from spanloop_store.errors import SpanloopError

_log = logging.getLogger("spanloop_collector.gateway")

# After SIGTERM, answers in flight have this long to finish, in seconds.
DRAIN_S = 30.0


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535))
@click.option("--store", envvar="SPANLOOP_STORE", default=None, help="Where the registry is.")
@click.option(
    "--otlp", default="http://127.0.0.1:4318", show_default=True, help="The collector, for the call spans."
)
@click.option("--upstream", "upstreams", multiple=True, metavar="[NAME=]URL", help="A back end; repeatable.")
def command(host: str, port: int, store: str | None, otlp: str, upstreams: tuple[str, ...]) -> None:
    """Serve the OpenAI protocol in front of model servers."""
    log_to_stderr(logging.INFO)
    try:
        token = token_for(host, os.environ.get(TOKEN_VARIABLE), how="clients send it as OPENAI_API_KEY")
        settings = Settings(Upstreams.parse(upstreams), token)
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
    tracer = CallTracer.to_collector(otlp, os.environ.get(TOKEN_VARIABLE))
    gateway = Gateway(settings, Versions(StoreReader(store)), tracer)
    # handler_cancellation: a client that goes away cancels its handler, and with it the back end's work.
    runner = web.AppRunner(
        gateway.application(), handler_cancellation=True, access_log=None, shutdown_timeout=DRAIN_S
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise cannot_listen(host, port, "--gateway-port", error) from error
        bound = runner.addresses[0][1]
        _log.info("gateway listens on http://%s:%d/v1", host, bound)
        await stop.wait()
        _log.info("stopping: finishing calls in flight")
    finally:
        await runner.cleanup()
        # In a thread: the last batch may wait for the collector's answer, and signals must still be heard.
        await asyncio.to_thread(tracer.shutdown)


if __name__ == "__main__":
    command()
