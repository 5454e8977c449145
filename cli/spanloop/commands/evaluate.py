"""`spanloop evaluate`: two versions on held-out tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from spanloop.options import echo_json, example, json_option, store_option

if TYPE_CHECKING:
    from spanloop_trainer.evaluation import Comparison, EvaluationReport


@click.command(
    "evaluate",
    epilog=example(
        "spanloop evaluate --dataset datasets/night --baseline assistant@1 --candidate assistant@4"
    ),
)
@click.option(
    "--dataset", required=True, type=click.Path(path_type=Path), help="A folder that `build` wrote."
)
@click.option(
    "--baseline", required=True, metavar="NAME@VERSION", help="The version to beat (or NAME@ALIAS)."
)
@click.option(
    "--candidate", required=True, metavar="NAME@VERSION", help="The version to judge (or NAME@ALIAS)."
)
@click.option("--by", default="", metavar="task_FIELD", help="A field of the task files to report apart.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="spanloop.toml that names the task files.  [default: ./spanloop.toml]",
)
@click.option("--seed", default=0, show_default=True, help="Of the bootstrap.")
@store_option
@json_option
def command(
    dataset: Path,
    baseline: str,
    candidate: str,
    by: str,
    config: Path | None,
    seed: int,
    store: str,
    as_json: bool,
) -> None:
    """Compare two model versions on held-out tasks.

    Pairs the test-split episodes of a dataset by agent and task, and prints the mean difference with its 95 %
    bootstrap interval. Unscored episodes are counted, never taken for 0.
    """
    from contextlib import closing
    from dataclasses import asdict

    from spanloop_store import connect, registry
    from spanloop_trainer.config import load_config
    from spanloop_trainer.evaluation import evaluate
    from spanloop_trainer.transform.episodes.tasks import read_tasks

    field = by if by.startswith("task_") or not by else f"task_{by}"
    tasks = read_tasks(load_config(config or Path("spanloop.toml"))) if field else None
    with closing(connect(store, make=False)) as client:
        moving = {entry.alias for entry in registry.aliases(client)}
        versions = [
            registry.resolve(client, ref).id if registry.split_reference(ref)[1] in moving else ref
            for ref in (baseline, candidate)
        ]
        report = evaluate(dataset, *versions, by=field, tasks=tasks, seed=seed, client=client)
    if as_json:
        echo_json(asdict(report))
    else:
        _print(report)


def _print(report: EvaluationReport) -> None:
    click.echo(f"evaluation {report.id}\n  dataset {report.dataset_id}")
    for role, side in (("baseline", report.baseline), ("candidate", report.candidate)):
        left_out = f"{side.unscored} unscored, {side.failed_unscored} failed and unscored, {side.unpaired} pairs unmatched"
        click.echo(f"  {role:<9} {side.version}: {side.episodes} episodes, {side.scored} scored ({left_out})")
    rows = [("all", report.pooled)]
    rows += [(f"agent {name}", part) for name, part in report.per_agent.items()]
    rows += [(f"{report.by} {name}", part) for name, part in report.per_group.items()]
    width = max(len(name) for name, _ in rows)
    click.echo(
        f"\n{'':<{width}}  {'pairs':>6}  {'baseline':>8}  {'candidate':>9}  {'gain':>7}  95 % interval"
    )
    for name, part in rows:
        click.echo(f"{name:<{width}}  {_numbers(part)}")
    for note in report.notes:
        click.echo(f"note: {note}")


def _numbers(part: Comparison) -> str:
    interval = f"[{part.gain_ci95_low:+.3f}, {part.gain_ci95_high:+.3f}]"
    return f"{part.pairs:>6}  {part.baseline_mean:>8.3f}  {part.candidate_mean:>9.3f}  {part.gain:>+7.3f}  {interval}"
