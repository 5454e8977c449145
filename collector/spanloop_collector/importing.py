"""`spanloop import`: files through the receiver's own path, whether a collector runs or not."""

from __future__ import annotations

import contextlib
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spanloop_collector.addresses import TOKEN_VARIABLE
from spanloop_collector.capture import folders_for, open_logs
from spanloop_collector.errors import ImportFailed
from spanloop_collector.files import Found, read_requests
from spanloop_store import Engine, StoreUrl, connect, flush, read_owner
from spanloop_store.errors import StoreUnavailable
from spanloop_store.otlp.insert import SegmentInserter
from spanloop_store.otlp.signals import Signal

_TIMEOUT_S = 60
_PATIENCE_S = 60.0  # of a collector that pushes back
_PROGRESS_S = 2.0
Sink = Callable[[Found], None]


@dataclass
class Summary:
    """What an import did. Items are spans and log records."""

    files: int = 0
    requests: int = 0
    spans: int = 0
    log_records: int = 0
    rejected: int = 0
    reasons: tuple[str, ...] = ()


def import_files(store: str | None, paths: Sequence[Path], progress: Callable[[str], None]) -> Summary:
    """Takes the requests of all files; on return they are queryable.

    Every file is read and checked before anything is stored, so a bad file leaves the store as it was.

    Raises:
        ImportFailed: a file is bad (named with its line), or the collector refused a request.
        StoreUnavailable, StoreLocked: the store cannot be opened.
    """
    summary = Summary(files=len(paths))
    for path in paths:
        for _ in read_requests(path):
            pass
    url = StoreUrl.parse(store)
    said = time.monotonic()
    reasons: list[str] = []
    with _sink(url) as send:
        for path in paths:
            for found in read_requests(path):
                checked = found.checked
                summary.requests += 1
                summary.rejected += checked.rejected
                if checked.reason:
                    reasons.append(f"{found.where}: {checked.reason}")
                if checked.payload:
                    send(found)
                if found.signal is Signal.TRACES:
                    summary.spans += checked.items
                else:
                    summary.log_records += checked.items
                if time.monotonic() - said > _PROGRESS_S:
                    said = time.monotonic()
                    progress(f"{path.name}: {summary.spans} spans, {summary.log_records} log records so far")
    summary.reasons = tuple(reasons)
    return summary


@contextlib.contextmanager
def _sink(url: StoreUrl) -> Iterator[Sink]:
    owner = read_owner(url)
    address = owner.otlp_http if owner else "" if url.embedded else os.environ.get("SPANLOOP_COLLECTOR", "")
    if address:
        yield lambda found: _post(address, found)
        flush(url, timeout_s=600)
        return
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(Engine(url)) if url.embedded else None
        folders = folders_for(url)
        logs = stack.enter_context(open_logs(folders))
        client = engine.client() if engine is not None else connect(url)
        inserter = SegmentInserter(
            client, embedded=engine is not None, quarantine=folders.quarantine, collector="spanloop-import"
        )

        def drain() -> None:
            for signal, segments in logs.items():
                for segment in segments.sealed():
                    # What an earlier run left may be half inserted.
                    inserter.insert(segment.path, signal, again=not segment.items)
                    segments.remove(segment)

        def append(found: Found) -> None:
            logs[found.signal].append([found.checked.payload], found.checked.items)
            drain()

        yield append
        for segments in logs.values():
            segments.seal()
        drain()


def _post(address: str, found: Found) -> None:
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
            with opener.open(request, timeout=_TIMEOUT_S):
                return
        except urllib.error.HTTPError as error:
            if error.code == 503 and time.monotonic() < give_up:
                time.sleep(float(error.headers.get("Retry-After", "1")))
                continue
            raise ImportFailed(
                f"{found.where}: the collector at {address} refused it: HTTP {error.code}",
                "what came before it is stored; look at the collector's messages",
            ) from error
        except OSError as error:
            raise StoreUnavailable(
                f"{found.where}: the collector at {address} does not answer: {error}",
                "what came before it is stored; is `spanloop up` still running?",
            ) from error
