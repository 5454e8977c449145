"""Ends spans, in this process or in others that write down which, for tests of what became of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from tests.helpers.otlp_target import Target

FLUSH_MS = 20_000
RESOURCE = Resource({"service.name": "agent"})
Provide = Callable[..., TracerProvider]  # the fixture `provide`; arguments are variables
SCRIPT = Path(__file__).parents[1] / "exporter" / "agents" / "spans.py"
LAUNCHER = Path(sys.executable).parent / "opentelemetry-instrument"


class Agents:
    """Starts processes that share a ledger of what they ended, and a spool."""

    def __init__(self, folder: Path) -> None:
        self.ledger = folder / "ledger"
        self.ledger.touch()
        self.spool = folder / "spool"

    @property
    def made(self) -> list[str]:
        """The ids of the spans whose end() returned."""
        return self.ledger.read_text().split()

    def start(
        self,
        how: str,
        endpoint: str,
        *,
        count: int = 50,
        size: int = 500,
        zero_code: bool = False,
        **variables: str,
    ) -> subprocess.Popen[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        environment = kept | {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*",
            "SPANLOOP_SPOOL": str(self.spool),
            **variables,
        }
        launcher = [str(LAUNCHER)] if zero_code else []
        return subprocess.Popen(
            [*launcher, sys.executable, str(SCRIPT), str(self.ledger), how, str(count), str(size)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, how: str, endpoint: str, **more: object) -> tuple[int, str, str]:
        """Runs one to its end; its status, output and errors."""
        with self.start(how, endpoint, **more) as process:  # type: ignore[arg-type]  # the same keywords
            output, errors = process.communicate(timeout=60)
        return process.returncode, output, errors


def away() -> str:
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def end(provider: TracerProvider, count: int = 1, size: int = 10) -> list[str]:
    """Ends spans; gives their ids in hex."""
    ids = []
    for _ in range(count):
        span = provider.get_tracer("test", "1").start_span("chat", attributes={"text": "x" * size})
        span.end()
        ids.append(f"{span.get_span_context().span_id:016x}")
    return ids


def arrived_once(target: Target, ids: list[str]) -> bool:
    return target.spans == dict.fromkeys(ids, 1)
