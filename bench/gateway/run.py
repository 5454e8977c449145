"""Latency, first event, requests a second and CPU of model calls: straight to the server, through ours, through LiteLLM's proxy; in turns, in one run."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.gateway import peers, swaps
from bench.gateway.load import Block
from bench.gateway.process import cpu_s, gateway, memory_bytes

CONNECTIONS = (1, 16, 64)
# One request at a time shows what a call costs; many, what the proxy can do.
_ROUNDS, _REQUESTS = 8, {1: 60, 16: 320, 64: 640}
_WARM_UP = 100


@dataclass
class Way:
    """A way to the server, and what was measured on it.

    Args:
        url: base URL.
        pid: of the proxy; None: there is none.
    """

    name: str
    url: str
    pid: int | None
    blocks: dict[tuple[bool, int], list[Block]] = field(default_factory=dict)
    cpu_s: dict[tuple[bool, int], float] = field(default_factory=dict)

    def latencies_ms(self, key: tuple[bool, int], *, first: bool = False) -> list[float]:
        """All of one kind, sorted."""
        blocks = self.blocks[key]
        return sorted(
            1e3 * value for block in blocks for value in (block.first_s if first else block.latencies_s)
        )

    def quiet_ms(self, key: tuple[bool, int], *, first: bool = False) -> float:
        """The median of the block that was disturbed least: on a busy machine the others say how busy it was."""
        blocks = self.blocks[key]
        return min(1e3 * statistics.median(block.first_s if first else block.latencies_s) for block in blocks)

    def a_second(self, key: tuple[bool, int]) -> float:
        """Requests a second: the best block, since the machine has others to serve."""
        return max(len(block.latencies_s) / block.wall_s for block in self.blocks[key])

    def cpu_ms(self, key: tuple[bool, int]) -> float | None:
        """CPU of the proxy a request."""
        if self.pid is None:
            return None
        return 1e3 * self.cpu_s[key] / sum(len(block.latencies_s) for block in self.blocks[key])


def main(arguments: list[str]) -> int:
    """Measures, or swaps; prints tables."""
    parser = argparse.ArgumentParser(prog="python -m bench gateway", description=__doc__)
    parser.add_argument(
        "--swaps", type=int, metavar="N", help="instead: N swaps of an alias under 16 streams"
    )
    parser.add_argument(
        "--peers", type=Path, metavar="DIR", help="where LiteLLM's environment is; without: ours alone"
    )
    parser.add_argument("--install-peers", action="store_true", help="make it there first")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="turns of every way in every setting")
    parser.add_argument("--connections", type=int, nargs="+", default=list(CONNECTIONS))
    given = parser.parse_args(arguments)
    if given.swaps:
        result = swaps.run(given.swaps)
        print(result.table())
        for line in (*result.failures, *result.mixed, *result.wrong_spans, *result.missing_spans)[:10]:
            print(f"    {line}", file=sys.stderr)
        return int(not result.well)
    if given.install_peers:
        if given.peers is None:
            parser.error("--install-peers needs --peers DIR")
        peers.install(given.peers)
    if given.peers is not None and not peers.program(given.peers).exists():
        parser.error(f"LiteLLM is not in {given.peers}: add --install-peers")
    with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
        ways, load = _ways(stack, given.peers, Path(work))
        failed = _measure(ways, load, given.rounds, given.connections)
        print(_tables(ways, given.connections))
        memory = ", ".join(f"{w.name} {memory_bytes(w.pid) / 2**20:.0f} MiB" for w in ways if w.pid)
        print(f"\nMemory afterwards: {memory}. Failed requests: {failed}.")
        print(_about(given.rounds, given.peers))
    return int(failed > 0)


class _Load:
    """The process that asks."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def block(self, url: str, stream: bool, connections: int, requests: int) -> Block:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([url, peers.KEY, stream, connections, requests]) + "\n")
        self._process.stdin.flush()
        return Block(**json.loads(self._process.stdout.readline()))


