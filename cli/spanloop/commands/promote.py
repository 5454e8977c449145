"""`spanloop promote`: moves an alias, through the gate."""

from __future__ import annotations

import click

from spanloop.options import echo_json, example, json_option, store_option


@click.command(
    "promote",
    epilog=example(
        "spanloop promote assistant@4 --evaluation eval-0123456789abcdef\nspanloop promote assistant@4 --alias candidate"
    ),
)
@click.argument("ref", metavar="NAME@VERSION")
@click.option(
    "--alias",
    type=click.Choice(["production", "candidate"]),
    default="production",
    show_default=True,
    help="The alias to move; candidate needs no evaluation.",
)
@click.option("--evaluation", "evaluation_id", metavar="ID", help="The evaluation that this version won.")
@click.option("--why", default="", help="A sentence for the audit trail.")
@click.option("--who", help="Who decides.  [default: the user of this process]")
@store_option
@json_option
def command(
    ref: str,
    alias: str,
    evaluation_id: str | None,
    why: str,
    who: str | None,
    store: str,
    as_json: bool,
) -> None:
    """Move an alias to a version that won its evaluation.

    Production moves only if the evaluation names this version as candidate, production as baseline, and the whole
    95 % interval of the gain is above 0. Otherwise the rejection is recorded and the exit status is 1.
    """
    from contextlib import closing
    from dataclasses import asdict

    from spanloop_store import connect
    from spanloop_trainer.promotion import promote

    with closing(connect(store, make=False)) as client:
        decision = promote(client, ref, alias, evaluation_id=evaluation_id, who=who, why=why)
    if as_json:
        echo_json(asdict(decision))
        return
    before = f" (was {decision.previous})" if decision.previous else ""
    click.echo(f"{alias} is {decision.version}{before}: {decision.reason}")
