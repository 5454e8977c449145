"""What dead agents left in a spool, for `spanloop import FOLDER`: theirs alone, and gone from there once it is stored."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from spanloop_collector.errors import ImportFailed
from spanloop_collector.files import Found
from spanloop_exporter.segments import Segment
from spanloop_exporter.spooling.bounds import REASON_SUFFIX, Report, refused_in, report
from spanloop_exporter.spooling.merging import merge
from spanloop_exporter.spooling.runs import arrived_of
from spanloop_exporter.spooling.spool import Spool
from spanloop_store.errors import InvalidOtlp
from spanloop_store.otlp.check import check_protobuf
from spanloop_store.otlp.frames import frames
from spanloop_store.otlp.signals import Signal

_NO_SPOOL = "name the folder of a spool (SPANLOOP_SPOOL, by default ~/.spanloop/spool), or files"


class LeftSpool:
    """The segments of a spool that no living process owns, and those that a target refused.

    They are ours while the context lasts: no agent that starts meanwhile sends them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Nothing is written to it, and nothing dropped.
        self._spool = Spool(folder, max_bytes=1 << 62, max_age_s=float("inf"), overflow=_nothing_overflows)
        self._taken: list[Segment] = []
        self._refused: list[Path] = []

    def __enter__(self) -> LeftSpool:
        try:
            self._spool.adopt()
        except OSError as error:
            raise ImportFailed(
                f"{self.folder} cannot be read: {error.strerror or error}", "run the command as its owner"
            ) from error
        self._taken = [segment for signal in Signal for segment in self._spool.adopted(signal)]
        self._refused = refused_in(self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        self._spool.close()

    def __len__(self) -> int:
        return len(self._taken) + len(self._refused)

    @property
    def report(self) -> Report:
        """What lies in the folder, living processes' segments included, and what was dropped from it."""
        return report(self.folder)

    def requests(self) -> Iterator[Found]:
        """One request a segment: the bytes that its agent would have sent, so that the collector knows them again.

        Raises:
            ImportFailed: a segment holds something that is no OTLP; only a broken disk writes such.
        """
        for segment in self._taken:
            yield _found(segment.signal, segment.path)
        for path in self._refused:
            yield _found(Signal(path.name.partition("-")[0]), path)

    def remove(self) -> None:
        """Deletes what `requests` gave; call it when all of it is stored."""
        for segment in self._taken:
            self._spool.remove(segment)
        for path in self._refused:
            path.unlink(missing_ok=True)
            Path(f"{path}{REASON_SUFFIX}").unlink(missing_ok=True)
        self._taken, self._refused = [], []


@contextlib.contextmanager
def left_spools(paths: Sequence[Path]) -> Iterator[dict[Path, LeftSpool]]:
    """The spools among `paths`, which are files otherwise.

    Raises:
        ImportFailed: a folder is no spool, or cannot be read.
    """
    with contextlib.ExitStack() as stack:
        found = {}
        for path in paths:
            if path.is_dir():
                spool = stack.enter_context(LeftSpool(path))
                told = spool.report
                if not (told.segments or told.refused_segments or (path / "account.lock").exists()):
                    raise ImportFailed(f"{path} is a folder, and no spool", _NO_SPOOL)
                found[path] = spool
        yield found


def _found(signal: Signal, path: Path) -> Found:
    payloads = [bytes(item.payload) for item in frames(path.read_bytes()[arrived_of(path) :])]
    try:
        return Found(signal, check_protobuf(signal, merge(payloads)), str(path))
    except InvalidOtlp as error:
        raise ImportFailed(
            f"{path}: {error.message}", f"move {path.name} out of the folder, then import again"
        ) from error


def _nothing_overflows(signal: Signal, payloads: Sequence[bytes], error: OSError) -> None:
    raise AssertionError(
        f"{len(payloads)} {signal.value} were written to a spool that is only read"
    ) from error
