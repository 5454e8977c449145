"""`spanloop build`: traces to a dataset, with the funnel that says where every span went."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spanloop.options import MOMENT, echo_json, example, json_option, progress_printer, store_option

if TYPE_CHECKING:
    from spanloop_trainer.transform import Manifest


@click.command(
    epilog=example("""
        spanloop build --out datasets/today --since 24h --config spanloop.toml
        spanloop build --out datasets/calculator --agent calculator --json
    """)
)
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the dataset."
)
@click.option(
    "--since", type=MOMENT, help="First span start: ISO 8601 or an age (24h, 7d). Default: the beginning."
)
@click.option("--until", type=MOMENT, help="End of the window, exclusive. Default: now.")
@click.option("--service", "services", multiple=True, help="Only this service.name; repeatable.")
@click.option("--agent", "agents", multiple=True, help="Only this agent; repeatable.")
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Tasks, rewards, credit. Default: ./spanloop.toml if it is there.",
)
@store_option
@json_option
def command(
    out: Path,
    since: datetime | None,
    until: datetime | None,
    services: tuple[str, ...],
    agents: tuple[str, ...],
    config: Path | None,
    store: str,
    as_json: bool,
) -> None:
    """Turn traces into a dataset of transitions (OUT/transitions.parquet, OUT/manifest.json)."""
    from spanloop_store import connect, flush
    from spanloop_trainer.config import load_config
    from spanloop_trainer.transform import build

    if config is None and Path("spanloop.toml").is_file():
        config = Path("spanloop.toml")
    settings = load_config(config)
    # What was acknowledged must be in the dataset.
    flush(store)
    client = connect(store, make=False)
    try:
        manifest = build(
            client, out, config=settings, since=since, until=until, services=services, agents=agents,
            progress=progress_printer(not as_json),
        )  # fmt: skip
    finally:
        client.close()
    if as_json:
        echo_json({"dataset": str(out), **asdict(manifest)})
    else:
        _print(out, manifest)


def _print(out: Path, manifest: Manifest) -> None:
    counts = {name.replace("_", " "): number for name, number in manifest.counts.items() if name != "lost"}
    lost = manifest.counts["lost"]
    width = max(map(len, [*counts, *lost]))
    click.echo(f"dataset {manifest.id[:16]}  →  {out}")
    for name, number in counts.items():
        click.echo(f"  {name:<{width}}  {number:>9,}")
    if lost:
        click.echo("lost or set apart")
        for reason, number in lost.items():
            click.echo(f"  {reason:<{width}}  {number:>9,}")
    splits = ", ".join(f"{split} {episodes:,}" for split, episodes in manifest.splits.items())
    click.echo(f"episodes by split: {splits}; credit: {manifest.credit}")
    decoded = sum(manifest.decoders.values())
    if decoded:
        share = manifest.decoders.get("engine", 0) / decoded
        click.echo(f"decoded by the engine: {share:.2%} of {decoded:,} spans in the store")
    if not manifest.counts["episodes_scored"]:
        click.echo(
            "no episode is scored: add [[rewards]] to spanloop.toml before training with rewards", err=True
        )
