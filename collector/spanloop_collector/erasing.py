"""Erases on the collector's side: log, quarantine, tables and what was made of them; also on request, at `POST /erase`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from spanloop_collector.stripping import FileHit, Wanted, in_quarantine
from spanloop_store import audit, erase
from spanloop_store.errors import AuditError, EraseError, SpanloopError
from spanloop_store.lineage import Lineage, trace_lineage
from spanloop_store.subjects import Subject

if TYPE_CHECKING:
    from aiohttp import web
    from clickhouse_connect.driver.client import Client

    from spanloop_collector.access import Access

log = logging.getLogger(__name__)

FLUSH_S: Final = 120.0
SWEEP_S: Final = 600.0  # how often what arrived late is looked for
_LAST_SWEEP_S: Final = 5.0
BACKUPS: Final = "backups that were made before still hold it: make new ones, and delete these (`spanloop audit` names them)"


@dataclass(frozen=True)
class Report:
    """What was found of a trace, session or user, and what became of it.

    Args:
        subject: KIND:ID.
        dry_run: nothing was changed.
        traces: ids of all its traces.
        copies: of these, how many were found by the response id of a model call.
        rows: by table.
        files: of log, quarantine and spools that hold some of it.
        datasets: that hold it, or may.
        training_runs: ids.
        models: versions that learnt from it.
        notes: what was seen and not followed.
        left: where some of it still is, and what takes it away.
    """

    subject: str
    dry_run: bool
    traces: tuple[str, ...]
    copies: int
    rows: dict[str, int]
    files: tuple[FileHit, ...]
    lineage: Lineage = field(default_factory=Lineage)
    notes: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        record = asdict(self)
        lineage = record.pop("lineage")
        plain: dict[str, Any] = json.loads(json.dumps({**record, **lineage}))
        return plain


@dataclass(frozen=True)
class Place:
    """A store, and the log and quarantine of the collector in front of it.

    Args:
        open_client: a client with every right; closed by the caller of it.
        embedded: the engine runs in this process, and reads this machine's files.
        flush: inserts what is in the log; whether that was done in time. None: there is no log here.
        quarantine: folders of what nothing could decode.
        pseudonym: what redaction makes of a text; None: it is off.
    """

    open_client: Callable[[], Client]
    embedded: bool
    flush: Callable[[], bool] | None = None
    quarantine: tuple[Path, ...] = ()
    pseudonym: Callable[[str], str] | None = None


def erase_from(
    place: Place, subject: Subject, *, who: str, more: Iterable[str] = (), dry_run: bool = False
) -> Report:
    """Erases a subject from one place: first what is in the log goes into the tables, then all of it out of them.

    Args:
        place: where.
        subject: what.
        who: for the audit trail.
        more: trace ids that were found in spools.
        dry_run: only look.

    Raises:
        EraseError: the log or the store does not take part; another run goes on from there.
        AuditError: the audit trail cannot be written; nothing was deleted.
    """
    subject = with_pseudonyms(subject, [place.pseudonym] if place.pseudonym is not None else [])
    if place.flush is not None and not place.flush():
        raise EraseError(
            "the collector's log could not be inserted in time, and it may hold some of it; nothing was erased",
            "see `spanloop status` for why the store does not take it, then run the command again",
        )
    with contextlib.closing(place.open_client()) as client:
        found = erase.find(client, subject, {*more, *_in_quarantine(place, Wanted(subject, set(more)))[1]})
        wanted = Wanted(subject, set(found.traces))
        files, _ = _in_quarantine(place, wanted)
        lineage = trace_lineage(client, subject, found.traces, first=found.first, reads_files=place.embedded)
        left: tuple[str, ...] = ()
        notes = found.notes + tuple(
            f"prompt {hit.id} stays: {hit.why}; look with `spanloop prompt show {hit.id}`, and delete its row of `resources`"
            for hit in lineage.prompts
        )
        if not dry_run:
            audit.record(client, "erase", str(subject), _told(found, files, lineage), who)
            erase.mark(client, found, who)
            _in_quarantine(place, wanted, change=True)
            deleted = erase.delete(client, found)
            notes += tuple(
                f"deleted unseen, since the engine had put it aside: {name}" for name in deleted.detached
            )
            left = (*deleted.left, BACKUPS)
    return Report(
        str(subject), dry_run, found.traces, len(found.copies), found.rows, tuple(files), lineage, notes, left
    )


def with_pseudonyms(subject: Subject, redactors: Iterable[Callable[[str], str]]) -> Subject:
    """A session or user by all the names that redaction gives it: each salt has its own."""
    if subject.kind == "trace":
        return subject
    made = (*subject.pseudonyms, *(redact(subject.id) for redact in redactors))
    return replace(subject, pseudonyms=tuple(dict.fromkeys(name for name in made if name != subject.id)))


def _in_quarantine(place: Place, wanted: Wanted, *, change: bool = False) -> tuple[list[FileHit], set[str]]:
    hits: list[FileHit] = []
    traces: set[str] = set()
    for folder in place.quarantine:
        more, others = in_quarantine(folder, wanted, change=change)
        hits += more
        traces |= others
    return hits, traces


def _told(found: erase.Found, files: list[FileHit], lineage: Lineage) -> dict[str, Any]:
    return {
        "traces": len(found.traces),
        "rows": found.rows,
        "files": len(files),
        "datasets": [dataset.id for dataset in lineage.datasets],
        "models": [model.id for model in lineage.models],
        "prompts": [prompt.id for prompt in lineage.prompts],
    }


class Eraser:
    """`POST /erase` of a running collector, and its look for what arrives late.

    Args:
        place: its store and its files.
        access: who may ask.
    """

    def __init__(self, place: Place, access: Access) -> None:
        self._place = place
        self._access = access
        # One: two erasures at a time would wait for each other's mutations anyway.
        self._thread = ThreadPoolExecutor(1, "spanloop-erase")

    def add_to(self, app: web.Application) -> None:
        """Adds the route."""
        app.router.add_post("/erase", self.answer)

    @contextlib.asynccontextmanager
    async def sweeping(self, every_s: float = SWEEP_S) -> AsyncIterator[None]:
        """Looks for late rows now and then, while the context lasts."""
        ended = asyncio.Event()
        task = asyncio.create_task(self._sweep_forever(ended, every_s))
        try:
            yield
        finally:
            ended.set()
            # Not cancelled: an engine must not be closed under a query. A server may be away, and is not waited for.
            await asyncio.wait({task}, timeout=None if self._place.embedded else _LAST_SWEEP_S)
            self._thread.shutdown(wait=self._place.embedded)

    async def _sweep_forever(self, ended: asyncio.Event, every_s: float) -> None:
        while not ended.is_set():
            try:
                await asyncio.get_running_loop().run_in_executor(self._thread, self.sweep)
            except Exception as error:
                # The store may be away for a while. Builds leave late rows out meanwhile.
                log.warning("what arrived late for erased ids was not looked for: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await ended.wait()

    def sweep(self) -> dict[str, int]:
        """Removes what arrived late; rows by table."""
        with contextlib.closing(self._place.open_client()) as client:
            rows = erase.sweep(client, f"collector@{socket.gethostname()}")
        if rows:
            log.info("removed what arrived late for erased ids: %s", rows)
        return rows

    async def answer(self, request: web.Request) -> web.Response:
        """JSON in: `kind`, `id`, `pseudonyms`, `traces`, `dry_run`, `who`; JSON out: the report."""
        from aiohttp import web

        authorization = request.headers.get("Authorization")
        by = self._access.administrator(authorization)
        if not by:
            return web.json_response(
                {"error": "erasing needs the bearer token SPANLOOP_ADMIN_TOKEN"},
                status=401,
                headers={"WWW-Authenticate": "Bearer"},
            )
        try:
            asked = await request.json()
            subject = Subject.of(str(asked["kind"]), str(asked["id"]))
            subject = replace(subject, pseudonyms=tuple(map(str, asked.get("pseudonyms", []))))
            more = [Subject.of("trace", str(trace)).id for trace in asked.get("traces", [])]
            dry_run = asked.get("dry_run", False) is True
            named = str(asked.get("who") or "somebody")[:200]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return web.json_response(
                {
                    "error": f'the body is no {{"kind": …, "id": …}}: {f"it lacks {error}" if isinstance(error, KeyError) else error}',
                    "hint": 'send {"kind": "trace", "id": …} (or "session", "user"), or use `spanloop erase`',
                },
                status=400,
            )
        except EraseError as error:
            return web.json_response({"error": error.message, "hint": error.hint}, status=400)
        # Who shows the local credential is a user of this machine, who could read the store's files. Others name themselves.
        who = named if by == "local" else f"{named} with the admin token, from {request.remote}"
        try:
            report = await asyncio.get_running_loop().run_in_executor(
                self._thread, lambda: erase_from(self._place, subject, who=who, more=more, dry_run=dry_run)
            )
        except (EraseError, AuditError) as error:
            return web.json_response({"error": error.message, "hint": error.hint}, status=503)
        except Exception as error:
            log.exception("an erasure failed")
            shown = error.message if isinstance(error, SpanloopError) else str(error).splitlines()[0]
            return web.json_response(
                {"error": shown, "hint": "run the command again; it goes on"}, status=500
            )
        return web.json_response(report.as_json())


@contextlib.contextmanager
def closed_store(url: Any, log_folder: Path | None = None) -> Iterator[Place]:
    """An embedded store that no collector serves: this process opens it, with the log that lies in it.

    Raises:
        StoreLocked: another process has it open.
        StoreUnavailable: there is no store, or it cannot be opened.
    """
    from spanloop_collector.folders import open_logs
    from spanloop_collector.redacting import Redaction
    from spanloop_collector.statistics import Statistics
    from spanloop_collector.writer import Writer
    from spanloop_store import Engine
    from spanloop_store.otlp.insert import SegmentInserter

    with Engine(url) as engine, open_logs(url, log_folder) as logs:
        writer = Writer(
            logs.segments,
            lambda: SegmentInserter(
                engine.client(),
                embedded=True,
                quarantine=logs.folders.quarantine,
                collector=f"spanloop-{socket.gethostname()}-erase",
            ),
            Statistics(),
        )
        writer.start()
        try:
            redactor = Redaction.of(logs.folders).redactor
            yield Place(
                engine.client,
                True,
                lambda: writer.flush(FLUSH_S),
                (logs.folders.quarantine,),
                redactor.redact_text if redactor else None,
            )
        finally:
            writer.stop(FLUSH_S)
