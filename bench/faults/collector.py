"""The capture process as the faults start it, kill it and start it again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clickhouse_connect.driver.client import Client

from bench.faults.load import flush
from spanloop_store import connect

ROOT = Path(__file__).parents[2]
_WAIT_S = 120.0


@dataclass
class Collector:
    """One capture process and where it listens."""

    process: subprocess.Popen[str]
    store: str
    otlp_http: str
    otlp_grpc: str
    clickhouse: str

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(_WAIT_S)

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_WAIT_S)

    def flush(self, timeout_s: float = 60) -> None:
        """Until everything acknowledged is queryable.

        Raises:
            RuntimeError: it did not get there.
        """
        answer = flush(self.otlp_http, timeout_s)
        if answer["status"] != 200:
            raise RuntimeError(f"not everything could be inserted: {answer}")

    def client(self) -> Client:
        """A client of the store, over the endpoint while this runs."""
        return connect(self.store)


def start(
    store: str,
    *,
    program: tuple[str, ...] = ("-m", "spanloop_collector.capture"),
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    errors: Path | None = None,
) -> subprocess.Popen[str]:
    """Starts capture at free ports; `ready` waits for it.

    Args:
        store: URL.
        program: what Python runs; its arguments are capture's.
        options: more of capture's options.
        environment: variables to set besides our own.
        errors: where its standard error is appended; None: beside ours.
    """
    ports = ("--otlp-http-port", "0", "--otlp-grpc-port", "0", "--clickhouse-port", "0")
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(errors.open("ab")) if errors else None
        return subprocess.Popen(
            [sys.executable, *program, "--store", store, *ports, *options],
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
        )


def ready(process: subprocess.Popen[str], store: str) -> Collector:
    """Waits until it listens.

    Raises:
        RuntimeError: it ended instead.
    """
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"capture ended with status {process.wait(_WAIT_S)} before it listened")
    said = json.loads(line)
    return Collector(process, store, said["otlp_http"], said["otlp_grpc"], said["clickhouse"])


@contextlib.contextmanager
def running(
    store: str,
    *,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    errors: Path | None = None,
) -> Iterator[Collector]:
    """A capture process that is stopped in the end, if it still runs then."""
    process = start(store, options=options, environment=environment, errors=errors)
    try:
        yield ready(process, store)
    finally:
        reap(process)


def reap(process: subprocess.Popen[str]) -> None:
    """Ends a process that still runs, and closes its pipe."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_WAIT_S)
    if process.stdout is not None:
        process.stdout.close()
