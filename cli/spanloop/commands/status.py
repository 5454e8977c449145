"""`spanloop status`: the store, the models and their aliases, the audit trail."""

from __future__ import annotations

from typing import Any

import click

from spanloop.options import echo_json, example, json_option, store_option

LIMIT = 5  # rows of each list that a terminal shows

_TRACES = """
    SELECT count() AS spans, uniq(TraceId) AS traces, toString(min(Timestamp), 'UTC') AS first,
        toString(max(Timestamp), 'UTC') AS last
    FROM otel_traces
"""
_SEGMENTS = """
    SELECT signal, decoder, count() AS segments, sum(rows) AS rows
    FROM ingest_segments GROUP BY signal, decoder ORDER BY signal, decoder
"""
_DATASETS = """
    SELECT id, toString(created) AS created, uri, episodes, transitions
    FROM datasets ORDER BY datasets.created DESC LIMIT {limit:UInt32}
"""
_RUNS = """
    SELECT id, toString(started) AS started, algorithm, dataset_id, base, uri, status
    FROM training_runs ORDER BY training_runs.started DESC LIMIT {limit:UInt32}
"""


@click.command(epilog=example("spanloop status --store chdb:///~/.spanloop"))
@store_option
@json_option
def command(store: str, as_json: bool) -> None:
    """Show store, schema, spans, model versions, aliases, and the last promotions, datasets, runs and evaluations."""
    from spanloop_store import StoreUrl, connect

    client = connect(store, make=False)
    try:
        status = {"store": StoreUrl.parse(store).redacted(), **_status(client)}
    finally:
        client.close()
    if as_json:
        echo_json(status)
    else:
        _print(status)


def _rows(client: Any, sql: str) -> list[dict[str, Any]]:
    return list(client.query(sql, parameters={"limit": LIMIT}).named_results())


def _status(client: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from spanloop_store import registry

    return {
        "schema_version": _rows(client, "SELECT max(version) AS version FROM spanloop_schema")[0]["version"],
        "traces": _rows(client, _TRACES)[0],
        "segments": _rows(client, _SEGMENTS),
        "models": [{**asdict(model), "id": model.id} for model in registry.versions(client)],
        "aliases": [asdict(alias) for alias in registry.aliases(client)],
        "promotions": [asdict(promotion) for promotion in registry.promotions(client)[: -LIMIT - 1 : -1]],
        "datasets": _rows(client, _DATASETS),
        "training_runs": _rows(client, _RUNS),
        "evaluations": [asdict(evaluation) for evaluation in registry.evaluations(client, limit=LIMIT)],
    }


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
    aliases: dict[str, list[str]] = {}
    for alias in status["aliases"]:
        aliases.setdefault(f"{alias['name']}@{alias['version']}", []).append(alias["alias"])
    _section("models", [
        f"{model['id']}  {model['uri']}" + (f"  ← {', '.join(aliases[model['id']])}" if model["id"] in aliases else "")
        for model in status["models"]
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
