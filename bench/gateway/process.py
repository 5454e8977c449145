"""What tests and measurements start: the gateway as its own process, servers in a thread; and what a process has cost so far."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

_TICKS = os.sysconf("SC_CLK_TCK")  # a second, in /proc/PID/stat
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Running:
    """A gateway that listens; `url` is its base URL without /v1."""

    url: str
    pid: int


@contextmanager
def gateway(*options: str, **environment: str) -> Iterator[Running]:
    """Start `python -m spanloop_collector.gateway` on a free port; stopped with SIGTERM at the end.

    Args:
        options: of its command line.
        environment: variables that it gets beside this process's, whose tokens it does not see.

    Raises:
        RuntimeError: it ended instead of listening, with what it said.
    """
    inherited = {name: value for name, value in os.environ.items() if "_TOKEN" not in name}
    command = [sys.executable, "-m", "spanloop_collector.gateway", "--port", "0", *options]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**inherited, **environment}
    ) as process:
        assert process.stderr is not None
        try:
            log: list[str] = []
            for line in process.stderr:
                log.append(line)
                if found := re.search(r"listens on (\S+)/v1", line):
                    break
            else:
                raise RuntimeError("the gateway did not start: " + "".join(log))
            # A full pipe would block it.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield Running(found[1], process.pid)
        finally:
            process.terminate()
            try:
                process.wait(20)
            finally:
                process.kill()


@contextmanager
def serve(app: web.Application) -> Iterator[str]:
    """An aiohttp application on a free port of loopback, in a thread; gives its base URL."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, handler_cancellation=True)

    async def start() -> str:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    thread = threading.Thread(target=loop.run_forever, name="back-end", daemon=True)
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def cpu_s(pid: int) -> float:
    """CPU that a process and its children have used, in seconds (proc(5), stat: utime and stime)."""
    total = 0.0
    for each in family(pid):
        try:
            text = Path(f"/proc/{each}/stat").read_text()
        except OSError:  # it has ended
            continue
        fields = text.rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / _TICKS
    return total


def memory_bytes(pid: int) -> int:
    """Resident memory of a process and its children."""
    total = 0
    for each in family(pid):
        try:
            total += int(Path(f"/proc/{each}/statm").read_text().split()[1]) * _PAGE
        except OSError:
            continue
    return total


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for each in found:
        try:
            for task in Path(f"/proc/{each}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found
