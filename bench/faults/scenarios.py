"""Faults that are no kill: stores that are away, disks that are full, clocks that lie, senders that repeat themselves."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.faults.collector import ROOT, Collector, ready, reap, running, start
from bench.faults.ledger import Ledger, Tally
from bench.faults.load import SMALL, Senders, Shape, Target, flush
from bench.faults.proxy import Line, Proxy

DAY_NS = 86_400 * 10**9


class Skipped(Exception):
    """This machine does not allow the fault; the text says why."""


@dataclass(frozen=True)
class Size:
    """How long a scenario runs.

    Args:
        requests: acknowledged before, during and after the fault, each.
        outage_s: how long a store is away at least.
        disk_mib: of the small disk.
        restarts: how often the collector is killed and starts anew while the clock goes back.
    """

    requests: int
    outage_s: float
    disk_mib: int
    restarts: int = 2


SMALL_SIZE = Size(requests=40, outage_s=0.0, disk_mib=40)
LARGE_SIZE = Size(requests=2000, outage_s=150.0, disk_mib=256)

Scenario = Callable[[Path, Size], Tally]


@contextlib.contextmanager
def _loaded(
    store: str,
    *,
    threads: int = 4,
    shape: Shape = SMALL,
    twice: bool = False,
    options: Sequence[str] = (),
    environment: dict[str, str] | None = None,
    errors: Path | None = None,
) -> Iterator[tuple[Collector, Ledger, Senders, Target]]:
    target, ledger = Target(), Ledger()
    with running(store, options=options, environment=environment, errors=errors) as collector:
        target.set(collector.otlp_http, collector.otlp_grpc)
        with Senders(target, ledger, threads, shape, twice=twice, pause_s=0.002) as senders:
            yield collector, ledger, senders, target


def _count(collector: Collector, ledger: Ledger, fault: str, faults: int = 1) -> Tally:
    collector.flush(600)
    with contextlib.closing(collector.client()) as client:
        tally = ledger.compare(client, fault)
    tally.faults = faults
    return tally


def _wait(ledger: Ledger, requests: int) -> None:
    if not ledger.wait_for(ledger.requests + requests, 300):
        raise RuntimeError(f"{ledger.requests} requests are acknowledged, and no more come")


def refusing_engine(folder: Path, size: Size) -> Tally:
    """The embedded engine says "too many parts" to every insert; the log keeps what is acknowledged meanwhile."""
    with _loaded(f"chdb://{folder}", errors=folder.with_suffix(".err")) as (collector, ledger, senders, _):
        _wait(ledger, size.requests)
        collector.flush()
        with contextlib.closing(collector.client()) as client:
            client.command("ALTER TABLE otel_traces MODIFY SETTING parts_to_throw_insert = 1")
            began = time.monotonic()
            _wait(ledger, size.requests)
            while flush(collector.otlp_http, 1)["status"] != 504 or time.monotonic() - began < size.outage_s:
                _wait(ledger, 1)
            away_s = time.monotonic() - began
            client.command("ALTER TABLE otel_traces RESET SETTING parts_to_throw_insert")
        _wait(ledger, size.requests)
        senders.finish()
        tally = _count(collector, ledger, "embedded store refuses inserts")
    tally.notes["seconds away"] = round(away_s)
    return tally


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.faults.server", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


def server_away(folder: Path, size: Size) -> Tally:
    """The line to a ClickHouse server is cut; before that and after it, answers to inserts are lost on their way."""
    home = folder.with_suffix(".home")
    home.mkdir()
    with _server(folder) as port, Proxy(port) as proxy:
        store = f"clickhouse://default@127.0.0.1:{proxy.port}/default"
        with _loaded(store, environment={"HOME": str(home)}, errors=folder.with_suffix(".err")) as loaded:
            collector, ledger, senders, target = loaded
            _wait(ledger, size.requests)
            _swallow(proxy, 2)
            proxy.set(Line.CUT)
            began = time.monotonic()
            while flush(collector.otlp_http, 1)["status"] != 504 or time.monotonic() - began < size.outage_s:
                _wait(ledger, size.requests // 10)
            # The collector dies as well: its log is all that is left.
            collector.kill()
            target.unset()
            away_s = time.monotonic() - began
            proxy.set(Line.OPEN)
            errors = folder.with_suffix(".err")
            with running(store, environment={"HOME": str(home)}, errors=errors) as second:
                target.set(second.otlp_http, second.otlp_grpc)
                _wait(ledger, size.requests)
                _swallow(proxy, 2)
                proxy.set(Line.OPEN)
                senders.finish()
                tally = _count(second, ledger, "server away, its answers lost, collector killed meanwhile")
    tally.notes |= {"seconds away": round(away_s), "answers lost": proxy.muted}
    return tally


def _swallow(proxy: Proxy, answers: int) -> None:
    before = proxy.muted
    proxy.set(Line.MUTE)
    deadline = time.monotonic() + 120
    while proxy.muted < before + answers and time.monotonic() < deadline:
        threading.Event().wait(0.05)


def full_disk(folder: Path, size: Size) -> Tally:
    """A tmpfs fills up under load to its last byte, refuses, and gets room again."""
    return _disk(folder, size, "full disk", min_free_mib=0)


def short_disk(folder: Path, size: Size) -> Tally:
    """The same with room left for the engine, as the default has it (1 GiB there): refused before the disk is full."""
    return _disk(folder, size, "disk below --min-free", min_free_mib=size.disk_mib // 4)


def _disk(folder: Path, size: Size, fault: str, *, min_free_mib: int) -> Tally:
    disk = folder.with_suffix(".disk")
    disk.mkdir()
    with _mounted(disk, size.disk_mib), contextlib.ExitStack() as stack:
        shape = Shape(spans=8, text_bytes=4000)
        options = ("--min-free", str(min_free_mib << 20))
        errors = folder.with_suffix(".err")
        loaded = _loaded(f"chdb://{disk}/store", shape=shape, options=options, errors=errors)
        collector, ledger, senders, _ = stack.enter_context(loaded)
        _wait(ledger, max(10, size.requests // 10))
        ballast = disk / "ballast"
        _fill(ballast)
        if not ledger.wait_for_refusals(8, 120):
            raise RuntimeError("the full disk refused nothing")
        refused = sum(ledger.refused.values())
        ballast.unlink()
        # No restart, no command: it goes on by itself.
        _wait(ledger, max(20, size.requests // 10))
        senders.finish()
        tally = _count(collector, ledger, fault)
    tally.notes["refused while full"] = refused
    return tally


def _fill(path: Path) -> None:
    with path.open("wb") as file, contextlib.suppress(OSError):
        while True:
            os.write(file.fileno(), bytes(1 << 16))


@contextlib.contextmanager
def _mounted(folder: Path, mib: int) -> Iterator[None]:
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mount.returncode:
        raise Skipped(f"mounting a tmpfs is not allowed here: {mount.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def clock_back(folder: Path, size: Size) -> Tally:
    """The clock goes back an hour at a time, under load and over kills; the spans' own times run backwards too.

    With Debian's `libfaketime` it is the whole process's clock, the engine's included, and it jumps while that runs; without
    it only Python's clock is shifted, from one start to the next.
    """
    store = f"chdb://{folder}"
    errors = folder.with_suffix(".err")
    library = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
    clock = folder.with_suffix(".clock")
    target, ledger = Target(), Ledger()
    jumps = 0
    with Senders(target, ledger, shape=Shape(step_ns=-50_000_000)) as senders:
        last = -3 * size.restarts
        for start_hours in range(0, last - 1, -3):
            if library is None:
                process = start(
                    store, program=("-m", "bench.faults.clock", str(start_hours * 3600)), errors=errors
                )
            else:
                clock.write_text(f"{start_hours:+d}h")
                environment = {
                    "LD_PRELOAD": str(library),
                    "FAKETIME_TIMESTAMP_FILE": str(clock),
                    "FAKETIME_NO_CACHE": "1",
                    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                }
                process = start(store, environment=environment, errors=errors)
            try:
                collector = ready(process, store)
                target.set(collector.otlp_http, collector.otlp_grpc)
                _wait(ledger, size.requests)
                for hours in (start_hours - 1, start_hours - 2) if library is not None else ():
                    clock.write_text(f"{hours:+d}h")
                    jumps += 1
                    _wait(ledger, size.requests)
                if start_hours == last:
                    senders.finish()
                    fault = "clock goes back" if library else "clock goes back (Python's)"
                    return _count(collector, ledger, fault, jumps)
                collector.kill()
                target.unset()
                jumps += 1
            finally:
                reap(process)
    raise AssertionError("unreachable")


def repeated(folder: Path, size: Size) -> Tally:
    """Every request arrives twice, byte for byte, as from a client whose answer was lost."""
    loaded = _loaded(f"chdb://{folder}", twice=True, errors=folder.with_suffix(".err"))
    with loaded as (collector, ledger, senders, _):
        _wait(ledger, size.requests)
        senders.finish()
        return _count(collector, ledger, "every request sent twice", ledger.requests)


def late(folder: Path, size: Size) -> Tally:
    """Newest first, back to twenty days ago: a request a step earlier than the one before."""
    step = 20 * DAY_NS // (size.requests + 1)
    shape = Shape(start_ns=time.time_ns(), step_ns=-step)
    with _loaded(f"chdb://{folder}", shape=shape, errors=folder.with_suffix(".err")) as loaded:
        collector, ledger, senders, _ = loaded
        _wait(ledger, size.requests)
        senders.finish()
        return _count(collector, ledger, "late and out of order, up to 20 days")


def long_prompts(folder: Path, size: Size) -> Tally:
    """100 KB of text a span."""
    return _shaped(folder, size.requests, "prompts of 100 KB", Shape(spans=6, text_bytes=100_000))


def large_batches(folder: Path, size: Size) -> Tally:
    """Requests of 4.2 to 8.4 MiB, over HTTP and gRPC."""
    shape = Shape(spans=220, least_spans=110, text_bytes=40_000, deep_every=7)
    return _shaped(folder, max(4, size.requests // 20), "batches of 4 MiB and more", shape)


def _shaped(folder: Path, requests: int, fault: str, shape: Shape) -> Tally:
    with _loaded(f"chdb://{folder}", shape=shape, errors=folder.with_suffix(".err")) as loaded:
        collector, ledger, senders, _ = loaded
        _wait(ledger, requests)
        senders.finish()
        return _count(collector, ledger, fault, ledger.requests)


SCENARIOS: dict[str, Scenario] = {
    "refusing-engine": refusing_engine,
    "server-away": server_away,
    "full-disk": full_disk,
    "short-disk": short_disk,
    "clock": clock_back,
    "repeated": repeated,
    "late": late,
    "long-prompts": long_prompts,
    "large-batches": large_batches,
}
