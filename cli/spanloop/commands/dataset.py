"""`spanloop dataset …`: what a dataset holds, what its build lost, and how two of them differ."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spanloop.options import DEFAULT_STORE, echo_json, example, json_option, store_option

if TYPE_CHECKING:
    import polars as pl

    from spanloop_trainer.transform import Manifest
    from spanloop_trainer.transform.datasets.compare import Difference

_folder = click.Path(file_okay=False, path_type=Path)
limit_option = click.option(
    "--limit", type=click.IntRange(min=1), default=10, show_default=True, help="The most rows of a list."
)


@click.group(
    epilog=example("""
        spanloop dataset show datasets/today
        spanloop dataset lost datasets/today --reason twin
        spanloop dataset diff datasets/yesterday datasets/today
    """)
)
def command() -> None:
    """Show what a dataset holds, what its build lost, and how two of them differ."""


@command.command(
    short_help="Manifest, funnel, splits, first rows.",
    epilog=example("spanloop dataset show datasets/today --limit 3"),
)
@click.argument("folder", metavar="DIR", type=_folder)
@limit_option
@json_option
def show(folder: Path, limit: int, as_json: bool) -> None:
    """Show what a dataset is made of: window, funnel, splits, and its first rows."""
    from spanloop_trainer.transform.datasets.dataset import open_dataset

    manifest, rows = open_dataset(folder)
    names = ["episode_id", "step", "choice", "status", "reward", "advantage", "split", "task_id", "span_id"]
    first = rows.select(names).head(limit).collect()
    if as_json:
        echo_json({"dataset": str(folder), **asdict(manifest), "rows": first.to_dicts()})
        return
    print_manifest(folder, manifest)
    click.echo()
    _print_table(first)


@command.command(
    short_help="Rows that the build lost for a reason.",
    epilog=example("""
        spanloop dataset lost datasets/today
        spanloop dataset lost datasets/today --reason 2 --limit 100
        spanloop dataset lost datasets/today --reason "near duplicate" --json
    """),
)
@click.argument("folder", metavar="DIR", type=_folder)
@click.option(
    "--reason", help="Its number in the funnel, or words of it. Without: the reasons with their numbers."
)
@limit_option
@store_option
@json_option
def lost(folder: Path, reason: str | None, limit: int, store: str, as_json: bool) -> None:
    """Show spans that the build lost for a reason; the store is asked for spans that no build reads."""
    from spanloop_store import connect
    from spanloop_trainer.transform.datasets.dataset import read_manifest
    from spanloop_trainer.transform.datasets.lost import find_reason, lost_rows

    manifest = read_manifest(folder)
    counts: dict[str, int] = manifest.counts.get("lost", {})
    if reason is None:
        if as_json:
            echo_json(counts)
        else:
            print_lost(folder, counts, store)
        return
    found = find_reason(manifest, reason)
    opened: list[Any] = []

    def open_store() -> Any:
        opened.append(connect(store, make=False))
        return opened[0]

    try:
        rows = lost_rows(folder, found, limit, open_store)
    finally:
        for client in opened:
            client.close()
    if as_json:
        echo_json({"reason": found, "lost": counts[found], "rows": rows.drop("reason").to_dicts()})
        return
    click.echo(f"{found}: {counts[found]:,}, of which {rows.height:,} are shown")
    _print_table(rows.drop("reason"))


@command.command(
    short_help="What changed between two datasets.",
    epilog=example("""
        spanloop dataset diff datasets/yesterday datasets/today
        spanloop dataset diff datasets/yesterday datasets/today --json
    """),
)
@click.argument("before", metavar="A", type=_folder)
@click.argument("after", metavar="B", type=_folder)
@limit_option
@json_option
def diff(before: Path, after: Path, limit: int, as_json: bool) -> None:
    """Show rows added, removed and changed from A to B, by column, and rewards with their difference."""
    from spanloop_trainer.transform.datasets.compare import compare

    found = compare(before, after)
    if as_json:
        echo_json(found.as_dict())
    else:
        _print_difference(found, limit)


def print_manifest(folder: Path, manifest: Manifest, store: str = "") -> None:
    """The funnel and all that the manifest says; `store`: of the build, where it is known."""
    counts = {
        name.replace("_", " "): number for name, number in manifest.counts.items() if isinstance(number, int)
    }
    width = max(map(len, counts), default=0)
    click.echo(
        f"dataset {manifest.id[:16]}  →  {folder}"
        + (f"  (from {manifest.parent[:16]})" if manifest.parent else "")
    )
    for name, number in counts.items():
        click.echo(f"  {name:<{width}}  {number:>9,}")
    print_lost(folder, manifest.counts.get("lost", {}), store)
    for reason, examples in manifest.counts.get("examples", {}).items():
        click.echo(f"{reason}, for example")
        for one in examples:
            where = f"{one['file']}:{one['line']}  “{one['words']}”  " if "words" in one else ""
            step = f", step {one['step']}" if "step" in one else ""
            why = f": {one['detail']}" if one.get("detail") else ""
            click.echo(f"  {where}episode {one['episode_id']}{step}{why}")
    splits = ", ".join(f"{split} {episodes:,}" for split, episodes in manifest.splits.items())
    click.echo(f"episodes by split: {splits}; credit: {manifest.credit}")


def print_lost(folder: Path, lost: dict[str, int], store: str = "") -> None:
    """Every loss with its reason and its number, and the command that shows those rows."""
    if not lost:
        return
    width = max(map(len, lost))
    # Spans that no build reads are looked up in the store; a URL with a password is not for a terminal.
    asked = store not in ("", os.environ.get("SPANLOOP_STORE", DEFAULT_STORE))
    given = f" --store {'URL' if '@' in store else shlex.quote(store)}" if asked else ""
    command = f"spanloop dataset lost {shlex.quote(str(folder))} --reason NUMBER{given}"
    click.echo(f"lost or set apart (which: {command})")
    for number, (reason, count) in enumerate(lost.items(), 1):
        click.echo(f"  {number:>2}  {reason:<{width}}  {count:>9,}")


def _print_table(rows: pl.DataFrame) -> None:
    """Columns as wide as their longest value; without those in which nothing stands."""
    shown = rows.select(name for name in rows.columns if rows[name].null_count() < rows.height)
    texts = [[_text(value) for value in row] for row in shown.iter_rows()]
    widths = [max(map(len, column)) for column in zip(shown.columns, *texts, strict=True)]
    for row in [shown.columns, *texts]:
        click.echo("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip())


def _text(value: object) -> str:
    if value is None:
        return "–"
    text = (
        f"{value:.4g}"
        if isinstance(value, float)
        else ", ".join(map(str, value))
        if isinstance(value, list)
        else str(value)
    )
    return text if len(text) <= 80 else text[:79] + "…"


def _print_difference(found: Difference, limit: int) -> None:
    related = " (its parent)" if found.b.parent == found.a.id else ""
    click.echo(f"{found.a.id[:16]}{related} → {found.b.id[:16]}")
    if found.a.id == found.b.id:
        click.echo("the same dataset")
        return
    if found.a.config_hash != found.b.config_hash:
        click.echo("the configuration changed")
    click.echo(
        f"rows: {found.added.height:,} added, {found.removed.height:,} removed, {found.changed.height:,} changed, "
        f"{found.same:,} the same"
    )
    for name, number in found.columns.items():
        click.echo(f"  {name:<18}{number:>9,}")
    for title, frame in (("added", found.added), ("removed", found.removed), ("rewards", found.rewards)):
        if not frame.height:
            continue
        more = f", the first {limit}" if frame.height > limit else ""
        click.secho(f"{title}: {frame.height:,}{more}", bold=True)
        table = frame.head(limit)
        if title == "rewards":
            table = table.with_columns(change=table["after"] - table["before"])
        _print_table(table)
