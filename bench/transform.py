"""Transform: spans to transitions, from memory and from the store, against the number of spans and beside Agent Lightning's adapter.

    python -m bench transform [--peer ENV] [--sizes N …] [--large N … [--shards N]] [--write docs/measurements/transform.md]

`--peer` names a virtual environment with `agentlightning==0.3.0`; it is made there if it is not. `--large` builds from stores of so
many spans as well (`--large 3000000 10000008` takes about ten minutes) and says what memory each stage of it took; `--sizes` without
numbers and no `--peer`: that alone. Spans: see `bench/transform_spans.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from bench.transform_spans import fill, fill_trace  # noqa: E402
from spanloop_store import Engine  # noqa: E402
from spanloop_trainer.config import Config  # noqa: E402
from spanloop_trainer.config.rewards import RewardRule  # noqa: E402

SIZES = (62_496, 250_008, 1_000_008)
CONFIG = Config(rewards=(RewardRule(name="done", expression="CASE WHEN steps = 3 THEN 1.0 ELSE 0.0 END"),))
TRACE_SPANS = 10_000
TRACES, TRACES_SPANS = 500, 21
PEER = "agentlightning==0.3.0"
PEER_LIMIT_S = 120.0
BUDGET_TRACE_S, BUDGET_MEMORY, BUDGET_DISK = 0.2, 200_000, 80_000
Row = tuple[str, ...]


def best(runs: int, work: Callable[[], object]) -> tuple[float, float]:
    """Seconds and CPU seconds of the fastest run."""
    found = []
    for _ in range(runs):
        began, cpu = time.perf_counter(), time.process_time()
        work()
        found.append((time.perf_counter() - began, time.process_time() - cpu))
    return min(found)


class Arrow:
    """What the projected queries return for a whole store, as Arrow tables in memory."""

    def __init__(self, client: Any) -> None:
        from spanloop_trainer.transform.reading.read import Window, read_rewards, read_spans

        # The first read opens the store's files.
        self.read = best(2, lambda: read_spans(client, Window()))
        spans = read_spans(client, Window())
        self.tables = [frame.to_arrow() for frame in (spans.calls, spans.gateway, spans.ancestors)]
        self.counts, self.rewards = spans.counts, read_rewards(client)

    def transform(self) -> int:
        """To rows of the contract, in memory; their number."""
        import polars as pl

        from spanloop_trainer.transform import transform
        from spanloop_trainer.transform.episodes.tasks import read_tasks
        from spanloop_trainer.transform.funnel import Funnel
        from spanloop_trainer.transform.reading.read import Spans

        calls, gateway, ancestors = (pl.DataFrame(table) for table in self.tables)
        spans = Spans(calls, gateway, ancestors, self.counts)
        made = transform(spans, self.rewards, read_tasks(CONFIG), CONFIG, funnel=Funnel())
        return sum(frame.height for frame in made.frames())


# --- children: each measures one thing in a process of its own, and prints a line of JSON


def child(arguments: list[str]) -> dict[str, Any]:
    what, store, *rest = arguments
    with Engine(store) as engine:
        found = _CHILDREN[what](engine.client(), *rest)
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10, **found}


class Stages:
    """What a build says of its progress, as a table: for each stage seconds, CPU seconds and the most memory held."""

    def __init__(self) -> None:
        self.rows: dict[str, list[float]] = {}
        self._at = ("opening", time.perf_counter(), time.process_time())

    def __call__(self, line: str) -> None:
        name, began, cpu = self._at
        status = Path("/proc/self/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0]) << 10
        row = self.rows.setdefault(name, [0.0, 0.0, 0.0])
        row[0] += time.perf_counter() - began
        row[1] += time.process_time() - cpu
        row[2] = max(row[2], peak)
        # From here on the most that is held is counted anew.
        Path("/proc/self/clear_refs").write_text("5")
        self._at = (re.split(r",? ?[0-9]", line)[0], time.perf_counter(), time.process_time())

    def found(self) -> dict[str, Any]:
        """Of all stages; `peak`, since the process's own is forgotten in between."""
        self("end")
        return {"stages": list(self.rows.items()), "peak": max(row[2] for row in self.rows.values())}


def _memory(client: Any, runs: str) -> dict[str, Any]:
    arrow = Arrow(client)
    seconds, cpu = best(int(runs), arrow.transform)
    return {
        "seconds": seconds,
        "cpu": cpu,
        "read": arrow.read,
        "rows": arrow.transform() if int(runs) > 2 else None,
    }


def _disk(client: Any, out: str, runs: str) -> dict[str, Any]:
    from spanloop_trainer.transform import build

    rows: list[int] = []
    seconds, cpu = best(
        int(runs),
        lambda: rows.append(build(client, Path(out), config=CONFIG).counts["transitions"]),
    )
    size = (Path(out) / "transitions.parquet").stat().st_size
    return {"seconds": seconds, "cpu": cpu, "rows": rows[-1], "bytes": size}


