"""`spanloop feedback import`: judgements from files, through the receiver's own path, whether a collector runs or not."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from spanloop_collector.feedback.files import FoundRow, read_rows
from spanloop_collector.feedback.judgement import (
    Feedback,
    FeedbackRefused,
    Problem,
    export_request,
    read_feedback,
)
from spanloop_collector.files import Found
from spanloop_collector.importing import sink
from spanloop_store import StoreUrl, connect
from spanloop_store.expiry import KEEP_MORE, Expiry, read_expiry
from spanloop_store.otlp.check import Checked
from spanloop_store.otlp.signals import Signal

_BATCH_ROWS: Final = 500  # with the longest texts 45 MB; the receiver takes 64 MiB
_PROGRESS_S: Final = 2.0
MAX_TOLD: Final = 1000  # refused rows that are named; more are counted


@dataclass
class FeedbackSummary:
    """What an import of feedback did, in rows.

    Args:
        stored: that were not there before.
        repeated: of batches that were stored before.
        refused: that were left out.
        reasons: of the first of those: file, line, field and what is wrong.
    """

    files: int = 0
    stored: int = 0
    repeated: int = 0
    refused: int = 0
    reasons: tuple[str, ...] = ()


def import_feedback(
    store: str | None, paths: Sequence[Path], progress: Callable[[str], None]
) -> FeedbackSummary:
    """Takes the judgements of all files; on return they are queryable.

    A row without a time gets the file's (when it was last written), so that the same file imported again is the same facts.

    Raises:
        ImportFailed: a file cannot be read, or a column of it is no field; or the collector refused a request. What came
            before it is stored.
        StoreUnavailable, StoreLocked: the store cannot be opened.
    """
    url = StoreUrl.parse(store)
    files = [(path, read_rows(path)) for path in paths]  # a path that is wrong, before anything is stored
    with contextlib.closing(connect(url)) as client:
        expiry = read_expiry(client).get(Signal.LOGS)
    summary = FeedbackSummary(files=len(files))
    reasons: list[str] = []
    said = time.monotonic()
    with sink(url) as send:
        for path, rows in files:
            changed_ns = path.stat().st_mtime_ns
            for batch in _batches(rows):
                taken = []
                for row in batch:
                    try:
                        taken.append(_read(row, changed_ns, expiry))
                    except FeedbackRefused as refused:
                        summary.refused += 1
                        if len(reasons) < MAX_TOLD:
                            reasons.append(f"{row.where}: {refused}")
                if taken:
                    checked = Checked(export_request(taken), len(taken))
                    if send(Found(Signal.LOGS, checked, f"{batch[0].where} and following")):
                        summary.repeated += len(taken)
                    else:
                        summary.stored += len(taken)
                if time.monotonic() - said > _PROGRESS_S:
                    said = time.monotonic()
                    progress(f"{path.name}: {summary.stored + summary.repeated} judgements so far")
    summary.reasons = tuple(reasons)
    return summary


def _batches(rows: Iterator[FoundRow]) -> Iterator[list[FoundRow]]:
    while batch := list(islice(rows, _BATCH_ROWS)):
        yield batch


def _read(row: FoundRow, changed_ns: int, expiry: Expiry | None) -> Feedback:
    if isinstance(row.fields, FeedbackRefused):
        raise row.fields
    found = read_feedback(row.fields, now_ns=changed_ns)
    if expiry is not None and (why := expiry.why(found.time_ns)):
        whose = "the file has" if found.time_ns == changed_ns else "has"  # the row has none of its own
        raise FeedbackRefused(Problem("time", f"{whose} {why}; {KEEP_MORE}"))
    return found
