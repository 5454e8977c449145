"""`spanloop up`: receivers, embedded store, ClickHouse endpoint and gateway, until Ctrl-C."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from spanloop.options import DEFAULT_STORE, SIZE, example, json_option, store_option

if TYPE_CHECKING:
    from spanloop_collector.capture import Addresses

_PORT = click.IntRange(0, 65535)
_PEM = click.Path(path_type=Path, dir_okay=False)


@click.command(
    epilog=example(
        """
        spanloop up --upstream https://api.openai.com/v1
        spanloop up --store chdb:///data/spanloop --upstream calculator=http://127.0.0.1:8000/v1 --gateway-port 0
        spanloop up --store clickhouse://user:password@db:8123/agents --log /var/lib/spanloop --max-log 2GiB
        """
    )
)
@store_option
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address of receivers and gateway; all but loopback need SPANLOOP_TOKEN.",
)
@click.option("--otlp-http-port", default=4318, show_default=True, type=_PORT, help="OTLP over HTTP; 0: any.")
@click.option("--otlp-grpc-port", default=4317, show_default=True, type=_PORT, help="OTLP over gRPC; 0: any.")
@click.option(
    "--clickhouse-port", default=8123, show_default=True, type=_PORT, help="The embedded store; 0: any."
)
@click.option("--gateway-port", default=8080, show_default=True, type=_PORT, help="OpenAI protocol; 0: any.")
@click.option(
    "--upstream",
    "upstreams",
    multiple=True,
    metavar="[NAME=]URL",
    help="A model server, with /v1; NAME: for that model only. Repeatable: the same NAME makes a pool.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="spanloop.toml, for its [gateway].  [default: ./spanloop.toml if it is there]",
)
@click.option("--tls-cert", type=_PEM, metavar="FILE", help="Certificate of both OTLP receivers (PEM).")
@click.option("--tls-key", type=_PEM, metavar="FILE", help="Its key (PEM, not encrypted).")
@click.option(
    "--tls-client-ca", type=_PEM, metavar="FILE", help="Demand client certificates of this authority."
)
@click.option(
    "--log",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Folder of the write-ahead log.  [default: the store's own]",
)
@click.option(
    "--max-log",
    type=SIZE,
    default="4GiB",
    show_default=True,
    help="Refuse requests while this much waits for the store.",
)
@click.option(
    "--min-free",
    type=SIZE,
    default="1GiB",
    show_default=True,
    help="Refuse requests while less than this is free on the disk.",
)
@json_option
def command(
    store: str,
    host: str,
    otlp_http_port: int,
    otlp_grpc_port: int,
    clickhouse_port: int,
    gateway_port: int,
    upstreams: tuple[str, ...],
    config: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    log: Path | None,
    max_log: int,
    min_free: int,
    as_json: bool,
) -> None:
    """Start receivers, embedded store, ClickHouse endpoint and gateway; stop them with Ctrl-C.

    Two processes run under this one: capture and gateway. With --json, one line of JSON with all addresses is
    printed once both serve.
    """
    import asyncio
    import json
    import logging
    from dataclasses import asdict

    from spanloop_collector.diagnostics import log_to_stderr
    from spanloop_collector.supervisor import Options, supervise

    log_to_stderr(logging.WARNING)

    def on_ready(addresses: Addresses) -> None:
        if as_json:
            click.echo(json.dumps(asdict(addresses)))
        else:
            click.echo(_welcome(addresses, host, bool(upstreams)))

    asyncio.run(
        supervise(
            Options(
                store=store,
                host=host,
                otlp_http_port=otlp_http_port,
                otlp_grpc_port=otlp_grpc_port,
                clickhouse_port=clickhouse_port,
                gateway_port=gateway_port,
                upstreams=upstreams,
                config=config
                if config is not None or not Path("spanloop.toml").is_file()
                else Path("spanloop.toml"),
                tls_cert=tls_cert,
                tls_key=tls_key,
                tls_client_ca=tls_client_ca,
                log=log,
                max_log_bytes=max_log,
                min_free_bytes=min_free,
            ),
            on_ready,
        )
    )
    click.echo("stopped; everything acknowledged is in the store or its log", err=True)


def _kept() -> str:
    """What becomes of what agents say."""
    from spanloop_exporter.redaction.settings import VARIABLE, read_redaction

    if read_redaction() is None:
        return f"{VARIABLE} is off: prompts and answers are stored AS THEY ARE.\nSend only what may be kept."
    return (
        "Secrets that redaction knows are replaced before anything is written.\nAll else is stored as it is."
    )


def _welcome(addresses: Addresses, host: str, has_upstream: bool) -> str:
    """What is printed once both serve: no line over 80 columns, and nothing among the exports that must not be pasted."""
    from spanloop_store.access import is_loopback

    warning = click.style(_kept(), fg="yellow", bold=True)
    # A command that is pasted into another shell has to find this store again.
    named = "" if addresses.store == _default_store() else f" --store {addresses.store}"
    # An address that means all of this machine's is none to send to.
    otlp, gateway = (
        address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
        for address in (addresses.otlp_http, addresses.gateway)
    )
    lines = [
        f"Spanloop is up on {addresses.store}",
        f"  OTLP/HTTP   {addresses.otlp_http}",
        f"  OTLP/gRPC   {addresses.otlp_grpc}",
        f"  ClickHouse  {addresses.clickhouse}  (credentials: owner.json in the store)"
        if addresses.clickhouse
        else "  ClickHouse  the server itself",
        f"  gateway     {addresses.gateway}/v1"
        + ("" if has_upstream else "  (without --upstream it serves no model)"),
        "",
        warning,
        "",
        "For your agent, set:",
        f"  export OTEL_EXPORTER_OTLP_ENDPOINT={otlp}",
    ]
    if not is_loopback(host):
        # From other machines it is this one's name in place of a loopback address.
        lines.append("  export OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20$SPANLOOP_TOKEN")
    if addresses.otlp_http.startswith("https:"):
        lines.append("  export OTEL_EXPORTER_OTLP_CERTIFICATE=ca.pem   # who signed --tls-cert")
    lines += [
        "  export OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
        "  export OTEL_METRICS_EXPORTER=none",
        "  export OTEL_SERVICE_NAME=my-agent",
        f"  {'' if has_upstream else '# with --upstream: '}export OPENAI_BASE_URL={gateway}/v1",
    ]
    if has_upstream and not is_loopback(host):
        # Beside the upstream's key, which the agent goes on sending.
        lines.append('  export OPENAI_CUSTOM_HEADERS="x-spanloop-token: $SPANLOOP_TOKEN"')
    lines += [
        "",
        "and run it:  opentelemetry-instrument python agent.py",
        f"then:        spanloop build --out dataset{named}",
    ]
    return "\n".join(lines)


def _default_store() -> str:
    from spanloop_store import StoreUrl

    return StoreUrl.parse(DEFAULT_STORE).redacted()
