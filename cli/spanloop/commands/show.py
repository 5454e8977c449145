"""`spanloop show`: one episode of a dataset, readable in a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import click

from spanloop.options import echo_json, example, json_option

_COLOURS = {"system": "bright_black", "user": "cyan", "assistant": "green", "tool": "yellow"}


@click.command(
    epilog=example("""
        spanloop show --dataset datasets/today --first
        spanloop show 4b9dc357 --dataset datasets/today
    """)
)
@click.argument("episode_id", required=False)
@click.option(
    "--dataset",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that `build` wrote.",
)
@click.option("--first", is_flag=True, help="The first episode instead of one at random.")
@json_option
def command(episode_id: str | None, dataset: Path, first: bool, as_json: bool) -> None:
    """Print one episode: messages, tool calls, rewards, versions. EPISODE_ID may be a prefix; without it, any one."""
    import random

    import polars as pl

    from spanloop_trainer.errors import DatasetError
    from spanloop_trainer.transform import load_dataset

    manifest, frame = load_dataset(dataset)
    ids = frame["episode_id"].unique(maintain_order=True).to_list()
    if not ids:
        raise DatasetError(f"{dataset} has no episodes", f"spanloop build --out {dataset}")
    if episode_id is None:
        # Which one does not matter to anybody's safety.
        episode_id = ids[0] if first else random.choice(ids)  # noqa: S311
    found = [episode_id] if episode_id in ids else [known for known in ids if known.startswith(episode_id)]
    if len(found) != 1:
        what = f"{len(found)} episodes begin" if found else "no episode begins"
        raise DatasetError(
            f"{what} with {episode_id!r} in {dataset} ({len(ids)} episodes)",
            f"one of: {', '.join((found or ids)[:3])}" if ids else "",
        )
    steps = frame.filter(pl.col("episode_id") == found[0]).to_dicts()
    if as_json:
        echo_json([_decoded(step) for step in steps])
        return
    _print_episode(steps, manifest.id)


def _decoded(step: dict[str, Any]) -> dict[str, Any]:
    for name in ("state", "tools", "action", "observation"):
        step[name] = json.loads(step[name]) if step[name] else None
    return step


def _print_message(message: dict[str, Any]) -> None:
    role = message["role"]
    label = click.style(f"{role:>9} ", fg=_COLOURS.get(role, "white"), bold=True)
    if message.get("reasoning_content"):
        _print_lines(label, click.style(message["reasoning_content"], dim=True))
    content = message.get("content")
    if content:
        _print_lines(label, content if isinstance(content, str) else json.dumps(content, ensure_ascii=False))
    for call in message.get("tool_calls") or []:
        _print_lines(label, f"→ {call['function']['name']}({call['function']['arguments']})")


def _print_lines(label: str, text: str) -> None:
    for number, line in enumerate(text.splitlines() or [""]):
        click.echo((label if number == 0 else " " * 10) + line)


def _print_episode(steps: list[dict[str, Any]], dataset_id: str) -> None:
    head = steps[0]
    click.secho(f"episode {head['episode_id']}", bold=True)
    click.echo(
        f"  task {head['task_id']}  ({head['split']})   agent {head['agent']}   dataset {dataset_id[:16]}"
    )
    click.echo(
        f"  start {head['start']} UTC   steps {head['step'] + 1 if len(steps) == 1 else steps[-1]['step'] + 1}"
    )
    whole = [part for part in head["reward_parts"] if all(part in step["reward_parts"] for step in steps)]
    shown = 0
    for step in steps:
        choice = f", choice {step['choice']}" if step["sampling"]["n"] > 1 else ""
        ids = f", {len(step['completion_ids'])} tokens" if step["completion_ids"] else ""
        click.secho(
            f"── step {step['step']}{choice}  {step['policy_version']}  {step['status']}"
            f"{' (' + step['error_type'] + ')' if step['error_type'] else ''}"
            f"{', ' + step['finish_reason'] if step['finish_reason'] else ''}{ids}  span {step['span_id']}",
            dim=True,
        )
        if ran := _prompt(step["resources"]):
            click.secho(f"  {ran}", dim=True)
        messages = json.loads(step["state"]) if step["state"] else []
        # Earlier messages were printed with the steps before, unless the agent rewrote its history.
        for message in messages[shown:] if shown <= len(messages) else messages:
            _print_message(message)
        shown = len(messages)
        if step["action"]:
            _print_message(json.loads(step["action"]))
            shown += step["next_span_id"] is not None
    click.secho("── reward", dim=True)
    for part in whole:
        _print_part(part)
    for step in steps:
        for part in step["reward_parts"]:
            if part not in whole:
                _print_part(part, f"   step {step['step']}")
    scored = [step for step in steps if step["reward"] is not None]
    if not scored:
        click.echo("  unscored")
        return
    # Of one episode: its reward is the mean over its scored calls; some methods of credit tell its steps apart.
    found = sorted({step["advantage"] for step in steps if step["advantage"] is not None})
    advantage = " to ".join(f"{value:.4f}" for value in found[:1] + found[1:][-1:]) or "none"
    click.echo(f"  reward {fmean(step['reward'] for step in scored):g}   advantage {advantage}")


def _print_part(part: dict[str, Any], where: str = "") -> None:
    version = f"@{part['version']}" if part["version"] else ""
    click.echo(f"  {part['name']} = {part['value']:g}   {part['source']} {part['evaluator']}{version}{where}")


def _prompt(resources: list[str]) -> str:
    """Which version of its prompt a call ran with; empty where no version is known, only a hash."""
    known = [name for name in resources if "@" in name]
    ran = ", ".join(name for name in known if name.startswith("prompt:")).replace("prompt:", "prompt ")
    sent = ", ".join(name.removeprefix("requested:") for name in known if name.startswith("requested:"))
    return f"{ran}, where the agent sent {sent}" if sent else ran
