"""`spanloop erase`: a trace, session or user out of tables, log, spools and future builds; says where it was."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spanloop.options import echo_json, example, json_option, progress_printer, store_option

if TYPE_CHECKING:
    from spanloop_store import Owner, StoreUrl
    from spanloop_store.subjects import Subject

_TIMEOUT_S = 3600.0  # of a mutation over a large store
LIMIT = 10  # lines of each list that a terminal shows


@click.command(
    epilog=example("""
        spanloop erase --user-id u-4711 --dry-run
        spanloop erase --trace-id 4bf92f3577b34da6a3ce929d0e0e4736 --yes
        spanloop erase --session-id s-42 --spool /srv/agent/spool --yes --json
    """)
)
@click.option("--trace-id", metavar="ID", help="One trace: 32 hex digits.")
@click.option("--session-id", metavar="ID", help="All traces of a session or conversation.")
@click.option("--user-id", metavar="ID", help="All traces of a user.")
@click.option(
    "--spool",
    "spools",
    type=click.Path(file_okay=False, path_type=Path),
    multiple=True,
    help="Spools of agents on this machine; repeatable.  [default: SPANLOOP_SPOOL, else ~/.spanloop/spool]",
)
@click.option("--dry-run", is_flag=True, help="Only say where it is.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@store_option
@json_option
def command(
    trace_id: str | None,
    session_id: str | None,
    user_id: str | None,
    spools: tuple[Path, ...],
    dry_run: bool,
    yes: bool,
    store: str,
    as_json: bool,
) -> None:
    """Take a trace, session or user out of tables, log, spools and future builds; say where it was and what learnt from it."""
    from spanloop_store.subjects import Subject

    given = [
        (kind, text)
        for kind, text in (("trace", trace_id), ("session", session_id), ("user", user_id))
        if text
    ]
    if len(given) != 1:
        raise click.UsageError("give one of --trace-id, --session-id and --user-id")
    folders = spools or _default_spools()
    subject = _named(Subject.of(*given[0]), folders)
    progress = progress_printer(not as_json)
    if not dry_run and not yes:
        if as_json or not sys.stdin.isatty():
            raise click.UsageError("there is nobody to ask here: look with --dry-run, then run it with --yes")
        _print(_erase(store, subject, folders, dry_run=True, progress=progress))
        click.confirm(f"Erase {subject} for good?", abort=True)
    report = _erase(store, subject, folders, dry_run=dry_run, progress=progress)
    if as_json:
        echo_json(report)
    else:
        _print(report)


def _named(subject: Subject, spools: tuple[Path, ...]) -> Subject:
    """The subject by the names, too, that agents with these spools give it where they redact."""
    from spanloop_collector.erasing import with_pseudonyms
    from spanloop_exporter.redaction.settings import read_redaction, salt_path
    from spanloop_exporter.redaction.setup import redactor_for

    settings = read_redaction()
    # A salt that is not there has made no pseudonym, and is not to be made here.
    known = [each for each in spools if settings and (settings.salt or salt_path(each).exists())]
    redactors = [redactor.redact_text for each in known if (redactor := redactor_for(each)) is not None]
    return with_pseudonyms(subject, redactors)


def _erase(
    store: str, subject: Subject, spools: tuple[Path, ...], *, dry_run: bool, progress: Any
) -> dict[str, Any]:
    """The report of the store's side, with the files of the spools in it."""
    from dataclasses import asdict

    from spanloop_collector.stripping import Wanted, in_spool

    # First what only lies in spools: its traces may be in none of the tables yet, and must not get there.
    waiting = {
        trace for folder in spools for trace in in_spool(folder, Wanted(subject, set()), change=False)[1]
    }
    report = _ask(store, subject, waiting, dry_run=dry_run, progress=progress)
    wanted = Wanted(subject, set(report["traces"]))
    for folder in spools:
        hits, _ = in_spool(folder, wanted, change=not dry_run)
        report["files"] += [asdict(hit) for hit in hits]
        report["left"] = [*report["left"], *(f"{hit.path}: {hit.kept}" for hit in hits if hit.kept)]
    return report


