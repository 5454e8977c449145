"""What differs between two datasets: rows by span, columns, rewards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from spanloop_trainer.transform.datasets.dataset import Manifest, open_dataset
from spanloop_trainer.transform.datasets.schema import TRANSITIONS

# One answer of one span; unique in a dataset.
KEY = ("trace_id", "span_id", "choice")
_REST = tuple(name for name in TRANSITIONS if name not in KEY)


@dataclass(frozen=True)
class Difference:
    """From dataset `a` to dataset `b`.

    Attributes:
        a, b: their manifests.
        added, removed: `KEY`, `episode_id`, `task_id`, in the order of the datasets.
        columns: column → rows that both have and in which it differs; only those that do.
        changed: rows that both have and that differ in some column: `KEY`, `episode_id`, `columns` (list of str).
        rewards: those whose reward differs: `KEY`, `episode_id`, `before`, `after` (null: unscored), `parts` (list of str: names of
            the reward parts that came, went or changed).
        same: rows equal in all columns.
    """

    a: Manifest
    b: Manifest
    added: pl.DataFrame
    removed: pl.DataFrame
    columns: dict[str, int]
    changed: pl.DataFrame
    rewards: pl.DataFrame
    same: int

    def as_dict(self, limit: int | None = None) -> dict[str, Any]:
        """For `--json`; of every list the first `limit`."""
        lists = {name: getattr(self, name) for name in ("added", "removed", "changed", "rewards")}
        return {
            "a": self.a.id, "b": self.b.id, "parent": self.b.parent == self.a.id,
            "config_changed": self.a.config_hash != self.b.config_hash, "same": self.same, "columns": self.columns,
            "counts": {name: frame.height for name, frame in lists.items()},
            **{name: (frame if limit is None else frame.head(limit)).to_dicts() for name, frame in lists.items()},
        }  # fmt: skip


def compare(a: Path, b: Path) -> Difference:
    """Compare two datasets, one column at a time.

    Raises:
        DatasetError: a folder holds no finished dataset, or not the rows of its manifest.
    """
    (before, rows_before), (after, rows_after) = open_dataset(a), open_dataset(b)
    names = [*KEY, "episode_id", "task_id"]
    old = rows_before.select(names).collect().with_row_index("before")
    new = rows_after.select(names).collect().with_row_index("after")
    both = old.select(*KEY, "before").join(new.select(*KEY, "after"), on=KEY, how="inner").sort("after")
    shown = new[both["after"]].select(*KEY, "episode_id")
    differs: dict[str, pl.Series] = {}
    for name in _REST:
        one, other = (
            rows.select(name).collect()[name].gather(both[side])
            for rows, side in ((rows_before, "before"), (rows_after, "after"))
        )
        unequal = _comparable(one).ne_missing(_comparable(other))
        if unequal.any():
            differs[name] = unequal
        if name == "reward":
            rewards = shown.with_columns(one.alias("before"), other.alias("after"))
        if name == "reward_parts":
            parts = _parts(one, other)
    changed = _changed(shown, differs)
    nothing = pl.Series([False] * both.height, dtype=pl.Boolean)
    return Difference(
        before, after,
        added=new.join(old, on=KEY, how="anti", maintain_order="left").drop("after"),
        removed=old.join(new, on=KEY, how="anti", maintain_order="left").drop("before"),
        columns={name: int(unequal.sum()) for name, unequal in differs.items()},
        changed=changed,
        rewards=rewards.with_columns(parts).filter(differs.get("reward", nothing)),
        same=both.height - changed.height,
    )  # fmt: skip


def _comparable(values: pl.Series) -> pl.Series:
    """Nested values as text: Polars compares no lists of structs."""
    if not isinstance(values.dtype, pl.List | pl.Struct):
        return values
    return values.to_frame("value").select(pl.struct("value").struct.json_encode())["value"]


def _changed(shown: pl.DataFrame, differs: dict[str, pl.Series]) -> pl.DataFrame:
    """Rows that differ in some column, with the names of these."""
    flags = pl.DataFrame([unequal.alias(name) for name, unequal in differs.items()])
    if not differs:
        return shown.clear().with_columns(pl.lit(None, pl.List(pl.String)).alias("columns"))
    some = flags.select(pl.any_horizontal(pl.all()).alias("some"))["some"]
    names = [
        [name for name, unequal in zip(flags.columns, row, strict=True) if unequal]
        for row in flags.filter(some).iter_rows()
    ]
    return shown.filter(some).with_columns(pl.Series("columns", names, dtype=pl.List(pl.String)))


def _parts(before: pl.Series, after: pl.Series) -> pl.Series:
    """Names of the reward parts that one of the two lists has alone."""
    texts = pl.DataFrame(
        {
            side: values.fill_null([]).list.eval(pl.element().struct.json_encode())
            for side, values in (("before", before), ("after", after))
        }
    )
    alone = pl.col("before").list.set_symmetric_difference("after")
    return texts.select(
        alone.list.eval(pl.element().str.json_path_match("$.name")).list.unique().list.sort().alias("parts")
    )["parts"]
