"""Starts the demo's processes, each with a log of its own, and stops every one of them by its pid."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from spanloop_store.errors import SpanloopError

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
START_TIMEOUT_S = 60.0  # a cold start of torch on a busy machine takes some ten seconds
STOP_TIMEOUT_S = 20.0  # `spanloop up` first inserts what it acknowledged
POLL_S = 0.1


class DemoError(SpanloopError):
    """The demo cannot go on; everything that it started has been stopped."""


def free_ports(count: int) -> list[int]:
    """Ports on loopback that are free now; all are held until the last is known, so that no two are the same."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@dataclass
class Process:
    """One running program."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raise DemoError if it ended with a failure, or ended at all while it should be serving."""
        code = self.popen.poll()
        if code is not None:
            raise DemoError(f"{self.name} ended with status {code}: {self.last_line()}", f"read {self.log}")

    def last_line(self) -> str:
        """The last line of its log, which is where Python puts the error."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "its log is empty"


@dataclass
class Processes:
    """All processes of one run; use it as a context manager, then none outlives the run."""

    logs: Path
    _running: list[Process] = field(default_factory=list)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        # Those that serve were started first and stop last, so that what others still send finds its receiver.
        for process in reversed(self._running):
            stop(process)
        self._running.clear()

    def start(self, name: str, command: Iterable[str], env: Mapping[str, str] | None = None) -> Process:
        """Start a program; it reads standard input from a pipe and writes to `logs/NAME.log`.

        Args:
            env: its whole environment; None: ours.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{name}.log"
        with log.open("wb") as output:
            popen = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if env is None else dict(env),
                # Ctrl-C is for the driver alone, which then stops the others in order.
                start_new_session=True,
            )
        process = Process(name, popen, log)
        self._running.append(process)
        return process

    def wait_until(self, process: Process, ready: Callable[[], bool]) -> None:
        """Wait for a program to serve.

        Raises:
            DemoError: it ended, or was not ready in time.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready():
            process.check()
            if time.monotonic() > deadline:
                raise DemoError(
                    f"{process.name} was not ready after {START_TIMEOUT_S:.0f} s", f"read {process.log}"
                )
            time.sleep(POLL_S)

    def check(self, processes: Iterable[Process]) -> None:
        """Raise DemoError if one of these has ended."""
        for process in processes:
            process.check()


def stop(process: Process) -> None:
    """SIGTERM, and SIGKILL to it and its children if it has not ended in time."""
    popen = process.popen
    if popen.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            popen.stdin.close()
    if popen.poll() is None:
        popen.terminate()
        try:
            popen.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            # It leads a session of its own: its group holds what it started and nothing else.
            os.killpg(popen.pid, signal.SIGKILL)
            popen.wait()


def answers(url: str) -> bool:
    """Whether a URL answers 200."""
    # No proxy: the address is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


# What the two agents are called in OTEL_SERVICE_NAME, and their programs.
AGENTS = {"calculator-openai": "openai_agent.py", "calculator-langgraph": "langgraph_agent.py"}


@dataclass(frozen=True)
class AgentAddresses:
    """What an agent is told: nothing but this reaches it."""

    otlp_http: str
    openai_base_url: str


class AgentRun:
    """One round of both agents over tasks; their processes start at once and wait for the tasks.

    An instrumented process takes seconds to import its libraries. Started early, it does so while the other core
    trains; `--tasks /dev/stdin` then reads what we write.
    """

    def __init__(
        self,
        processes: Processes,
        label: str,
        model: str,
        addresses: AgentAddresses,
        concurrency: Mapping[str, int],
    ) -> None:
        self.label = label
        self._agents: dict[str, Process] = {}
        for agent, program in AGENTS.items():
            # OTEL and OPENAI variables only, beside what any process needs to run; and a spool of the run's own, so that
            # what another program left in the user's is not sent to this store.
            environment = {
                name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ
            }
            environment |= {
                "OTEL_SERVICE_NAME": agent,
                "OTEL_EXPORTER_OTLP_ENDPOINT": addresses.otlp_http,
                "SPANLOOP_SPOOL": str(processes.logs / "spool"),
                "OPENAI_BASE_URL": addresses.openai_base_url,
                "OPENAI_API_KEY": "not-needed-here",
                "OPENAI_MODEL": model,
            }
            command = [
                BIN / "opentelemetry-instrument",
                sys.executable,
                HERE / program,
                "--tasks",
                "/dev/stdin",
            ]
            command += ["--concurrency", str(concurrency[agent])]
            self._agents[agent] = processes.start(f"{label}-{agent}", map(str, command), environment)

    def feed(self, tasks: Mapping[str, Path]) -> None:
        """Hand each agent its task file; one without a file ends at once."""
        for agent, process in self._agents.items():
            process.check()
            assert process.popen.stdin is not None, "start() opens a pipe"
            if agent in tasks:
                process.popen.stdin.write(tasks[agent].read_bytes())
            process.popen.stdin.close()
            process.popen.stdin = None

    def wait(self, alive: Callable[[], None]) -> None:
        """Wait until both agents have ended.

        Args:
            alive: called now and then; raises if a server that they need is gone.

        Raises:
            DemoError: an agent failed as a whole (a task that fails is no failure of the agent).
        """
        for process in self._agents.values():
            while process.popen.poll() is None:
                alive()
                time.sleep(POLL_S)
            if process.popen.returncode:
                process.check()


@contextlib.contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C, so that a demo that is stopped stops what it started."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