def _ask(store: str, subject: Subject, more: set[str], *, dry_run: bool, progress: Any) -> dict[str, Any]:
    """Lets the process that owns the log erase: the collector that runs, else this one."""
    from functools import partial

    from spanloop_collector.erasing import Place, closed_store, erase_from
    from spanloop_store import StoreUrl, connect, read_owner
    from spanloop_store.access import ADMIN_TOKEN_VARIABLE
    from spanloop_store.audit import this_user
    from spanloop_store.connection import COLLECTOR_VARIABLE

    url = StoreUrl.parse(store)
    body = {
        "kind": subject.kind,
        "id": subject.id,
        "pseudonyms": subject.pseudonyms,
        "traces": sorted(more),
        "dry_run": dry_run,
        "who": this_user(),
    }
    if owner := read_owner(url):
        progress(f"asking the collector (process {owner.pid}) on {url.redacted()}")
        _flush_gateway(url, owner)
        return _post(owner.otlp_http, owner.password, body)
    if url.embedded:
        if not url.engine_path.exists():
            connect(url, make=False).close()  # which says so
        progress(f"opening {url.redacted()}, which no collector serves")
        with closed_store(url) as place:
            return erase_from(place, subject, who=this_user(), more=more, dry_run=dry_run).as_json()
    if collector := os.environ.get(COLLECTOR_VARIABLE, "").strip():
        progress(f"asking the collector at {collector}")
        return _post(collector, os.environ.get(ADMIN_TOKEN_VARIABLE, ""), body)
    progress(f"asking {url.redacted()}")
    place = Place(partial(connect, url), embedded=False)
    report = erase_from(place, subject, who=this_user(), more=more, dry_run=dry_run).as_json()
    report["left"] = [
        *report["left"],
        f"logs and quarantine of collectors in front of this server were not looked into ({COLLECTOR_VARIABLE} names one):"
        " what these insert is removed within 10 minutes",
    ]
    return report


def _flush_gateway(url: StoreUrl, owner: Owner) -> None:
    """Spans of answered calls are on their way to the collector; what does not come now is erased when it arrives."""
    import contextlib

    from spanloop_store import flush
    from spanloop_store.errors import StoreUnavailable

    if owner.gateway:
        with contextlib.suppress(StoreUnavailable):
            flush(url)


def _post(address: str, token: str, body: dict[str, Any]) -> dict[str, Any]:
    import urllib.error
    import urllib.request

    from spanloop_store.access import ADMIN_TOKEN_VARIABLE
    from spanloop_store.errors import EraseError, StoreUnavailable

    request = urllib.request.Request(  # noqa: S310  # the owner's address is http; a collector's is checked next
        f"{address.rstrip('/')}/erase",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
    )
    if request.type not in ("http", "https"):
        raise StoreUnavailable(
            f"{address!r} is no address of a collector", "write http://collector-host:4318"
        )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            report: dict[str, Any] = json.load(answer)
            return report
    except urllib.error.HTTPError as error:
        said = _json(error.read(10_000))
        if error.code == 401:
            raise EraseError(
                f"the collector at {address} asks for the admin token",
                f"set {ADMIN_TOKEN_VARIABLE} to what the collector was started with",
            ) from error
        raise EraseError(
            f"the collector at {address}: {said.get('error') or f'HTTP {error.code}'}",
            said.get("hint") or "look at its log, then run the command again; it goes on",
        ) from error
    except (OSError, ValueError) as error:
        raise StoreUnavailable(
            f"the collector at {address} did not answer: {error}",
            "run the command again: it goes on where it was",
        ) from error


def _json(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _default_spools() -> tuple[Path, ...]:
    from spanloop_exporter.spooling.settings import read_settings

    folder = read_settings().folder
    return (folder,) if folder is not None else ()


def _print(report: dict[str, Any]) -> None:
    done = "would be erased" if report["dry_run"] else "erased"
    copies = f", {report['copies']} of them by response id" if report["copies"] else ""
    click.echo(f"{report['subject']}: {len(report['traces']):,} traces{copies}")
    for table, rows in report["rows"].items():
        click.echo(f"  {table:<26}{rows:>12,} rows {done}")
    for hit in report["files"][:LIMIT]:
        what = f"{hit['items']:,} items" if hit["items"] else "unreadable bytes with its id"
        click.echo(f"  {hit['path']}: {what} {'stay for now' if hit['kept'] else done}")
    if (more := len(report["files"]) - LIMIT) > 0:
        click.echo(f"  … and {more} more files (--json has all)")
    if not any(report["rows"].values()) and not report["files"]:
        click.echo("  nothing of it is here" + ("" if report["dry_run"] else "; what comes later is removed"))
    for title, key in (
        ("datasets that hold some of it", "datasets"),
        ("models that learnt from it", "models"),
    ):
        lines = [
            f"{hit['id'][:16] if key == 'datasets' else hit['id']}  {hit['why']}  {hit['uri']}"
            + (f"  ← {', '.join(hit['aliases'])}" if hit.get("aliases") else "")
            for hit in report[key]
        ]
        click.echo(f"{title}:" if lines else f"{title}: none")
        for line in lines:
            click.echo(f"  {line}")
    if report["datasets"]:
        click.echo(
            "  what was built or trained stays: delete these folders, and build and train again without it"
        )
    for line in report["notes"]:
        click.secho(f"note: {line}", fg="yellow")
    for line in report["left"]:
        click.secho(f"left: {line}", fg="yellow")
