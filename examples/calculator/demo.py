"""The main job in one command: two unmodified agents become better on tasks that they have not seen.

    python examples/calculator/demo.py            (or: make demo)

Starts `spanloop up`, runs yesterday's agents, trains a base from their traces, improves it over a few nights, proves
the gain on held-out tasks, and promotes the winner. Everything that it starts is stopped at the end.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

# Before torch is imported anywhere: two threads on two busy cores run many times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Everything here is on this machine: no library may ask a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from learning import IMITATION, MODEL, Loop
from plan import DEMO, SMALL
from processes import DemoError, terminated_as_interrupt

from spanloop_store.errors import SpanloopError

LEAST_ENGINE_SHARE = 0.99  # of the spans must be decoded by the engine itself


def main() -> int:
    """Run the demo; the exit status is 0 only if every promise of it was kept."""
    parser = argparse.ArgumentParser(description="Two unmodified agents, their traces, and a better model.")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="replaced if it is an earlier run"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="every part, as little as possible of it")
    parser.add_argument(
        "--shuffle-rewards", action="store_true", help="control: permute rewards before training"
    )
    parser.add_argument(
        "--base", type=Path, metavar="DIR", help="start from this base model instead of making one"
    )
    options = parser.parse_args()
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {line}", flush=True)

    loop = Loop(
        out=options.out,
        plan=SMALL if options.small else DEMO,
        seed=options.seed,
        say=say,
        shuffle_rewards=options.shuffle_rewards,
        base_from=options.base,
    )
    try:
        with terminated_as_interrupt(), loop.processes:
            return run(loop, started)
    except KeyboardInterrupt:
        print("\nstopped; everything that was started is stopped too", file=sys.stderr)
        return 130
    except SpanloopError as error:
        print(f"\nerror: {error.message}\nnext:  {error.hint}\nlogs:  {loop.processes.logs}", file=sys.stderr)
        return 1


def run(loop: Loop, started: float) -> int:
    """All stages. The policy server and the agents use one core, training the other, side by side where they can."""
    plan = loop.plan
    with loop.stage("start: spanloop up, scripted policy, task files"):
        loop.start()
    if loop.base_from is None:
        with loop.stage(f"yesterday: {sum(plan.yesterday.values()):,} episodes under the scripted policy"):
            loop.yesterday(loop.agents("yesterday", "yesterday"))
    with loop.stage("base: build, train from fresh weights by SFT, serve, point candidate at it"):
        loop.serve()
        waiting = loop.agents("night1", f"{MODEL}@candidate")
        baseline = loop.agents("held-out-base", f"{MODEL}@1")
        loop.base()
    nights_since = evaluation_since = datetime.now(UTC)
    for number in range(1, plan.nights + 1):
        with loop.stage(
            f"night {number}: {sum(plan.night.values()):,} episodes, build, train by {plan.algorithm}"
        ):

            def meanwhile(number: int = number) -> None:
                # The base meets the held-out tasks while the first night trains: it is not changed by that.
                if number == 1:
                    baseline.feed(loop.files["test"])

            loop.night(number, waiting, meanwhile)
            following = f"night{number + 1}" if number < plan.nights else "held-out-final"
            waiting = loop.agents(following, f"{MODEL}@candidate")
    with loop.stage("proof: held-out tasks on the final version; SFT on the successes beside it"):
        loop.finish(baseline)
        waiting.feed(loop.files["test"])
        if plan.successes is not None and not loop.shuffle_rewards:
            imitator = loop.agents("held-out-sft", f"{IMITATION}@1")
            loop.imitation(plan.successes, nights_since)
            loop.finish(waiting)
            imitator.feed(loop.files["test"])
            waiting = imitator
        loop.finish(waiting)
        loop.wait_for_stamps(evaluation_since)
        played = loop.build("held-out", "", since=evaluation_since)

        from proof import against_imitation, judge, result, table

        report, decision = judge(loop, played)
    from spanloop_trainer.report import save_result, write_page

    found = result(loop, played, report, decision, time.monotonic() - started)
    save_result(loop.out, found)
    write_page(found, loop.out / "report.html")
    print("\n" + table(found))
    print("\n" + against_imitation(found))
    print(
        f"best possible {found.best_possible:.3f}; {'promoted' if decision.promoted else 'refused'}: {decision.reason}"
    )
    share = found.engine_share or 0.0
    print(f"decoded by the engine: {share:.2%} of {sum(found.decoders.values()):,} spans")
    print(f"{found.seconds:.0f} s in all; {loop.out / 'result.json'}, {loop.out / 'report.html'}")
    if share < LEAST_ENGINE_SHARE:
        raise DemoError(
            f"only {share:.2%} of the spans were decoded by the engine, less than {LEAST_ENGINE_SHARE:.0%}",
            f"look at table ingest_segments and {loop.processes.logs / 'up.log'}",
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
