"""Runs the faults one after the other and prints their table; what a run found is kept, so that a long one may be split.

`python -m bench faults` does each once, in a few minutes. The large run, which docs/measurements/faults.md shows:

    python -m bench.faults --kills 1000 --large --tally faults.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from bench.faults.agent import agents_die
from bench.faults.kills import kills_at_points, random_kills
from bench.faults.ledger import Tally
from bench.faults.scenarios import LARGE_SIZE, SCENARIOS, SMALL_SIZE, Scenario, Size, Skipped
from bench.faults.stopping import POINTS

_KILLS_A_STORE = 25  # the store grows with every kill; a new one keeps the restarts short
_COLUMNS = ("fault", "times", "sent", "acknowledged", "found", "lost", "doubled", "also")
_AGENT_FAULTS = ("SIGKILL", "SIGTERM", "exit", "fork")


def main(arguments: list[str]) -> int:
    """Runs what is asked for and prints the table; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.faults",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )
    parser.add_argument("--kills", type=int, default=10, help="of the collector, at random moments")
    parser.add_argument("--rounds", type=int, default=None, help="over all named points; agents of each end")
    parser.add_argument("--large", action="store_true", help="outages of minutes, thousands of requests")
    parser.add_argument(
        "--only", action="append", help="kills, points, agents, or a scenario; may be repeated"
    )
    parser.add_argument("--tally", type=Path, help="file to go on from and to keep the counts in")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="keep the folders of clean runs too")
    given = parser.parse_args(arguments)
    rounds = given.rounds or (10 if given.large else 1)
    tallies = _load(given.tally)
    began = time.monotonic()
    for name, part in _plan(given.kills, rounds, given.large, given.only, given.seed, tallies):
        folder = Path(tempfile.mkdtemp(prefix="faults-"))
        print(f"{name} …", file=sys.stderr, flush=True)
        try:
            tally = part(folder)
        except Skipped as reason:
            print(f"{name} is left out: {reason}", file=sys.stderr)
            shutil.rmtree(folder, ignore_errors=True)
            continue
        if not tally.clean:
            print(f"BROKEN: {tally}; everything is kept in {folder}", file=sys.stderr, flush=True)
        elif not given.keep:
            shutil.rmtree(folder, ignore_errors=True)
        if tally.fault in tallies:
            tallies[tally.fault].add(tally)
        else:
            tallies[tally.fault] = tally
        _save(given.tally, tallies)
    print(table(tallies.values()))
    system = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    print(f"\n{system}; this run took {time.monotonic() - began:.0f} s")
    return int(not all(tally.clean for tally in tallies.values()))


def _plan(
    kills: int, rounds: int, large: bool, only: list[str] | None, seed: int, done: dict[str, Tally]
) -> Iterator[tuple[str, Callable[[Path], Tally]]]:
    """What is still to do, in parts that each keep their count."""

    def wanted(name: str) -> bool:
        return only is None or name in only

    known = {"kills", "points", "agents", *SCENARIOS}
    if unknown := set(only or ()) - known:
        raise SystemExit(
            f"no such fault: {', '.join(sorted(unknown))}; there are: {', '.join(sorted(known))}"
        )
    if wanted("kills"):
        before = next((tally.faults for name, tally in done.items() if "random" in name), 0)
        while before < kills:
            count = min(_KILLS_A_STORE, kills - before)
            part = partial(_kills, count, seed * 100_003 + before)
            yield f"{before + count} of {kills} kills", part
            before += count
    if wanted("points"):
        before = next((tally.faults for name, tally in done.items() if "two steps" in name), 0)
        for turn in range(before // len(POINTS), rounds):
            yield f"round {turn + 1} of {rounds} over {len(POINTS)} points", _points
    if wanted("agents"):
        for fault in _AGENT_FAULTS:
            for away in (False, True):
                part = partial(agents_die, fault=fault, times=rounds, away=away, seed=seed)
                yield f"agents: {fault}{', collector away' if away else ''}", part
    for name, scenario in SCENARIOS.items():
        if wanted(name):
            size = LARGE_SIZE if large else SMALL_SIZE
            yield name, partial(_scenario, scenario, size)


def _kills(count: int, seed: int, folder: Path) -> Tally:
    return random_kills(folder / "store", count, seed, errors=folder / "collector.err")


def _points(folder: Path) -> Tally:
    return kills_at_points(folder / "store", list(POINTS), errors=folder / "collector.err")


def _scenario(scenario: Scenario, size: Size, folder: Path) -> Tally:
    return scenario(folder / "store", size)


def table(tallies: Iterable[Tally]) -> str:
    """Markdown; all counts but the second are spans."""
    lines = [f"| {' | '.join(_COLUMNS)} |", "|" + "---|" * len(_COLUMNS)]
    for tally in tallies:
        also = ", ".join(f"{count:,} {name}" for name, count in tally.notes.items())
        also += f", {tally.foreign} FOREIGN" if tally.foreign else ""
        also += f", {tally.unlisted} UNLISTED" if tally.unlisted else ""
        counts = (
            tally.faults,
            tally.sent,
            tally.acknowledged,
            tally.found,
            tally.lost,
            tally.doubled,
        )
        lines.append(f"| {tally.fault} | {' | '.join(f'{count:,}' for count in counts)} | {also} |")
    return "\n".join(lines)


def _load(path: Path | None) -> dict[str, Tally]:
    if path is None or not path.exists():
        return {}
    return {name: Tally(**fields) for name, fields in json.loads(path.read_text()).items()}


def _save(path: Path | None, tallies: dict[str, Tally]) -> None:
    if path is None:
        return
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps({name: asdict(tally) for name, tally in tallies.items()}, indent=1))
    temporary.replace(path)
