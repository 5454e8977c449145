"""The demo's whole learning part for five seeds, each with its control: does it always work, and only with rewards?

    python bench/demo_seeds.py --commit SHA

The seeds are the first five 32-bit words of SHA-256 over the full hash of the commit that froze the settings, so that
nobody could choose them. Each seed is one run of `examples/calculator/demo.py` through the agents; its control starts
from the same base, plays the same tasks, and trains on rewards that were shuffled between episodes. Every run is listed,
failures included. A seed that is finished is not run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spanloop_trainer.evaluation import paired_bootstrap

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "examples" / "calculator" / "demo.py"
SEEDS = 5
LEAST_GAIN_LOW = 0.2  # lower end of the interval of every seed's gain must be above
MOST_CONTROL_HIGH = 0.05  # upper end of the interval of the controls' pooled gain must be under
CONTROL_PAIRS = 2000


@dataclass(frozen=True)
class Outcome:
    """One run: its result, or why there is none."""

    seed: int
    control: bool
    result: dict[str, Any] | None
    failure: str = ""


def seeds_of(commit: str) -> list[int]:
    """The first five 32-bit words of SHA-256 over the commit's hash, big endian."""
    return list(struct.unpack(f">{SEEDS}I", hashlib.sha256(commit.encode()).digest()[: 4 * SEEDS]))


def run(folder: Path, seed: int, *, base: Path | None) -> Outcome:
    """One demo, or its control where a base is given; a finished one is only read."""
    control = base is not None
    command = [sys.executable, str(DEMO), "--seed", str(seed), "--out", str(folder)]
    if base is not None:
        command += ["--shuffle-rewards", "--base", str(base)]
    log = folder.with_suffix(".log")
    attempts = folder.with_suffix(".failures.json")
    earlier: list[str] = json.loads(attempts.read_text()) if attempts.is_file() else []
    if not (folder / "result.json").is_file():
        started = time.monotonic()
        print(f"seed {seed}{' control' if control else ''}: running, log {log}", flush=True)
        with log.open("wb") as output:
            code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
        print(f"seed {seed}{' control' if control else ''}: {time.monotonic() - started:.0f} s", flush=True)
        if code or not (folder / "result.json").is_file():
            lines = log.read_text(errors="replace").strip().splitlines()
            reason = next((line for line in reversed(lines) if "error" in line.lower()), f"status {code}")
            # Kept for good: a run that fails and later succeeds is still listed with its failure.
            attempts.write_text(json.dumps([*earlier, reason]))
            return Outcome(seed, control, None, "; ".join([*earlier, reason]))
    return Outcome(seed, control, json.loads((folder / "result.json").read_text()), "; ".join(earlier))


def pooled_control(controls: list[Outcome]) -> dict[str, float]:
    """Mean gain over all controls' pairs, its interval by bootstrap over tasks, seed by seed apart."""
    differences: list[float] = []
    clusters: dict[tuple[int, str], int] = {}
    members: list[int] = []
    for outcome in controls:
        for pair in outcome.result["pairs"] if outcome.result else []:
            differences.append(pair["final"] - pair["base"])
            members.append(clusters.setdefault((outcome.seed, pair["task_id"]), len(clusters)))
    if not differences:
        return {"pairs": 0, "gain": float("nan"), "low": float("nan"), "high": float("nan")}
    low, high = paired_bootstrap(np.array(differences), np.array(members))
    return {"pairs": len(differences), "gain": float(np.mean(differences)), "low": low, "high": high}


