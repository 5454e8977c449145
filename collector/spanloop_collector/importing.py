"""`spanloop import`: files through the receiver's own path, whether a collector runs or not."""

from __future__ import annotations

import contextlib
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from spanloop_collector.addresses import TOKEN_VARIABLE
from spanloop_collector.errors import ImportFailed
from spanloop_collector.files import Found, read_requests
from spanloop_collector.folders import open_logs
from spanloop_collector.http_receiver import REPEATED_HEADER
from spanloop_collector.redacting import Redaction
from spanloop_collector.repeats import told_apart
from spanloop_collector.spooled import LeftSpool, left_spools
from spanloop_store import Engine, StoreUrl, connect, flush, read_owner
from spanloop_store.errors import StoreUnavailable
from spanloop_store.expiry import day_of, read_expiry
from spanloop_store.otlp.insert import SegmentInserter
from spanloop_store.otlp.rows import times
from spanloop_store.otlp.signals import Signal, message_type

_TIMEOUT_S = 60
_PATIENCE_S = 60.0  # of a collector that pushes back
_PROGRESS_S = 2.0
_QUARTER_NS = 900 * 10**9  # no time zone's day begins within one
_RETRYABLE = (429, 502, 503, 504)
_UNAUTHORIZED = 401
Sink = Callable[[Found], bool]  # whether the request was stored before, and was not stored again


@dataclass
class Summary:
    """What an import did. Items are spans and log records."""

    files: int = 0
    requests: int = 0
    spans: int = 0
    log_records: int = 0
    rejected: int = 0
    repeated: int = (
        0  # items of requests that were stored before; they are not among `spans` and `log_records`
    )
    reasons: tuple[str, ...] = ()
    living: int = 0  # segments of a spool that were left alone: their processes run, and send them
    dropped: int = (
        0  # items that agents dropped from the spool since it was made; their reasons are in its account.json
    )


def import_files(store: str | None, paths: Sequence[Path], progress: Callable[[str], None]) -> Summary:
    """Takes the requests of all files; on return they are queryable.

    Every file is read and checked before anything is stored, so a bad file leaves the store as it was. A folder is the
    spool of agents: what dead ones left there is taken, and deleted once it is queryable.

    Raises:
        ImportFailed: a file is bad (named with its line), it holds what the store would expire at once, or the collector
            refused a request.
        StoreUnavailable, StoreLocked: the store cannot be opened.
    """
    with left_spools(paths) as spools:
        summary = _import(store, paths, spools, progress)
        for spool in spools.values():
            spool.remove()
            told = spool.report  # what is ours would count as a living process's
            summary.living += told.live_segments
            summary.dropped += sum(told.account.dropped.values())
    return summary


