"""SIGKILL of the collector under load: at random moments, and at named points between two of its steps."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

from bench.faults.collector import ready, reap, running, start
from bench.faults.ledger import Ledger, Tally
from bench.faults.load import SMALL, Senders, Shape, Target, hurry

# A kill falls into the start (imports, engine, migration, recovery of the log) in one of so many cases.
_DURING_START = 0.25
_LONGEST_START_S = 1.0
_LONGEST_LOAD_S = 1.5


def random_kills(
    folder: Path, kills: int, seed: int, *, threads: int = 4, shape: Shape = SMALL, errors: Path | None = None
) -> Tally:
    """Starts capture, loads it, kills it after a random time; so often, on one store. Then counts.

    Args:
        folder: of the store; new.
        kills: how many.
        seed: of the moments.
        threads: senders.
        shape: of their requests.
        errors: where the collector's standard error goes.
    """
    rng = random.Random(seed)
    store = f"chdb://{folder}"
    target, ledger = Target(), Ledger()
    # A pause leaves the collector a share of a small machine: what is slow is starting it.
    senders = Senders(target, ledger, threads, shape, pause_s=0.005)
    started = 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(senders)
        stack.enter_context(hurry(target))
        for _ in range(kills):
            process = start(store, errors=errors)
            try:
                if rng.random() < _DURING_START:
                    started += 1
                    _pause(rng.uniform(0, _LONGEST_START_S))
                    process.kill()
                    process.wait()
                    continue
                collector = ready(process, store)
                target.set(collector.otlp_http, collector.otlp_grpc)
                _pause(rng.uniform(0, _LONGEST_LOAD_S))
                # Killed first: the senders must see it die in the middle of their requests.
                collector.kill()
                target.unset()
            finally:
                reap(process)
        tally = _counted(store, target, senders, ledger, "SIGKILL of the collector at random moments", errors)
    tally.faults = kills
    tally.notes["killed while starting"] = started
    return tally


def kills_at_points(
    folder: Path, points: Sequence[str], *, shape: Shape = SMALL, errors: Path | None = None
) -> Tally:
    """Capture kills itself at each named point (see `stopping`), one after the other on one store. Then counts."""
    store = f"chdb://{folder}"
    target, ledger = Target(), Ledger()
    senders = Senders(target, ledger, shape=shape, pause_s=0.01)
    missed = 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(senders)
        stack.enter_context(hurry(target))
        for point in points:
            process = start(store, program=("-m", "bench.faults.stopping", point), errors=errors)
            try:
                assert process.stdout is not None
                # A point in the start-up comes before the ready line.
                with contextlib.suppress(RuntimeError):
                    collector = ready(process, store)
                    target.set(collector.otlp_http, collector.otlp_grpc)
                if process.wait(60) != -signal.SIGKILL:
                    missed += 1
                target.unset()
            finally:
                reap(process)
        tally = _counted(store, target, senders, ledger, "SIGKILL of the collector between two steps", errors)
    tally.faults = len(points) - missed
    if missed:
        tally.notes["points that were not reached"] = missed
    return tally


def _counted(
    store: str, target: Target, senders: Senders, ledger: Ledger, fault: str, errors: Path | None
) -> Tally:
    """A last start, which nothing kills: all that is still on its way arrives, and is counted."""
    with running(store, errors=errors) as collector:
        target.set(collector.otlp_http, collector.otlp_grpc)
        senders.finish()
        collector.flush(600)
        with contextlib.closing(collector.client()) as client:
            return ledger.compare(client, fault)


def _pause(seconds: float) -> None:
    threading.Event().wait(seconds)
