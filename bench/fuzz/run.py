"""The long run: so many mutated requests for each target, each target in a process of its own whose death is seen.

With `--engine hypothesis` what is sent is drawn blindly; with `--engine atheris` (`pip install atheris`) libFuzzer steers it
towards code of the collector that no request has reached yet.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.fuzz.described import Described

_CHUNK = 1000  # requests between two looks at the tables
_CORPUS, _DRAWN_BYTES = 200, 4096  # what atheris begins with
_SHOWN = 5  # failures that are printed
# Requests to the endpoint take three times as long.
_SHARES = {"otlp": 0.4, "endpoint": 0.3, "gateway": 0.15, "feedback": 0.15}


@dataclass
class _Target:
    draw: Any  # a hypothesis strategy
    check: Callable[[Any], None]
    settle: Callable[[], None]  # between chunks: looks at what the tables hold
    answers: Counter[str]


def main(arguments: list[str]) -> int:
    """Runs the targets one after the other, prints a table; 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=__doc__)
    parser.add_argument("--n", type=int, default=4000, help="requests in all")
    parser.add_argument("--target", choices=[*_SHARES, "all"], default="all")
    parser.add_argument("--engine", choices=["hypothesis", "atheris"], default="hypothesis")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.worker:
        return _work(given.target, given.n, given.seed, given.engine)
    targets = list(_SHARES) if given.target == "all" else [given.target]
    failed = False
    print("| target | engine | requests | s | answers | failures |\n|---|---|---|---|---|---|")
    for target in targets:
        n = round(given.n * _SHARES[target]) if given.target == "all" else given.n
        began = time.monotonic()
        command = [sys.executable, "-m", "bench.fuzz", "--worker", "--target", target, "--n", str(n)]
        command += ["--seed", str(given.seed), "--engine", given.engine]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        lines = done.stdout.splitlines()
        result = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
        seconds = time.monotonic() - began
        answers = ", ".join(f"{count} × {name}" for name, count in sorted(result.get("answers", {}).items()))
        failures = result.get("failures", [f"the process died with status {done.returncode}"])
        failed = failed or bool(failures)
        print(
            f"| {target} | {given.engine} | {result.get('requests', '?')} | {seconds:.0f} | {answers} | {len(failures)} |",
            flush=True,
        )
        for failure in failures[:_SHOWN]:
            print(f"    {failure[:3000]}", file=sys.stderr)
    return int(failed)


def _work(name: str, n: int, seed: int, engine: str) -> int:
    logging.disable(logging.CRITICAL)
    if engine == "atheris":
        atheris = _atheris()
        # Before the first import of them: what is loaded is not instrumented any more.
        with atheris.instrument_imports(include=["spanloop_collector", "spanloop_store"]):
            import spanloop_collector.capture  # noqa: F401
            import spanloop_store.otlp.check  # noqa: F401
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        target = _open(stack, name, Path(folder))
        if engine == "atheris":
            _steered(target, n, seed, Path(folder) / "corpus")
        else:
            _drawn(target, n, seed)
    return 0


def _open(stack: ExitStack, name: str, folder: Path) -> _Target:
    from bench.fuzz import endpoint, otlp
    from bench.fuzz.feedback import FeedbackTarget
    from bench.fuzz.gateway import gateway_target
    from bench.fuzz.served import serving

    served = stack.enter_context(serving(folder / "store"))
    if name in ("gateway", "feedback"):
        if name == "gateway":
            described: Described = stack.enter_context(gateway_target(served))
        else:
            described = FeedbackTarget(served)
            stack.callback(described.close)
        return _Target(described.requests(), described.check, described.settle, described.answers)
    if name == "otlp":
        receivers = otlp.Receivers(served)
        stack.callback(receivers.close)
        return _Target(otlp.exports(), receivers.check, receivers.compare, receivers.answers)
    outside = folder / "outside"
    outside.mkdir()
    asked = endpoint.Endpoint(served, outside)
    stack.callback(asked.close)
    return _Target(endpoint.asks(), asked.check, lambda: None, asked.answers)


class _Tally:
    def __init__(self, target: _Target, n: int) -> None:
        self._target = target
        self._n = n
        self.requests = 0
        self.failures: list[str] = []

    def one(self, case: Any) -> None:
        self.requests += 1
        self._guarded(lambda: self._target.check(case))
        if self.requests % _CHUNK == 0 or self.requests == self._n:
            self._guarded(self._target.settle)

    def _guarded(self, work: Callable[[], None]) -> None:
        # A failure is written down, and the run goes on: what it would hide is worth knowing too.
        try:
            work()
        except AssertionError as error:
            self.failures.append(str(error))
        except Exception as error:
            self.failures.append(f"{type(error).__name__}: {error}")

    def report(self) -> None:
        found = {"requests": self.requests, "answers": self._target.answers, "failures": self.failures}
        print(f"\n{json.dumps(found)}", flush=True)


def _drawn(target: _Target, n: int, seed: int) -> None:
    from bench.fuzz.drawn import check_drawn

    tally = _Tally(target, n)
    chunk = 0
    while tally.requests < n:
        chunk += 1
        check_drawn(target.draw, tally.one, min(_CHUNK, n - tally.requests), seed * 1_000_003 + chunk)
    tally.report()


def _atheris() -> Any:
    """In none of our extras: nothing but this needs it."""
    try:
        return importlib.import_module("atheris")
    except ImportError:
        sys.exit("--engine atheris needs libFuzzer for Python: pip install atheris")


def _steered(target: _Target, n: int, seed: int, corpus: Path) -> None:
    import hypothesis

    atheris = _atheris()

    tally = _Tally(target, n)

    @hypothesis.settings(database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(target.draw)
    def run(case: Any) -> None:
        tally.one(case)

    def one(data: bytes) -> None:
        run.hypothesis.fuzz_one_input(data)
        if tally.requests >= n:
            tally.report()
            # libFuzzer has no end that gives control back.
            os._exit(0)

    # A request is drawn from bytes; from the few bytes that libFuzzer begins with, only the plainest could be.
    corpus.mkdir()
    rng = random.Random(seed)
    for number in range(_CORPUS):
        (corpus / f"{number}").write_bytes(rng.randbytes(_DRAWN_BYTES))
    options = [f"-seed={seed}", f"-max_len={_DRAWN_BYTES}", "-len_control=0", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()
