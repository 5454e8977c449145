"""Rows that are made in one order and needed in another: put aside on disk by part, taken up part by part."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl


class Exchange:
    """Frames of the same columns; a part's rows come back in the order in which they were put."""

    def __init__(self, folder: Path) -> None:
        """Args:
        folder: is made when the first rows come; takes about what they take in memory.
        """
        self._folder = folder
        self._none: pl.DataFrame | None = None  # no rows, of their schema
        self._put = 0

    def put(self, frame: pl.DataFrame, parts: pl.Series) -> None:
        """Args:
        parts: the part of each row.
        """
        self._note(frame)
        split = frame.with_columns(parts.alias("part")).partition_by("part", as_dict=True, include_key=False)
        for (part,), rows in split.items():
            self.put_whole(rows, int(str(part)))

    def put_whole(self, frame: pl.DataFrame, part: int) -> None:
        """All rows of a frame into one part."""
        self._note(frame)
        if frame.is_empty():
            return
        folder = self._folder / str(part)
        folder.mkdir(parents=True, exist_ok=True)
        frame.write_ipc(folder / f"{self._put:06}.arrow", compression="lz4")
        self._put += 1

    def _note(self, frame: pl.DataFrame) -> None:
        if self._none is None:
            self._none = frame.clear()

    def take(self, part: int, *, last: bool = False) -> pl.DataFrame:
        """The rows of a part.

        Args:
            last: nobody will ask for them again.
        """
        assert self._none is not None, "nothing was ever put here"
        folder = self._folder / str(part)
        files = sorted(folder.glob("*.arrow"))
        frames = [pl.read_ipc(file) for file in files]
        found = pl.concat([self._none, *frames], how="diagonal_relaxed")
        if last:
            shutil.rmtree(folder, ignore_errors=True)
        return found
