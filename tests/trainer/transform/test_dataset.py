"""A dataset's folder: what a failed write leaves, and what is no dataset."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from tests.trainer.algorithms.datasets import transitions, write

from spanloop.main import main
from spanloop_trainer.errors import DatasetError
from spanloop_trainer.transform import load_dataset
from spanloop_trainer.transform.datasets.dataset import scan_lost, write_dataset
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


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"counts": []}, "counts: "),
        ({"splits": {"train": "many"}}, "splits.train: "),
        ({"query": None}, "query: "),
        ({"config_hash": "another"}, "changed after it was built"),
    ],
    ids=["list", "text", "null", "hash"],
)
def test_a_manifest_that_says_something_else_is_refused(
    changed: dict[str, Any], why: str, tmp_path: Path
) -> None:
    dataset = write(tmp_path / "d", transitions(1))
    manifest = json.loads((dataset / "manifest.json").read_text())
    (dataset / "manifest.json").write_text(json.dumps({**manifest, **changed}))
    with pytest.raises(DatasetError, match=why):
        load_dataset(dataset)


def test_a_manifest_nested_without_end_is_no_manifest(tmp_path: Path) -> None:
    dataset = write(tmp_path / "d", transitions(1))
    (dataset / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(DatasetError, match="is not a manifest"):
        load_dataset(dataset)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (lambda rows: rows.drop("reward"), "reward"),
        (lambda rows: rows.with_columns(pl.col("step").cast(pl.Int64)), "step"),
        (lambda rows: rows.with_columns(more=1), "more"),
    ],
    ids=["missing", "type", "more"],
)
def test_rows_of_other_columns_are_refused(
    changed: Callable[[pl.DataFrame], pl.DataFrame], named: str, tmp_path: Path
) -> None:
    """As a program that "only adds a column" leaves them, with a manifest of its own making."""
    dataset = write(tmp_path / "d", transitions(1))
    path, manifest = dataset / "transitions.parquet", json.loads((dataset / "manifest.json").read_text())
    changed(pl.read_parquet(path)).write_parquet(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    of_both = hashlib.sha256(f"{digest}:{manifest['config_hash']}".encode()).hexdigest()
    (dataset / "manifest.json").write_text(json.dumps({**manifest, "sha256": digest, "id": of_both}))
    with pytest.raises(DatasetError, match=f"column {named} "):
        load_dataset(dataset)


def test_lost_rows_that_are_broken_are_named(tmp_path: Path) -> None:
    (tmp_path / "lost.parquet").write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match="no Parquet file"):
        scan_lost(tmp_path)
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "lost.parquet")
    with pytest.raises(DatasetError, match="column reason"):
        scan_lost(tmp_path)


def test_what_a_killed_build_left_goes_with_the_next(tmp_path: Path) -> None:
    """It holds texts of traces that no dataset tells of; that of a build that still runs stays."""
    dead = 2**22 + 1  # beyond Linux's largest process id
    for name in ("transitions.parquet", "lost.parquet", "manifest.json"):
        (tmp_path / f".{name}.{dead}").write_bytes(b"texts")
    for name in (f".transitions.parquet.{os.getppid()}", ".mine.parquet.7"):
        (tmp_path / name).write_bytes(b"texts")
    write(tmp_path, transitions(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".mine.parquet.7", f".transitions.parquet.{os.getppid()}", "manifest.json", "transitions.parquet",
    ]  # fmt: skip


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_a_terminal_without_unicode_is_no_failure(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(
        tmp_path, transitions(1), query={}, config_hash="", credit="", counts={"lost": {"a → 🙂": 1}}, splits={}, decoders={}
    )  # fmt: skip
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "argv", ["spanloop", "dataset", "show", str(tmp_path), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    terminal.seek(0)
    shown = terminal.read()
    if options:
        assert json.loads(shown)["counts"]["lost"] == {"a → 🙂": 1}
    else:
        assert "a ? ?" in shown