def _ways(stack: ExitStack, folder: Path | None, work: Path) -> tuple[list[Way], _Load]:
    upstream = stack.enter_context(_python("bench.gateway.upstream"))
    load = stack.enter_context(_python("bench.gateway.load"))
    assert upstream.stdout is not None
    plain, capable = (f"http://127.0.0.1:{port}" for port in json.loads(upstream.stdout.readline()))
    ways = [Way("direct", f"{plain}/v1", None)]
    for name, url in (("ours", plain), ("ours, with token ids", capable)):
        options = ("--upstream", f"{url}/v1", "--otlp", url, "--store", "chdb:///nowhere/store")
        running = stack.enter_context(gateway(*options))
        ways.append(Way(name, f"{running.url}/v1", running.pid))
    if folder is not None:
        running = stack.enter_context(peers.proxy(folder, f"{plain}/v1", work))
        ways.append(Way("LiteLLM", f"{running.url}/v1", running.pid))
    return ways, _Load(load)


@contextmanager
def _python(module: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", module]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def _measure(ways: list[Way], load: _Load, rounds: int, connections: list[int]) -> int:
    """Every way in every setting, one after the other, again and again: what disturbs the machine disturbs all alike."""
    failed = 0
    for way in ways:
        for stream in (False, True):
            load.block(way.url, stream, 4, _WARM_UP)
    for turn in range(rounds):
        for count in connections:
            for stream in (False, True):
                for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
                    before = cpu_s(way.pid) if way.pid else 0.0
                    # The slow one is asked less: its blocks would take minutes.
                    share = (10 if count > 1 else 4) if way.name == "LiteLLM" else 1
                    block = load.block(
                        way.url, stream, count, max(count, _REQUESTS.get(count, 10 * count) // share)
                    )
                    key = (stream, count)
                    way.blocks.setdefault(key, []).append(block)
                    if way.pid:
                        way.cpu_s[key] = way.cpu_s.get(key, 0.0) + cpu_s(way.pid) - before
                    failed += block.failed
    return failed


def _tables(ways: list[Way], connections: list[int]) -> str:
    direct = ways[0]
    lines = []
    for stream in (False, True):
        what = "streams of 51 events" if stream else "whole answers"
        first = " first event, added: quiet | first event, added: median |" if stream else ""
        lines += [
            f"\n{what.capitalize()}, 2 KB of prompt:\n",
            f"| way | connections | median | p99 | added: quiet | added: median | added: p99 |{first} requests a second "
            "| CPU a request |",
            f"|---|---|---|---|---|---|---|{'---|---|' if stream else ''}---|---|",
        ]
        for count in connections:
            key = (stream, count)
            base = direct.latencies_ms(key)
            for way in ways:
                own = way.latencies_ms(key)
                added = [way.quiet_ms(key) - direct.quiet_ms(key)]
                added += [_at(own, q) - _at(base, q) for q in (0.5, 0.99)]
                cells = [way.name, str(count), f"{_at(own, 0.5):.2f} ms", f"{_at(own, 0.99):.2f} ms"]
                cells += [""] * 3 if way is direct else [f"{value:+.2f} ms" for value in added]
                if stream:
                    gaps = [way.quiet_ms(key, first=True) - direct.quiet_ms(key, first=True)]
                    gaps.append(
                        _at(way.latencies_ms(key, first=True), 0.5)
                        - _at(direct.latencies_ms(key, first=True), 0.5)
                    )
                    cells += ["", ""] if way is direct else [f"{gap:+.2f} ms" for gap in gaps]
                cpu = way.cpu_ms(key)
                cells += [f"{way.a_second(key):,.0f}", "" if cpu is None else f"{cpu:.2f} ms"]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _at(values: list[float], share: float) -> float:
    """The value that this share of sorted `values` does not exceed."""
    return (
        statistics.median(values)
        if share == 0.5
        else values[min(len(values) - 1, math.ceil(share * len(values)) - 1)]
    )


def _about(rounds: int, folder: Path | None) -> str:
    peer = f"; LiteLLM {peers.version(folder)}, one worker" if folder else ""
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{rounds} turns; Python {platform.python_version()}, {os.cpu_count()} cores, load {load} at the end{peer}; "
        f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC."
    )
