"""What is measured, each in a process of its own: capture, the engine alone, rotel, Agent Lightning."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROTEL_VERSION = "0.0.1a15"
LIGHTNING_VERSION = "0.3.0"
_START_S = 120.0
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")

# A store in memory and its server, as `agl store` makes them, with one rollout: spans of no rollout are dropped.
_LIGHTNING = """
import asyncio, json, sys
from agentlightning.store.client_server import LightningStoreServer
from agentlightning.store.memory import InMemoryLightningStore

async def main():
    store = InMemoryLightningStore(thread_safe=True)
    server = LightningStoreServer(store, host="127.0.0.1", port=int(sys.argv[1]), launch_mode="asyncio")
    rollout = await store.start_rollout(input={})
    await server.start()
    print(json.dumps([rollout.rollout_id, rollout.attempt.attempt_id, server.otlp_traces_endpoint()]), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        spans = await store.query_spans(rollout.rollout_id)
        print(len(spans), flush=True)

asyncio.run(main())
"""


class Missing(RuntimeError):
    """A peer that is not installed; its text names the command that installs it."""


@dataclass
class Process:
    """A started process."""

    popen: subprocess.Popen[str]

    @property
    def cpu_s(self) -> float:
        """User and system time so far, of all its threads."""
        fields = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND

    @property
    def rss_bytes(self) -> int:
        """Resident memory now."""
        pages = int(Path(f"/proc/{self.popen.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def line(self) -> str:
        """The next line of its standard output.

        Raises:
            RuntimeError: it has ended.
        """
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.popen.args!r} ended with {self.popen.wait()}")
        return line

    def ask(self, text: str) -> str:
        """Writes a line to its standard input and reads one."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(text + "\n")
        self.popen.stdin.flush()
        return self.line()


@dataclass
class Capture(Process):
    """`python -m spanloop_collector.capture`."""

    url: str
    otlp_http: str
    otlp_grpc: str
    clickhouse: str


@contextlib.contextmanager
def capture(folder: Path) -> Iterator[Capture]:
    """The collector as `spanloop up` starts it, at free ports, with a new embedded store."""
    command = [sys.executable, "-m", "spanloop_collector.capture", "--store", f"chdb://{folder}"]
    for option in ("--otlp-http-port", "--otlp-grpc-port", "--clickhouse-port"):
        command += [option, "0"]
    with _started(command, folder.with_suffix(".log")) as popen:
        ready = json.loads(Process(popen).line())
        yield Capture(popen, f"chdb://{folder}", ready["otlp_http"], ready["otlp_grpc"], ready["clickhouse"])


@contextlib.contextmanager
def native(folder: Path, rows: Path) -> Iterator[Process]:
    """The engine alone, ready to insert a Native file: `ask(TIMES)` does it and answers with the seconds it took."""
    with _started([sys.executable, "-m", "bench.ingest.native", str(folder), str(rows)]) as popen:
        process = Process(popen)
        process.line()
        yield process


@contextlib.contextmanager
def rotel(folder: Path, into: Capture) -> Iterator[tuple[Process, str]]:
    """rotel with its own ClickHouse exporter into a collector's endpoint, and its OTLP/HTTP address.

    Raises:
        Missing: it is not installed or does not start.
    """
    found = importlib.util.find_spec("rotel")
    program = Path(found.origin).with_name("rotel-agent") if found and found.origin else None
    if program is None or not program.exists():
        raise Missing(
            f"pip install rotel=={ROTEL_VERSION} (Python 3.11 on x86-64 Linux, with the system's libpython3.11)"
        )
    owner = json.loads((Path(into.url.removeprefix("chdb://")) / "owner.json").read_text())
    http, grpc = _free_port(), _free_port()
    command = [
        str(program), "start", "--otlp-http-endpoint", f"127.0.0.1:{http}", "--otlp-grpc-endpoint", f"127.0.0.1:{grpc}",
        "--exporter", "clickhouse", "--clickhouse-exporter-endpoint", into.clickhouse,
        "--clickhouse-exporter-database", "default", "--clickhouse-exporter-async-insert", "false",
        "--clickhouse-exporter-user", owner["user"], "--clickhouse-exporter-password", owner["password"],
    ]  # fmt: skip
    log = folder.with_suffix(".rotel.log")
    with _started(command, log) as popen:
        _wait_for(http, popen, log)
        yield Process(popen), f"http://127.0.0.1:{http}/v1/traces"


@contextlib.contextmanager
def lightning(python: Path | None, folder: Path) -> Iterator[tuple[Process, str, dict[str, str]]]:
    """Agent Lightning's store server in memory: its OTLP address, and the resource attributes that its spans need.

    Raises:
        Missing: no Python that has it was named.
    """
    if python is None or not python.exists():
        raise Missing(
            f"python -m bench.ingest --install-peers (agentlightning=={LIGHTNING_VERSION}, 153 packages, 1 GB)"
        )
    with _started(
        [str(python), "-c", _LIGHTNING, str(_free_port())], folder.with_suffix(".agl.log")
    ) as popen:
        process = Process(popen)
        rollout, attempt, url = json.loads(process.line())
        yield process, url, {"agentlightning.rollout_id": rollout, "agentlightning.attempt_id": attempt}


@contextlib.contextmanager
def _started(command: list[str], log: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "ROTEL_"))}
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(log.open("ab")) if log else None
        # rotel writes its log to standard output.
        output = errors if log and log.name.endswith(".rotel.log") else subprocess.PIPE
        popen = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=errors, text=True, cwd=ROOT, env=kept
        )
        try:
            yield popen
        finally:
            popen.terminate()
            try:
                popen.wait(30)
            except subprocess.TimeoutExpired:
                popen.kill()
                popen.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait_for(port: int, popen: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while popen.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise Missing(f"it does not start: {log.read_text(errors='replace').strip()[-300:]}")
