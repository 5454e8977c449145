"""A dataset's folder: what a failed write leaves, and what is no dataset."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from tests.trainer.algorithms.datasets import transitions, write

from spanloop_trainer.errors import DatasetError
from spanloop_trainer.transform import load_dataset
from spanloop_trainer.transform.datasets.dataset import write_dataset
from spanloop_trainer.transform.funnel import LOST


@pytest.mark.parametrize("where", ["parquet", "manifest", "lost"])
def test_a_full_disk_leaves_the_dataset_that_was_there(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write(tmp_path / "d", transitions(2))
    before = {path.name: path.read_bytes() for path in dataset.iterdir()}

    def full(self: Any, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "parquet":
        monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    elif where == "manifest":
        monkeypatch.setattr(Path, "write_text", full)
    else:
        monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    with pytest.raises(DatasetError, match="No space left"):
        write_dataset(
            dataset, transitions(3), query={}, config_hash="", credit="", counts={}, splits={}, decoders={},
            lost=LOST.to_frame().vstack(pl.DataFrame({"reason": ["a reason"]}).select(
                pl.col(name) if name == "reason" else pl.lit(None, dtype).alias(name) for name, dtype in LOST.items()
            )),
        )  # fmt: skip
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in dataset.iterdir()} == before
    assert load_dataset(dataset)[1].height == transitions(2).height


def test_rows_of_another_manifest_are_refused(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", transitions(2)), write(tmp_path / "b", transitions(3))
    (first / "transitions.parquet").write_bytes((second / "transitions.parquet").read_bytes())
    with pytest.raises(DatasetError, match="changed after it was built"):
        load_dataset(first)
