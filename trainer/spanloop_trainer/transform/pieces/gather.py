"""Where a build's calls come from: the store at once, the store in parts, or the pieces that shards left.

Pieces hold texts of traces. They lie in the dataset's folder, beside the rows that hold the same texts: deleting the folder deletes
them, and `spanloop erase` looks into both.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from spanloop_trainer.errors import TransformError
from spanloop_trainer.transform.pieces.parts import (
    AT_ONCE_BYTES,
    PIECES,
    Part,
    cut,
    finished_parts,
    read_parts,
    remove_others,
    sharded,
    slim,
    take_over,
    window_of,
)
from spanloop_trainer.transform.pieces.piece import Piece, Slim, canonical
from spanloop_trainer.transform.pieces.texts import BUCKET_BYTES, InMemory, OnDisk, Texts
from spanloop_trainer.transform.reading.read import Window, read_spans

# Rows by bin and bucket, while a build runs.
SCRATCH = ".buckets"
# A call takes about a kilobyte while its episode is put together, a span around it a quarter.
BIN_ROWS = 200_000


class Memory(NamedTuple):
    """How a window is cut; no setting of it has a say in the result.

    Attributes:
        parts: read one after another; None: as many as keep a part small.
        bucket_bytes: of texts and tokens that are put together at a time.
        bin_rows: of calls, and of spans around them, that are looked at at a time, where nothing joins more of them.
    """

    parts: int | None = None
    bucket_bytes: int = BUCKET_BYTES
    bin_rows: int = BIN_ROWS


class Pieces(NamedTuple):
    """A window on disk.

    Attributes:
        scratch: an empty folder, for what is made of them.
        older: some are of an earlier build.
    """

    parts: list[Part]
    scratch: Path
    older: bool


@contextmanager
def gathered(
    client: Any,
    window: Window,
    out: Path,
    *,
    parent: Path | None,
    merge: bool,
    memory: Memory,
    progress: Callable[[str], None],
) -> Iterator[Piece | Pieces]:
    """The window in one piece, or in pieces on disk, which live as long as the context.

    Args:
        out: folder of the dataset; pieces and buckets are made in it. Pieces stay there after success if `parent` is given.
        parent: folder of an earlier dataset, whose pieces are taken over where the store's rows are the same.
        merge: the window is that of the shards in `out`, and they are put together.

    Raises:
        TransformError: shards that were not asked for lie in `out`, or asked for are not all there.
        StoreUnavailable: the store did not answer.
    """
    if not merge and sharded(out):
        raise TransformError(
            f"{out / PIECES} holds shards that wait for a merge",
            f"spanloop build --out {out} --merge, or choose another --out",
        )
    pieces, scratch = out / PIECES, out / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)  # of a build that was killed
    older = merge or parent is not None
    try:
        slices = _slices(client, window, out, parent=parent, merge=merge, memory=memory)
        if len(slices) == 1 and not older:
            shutil.rmtree(pieces, ignore_errors=True)
            progress("reading spans")
            yield canonical(read_spans(client, window))
            return
        remove_others(pieces, slices)
        parts = read_parts(client, slices, pieces, kept=older, progress=progress)
        scratch.mkdir(parents=True)
        yield Pieces(parts, scratch, older)
        if parent is None:
            shutil.rmtree(pieces)
    except BaseException:
        # Nothing with texts stays where no dataset tells of it. What shards left is theirs.
        if not merge:
            shutil.rmtree(pieces, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def looked_at(client: Any, window: Window, progress: Callable[[str], None]) -> Iterator[tuple[Slim, Texts]]:
    """The slim rows of a window that no dataset is made of, and where its texts are; what is put on disk meanwhile goes.

    Raises:
        StoreUnavailable: the store did not answer.
    """
    with (
        TemporaryDirectory(prefix="spanloop-") as folder,
        gathered(
            client, window, Path(folder), parent=None, merge=False, memory=Memory(), progress=progress
        ) as found,
    ):
        if isinstance(found, Piece):
            yield found.slim, InMemory(found.texts, found.tokens)
        else:
            folders = [part.folder for part in found.parts]
            yield slim(client, found.parts, older=found.older), OnDisk(folders, found.scratch)


def _slices(
    client: Any, window: Window, out: Path, *, parent: Path | None, merge: bool, memory: Memory
) -> Sequence[Window | Part]:
    if merge:
        # Their rows are compared with the store's again: something may have come late, or been erased.
        return [window_of(part) for part in finished_parts(out)]
    if parent is not None:
        return take_over(client, parent, out / PIECES, window)
    return cut(client, window, memory.parts, AT_ONCE_BYTES)
