"""Runs capture and gateway as child processes: starts them, waits until both serve, restarts what dies, stops both."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from spanloop_collector.addresses import reserve
from spanloop_collector.capture import Addresses
from spanloop_collector.errors import ChildFailed
from spanloop_collector.gateway.settings import GatewaySettings
from spanloop_collector.gateway.upstreams import Upstreams
from spanloop_collector.space import MAX_LOG_BYTES, MIN_FREE_BYTES
from spanloop_store import StoreUrl, lock_holder
from spanloop_store.errors import StoreLocked

log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

# A log of --max-log (4 GiB) is read twice, on a disk of 20 MB/s. Given up sooner, it would never be replayed.
_START_S = 600.0
_STOP_S = 40.0  # longer than what either child allows itself, so that SIGKILL is for a child that hangs
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_STABLE_S = 60.0  # a child that lived this long starts again without a pause
_POLL_S = 0.05
_LINE_BYTES = 1 << 16  # of a child's message, before it is shown in pieces
_PR_SET_PDEATHSIG = 1
# Found before the fork: its child may take no lock of the loader.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Options:
    """What `spanloop up` was asked for. Port 0: any free one."""

    store: str | None = None
    host: str = "127.0.0.1"
    otlp_http_port: int = 4318
    otlp_grpc_port: int = 4317
    clickhouse_port: int = 8123
    gateway_port: int = 8080
    upstreams: tuple[str, ...] = ()
    config: Path | None = None  # spanloop.toml, for its [gateway]
    tls_cert: Path | None = None  # PEM files of the receivers; None: no TLS
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    log: Path | None = None  # folder of the write-ahead log; None: the store's own
    max_log_bytes: int = MAX_LOG_BYTES
    min_free_bytes: int = MIN_FREE_BYTES
    local_port: int = 0  # see capture


async def supervise(options: Options, on_ready: Callable[[Addresses], None]) -> None:
    """Runs both processes until SIGTERM, SIGINT or SIGHUP.

    Args:
        options: what to start.
        on_ready: called once, when both serve.

    Raises:
        GatewayConfigError: an upstream is no address, or [gateway] says something that we do not understand.
        StoreLocked: another process has the store.
        ListenError: the gateway's port is taken.
        ChildFailed: a child could not start; its own message and hint are passed on.
    """
    Upstreams.parse(options.upstreams)  # the gateway would say it too, but only once capture runs
    GatewaySettings.read(options.config)
    url = StoreUrl.parse(options.store)
    if url.embedded and (holder := lock_holder(url)) is not None:
        raise StoreLocked(
            f"the store {url.redacted()} is already open in process {holder}; it is untouched",
            "use the one that runs, stop it (Ctrl-C where its `spanloop up` runs), or name another: --store chdb:///path",
        )
    listener = reserve(options.host, options.gateway_port, "--gateway-port")
    gateway_port = listener.getsockname()[1]
    listener.close()

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    shown = f"[{options.host}]" if ":" in options.host else options.host
    gateway_url = f"http://{shown}:{gateway_port}"
    async with contextlib.AsyncExitStack() as stack:
        capture = Child("capture", _capture_arguments(options, gateway_url))
        stack.push_async_callback(capture.stop)
        addresses = await _first_of(capture.start_and_read(), stop)
        if addresses is None:
            return
        options = _with_ports(options, addresses)
        capture.arguments = _capture_arguments(options, gateway_url)
        gateway = Child(
            "gateway", _gateway_arguments(options, addresses, gateway_port), f"{gateway_url}/healthz"
        )
        stack.push_async_callback(gateway.stop)  # stopped before capture, which takes its last spans
        if await _first_of(gateway.start_and_poll(), stop) is None:
            return
        on_ready(addresses)
        keepers = [asyncio.create_task(child.keep()) for child in (capture, gateway)]
        await stop.wait()
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)


class Child:
    """One child process.

    Args:
        name: the module of `spanloop_collector` that it runs; also its name in messages.
        arguments: its command line.
        health: the address that answers 200 when it serves; empty: it prints a line of JSON instead.
    """

    def __init__(self, name: str, arguments: Sequence[str], health: str = "") -> None:
        self.name = name
        self.arguments = list(arguments)
        self._health = health
        self._process: asyncio.subprocess.Process | None = None
        self._errors: list[str] = []
        self._forwarder: asyncio.Task[None] | None = None
        self._drain: asyncio.Task[None] | None = None

    async def start_and_read(self) -> Addresses:
        """Starts it and waits for its line of JSON.

        Raises:
            ChildFailed: it ended first, or said nothing in time.
        """
        process = await self._spawn()
        assert process.stdout is not None
        try:
            # Not wait_for: before Python 3.12 it may swallow a cancellation that comes together with the line.
            async with asyncio.timeout(_START_S):
                line = await process.stdout.readline()
        except TimeoutError as error:
            raise ChildFailed(
                f"{self.name} was not ready within {_START_S:g} s", "look at its messages above"
            ) from error
        if not line:
            raise await self._failure()
        # Nobody reads what it prints from here on, and a full pipe would stop it.
        self._drain = asyncio.create_task(_drain(process.stdout))
        try:
            return Addresses(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise ChildFailed(
                f"{self.name} printed {line[:200]!r} instead of its addresses", "look at its messages above"
            ) from error

    async def start_and_poll(self) -> bool:
        """Starts it and waits until it answers.

        Raises:
            ChildFailed: it ended first, or did not answer in time.
        """
        process = await self._spawn()
        deadline = time.monotonic() + _START_S
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            while process.returncode is None:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with session.get(self._health) as answer:
                        if answer.status == 200:
                            return True
                if time.monotonic() > deadline:
                    raise ChildFailed(
                        f"{self.name} did not answer within {_START_S:g} s", "look at its messages above"
                    )
                await asyncio.sleep(_POLL_S)
        raise await self._failure()

    async def keep(self) -> None:
        """Starts it again whenever it ends, with a growing pause; runs until it is cancelled."""
        pause_s = _FIRST_PAUSE_S
        while True:
            assert self._process is not None
            started = time.monotonic()
            status = await self._process.wait()
            if time.monotonic() - started > _STABLE_S:
                pause_s = _FIRST_PAUSE_S
            log.error(
                "%s (pid %d) ended with status %d; starting it again", self.name, self._process.pid, status
            )
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
            try:
                await (self.start_and_poll() if self._health else self.start_and_read())
                log.warning("%s serves again (pid %d)", self.name, self._process.pid)
            except ChildFailed as error:
                log.error("%s", error.message)
            except OSError as error:
                # No memory or no process to be had now: that may pass, and nobody else would try again.
                log.error("%s cannot be started: %s", self.name, error)

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL for a child that does not end."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(_STOP_S):
                    await process.wait()
            except TimeoutError:
                log.error("%s (pid %d) does not end; killing it", self.name, process.pid)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if self._forwarder is not None:
            await self._forwarder

    async def _spawn(self) -> asyncio.subprocess.Process:
        self._errors = []
        self._process = await asyncio.create_subprocess_exec(
            *self.arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL if self._health else asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # A Ctrl-C in the terminal is for the supervisor, which stops the two in order.
            start_new_session=True,
            preexec_fn=partial(_die_with_parent, os.getpid()),
        )
        self._forwarder = asyncio.create_task(self._forward(self._process))
        return self._process

    async def _forward(self, process: asyncio.subprocess.Process) -> None:
        """Passes its messages on, and remembers the last ones for the error."""
        assert process.stderr is not None
        async for raw in _lines(process.stderr):
            line = raw.decode(errors="replace").rstrip()
            self._errors = [*self._errors[-20:], line]
            # A failed start is raised as one clear error; anything else is shown as it comes.
            if not line.startswith(("error: ", "next: ")):
                # Who read our messages may be gone. A child whose pipe nobody empties would stop at its next one.
                with contextlib.suppress(OSError):
                    sys.stderr.write(f"{self.name}: {line}\n")
                    sys.stderr.flush()

    async def _failure(self) -> ChildFailed:
        assert self._process is not None
        status = await self._process.wait()
        if self._forwarder is not None:
            await self._forwarder
        message = next((line[7:] for line in self._errors if line.startswith("error: ")), "")
        hint = next((line[5:].strip() for line in self._errors if line.startswith("next: ")), "")
        return ChildFailed(
            message or f"{self.name} ended with status {status} before it served",
            hint or "its messages above say why",
        )


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Lines, the longest in pieces: StreamReader's own readline gives up on one of 64 KiB, a traceback with a prompt in it."""
    rest = b""
    while chunk := await stream.read(_LINE_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
        if len(rest) >= _LINE_BYTES:
            yield rest
            rest = b""
    if rest:
        yield rest


async def _drain(stream: asyncio.StreamReader) -> None:
    while await stream.read(_LINE_BYTES):
        pass


async def _first_of(work: Coroutine[Any, Any, _Result], stop: asyncio.Event) -> _Result | None:
    """The result of starting a child; None when the stop came first."""
    starting = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return starting.result() if starting.done() else None
    finally:
        for task in (starting, stopping):
            task.cancel()


def _capture_arguments(options: Options, gateway_url: str) -> list[str]:
    arguments = [sys.executable, "-m", "spanloop_collector.capture", "--host", options.host]
    arguments += [
        "--otlp-http-port",
        str(options.otlp_http_port),
        "--otlp-grpc-port",
        str(options.otlp_grpc_port),
    ]
    arguments += ["--clickhouse-port", str(options.clickhouse_port), "--gateway", gateway_url]
    arguments += ["--local-port", str(options.local_port)]
    arguments += ["--max-log", str(options.max_log_bytes), "--min-free", str(options.min_free_bytes)]
    files = {
        "--tls-cert": options.tls_cert,
        "--tls-key": options.tls_key,
        "--tls-client-ca": options.tls_client_ca,
        "--log": options.log,
    }
    for option, path in files.items():
        arguments += [option, str(path)] if path is not None else []
    return arguments + (["--store", options.store] if options.store else [])


def _gateway_arguments(options: Options, addresses: Addresses, port: int) -> list[str]:
    arguments = [
        sys.executable,
        "-m",
        "spanloop_collector.gateway",
        "--host",
        options.host,
        "--port",
        str(port),
    ]
    arguments += ["--otlp", addresses.local or addresses.otlp_http]
    for upstream in options.upstreams:
        arguments += ["--upstream", upstream]
    arguments += ["--config", str(options.config)] if options.config is not None else []
    return arguments + (["--store", options.store] if options.store else [])


def _with_ports(options: Options, addresses: Addresses) -> Options:
    """The same with the ports that were found, so that a restarted child is where everybody looks for it."""
    return replace(
        options,
        otlp_http_port=_port(addresses.otlp_http),
        otlp_grpc_port=_port(addresses.otlp_grpc),
        clickhouse_port=_port(addresses.clickhouse) if addresses.clickhouse else options.clickhouse_port,
        local_port=_port(addresses.local) if addresses.local else 0,
    )


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def _die_with_parent(parent: int) -> None:
    """Linux: a supervisor that is killed takes its children along, instead of leaving the store locked."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it was killed before that
            os._exit(1)