def markdown(commit: str, outcomes: list[Outcome], pooled: dict[str, float]) -> str:
    """The table for the documentation."""
    lines = [
        "# The demo over five seeds",
        "",
        f"Written by `python bench/demo_seeds.py --commit {commit}`. The seeds follow from the hash of the commit that froze the",
        "settings; every run is listed, failures included. Each run goes through the agents, the collector, ClickHouse and the",
        "gateway, as `make demo` does. A control starts from the same base and trains on rewards shuffled between episodes.",
        "",
        "| seed | run | base | final | gain | 95 % interval | unseen wordings | SFT on successes | pairs | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        lines.append(_row(outcome))
    real = [outcome for outcome in outcomes if not outcome.control]
    lows = [o.result["gain_ci95_low"] for o in real if o.result]
    lines += [
        "",
        f"Lowest end of a gain's interval: {min(lows, default=float('nan')):+.3f} (promised: above {LEAST_GAIN_LOW} in all five).",
        f"Controls pooled over {pooled['pairs']:,} pairs: {pooled['gain']:+.3f} [{pooled['low']:+.3f}, {pooled['high']:+.3f}]"
        f" (promised: upper end under {MOST_CONTROL_HIGH}).",
        "",
    ]
    compared = [o.result["final_minus_sft"] for o in real if o.result and "final_minus_sft" in o.result]
    if compared:
        better = sum(part["gain_ci95_low"] > 0 for part in compared)
        worse = sum(part["gain_ci95_high"] < 0 for part in compared)
        mean = float(np.mean([part["gain"] for part in compared]))
        lines += [
            f"Against SFT on the successes of the same nights: {mean:+.3f} on average; the interval is above 0 in {better} and"
            f" below 0 in {worse} of {len(compared)} seeds.",
            "",
        ]
    return "\n".join(lines)


def _row(outcome: Outcome) -> str:
    kind = "control" if outcome.control else "real"
    if outcome.result is None:
        return f"| {outcome.seed} | {kind} | failed: {outcome.failure} | | | | | | | |"
    found = outcome.result
    unseen = found["per_wording"].get("unseen")
    unseen_text = f"{unseen['baseline_mean']:.2f} → {unseen['candidate_mean']:.2f}" if unseen else "–"
    sft = found["sft_on_successes"]
    if outcome.failure:
        kind += f" (failed before: {outcome.failure})"
    return (
        f"| {outcome.seed} | {kind} | {found['base']:.3f} | {found['final']:.3f} | {found['gain']:+.3f}"
        f" | [{found['gain_ci95_low']:+.3f}, {found['gain_ci95_high']:+.3f}] | {unseen_text}"
        f" | {'–' if sft is None else f'{sft:.3f}'} | {len(found['pairs'])} | {found['seconds']:.0f} |"
    )


def main() -> int:
    """Run what is not finished yet, write the tables; the exit status says whether both promises hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--commit", required=True, metavar="SHA", help="full hash of the commit that froze the settings"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "demo_seeds", metavar="DIR")
    parser.add_argument(
        "--table", type=Path, default=ROOT / "docs" / "measurements" / "demo_seeds.md", metavar="FILE"
    )
    parser.add_argument("--first", type=int, default=SEEDS, metavar="N", help="only the first N seeds")
    options = parser.parse_args()
    folder = options.out / options.commit[:12]
    folder.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    for seed in seeds_of(options.commit)[: options.first]:
        real = run(folder / str(seed), seed, base=None)
        base = folder / str(seed) / "models" / "calculator-1"
        if base.is_dir():
            control = run(folder / f"{seed}-control", seed, base=base)
        else:
            control = Outcome(seed, True, None, "no base to start from")
        outcomes += [real, control]
        pooled = pooled_control([outcome for outcome in outcomes if outcome.control])
        text = markdown(options.commit, outcomes, pooled)
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(text, encoding="utf-8")
        rows = [
            {
                "seed": o.seed,
                "control": o.control,
                "failure": o.failure,
                "result": o.result and _numbers(o.result),
            }
            for o in outcomes
        ]
        document = {"commit": options.commit, "runs": rows, "pooled_control": pooled}
        options.table.with_suffix(".json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        print("\n" + text, flush=True)
    complete = all(outcome.result for outcome in outcomes) and len(outcomes) == 2 * SEEDS
    gains = [
        outcome.result["gain_ci95_low"] for outcome in outcomes if outcome.result and not outcome.control
    ]
    kept = complete and min(gains) > LEAST_GAIN_LOW
    quiet = pooled["pairs"] >= CONTROL_PAIRS and pooled["high"] < MOST_CONTROL_HIGH
    print(
        f"all five gains above {LEAST_GAIN_LOW}: {'yes' if kept else 'no'}; control quiet: {'yes' if quiet else 'no'}"
    )
    return 0 if kept and quiet else 1


def _numbers(result: dict[str, Any]) -> dict[str, Any]:
    """What is worth keeping beside the table; pairs and traces stay in the run's own result.json."""
    keys = (
        "gain",
        "gain_ci95_low",
        "gain_ci95_high",
        "tasks",
        "base",
        "final",
        "best_possible",
        "sft_on_successes",
    )
    return {key: result[key] for key in keys} | {
        "seconds": result["seconds"],
        "algorithm": result["algorithm"],
        "per_agent": result["per_agent"],
        "per_wording": result["per_wording"],
        "final_minus_sft": result.get("final_minus_sft"),
    }


if __name__ == "__main__":
    sys.exit(main())
