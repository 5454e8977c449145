"""Agents that die: SIGKILL, SIGTERM, `os._exit`, fork; with the collector there, and with the collector away."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

from bench.faults.collector import ROOT, Collector, running
from bench.faults.ledger import Tally, compare

_AGENT = "bench.faults.agent_program"
_PATIENCE_S = 120.0
# A process that ends ships what it can in a few seconds; the next one goes on.
_MOST_CLEAN_RUNS = 20


def agents_die(folder: Path, fault: str, times: int, *, away: bool = False, seed: int = 1) -> Tally:
    """So many agents end in one way, then clean ones ship what was left. Then counts.

    Args:
        folder: of the store, the spool and the diaries; made.
        fault: `SIGKILL`, `SIGTERM`, `exit` or `fork`.
        times: agents.
        away: the collector starts only when all of them are dead.
        seed: of the moments of the signals.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    name = {"exit": "os._exit of the agent", "fork": "fork in the agent, and os._exit of all"}.get(
        fault, f"{fault} of the agent"
    )
    store = f"chdb://{folder / 'store'}"
    errors = folder / "collector.err"
    diary = folder / "diary"
    with contextlib.ExitStack() as stack:
        if away:
            for _ in range(times):
                _one(folder, diary, fault, "http://127.0.0.1:9", rng)
            collector = stack.enter_context(running(store, errors=errors))
        else:
            collector = stack.enter_context(running(store, errors=errors))
            for _ in range(times):
                _one(folder, diary, fault, collector.otlp_http, rng)
        clean = _ship_the_rest(folder, diary, collector)
        collector.flush(600)
        begun, ended = _read(diary)
        with contextlib.closing(collector.client()) as client:
            tally = compare(
                client, name + (", collector away" if away else ""), sent=begun, acknowledged=ended
            )
    tally.faults = times
    tally.notes["clean processes until the spool was empty"] = clean
    return tally


def _one(folder: Path, diary: Path, fault: str, endpoint: str, rng: random.Random) -> None:
    signals = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM}
    process = _start(folder, diary, "run" if fault in signals else fault, endpoint)
    if fault not in signals:
        process.wait(_PATIENCE_S)
        return
    before = diary.stat().st_size if diary.exists() else 0
    deadline = time.monotonic() + _PATIENCE_S
    while (diary.stat().st_size if diary.exists() else 0) <= before:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(
                f"the agent ended no span (status {process.poll()}); see {folder / 'agent.err'}"
            )
        threading.Event().wait(0.01)
    threading.Event().wait(rng.uniform(0, 1.0))
    process.send_signal(signals[fault])
    process.wait(_PATIENCE_S)


def _start(folder: Path, diary: Path, what: str, endpoint: str) -> subprocess.Popen[bytes]:
    """Zero code: the program, and variables."""
    instrument = Path(sys.executable).with_name("opentelemetry-instrument")
    environment = {
        **os.environ,
        "OTEL_SERVICE_NAME": "faults",
        "OTEL_TRACES_EXPORTER": "spanloop",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        # The program makes its spans itself; importing what others instrument takes most of a process's time.
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "SPANLOOP_SPOOL": str(folder / "spool"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }
    environment.pop("SPANLOOP_STORE", None)
    with (folder / "agent.err").open("ab") as errors:
        return subprocess.Popen(
            [str(instrument), sys.executable, "-m", _AGENT, str(diary), what],
            env=environment,
            cwd=ROOT,
            stderr=errors,
        )


def _ship_the_rest(folder: Path, diary: Path, collector: Collector) -> int:
    """Clean agents, one after the other, until the spool holds nothing; how many it took."""
    for run in range(1, _MOST_CLEAN_RUNS + 1):
        _start(folder, diary, "end", collector.otlp_http).wait(_PATIENCE_S)
        if not any(path.stat().st_size for path in (folder / "spool").rglob("*.otlp")):
            return run
    left = [path.name for path in (folder / "spool").rglob("*.otlp")]
    raise RuntimeError(f"{len(left)} files are still in the spool after {_MOST_CLEAN_RUNS} clean processes")


def _read(diary: Path) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    found: dict[str, dict[str, set[str]]] = {"begun": defaultdict(set), "ended": defaultdict(set)}
    for line in diary.read_text().splitlines():
        word, trace, span = line.split()
        found[word][trace].add(span)
    return found["begun"], found["ended"]
