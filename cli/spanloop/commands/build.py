"""`spanloop build`: traces to a dataset, with the funnel that says where every span went."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spanloop.commands.dataset import print_manifest
from spanloop.options import (
    MOMENT,
    echo_json,
    example,
    json_option,
    load_settings,
    progress_printer,
    store_option,
)

if TYPE_CHECKING:
    from spanloop_trainer.transform import Manifest


class Shard(click.ParamType[tuple[int, int]]):
    """`I/N`: the I-th of N shards, counted from 1."""

    name = "I/N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Both numbers, or click's usage error."""
        if isinstance(value, tuple):
            return value
        number, slash, of = str(value).partition("/")
        if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            self.fail(f"{value!r} is no shard; write 1/4 for the first of four", param, ctx)
        return int(number), int(of)


@click.command(
    epilog=example("""
        spanloop build --out datasets/today --since 24h --config spanloop.toml
        spanloop build --out datasets/calculator --agent calculator --json
        spanloop build --out datasets/tuesday --since 30d --parent datasets/monday
        spanloop build --out datasets/all --shard 1/4 --until 2026-05-01
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
    "--parent",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Earlier dataset: only what changed since is read. Keeps what was read in OUT/pieces for the next.",
)
@click.option(
    "--shard", type=Shard(), help="I/N: read that part of the traces into OUT, for --merge. Needs --until."
)
@click.option("--merge", is_flag=True, help="Build from the shards in OUT.")
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
    parent: Path | None,
    shard: tuple[int, int] | None,
    merge: bool,
    config: Path | None,
    store: str,
    as_json: bool,
) -> None:
    """Turn traces into a dataset of transitions (OUT/transitions.parquet, OUT/manifest.json)."""
    if since and until and since >= until:
        raise click.UsageError(
            f"--until ({until.isoformat()}) is not after --since ({since.isoformat()}): there is no time between"
        )
    if merge and (shard or since or until or services):
        raise click.UsageError("--merge takes window and services from the shards: leave the others out")
    if shard and agents:
        raise click.UsageError("a shard holds all agents: name them at --merge")
    if shard and until is None:
        raise click.UsageError(
            "--shard needs --until, the same for every shard, or each would end when it is read"
        )
    from spanloop_store import connect, flush
    from spanloop_trainer.transform import build
    from spanloop_trainer.transform.build import build_shard

    settings = load_settings(config)
    # What was acknowledged must be in the dataset.
    flush(store)
    client = connect(store, make=False)
    progress = progress_printer(not as_json)
    try:
        if shard and until:
            number, of = shard
            parts = build_shard(
                client, out, number - 1, of, since=since, until=until, services=services, parent=parent,
                progress=progress,
            )  # fmt: skip
            _print_shard(out, shard, sum(part.header.counts["spans"] for part in parts), as_json)
            return
        manifest = build(
            client, out, config=settings, since=since, until=until, services=services, agents=agents,
            parent=parent, merge=merge, progress=progress,
        )  # fmt: skip
    finally:
        client.close()
    if as_json:
        echo_json({"dataset": str(out), **asdict(manifest)})
    else:
        _print(out, manifest, store)


def _print_shard(out: Path, shard: tuple[int, int], spans: int, as_json: bool) -> None:
    number, of = shard
    if as_json:
        echo_json({"dataset": str(out), "shard": number, "shards": of, "spans": spans})
        return
    click.echo(f"shard {number} of {of}: {spans:,} spans, with their texts  →  {out}/pieces")
    click.echo(f"when all {of} lie there: spanloop build --out {out} --merge")


def _print(out: Path, manifest: Manifest, store: str) -> None:
    print_manifest(out, manifest, store)
    decoded = sum(manifest.decoders.values())
    if decoded:
        share = manifest.decoders.get("engine", 0) / decoded
        click.echo(f"decoded by the engine: {share:.2%} of {decoded:,} spans in the store")
    if not manifest.counts["episodes_scored"]:
        click.echo(
            "no episode is scored: add [[rewards]] to spanloop.toml before training with rewards", err=True
        )