def _large(client: Any, out: str) -> dict[str, Any]:
    from spanloop_trainer.transform import build

    stages = Stages()
    seconds, cpu = best(1, lambda: build(client, Path(out), config=CONFIG, progress=stages))
    return {"seconds": seconds, "cpu": cpu, **stages.found()}


def _shard(client: Any, out: str, shard: str, shards: str, until: str) -> dict[str, Any]:
    from spanloop_trainer.transform.build import build_shard

    stages, end = Stages(), datetime.fromtimestamp(float(until), UTC)
    seconds, cpu = best(
        1, lambda: build_shard(client, Path(out), int(shard), int(shards), until=end, progress=stages)
    )
    return {"seconds": seconds, "cpu": cpu, **stages.found()}


def _merge(client: Any, out: str) -> dict[str, Any]:
    from spanloop_trainer.transform import build

    stages = Stages()
    seconds, cpu = best(1, lambda: build(client, Path(out), config=CONFIG, merge=True, progress=stages))
    return {"seconds": seconds, "cpu": cpu, **stages.found()}


_CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {
    "memory": _memory,
    "disk": _disk,
    "large": _large,
    "shard": _shard,
    "merge": _merge,
}


def run_child(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__)), "--child", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# --- one trace, and many small ones, beside the peer


def _ours(shape: str, spans: int, traces: int) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        store = f"chdb://{folder}/store"
        with Engine(store) as engine:
            client = engine.client()
            fill_trace(client, spans, traces, nested=shape == "nested")
        found = run_child("memory", store, 5)
        assert found["rows"] == traces * (spans // 4), found
        disk = run_child("disk", store, f"{folder}/out", 3)
    seconds = found["seconds"]
    verdict = "" if traces > 1 else f"{'reached' if seconds < BUDGET_TRACE_S else '**not reached**'}"
    return (
        f"{seconds:.3f} s",
        f"{found['read'][0] + seconds:.2f} s",
        f"{disk['seconds']:.2f} s",
        verdict,
    )


def _theirs(env: Path, cases: list[str]) -> dict[str, str]:
    """What the peer took by case, in words."""
    python = env / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(env)], check=True)
        subprocess.run([str(env / "bin" / "pip"), "install", "--quiet", PEER], check=True)
    said = dict.fromkeys(cases, f"more than {PEER_LIMIT_S:.0f} s with those above it")
    command = [str(python), str(ROOT / "bench" / "transform_peer.py"), *cases]
    try:
        output = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=PEER_LIMIT_S, check=False
        ).stdout
    except subprocess.TimeoutExpired as late:
        output = late.stdout or b""
    for line in output.decode().splitlines():
        found = json.loads(line)
        said[found["case"]] = found.get("failed") or f"{found['seconds']:.2f} s"
    return said


def traces(env: Path | None) -> str:
    shapes = [
        ("nested", TRACES_SPANS, TRACES, f"nested:{TRACES_SPANS}:{TRACES}", f"{TRACES} traces × {TRACES_SPANS} spans"),
        ("nested", TRACE_SPANS, 1, f"nested:{TRACE_SPANS}:1", f"one trace, {TRACE_SPANS:,} spans, each below the one before"),
        ("flat", TRACE_SPANS, 1, f"flat:{TRACE_SPANS}:1", f"one trace, {TRACE_SPANS:,} spans below its root"),
    ]  # fmt: skip
    cases = [shape[3] for shape in shapes]
    deep = f"{cases[1]}:deep"
    theirs = _theirs(env, [cases[0], cases[1], deep, cases[2]]) if env else dict.fromkeys([*cases, deep], "–")
    if theirs[cases[1]] == "RecursionError":
        theirs[cases[1]] = f"RecursionError; with the recursion limit raised {theirs[deep]}"
    rows = [(title, *_ours(shape, spans, count), theirs[case]) for shape, spans, count, case, title in shapes]
    head = (
        "",
        "ours, from Arrow",
        "ours, read too",
        "ours, store to Parquet",
        "budget 0.2 s",
        PEER.replace("==", " "),
    )
    return table([head, *rows])


# --- rates by size


def rates(sizes: list[int]) -> str:
    rows: list[Row] = [
        (
            "spans", "model calls", "projected read", "from Arrow in memory", "spans/s", "store to Parquet", "spans/s",
            "CPU: read, memory, all", "peak of the build", "Parquet",
        )
    ]  # fmt: skip
    if not sizes:
        return ""
    last = (0.0, 0.0)
    for spans in sizes:
        with tempfile.TemporaryDirectory() as folder:
            store = f"chdb://{folder}/store"
            with Engine(store) as engine:
                fill(engine.client(), spans)
            memory = run_child("memory", store, 2)
            disk = run_child("disk", store, f"{folder}/out", 2)
        assert disk["rows"] == spans // 4, disk
        read, cpu_read = memory["read"]
        last = (spans / memory["seconds"], spans / disk["seconds"])
        rows.append(
            (
                f"{spans:,}", f"{disk['rows']:,}", f"{read:.2f} s", f"{memory['seconds']:.2f} s", f"{last[0]:,.0f}",
                f"{disk['seconds']:.2f} s", f"{last[1]:,.0f}",
                f"{cpu_read:.1f}, {memory['cpu']:.1f}, {disk['cpu']:.1f} s", gigabytes(disk["peak"]),
                f"{disk['bytes'] / 1e6:.0f} MB",
            )
        )  # fmt: skip
        print(" | ".join(rows[-1]), flush=True)
    verdicts = [
        f"{name}: {rate:,.0f} spans/s, budget {budget:,} spans/s {'reached' if rate >= budget else '**not reached**'}."
        for name, rate, budget in (
            ("From Arrow in memory", last[0], BUDGET_MEMORY),
            ("From the store to Parquet", last[1], BUDGET_DISK),
        )
    ]
    return table(rows) + "\n" + "\n".join(verdicts) + "\n"


