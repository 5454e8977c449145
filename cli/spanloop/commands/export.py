"""`spanloop export`: a dataset's rows as a file that another trainer reads."""

from __future__ import annotations

from pathlib import Path

import click

from spanloop.options import echo_json, example, json_option, load_settings

_FORMS = ("openai", "trl", "verl", "sharegpt", "episodes")
_KINDS = ("sft", "preference", "unpaired")


@click.command(
    epilog=example("""
        spanloop export datasets/today --to openai --out train.jsonl --split train --min-reward 1
        spanloop export datasets/today --to trl --kind preference --out pairs.jsonl
        spanloop export datasets/today --to episodes --out episodes.parquet
    """)
)
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--to", "form", required=True, type=click.Choice(_FORMS), help="Who reads the file.")
@click.option(
    "--kind",
    type=click.Choice(_KINDS),
    default="sft",
    show_default=True,
    help="openai, trl: single answers, or pairs of which one earned more; trl: single answers that are good or bad.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file: .jsonl; for verl and episodes .parquet.",
)
@click.option("--split", type=click.Choice(("train", "test")), help="Only rows of this split.")
@click.option("--min-reward", type=float, help="Only rows with at least this reward.")
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="spanloop.toml, whose tasks know the right answers (verl). Default: ./spanloop.toml if it is there.",
)
@click.option(
    "--store", envvar="SPANLOOP_STORE", metavar="URL", help="Note the export in this store's audit trail."
)
@json_option
def command(
    folder: Path,
    form: str,
    kind: str,
    out: Path,
    split: str | None,
    min_reward: float | None,
    config: Path | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Write the usable rows of a dataset as one file: OpenAI fine-tuning, TRL, verl, ShareGPT, or plain episodes."""
    from spanloop_store import audit, connect
    from spanloop_trainer.export.rows import Chosen
    from spanloop_trainer.export.write import check_form, export
    from spanloop_trainer.transform.datasets.dataset import read_manifest

    settings = load_settings(config)
    check_form(form, kind, out)
    manifest = read_manifest(folder)
    if store:
        client = connect(store, make=False)
        try:
            details = {
                "dataset": manifest.id,
                "to": form,
                "kind": kind,
                "split": split,
                "min_reward": min_reward,
            }
            audit.record(client, "export", str(out.resolve()), details)
        finally:
            client.close()
    done = export(Chosen(folder, split, min_reward), form, kind, out, settings)
    if as_json:
        echo_json(
            {"out": str(out), "to": form, "kind": kind, "records": done.records, "dataset": manifest.id}
        )
    else:
        click.echo(f"{done.records:,} {'lines' if out.suffix == '.jsonl' else 'rows'}  →  {out}")
