"""Task files: what rules and verifiers see of a field, whatever the other lines of the file hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from spanloop_trainer.config import load_config
from spanloop_trainer.config.rewards import RewardRule
from spanloop_trainer.transform.episodes.tasks import read_tasks
from spanloop_trainer.transform.rewards.episode import task_of
from spanloop_trainer.transform.rewards.rules import score_rules


def tasks(folder: Path, *rows: dict[str, Any], second: tuple[dict[str, Any], ...] = ()) -> pl.DataFrame:
    """Read files of these tasks; ids and prompts are added."""
    text = ""
    for name, lines in (("one", rows), ("two", second)):
        if lines:
            full = [{"id": f"{name}{n}", "prompt": f"{name} {n}", **row} for n, row in enumerate(lines)]
            (folder / name).write_text("".join(json.dumps(row) + "\n\n" for row in full))
            text += f'[[tasks]]\nfile = "{name}"\nsplit = "train"\n'
    (folder / "spanloop.toml").write_text(text)
    return read_tasks(load_config(folder / "spanloop.toml"))


def test_what_is_expected_is_as_it_was_written(tmp_path: Path) -> None:
    """A whole number stays one beside a fraction, and rows or objects are their JSON."""
    given = (18, 18.5, "18.0", True, None, [[1, "a"]], {"x": 1}, 10**30)
    read = tasks(tmp_path, *({"expected": value} for value in given))["expected"].to_list()
    assert read == ["18", "18.5", "18.0", "true", None, '[[1, "a"]]', '{"x": 1}', str(10**30)]


def test_objects_of_many_shapes_keep_their_own(tmp_path: Path) -> None:
    """One schema has no fields of another, as it would in a struct of all."""
    schemas: list[dict[str, Any]] = [
        {"type": "object", "properties": {"a": {"type": ["string", "null"], "const": 1}}},
        {"type": "array", "items": {"const": "x"}},
    ]
    read = tasks(tmp_path, {"schema": schemas[0]}, {"tags": [1]}, second=({"schema": schemas[1]},))
    seen = [task_of(row) for row in read.iter_rows(named=True)]
    assert seen == [{"schema": schemas[0]}, {"tags": [1]}, {"schema": schemas[1]}]
    rule = RewardRule(name="r", expression="""CASE WHEN task_schema LIKE '%"array"%' THEN 1 END""")
    assert score_rules([rule], read, "task_id")["task_id"].to_list() == ["two0"]


@pytest.mark.parametrize(
    ("values", "dtype", "read"),
    [
        ([1, 2.5, None], pl.Float64, [1.0, 2.5, None]),
        ([3, None], pl.Int64, [3, None]),
        (["a", 1, True], pl.String, ["a", "1", "true"]),
        ([[1], [2, 3]], pl.List(pl.Int64), [[1], [2, 3]]),
        ([{"a": 1}, {"a": 2}], pl.Struct({"a": pl.Int64}), [{"a": 1}, {"a": 2}]),
        ([[1], ["x"]], pl.Binary, [b"[1]", b'["x"]']),
    ],
    ids=str,
)
def test_a_field_has_one_type_where_that_changes_nothing(
    tmp_path: Path, values: list[Any], dtype: pl.DataType, read: list[Any]
) -> None:
    column = tasks(tmp_path, *({"f": value} for value in values))["task_f"]
    assert (column.dtype, column.to_list()) == (dtype, read)
