"""`spanloop train`: train a model on a dataset."""

from __future__ import annotations

from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import click

from spanloop.options import echo_json, example, json_option, progress_printer, store_option

EXAMPLE = """
spanloop train --dataset data/monday --model agents@1 --out models/agents-2 --register agents
spanloop train --dataset data/monday --model models/base --out models/sft --algorithm sft --min-reward 1
"""


@click.command("train", epilog=example(EXAMPLE))
@click.option(
    "--dataset", required=True, type=click.Path(path_type=Path), help="Folder that `spanloop build` wrote."
)
@click.option("--model", required=True, help="Start from: a model folder, a hub id, or NAME@VERSION.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the trained model.")
@click.option(
    "--algorithm",
    type=click.Choice(["auto", "sft", "reinforce", "rloo", "grpo"]),
    default="auto",
    show_default=True,
    help="auto takes the strongest that the data carries, and says why.",
)
@click.option("--register", metavar="NAME", help="Register the result as the next version of NAME.")
@click.option("--seed", type=int, default=0, show_default=True, help="Order of rows, and fresh weights.")
@click.option("--learning-rate", type=float, help="Peak rate of AdamW.  [default: the algorithm's]")
@click.option("--epochs", type=float, help="Passes over the data.  [default: the algorithm's]")
@click.option("--batch-size", type=int, help="Sequences an optimizer step.  [default: 64]")
@click.option("--kl-beta", type=float, help="KL penalty to the starting model.  [default: the algorithm's]")
@click.option(
    "--clip-epsilon", type=float, help="Clip ratios to 1 ± this.  [default: 0.5 for reinforce, else 0.2]"
)
@click.option("--max-grad-norm", type=float, default=1.0, show_default=True, help="Longest gradient, L2.")
@click.option("--max-length", type=int, default=4096, show_default=True, help="Longest sequence, tokens.")
@click.option("--min-reward", type=float, help="sft: learn only from transitions with at least this reward.")
@click.option(
    "--merge-turns/--no-merge-turns", default=True, show_default=True, help="Join calls that continue."
)
@click.option(
    "--save-steps", type=int, default=0, show_default=True, help="Checkpoint every N steps; 0: never."
)
@store_option
@json_option
def command(
    dataset: Path,
    model: str,
    out: Path,
    algorithm: str,
    register: str | None,
    seed: int,
    store: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a model on a dataset, by supervised fine-tuning or offline policy gradient.

    The same inputs give the same weights; a result that is already there is not trained again. The store is only
    opened for a registry reference or --register.
    """
    from spanloop_trainer.settings import Settings
    from spanloop_trainer.train import train

    needs_store = register is not None or ("@" in model and not Path(model).expanduser().is_dir())
    with _client(store) if needs_store else nullcontext() as client:
        result = train(
            dataset,
            model,
            out,
            algorithm=algorithm,
            seed=seed,
            settings=Settings(**options),
            client=client,
            register=register,
            progress=progress_printer(),
        )
    if as_json:
        echo_json(result.as_dict())
        return
    click.echo(
        f"{result.algorithm} on {result.rows} transitions of dataset {result.dataset_id[:12]}: {result.reason}"
    )
    click.echo(f"model    {result.out}" + (f"  ({result.version})" if result.version else ""))
    for name, value in result.metrics.items():
        click.echo(f"{name:24}{value:.4g}")


def _client(store: str) -> Any:
    from spanloop_store import connect

    return closing(connect(store, make=False))
