"""The `spanloop` command: finds a subcommand's module by name and loads it only when it is used."""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys

import click

# name → one line for `spanloop --help`, so that listing the commands imports none of them.
COMMANDS = {
    "up": "Start receivers, embedded store, ClickHouse endpoint and gateway.",
    "doctor": "Check this environment and print the fix for each problem.",
    "import": "Take OTLP from files, through the receiver's own path.",
    "feedback": "Take judgements from files: CSV, JSON lines, Parquet.",
    "build": "Turn traces into a dataset of transitions.",
    "dataset": "Show a dataset, what its build lost, how two of them differ.",
    "explain": "Tell how the row of a span came to be, or why there is none.",
    "export": "Write a dataset's rows as OpenAI, TRL, verl, ShareGPT or plain episodes.",
    "train": "Train a model on a dataset.",
    "serve": "Serve small models over the OpenAI protocol, with token ids.",
    "evaluate": "Compare two model versions on held-out tasks.",
    "promote": "Move an alias to a version that won its evaluation.",
    "prompt": "Show system prompts, write better ones, have the gateway send them.",
    "status": "Show store, model versions, aliases, the last datasets and runs.",
    "erase": "Take a trace, session or user out, everywhere, saying where it was.",
    "audit": "Show who erased, exported, promoted or used the admin token.",
    "store": "Look after the store: back up, restore, retention, cluster schema.",
    "report": "Write one self-contained HTML page of a run.",
    "show": "Print one episode: messages, tool calls, rewards.",
}
# What else a command needs to be installed; the others run on the base install.
EXTRAS = {"up": "collector", "import": "collector", "feedback": "collector", "erase": "collector"}
EXTRAS |= dict.fromkeys(
    ("build", "dataset", "explain", "export", "train", "serve", "evaluate", "report", "show"), "trainer"
)


class LazyGroup(click.Group):
    """Loads `spanloop.commands.<name>` on use: importing torch must not be the price of `spanloop --help`."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click calls it with one
        """Names, in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # as above
        """Import the command's module; None for a name that is no command."""
        if cmd_name not in COMMANDS:
            return None
        # `import` is a keyword, so its module carries a trailing underscore.
        suffix = "_" if cmd_name == "import" else ""
        module = importlib.import_module(f"spanloop.commands.{cmd_name}{suffix}")
        command = module.command
        assert isinstance(command, click.Command), f"{module.__name__}.command must be a click command"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # as above
        """The list in --help, from COMMANDS: click would import every command for its one line."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="spanloop")
def cli() -> None:
    """Turn the OpenTelemetry traces of unmodified LLM agents into a better model."""


def main() -> None:
    """Entry point: one clear message and exit status 1 for every failure that we foresee."""
    from spanloop_store.errors import SpanloopError

    # They warn of what they then raise; one failure is one message here.
    logging.getLogger("clickhouse_connect").setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    # A terminal, or a file behind `>`, that has no arrow shows a question mark in its place.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    try:
        cli()
    except SpanloopError as error:
        click.secho(f"error: {error.message}", err=True, fg="red")
        if error.hint:
            click.echo(f"next:  {error.hint}", err=True)
        sys.exit(1)
    except ModuleNotFoundError as error:
        name = next((word for word in sys.argv[1:] if word in COMMANDS), "")
        if name not in EXTRAS or (error.name or "").startswith("spanloop"):
            raise
        click.secho(
            f"error: spanloop {name} needs {error.name}, which is not installed here", err=True, fg="red"
        )
        click.echo(f"next:  pip install 'spanloop[{EXTRAS[name]}]'", err=True)
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that is not ours: foreseen in general, if not in place
        click.secho(f"error: {error}", err=True, fg="red")
        click.echo("next:  check the space and the rights there, then run the command again", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
