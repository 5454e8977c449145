"""`spanloop doctor`: checks this environment, and prints the fix for each problem."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from spanloop.options import echo_json, example, json_option, store_option

COLORS = {"ok": "green", "warn": "yellow", "FAIL": "red"}


@click.command(
    epilog=example(
        "OTEL_SERVICE_NAME=my-agent OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 spanloop doctor"
    )
)
@store_option
@json_option
def command(store: str, as_json: bool) -> None:
    """Check this environment as an agent would find it: instrumentors, exporter, content, limits, store, versions.

    Makes model calls against a server of its own, under opentelemetry-instrument with the variables set here, and one
    export without spans to the collector; nothing is stored. Exit status 1 when something would lose spans.
    """
    from spanloop.doctor.run import run_checks

    checks = []
    for check in run_checks(store):
        checks.append(check)
        if not as_json:
            click.echo(
                f"{click.style(f'{check.status:4}', fg=COLORS[check.status])} {check.name}: {check.detail}"
            )
            if check.fix:
                click.echo(f"     fix: {check.fix}")
    failed = sum(check.status == "FAIL" for check in checks)
    warned = sum(check.status == "warn" for check in checks)
    if as_json:
        echo_json({"ok": not failed, "checks": [asdict(check) for check in checks]})
    else:
        click.echo(f"\n{len(checks)} checks: {failed} failed, {warned} to look at")
    if failed:
        sys.exit(1)
