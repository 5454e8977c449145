"""`spanloop serve`: a policy server for small models."""

from __future__ import annotations

import click

from spanloop.options import echo_json, example, json_option, store_option


@click.command(
    "serve",
    epilog=example("spanloop serve assistant@3 --port 8000\nspanloop serve tiny=./out/model --port 8000"),
)
@click.argument("refs", nargs=-1, metavar="[NAME@VERSION | NAME=DIR]…")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Anything but loopback needs SPANLOOP_TOKEN."
)
@click.option("--port", default=8000, show_default=True, help="0 takes a free port.")
@click.option("--threads", default=1, show_default=True, help="Threads of one model step.")
@store_option
@json_option
def command(refs: tuple[str, ...], host: str, port: int, threads: int, store: str, as_json: bool) -> None:
    """Serve small models over the OpenAI protocol, with token ids and log-probabilities.

    What is named here is loaded at start; any other NAME@VERSION of the registry when a request first asks for it.
    """
    import asyncio

    from spanloop_trainer.serve.server import serve

    def ready(url: str, versions: list[str]) -> None:
        if as_json:
            echo_json({"url": url, "models": versions})
        else:
            click.echo(f"serving {', '.join(versions) or 'the registry'} on {url}")

    asyncio.run(serve(list(refs), store=store, host=host, port=port, threads=threads, ready=ready))
