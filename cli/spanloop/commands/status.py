"""`spanloop status`: the store, models and prompts with their aliases, the audit trail."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from spanloop.options import (
    MOMENT,
    echo_json,
    example,
    json_option,
    load_settings,
    progress_printer,
    store_option,
)

_EXACT_ROWS = 10_000_000  # 8 bytes of the store's memory each
EVENT_DAYS = 30  # that are looked through for evaluation events without a reward
LIMIT = 5  # rows of each list that a terminal shows

# A span that its sender sent twice is one span. Beyond some millions the exact number costs more than it tells.
_TRACES = """
    SELECT {spans} AS spans, uniq(TraceId) AS traces, toString(min(Timestamp), 'UTC') AS first,
        toString(max(Timestamp), 'UTC') AS last
    FROM otel_traces
"""
_ROWS = "SELECT count() AS rows FROM otel_traces"
_SEGMENTS = """
    SELECT signal, decoder, count() AS segments, sum(rows) AS rows
    FROM ingest_segments GROUP BY signal, decoder ORDER BY signal, decoder
"""
_DATASETS = """
    SELECT id, toString(created) AS created, uri, episodes, transitions
    FROM datasets ORDER BY datasets.created DESC LIMIT {limit:UInt32}
"""
# The service comes first in the table's order: a day of the gateway's spans is little to read.
_PROMPT_CALLS = """
    SELECT extract(SpanAttributes['spanloop.prompt.version'], '^(.*)@') AS name, uniq(SpanId) AS calls
    FROM otel_traces
    WHERE ServiceName = 'spanloop-gateway' AND Timestamp >= now() - INTERVAL 1 DAY AND name != ''
    GROUP BY name
"""
_RUNS = """
    SELECT id, toString(started) AS started, algorithm, dataset_id, base, uri, status
    FROM training_runs ORDER BY training_runs.started DESC LIMIT {limit:UInt32}
