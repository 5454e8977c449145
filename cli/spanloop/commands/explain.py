"""`spanloop explain`: how the row of one span came to be, or why there is none."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spanloop.options import echo_json, example, json_option, load_settings, progress_printer, store_option

if TYPE_CHECKING:
    from spanloop_trainer.transform.explain import Explanation


@click.command(
    epilog=example("""
        spanloop explain 9f3a61c2d4e5b607 --dataset datasets/today
        spanloop explain 4bf92f3577b34da6a3ce929d0e0e4736-9f3a61c2d4e5b607 --json
    """)
)
@click.argument("span_id")
@click.option(
    "--dataset",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that `build` wrote: its window holds, and its row is compared. Without: an hour around the span.",
)
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Tasks, rewards, credit, filters. Default: ./spanloop.toml if it is there.",
)
@store_option
@json_option
def command(span_id: str, dataset: Path | None, config: Path | None, store: str, as_json: bool) -> None:
    """Tell how the row of a span came to be: flavour, twins, episode, task, rewards, credit, filters; or why there is none."""
    from spanloop_store import connect
    from spanloop_trainer.transform.datasets.dataset import read_manifest
    from spanloop_trainer.transform.explain import explain

    settings = load_settings(config)
    other = dataset is not None and read_manifest(dataset).config_hash != settings.content_hash()
    client = connect(store, make=False)
    try:
        found = explain(client, span_id, settings, dataset=dataset, progress=progress_printer(not as_json))
    finally:
        client.close()
    if as_json:
        echo_json({**asdict(found), "config_changed": other})
        return
    if other:
        click.echo("the dataset was built with another configuration (--config names it)", err=True)
    _print(found)


def _print(found: Explanation) -> None:
    span = found.span
    click.secho(f"span {span['span_id']}  trace {span['trace_id']}", bold=True)
    click.echo(f"  {span['name']}, service {span['service']}, {span['start']}")
    click.echo(f"  run again: {found.window}")
    if found.call:
        _section("call", {name: value for name, value in found.call.items() if value not in (None, [], "")})
    for twin in found.merged:
        click.echo(f"  and span {twin['span_id']}: {twin['why']}")
    if found.why_not:
        click.secho("no row", bold=True)
        click.echo(f"  {found.why_not}")
        _print_dataset(found.dataset)
        return
    episode = found.episode
    click.secho(f"episode {episode['episode_id']}", bold=True)
    click.echo(f"  rule {episode['rule']}: {episode['why']}")
    follows = "the last" if episode["done"] else f"next span {episode['next_span_id']}"
    click.echo(
        f"  step {episode['step']} of {episode['steps']} (from 0), agent {episode['agent']}, {follows}"
    )
    if episode["parent_episode_id"]:
        click.echo(f"  called by episode {episode['parent_episode_id']}")
    click.secho(f"task {found.task['task_id']}", bold=True)
    click.echo(f"  {found.task['why']}; split {found.task['split']}")
    for row in found.rows:
        _print_row(row)
    click.secho("filters", bold=True)
    for why in found.filters or ["all kept it"]:
        click.echo(f"  {why}")
    _print_dataset(found.dataset)


def _print_dataset(differences: dict[str, Any] | None) -> None:
    if differences is None:
        return
    click.secho("dataset", bold=True)
    for name, (there, now) in differences.items():
        click.echo(f"  {name}: {there} there, {now} now")
    if not differences:
        click.echo("  its row says the same")


def _print_row(row: dict[str, Any]) -> None:
    answer = f"answer {row['choice']}" if row["status"] == "ok" else "no usable answer"
    click.secho(f"{answer}: {row['status']}" + ("" if row["taken"] else ", not taken"), bold=True)
    for part in row["rewards"]:
        version = f"@{part['version']}" if part["version"] else ""
        how = "computed" if part["by"] == "computed" else f"joined by {part['by']}"
        click.echo(
            f"  {part['name']} = {part['value']:g} × {part['weight']:g}   "
            f"{part['source']} {part['evaluator']}{version}, of the {part['of']}, {how}"
        )
    numbers = ", ".join(
        f"{name.rstrip('_')} {'none' if row[name] is None else format(row[name], '.6g')}"
        for name in ("reward", "return_", "advantage", "weight")
    )
    click.echo(f"  {numbers}")
    for line in row["credit"]:
        click.echo(f"  {line}")


def _section(title: str, values: dict[str, Any]) -> None:
    click.secho(title, bold=True)
    for name, value in values.items():
        shown = ", ".join(map(_shown, value)) if isinstance(value, list) else _shown(value)
        click.echo(f"  {name.replace('_', ' ')}: {shown}")


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(
            f"{name.replace('_', ' ')} {inner}" for name, inner in value.items() if inner is not None
        )
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