def _import(
    store: str | None,
    paths: Sequence[Path],
    spools: Mapping[Path, LeftSpool],
    progress: Callable[[str], None],
) -> Summary:
    def requests(path: Path) -> Iterator[Found]:
        return spools[path].requests() if path in spools else read_requests(path)

    summary = Summary(files=sum(len(spools[path]) if path in spools else 1 for path in paths))
    url = StoreUrl.parse(store)
    found_times: dict[tuple[Signal, int], int] = {}  # one of each quarter of an hour
    for path in paths:
        for found in requests(path):
            request = message_type(found.signal).FromString(found.checked.payload)
            for time_ns in times(found.signal, request):
                found_times.setdefault((found.signal, time_ns // _QUARTER_NS), time_ns)
    _refuse_expired(url, found_times)
    said = time.monotonic()
    reasons: list[str] = []
    with sink(url) as send:
        for path in paths:
            for found in requests(path):
                checked = found.checked
                summary.requests += 1
                summary.rejected += checked.rejected
                if checked.reason:
                    reasons.append(f"{found.where}: {checked.reason}")
                if checked.payload and send(found):
                    summary.repeated += checked.items
                elif found.signal is Signal.TRACES:
                    summary.spans += checked.items
                else:
                    summary.log_records += checked.items
                if time.monotonic() - said > _PROGRESS_S:
                    said = time.monotonic()
                    progress(f"{path.name}: {summary.spans} spans, {summary.log_records} log records so far")
    summary.reasons = tuple(reasons)
    return summary


def _refuse_expired(url: StoreUrl, found_times: Mapping[tuple[Signal, int], int]) -> None:
    """Raises ImportFailed where the store would delete rows as soon as it has them."""
    if not found_times:
        return
    with contextlib.closing(connect(url)) as client:
        expiry = read_expiry(client)
    gone = [
        (time_ns, why)
        for (signal, _), time_ns in found_times.items()
        if signal in expiry and (why := expiry[signal].why(time_ns))
    ]
    if gone:
        oldest, why = min(gone)
        raise ImportFailed(
            f"items of {day_of(oldest)} have {why}; nothing was stored",
            "spanloop store retention --off (or --days N), then import again",
        )


@contextlib.contextmanager
def sink(url: StoreUrl) -> Iterator[Sink]:
    """Where requests go: the collector that has the store, else the store's own log; on leaving they are queryable.

    Raises:
        ImportFailed: the collector refused a request.
        StoreUnavailable, StoreLocked: neither takes them.
        RedactionError: redaction cannot be set up; nothing was stored.
    """
    owner = read_owner(url)
    address = owner.otlp_http if owner else "" if url.embedded else os.environ.get("SPANLOOP_COLLECTOR", "")
    if address:
        yield lambda found: _post(address, found)
        flush(url, timeout_s=600)
        return
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(Engine(url)) if url.embedded else None
        logs = stack.enter_context(open_logs(url))
        redaction = Redaction.of(logs.folders)
        client = engine.client() if engine is not None else connect(url)
        inserter = SegmentInserter(
            client,
            embedded=engine is not None,
            quarantine=logs.folders.quarantine,
            collector="spanloop-import",
        )

        def drain() -> None:
            for signal, segments in logs.segments.items():
                for segment in segments.sealed():
                    # What an earlier run left may be half inserted.
                    inserter.insert(segment.path, signal, again=not segment.items)
                    segments.remove(segment)

        def append(found: Found) -> bool:
            payload = redaction(found.signal, found.checked).payload
            digest = logs.repeats.digest(found.signal, payload)
            if digest in logs.repeats and told_apart(found.signal, payload):
                return True
            logged = partial(logs.repeats.logged, [digest])
            logs.segments[found.signal].append([payload], found.checked.items, logged)
            drain()
            return False

        yield append
        for segments in logs.segments.values():
            segments.seal()
        drain()


def _post(address: str, found: Found) -> bool:
    token = os.environ.get(TOKEN_VARIABLE)
    request = urllib.request.Request(  # noqa: S310  # the address is the owner's own
        f"{address.rstrip('/')}/v1/{found.signal.value}",
        data=found.checked.payload,
        headers={"Content-Type": "application/x-protobuf"}
        | ({"Authorization": f"Bearer {token}"} if token else {}),
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    give_up = time.monotonic() + _PATIENCE_S
    while True:
        try:
            with opener.open(request, timeout=_TIMEOUT_S) as answer:
                # Traces and logs have the same answer, but for the names.
                partial_success = ExportTraceServiceResponse.FromString(answer.read()).partial_success
                repeated = REPEATED_HEADER in answer.headers
            if partial_success.rejected_spans:
                raise ImportFailed(
                    f"{found.where}: the collector at {address} left out {partial_success.rejected_spans} items:"
                    f" {partial_success.error_message}",
                    "a changed retention reaches it within a minute: import again then",
                )
            return repeated
        except urllib.error.HTTPError as error:
            if error.code in _RETRYABLE and time.monotonic() < give_up:
                time.sleep(float(error.headers.get("Retry-After", "1")))
                continue
            raise ImportFailed(
                f"{found.where}: the collector at {address} refused it: HTTP {error.code}",
                f"set {TOKEN_VARIABLE} to the collector's token"
                if error.code == _UNAUTHORIZED
                else "what came before it is stored; look at the collector's messages",
            ) from error
        except OSError as error:
            raise StoreUnavailable(
                f"{found.where}: the collector at {address} does not answer: {error}",
                "what came before it is stored; is `spanloop up` still running?",
            ) from error