"""


@click.command(
    epilog=example("""
        spanloop status --store chdb:///~/.spanloop
        spanloop status --by resource --since 7d
    """)
)
@click.option(
    "--by",
    type=click.Choice(["resource"]),
    help="Episodes, reward and tokens by model version and prompt version instead.",
)
@click.option("--since", type=MOMENT, help="With --by: first span start, ISO 8601 or an age. Default: 24h.")
@click.option("--until", type=MOMENT, help="With --by: end of the window, exclusive. Default: now.")
@click.option("--service", "services", multiple=True, help="With --by: only this service.name; repeatable.")
@click.option("--agent", "agents", multiple=True, help="With --by: only this agent; repeatable.")
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="With --by: weights of rewards. Default: ./spanloop.toml if it is there.",
)
@store_option
@json_option
def command(
    by: str | None,
    since: datetime | None,
    until: datetime | None,
    services: tuple[str, ...],
    agents: tuple[str, ...],
    config: Path | None,
    store: str,
    as_json: bool,
) -> None:
    """Show store, schema, spans, models, prompts, aliases, and the last promotions, datasets, runs and evaluations."""
    if by is None and (since or until or services or agents or config):
        raise click.UsageError("--since, --until, --service, --agent and --config go with --by resource")
    from spanloop_store import StoreUrl, connect

    if by is not None:
        _by_resource(store, since, until, services, agents, config, as_json)
        return
    client = connect(store, make=False)
    try:
        status = {"store": StoreUrl.parse(store).redacted(), **_status(client), **_collector(store)}
    finally:
        client.close()
    if as_json:
        echo_json(status)
    else:
        _print(status)


def _by_resource(
    store: str,
    since: datetime | None,
    until: datetime | None,
    services: tuple[str, ...],
    agents: tuple[str, ...],
    config: Path | None,
    as_json: bool,
) -> None:
    from dataclasses import asdict

    from spanloop_store import StoreUrl, connect, flush
    from spanloop_trainer.transform.reading.read import Window
    from spanloop_trainer.transform.resources import by_resource

    settings = load_settings(config)
    until = until or datetime.now(UTC)
    window = Window(since or until - timedelta(days=1), until, tuple(sorted(services)))
    flush(store)
    client = connect(store, make=False)
    try:
        found = by_resource(client, window, settings, agents=agents, progress=progress_printer(not as_json))
    finally:
        client.close()
    if as_json:
        start, end = (moment.isoformat() if moment else None for moment in (window.since, window.until))
        rows = [asdict(one) for one in found]
        echo_json(
            {"store": StoreUrl.parse(store).redacted(), "since": start, "until": end, "resources": rows}
        )
        return
    click.echo(f"{window}")
    if not found:
        click.echo("no model call in this window: widen it with --since")
        return
    names = [(one.model or "unknown", one.prompt or "none") for one in found]
    width = [max(map(len, column)) for column in zip(("model", "prompt"), *names, strict=True)]
    click.echo(
        f"{'model':<{width[0]}}  {'prompt':<{width[1]}}  episodes  scored  mean reward  {'95 % interval':<18}"
        f"  {'calls':>7}  failed  {'tokens in':>11}  {'tokens out':>11}"
    )
    for (model, prompt), one in zip(names, found, strict=True):
        mean = "none" if one.mean is None else f"{one.mean:.3f}"
        between = "" if one.low is None else f"[{one.low:+.3f}, {one.high:+.3f}]"
        click.echo(
            f"{model:<{width[0]}}  {prompt:<{width[1]}}  {one.episodes:>8,}"
            f"  {one.scored:>6,}  {mean:>11}  {between:<18}  {one.calls:>7,}  {one.failed:>6,}"
            f"  {one.input_tokens:>11,}  {one.output_tokens:>11,}"
        )


def _rows(client: Any, sql: str) -> list[dict[str, Any]]:
    return list(client.query(sql, parameters={"limit": LIMIT}).named_results())


def _counted(client: Any) -> str:
    exact = _rows(client, _ROWS)[0]["rows"] <= _EXACT_ROWS
    return f"{'uniqExact' if exact else 'uniqCombined64'}(cityHash64(TraceId, SpanId))"


def _collector(store: str) -> dict[str, Any]:
    """What the collector of this machine says of itself, and what lies in quarantine."""
    import os
    from dataclasses import asdict

    from spanloop_collector.health import ask, quarantined
    from spanloop_store import StoreUrl, read_owner

    url = StoreUrl.parse(store)
    owner = read_owner(url)
    address = owner.otlp_http if owner else "" if url.embedded else os.environ.get("SPANLOOP_COLLECTOR", "")
    health = ask(address) if address else None
    found = health.quarantine if health else quarantined(url.quarantine_path) if url.embedded else None
    return {
        "collector": asdict(health) if health else None,
        "quarantine": asdict(found) if found else None,  # None: a server's collector that does not answer
    }


def _status(client: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from spanloop_store import evaluations, registry
    from spanloop_store.otlp.signals import Signal

    return {
        "schema_version": _rows(client, "SELECT max(version) AS version FROM spanloop_schema")[0]["version"],
        "traces": _rows(client, _TRACES.replace("{spans}", _counted(client)))[0],
        "segments": _rows(client, _SEGMENTS),
        "unusable_evaluation_events": {
            signal.value: asdict(evaluations.unusable(client, signal, EVENT_DAYS)) for signal in Signal
        },
        "models": [{**asdict(model), "id": model.id} for model in registry.versions(client)],
        "aliases": [asdict(alias) for alias in registry.aliases(client)],
        "promotions": [asdict(promotion) for promotion in registry.promotions(client)[: -LIMIT - 1 : -1]],
        "prompts": _prompts(client),
        "datasets": _rows(client, _DATASETS),
        "training_runs": _rows(client, _RUNS),
        "evaluations": [asdict(evaluation) for evaluation in registry.evaluations(client, limit=LIMIT)],
    }


def _prompts(client: Any) -> list[dict[str, Any]]:
    """Each prompt by name: versions that stand for themselves, where its aliases point (None: nowhere), calls of a day."""
    from spanloop_store import registry

    calls = {row["name"]: row["calls"] for row in _rows(client, _PROMPT_CALLS)}
    pointed = {(alias.name, alias.alias): alias.version for alias in registry.aliases(client, "prompt")}
    numbers: dict[str, list[int]] = {}
    for version in registry.prompts(client):
        if not version.same_as:
            numbers.setdefault(version.name, []).append(version.version)
    return [
        {
            "name": name,
            "versions": versions,
            **{alias: pointed.get((name, alias)) for alias in registry.ALIASES},
            "calls_of_a_day": calls.get(name, 0),
        }
        for name, versions in numbers.items()
    ]


def _print(status: dict[str, Any]) -> None:
    traces = status["traces"]
    click.echo(f"store      {status['store']}  (schema {status['schema_version']})")
    window = f", {traces['first']} to {traces['last']} UTC" if traces["spans"] else ""
    click.echo(f"spans      {traces['spans']:,} in {traces['traces']:,} traces{window}")
    for segment in status["segments"]:
        items = "spans" if segment["signal"] == "traces" else "log records"
        click.echo(
            f"decoded    {segment['rows']:,} {items} by {segment['decoder']} ({segment['segments']:,} segments)"
        )
    quarantine = status["quarantine"]
    if quarantine and quarantine["files"]:
        click.secho(
            f"quarantine {quarantine['files']:,} requests that nothing could decode,"
            f" {quarantine['bytes']:,} bytes in {quarantine['folder']}",
            fg="yellow",
        )
    for signal, found in status["unusable_evaluation_events"].items():
        if found["events"]:
            where = "log records" if signal == "logs" else "events on spans"
            click.secho(
                f"rewards    {found['events']:,} {where} of the last {EVENT_DAYS} days made none: a gen_ai.evaluation.result needs"
                f" a name and a finite number; the latest has name {found['name']!r}, score {found['score']!r},"
                f" service {found['service']!r}",
                fg="yellow",
            )
    if health := status["collector"]:
        click.secho(
            f"collector  {health['status']}, {health['log_bytes']:,} bytes wait for the store"
            + (f" (the oldest for {health['lag_s']:.0f} s)" if health["log_bytes"] else ""),
            fg=None if health["status"] == "ok" else "yellow",
        )
        if health["expired"]:
            click.secho(
                f"  expired: {health['expired']:,} items were refused since its start, older than the store keeps:"
                " spanloop store retention",
                fg="yellow",
            )
        for part in ("store", "disk"):
            if health[part] != "ok":
                click.secho(f"  {part}: {health[part]}", fg="yellow")
    aliases: dict[str, list[str]] = {}
    for alias in status["aliases"]:
        aliases.setdefault(f"{alias['name']}@{alias['version']}", []).append(alias["alias"])
    _section("models", [
        f"{model['id']}  {model['uri']}" + (f"  ← {', '.join(aliases[model['id']])}" if model["id"] in aliases else "")
        for model in status["models"]
    ])  # fmt: skip
    _section("prompts", [
        f"{p['name']}  {len(p['versions'])} version{'s' if len(p['versions']) > 1 else ''}, the newest {p['name']}@{p['versions'][-1]}"
        f"; {p['calls_of_a_day']:,} calls in 24 hours"
        f"; production: {'@'.join((p['name'], str(p['production']))) if p['production'] else 'what the agent sends'}"
        + (f"; candidate: {p['name']}@{p['candidate']}" if p["candidate"] else "")
        for p in status["prompts"]
    ])  # fmt: skip
    _section("promotions", [
        f"{p['time']:%Y-%m-%d %H:%M}  {p['action']}  {p['name']}@{p['version']} as {p['alias']}  by {p['who']}: {p['why']}"
        for p in status["promotions"]
    ])  # fmt: skip
    _section("datasets", [
        f"{d['created'][:16]}  {d['id'][:16]}  {d['episodes']:,} episodes, {d['transitions']:,} transitions  {d['uri']}"
        for d in status["datasets"]
    ])  # fmt: skip
    _section("training runs", [
        f"{r['started'][:16]}  {r['algorithm']}  {r['base']} → {r['uri']}  {r['status']}" for r in status["training_runs"]
    ])  # fmt: skip
    _section("evaluations", [
        f"{e['id']}  {e['candidate']} against {e['baseline']}: {e['gain']:+.3f} "
        f"[{e['gain_ci95_low']:+.3f}, {e['gain_ci95_high']:+.3f}] over {e['tasks']} tasks"
        for e in status["evaluations"]
    ])  # fmt: skip


def _section(title: str, lines: list[str]) -> None:
    click.echo(title if lines else f"{title}: none")
    for line in lines:
        click.echo(f"  {line}")