def large(spans: int, shards: int) -> str:
    spans -= spans % 12
    rows: list[Row] = [("what", "seconds", "CPU", "spans/s", "peak")]

    def add(what: str, found: dict[str, Any]) -> None:
        whole = (found["seconds"], found["cpu"], found["peak"])
        for name, (seconds, cpu, peak) in [
            (what, whole),
            *((f"… {name}", row) for name, row in found["stages"]),
        ]:
            rate = "" if name.startswith("…") else f"{spans / seconds:,.0f}"
            rows.append((name, f"{seconds:.1f}", f"{cpu:.1f}", rate, gigabytes(peak)))
            print(" | ".join(rows[-1]), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        store, out = f"chdb://{folder}/store", f"{folder}/out"
        with Engine(store) as engine:
            until = fill(engine.client(), spans).timestamp()
        if shards > 1:
            for shard in range(shards):
                add(f"shard {shard + 1}/{shards}", run_child("shard", store, out, shard, shards, until))
            add("merge", run_child("merge", store, out))
        else:
            add(f"{spans:,} spans, store to Parquet", run_child("large", store, out))
    return table(rows)


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def table(rows: list[Row]) -> str:
    head, *body = rows
    lines = [head, tuple("---" for _ in head), *body]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


_NOTES = """
- **From Arrow in memory**: the tables that the projected queries return (one row a model call, and the skeleton of traces in which calls have
  parents) to rows of the contract in memory. **Store to Parquet**: `build`, everything included: counts, reading, rows on disk, manifest, rule rewards
  written back. Each in a process of its own, the faster of two runs.
- One span in four is a model call, prompts are 550 bytes on average, three calls are an episode; half of them are traces under an agent's span.
- Agent Lightning: `TracerTraceToTriplet` with its defaults, from its own span objects in memory, which hold the same texts; it makes prompts and answers as
  they are, without observations, credit or a file. It goes through the children of a span once for each of them, hence the trace that is wide, and calls itself
  once a level, hence the one that is deep.
- Memory: a window of more than 320 MB of attributes (about a million spans like these) is read in parts, and what was read lies on disk. Calls are put
  together a bin of traces at a time that nothing joins to others (ids, answers, prompts, judgements), texts are looked at a bucket of episodes at a time, and
  credit is given a part of the tasks at a time. A number or two for each trace, call and episode stay in memory: the most of them, and the peak, while it is
  found out what belongs together, about 0.1 GB for each million spans beside half a gigabyte of Python, Polars and the engine. Ten million spans stay under
  the budget of 2 GB, at a third of the speed of a window that is built at once. Filters, and values for credit, look at all calls together: with those,
  memory grows by about 0.6 GB for each million spans. So it does with a group of calls that share an id, a session or a prompt, if it is that large.
- From memory, messages are read on all cores and rows are finished two buckets at a time; putting calls together, a third of the time,
  runs mostly on one core. A trace of 10,000 spans has 2,500 calls: some 600 short queries of Polars take most of its time, whatever the number of calls.
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench transform", description=__doc__)
    parser.add_argument(
        "--peer", type=Path, help="virtual environment of Agent Lightning; made there if it is not"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=list(SIZES), help="numbers of spans, multiples of 12"
    )
    parser.add_argument(
        "--large", type=int, nargs="+", default=[], help="spans of builds whose memory is measured"
    )
    parser.add_argument("--shards", type=int, default=1, help="of the large build")
    parser.add_argument("--write", type=Path, help="a page to write the tables to")
    options = parser.parse_args(arguments or [])
    parts = []
    if options.sizes or options.peer:
        parts = [("Traces", traces(options.peer)), ("Time by number of spans", rates(options.sizes))]
    if options.large:
        parts.append(("Memory", "\n".join(large(spans, options.shards) for spans in options.large)))
    text = "\n".join(f"## {title}\n\n{body}" for title, body in parts)
    print(f"\n{text}")
    if options.write:
        where = f"{os.cpu_count()} cores, Python {platform.python_version()}"
        head = (
            "# Spans to transitions: speed and memory\n\n"
            f"Written by `python -m bench transform --write PAGE`. {where}, load {os.getloadavg()[0]:.1f} at the end.\n\n"
        )
        options.write.write_text(f"{head}{text}\n## How\n{_NOTES}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(sys.argv[2:])))
    else:
        main(sys.argv[1:])
