"""rotel of PyPI with our processor, as a process, for tests."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROCESSOR = Path(__file__).parents[2] / "collector" / "rotel" / "spanloop_processor.py"
START_S = 20.0


def binary() -> Path | None:
    """rotel's program, inside its wheel; None where it is not installed."""
    spec = importlib.util.find_spec("rotel")
    found = Path(spec.origin).with_name("rotel-agent") if spec and spec.origin else None
    return found if found is not None and found.exists() else None


@functools.cache
def why_not() -> str:
    """Why rotel cannot run here; empty: it can. It is linked against one version of the system's libpython."""
    program = binary()
    if program is None:
        return "rotel is not installed (it has wheels for few platforms)"
    try:
        tried = subprocess.run(
            [str(program), "--help"], capture_output=True, text=True, timeout=30, check=False
        )
    except OSError as error:
        return f"rotel does not start: {error}"
    return "" if tried.returncode == 0 else f"rotel does not start: {tried.stderr.strip()[-200:]}"


@dataclass
class Rotel:
    """A running rotel; `url` is its OTLP/HTTP endpoint."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def running(
    log: Path, *exporter: str, processor: Path | None = PROCESSOR, **variables: str
) -> Iterator[Rotel]:
    """Starts rotel with the processor for traces and logs.

    Args:
        log: file for what it says.
        exporter: its options for where data goes.
        processor: the file that it loads; None: none.
        variables: further environment of rotel, and so of the processor.
    """
    program = binary()
    assert program is not None
    http, grpc = _free_port(), _free_port()
    arguments = [
        str(program), "start", "--batch-timeout", "50ms",
        "--otlp-http-endpoint", f"127.0.0.1:{http}", "--otlp-grpc-endpoint", f"127.0.0.1:{grpc}",
        *exporter,
    ]  # fmt: skip
    if processor is not None:
        arguments += [
            "--otlp-with-trace-processor",
            str(processor),
            "--otlp-with-logs-processor",
            str(processor),
        ]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "SPANLOOP_", "ROTEL_"))}
    environ = kept | {"PYTHONPATH": sysconfig.get_path("purelib"), "RUST_BACKTRACE": "0"} | variables
    with log.open("wb") as output:
        process = subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT, env=environ)
    try:
        _wait(process, http, log)
        yield Rotel(process, f"http://127.0.0.1:{http}", log)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise AssertionError(f"rotel does not listen:\n{log.read_text(errors='replace')}")
