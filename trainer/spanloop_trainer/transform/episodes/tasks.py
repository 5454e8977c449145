"""What was asked: explicit id, else the task file's id whose prompt it is, else a hash of the first user message, or of instructions."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import polars as pl

from spanloop_trainer.config import Config
from spanloop_trainer.errors import ConfigError
from spanloop_trainer.transform.calls.tree import resolve
from spanloop_trainer.transform.reading.hashes import hash_of, prompt_hash

# Share of tasks in no file that go to the test split, in percent.
TEST_PERCENT = 20


def read_tasks(config: Config) -> pl.DataFrame:
    """All tasks: `task_id`, `prompt` (stripped), `expected` (text), `split`, and `task_<field>` for every other field.

    A number of `expected` is as it was written, a list or an object is its JSON. Another field is typed where one Polars type holds all its
    values as they are; else it is text, or, with lists or objects, JSON (bytes).

    Raises:
        ConfigError: a file is missing or is not JSON lines with `id` and `prompt`; one prompt has two ids or splits.
    """
    rows = [
        {**row, "split": task_file.split}
        for task_file in config.tasks
        for row in _read_file(config.task_path(task_file))
    ]
    own = ("task_id", "prompt", "expected", "split")
    names = dict.fromkeys(name for row in rows for name in row if name not in own)
    tasks = pl.DataFrame(
        [
            *(pl.Series(name, [_text(row[name]) for row in rows], pl.String) for name in own),
            *(_column(name, [row.get(name) for row in rows]) for name in names),
        ]
    ).with_columns(pl.col("prompt").str.strip_chars())
    tasks = tasks.unique(maintain_order=True)
    for column in ("prompt", "task_id"):
        twice = tasks.filter(pl.col(column).is_duplicated())
        if twice.height:
            files = ", ".join(task_file.file for task_file in config.tasks)
            raise ConfigError(
                f"{files}: {twice.height} tasks share their {column.removeprefix('task_')}, for example {twice[column][0]!r}",
                "give every task one id, one prompt and one split",
            )
    return tasks


def _read_file(path: Path) -> list[dict[str, Any]]:
    """`task_id`, `prompt`, `expected` and `task_<field>` of each line."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(
            f"task file {path} cannot be read: {error}", "correct `file` under [[tasks]]"
        ) from error
    tasks = [_parsed(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not tasks:
        raise _not_json_lines(path, "it is empty")
    missing = {"id", "prompt"} - {name for task in tasks for name in task}
    if missing:
        raise ConfigError(
            f"task file {path} has no field {' and no field '.join(sorted(missing))}",
            'each line needs at least {"id": "…", "prompt": "…"}',
        )
    return [
        {
            "task_id": task.pop("id", None),
            "prompt": task.pop("prompt", None),
            "expected": task.pop("expected", None),
            **{f"task_{name}": value for name, value in task.items()},
        }
        for task in tasks
    ]


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise _not_json_lines(path, f"line {number}, column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise _not_json_lines(path, f"line {number} is no UTF-8 text: {error.reason}") from error
    if not isinstance(value, dict):
        raise _not_json_lines(path, f"line {number} is no object")
    return value


def _not_json_lines(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"task file {path} is not JSON lines: {why}",
        'write one JSON object a line, at least {"id": "…", "prompt": "…"}',
    )


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _column(name: str, values: list[Any]) -> pl.Series:
    """One type if that changes nothing: a struct would give every object the fields of all, and mixed numbers one form."""
    with contextlib.suppress(TypeError, OverflowError, pl.exceptions.PolarsError):
        if {type(value) for value in values if value is not None} == {int, float}:
            values = [None if value is None else float(value) for value in values]
        typed = pl.Series(name, values, strict=True)
        if typed.to_list() == values:
            return typed
    if any(isinstance(value, list | dict) for value in values):
        texts = [None if value is None else json.dumps(value).encode() for value in values]
        return pl.Series(name, texts, pl.Binary)
    return pl.Series(name, [_text(value) for value in values], pl.String)


def assign_tasks(calls: pl.DataFrame, tasks: pl.DataFrame) -> pl.DataFrame:
    """`episode_id`, `task_id` and `split` of every episode.

    Args:
        calls: of whole episodes, in the order of `row`: `episode_id`, `explicit_task`, `asked`, `prompt_hash` (see `messages`; all
            may be null), `lineage` (the episode whose task this one keeps; null: its own).
        tasks: of `read_tasks`.
    """
    episodes = calls.group_by("episode_id", maintain_order=True).agg(
        # A first call whose prompt was not read, or has no user's turn yet, asks nothing: the next one does.
        pl.col("explicit_task", "asked", "prompt_hash").drop_nulls().first(), pl.col("lineage").first()
    ).with_columns(
        # Where there is no user, the instructions are what was asked.
        pl.coalesce("asked", pl.col("prompt_hash").str.replace("prompt:", "prompt-", literal=True)).alias("asked")
    ).with_columns(pl.col("asked").str.head(len(hash_of(""))).alias("text"))  # fmt: skip
    known = tasks.select(
        prompt_hash(tasks["prompt"]).alias("text"), pl.col("task_id").alias("found"), (pl.col("split") == "test").alias("held_out")
    )  # fmt: skip
    episodes = episodes.join(known, on="text", how="left", maintain_order="left").select(
        "episode_id", "explicit_task", "lineage", "held_out",
        # Runs of which nothing is known have no task in common.
        pl.coalesce("explicit_task", "found", "asked", "episode_id").alias("task_id"),
    )  # fmt: skip
    episodes = _of_lineage(episodes).with_columns(episodes["held_out"])
    episodes = episodes.join(
        tasks.select("task_id", "split"), on="task_id", how="left", maintain_order="left"
    ).with_columns(
        # A prompt of the test tasks is held out under any other id as well.
        pl.when(pl.col("split").is_null() & pl.col("held_out")).then(pl.lit("test")).otherwise("split").alias("split")
    )  # fmt: skip
    distinct = episodes.filter(pl.col("split").is_null())["task_id"].unique()
    hashed = pl.DataFrame(
        [distinct, pl.Series("hash", [hash_of(name)[7:15] for name in distinct.to_list()], dtype=pl.String)]
    ).select(
        "task_id",
        pl.when(pl.col("hash").str.to_integer(base=16) % 100 < TEST_PERCENT)
        .then(pl.lit("test")).otherwise(pl.lit("train")).alias("hashed"),
    )  # fmt: skip
    return episodes.join(hashed, on="task_id", how="left", maintain_order="left").select(
        "episode_id", "task_id", pl.coalesce("split", "hashed").alias("split")
    )


def _of_lineage(episodes: pl.DataFrame) -> pl.DataFrame:
    """The task of the run that called an episode, unless its own spans name one; `episode_id` and `task_id`."""
    if episodes["lineage"].null_count() == episodes.height:
        return episodes.select("episode_id", "task_id")
    numbered = episodes.with_row_index("place")
    origin = numbered.select(pl.col("episode_id").alias("lineage"), pl.col("place").alias("origin"))
    named = pl.col("explicit_task").is_not_null() | pl.col("origin").is_null()
    up = numbered.join(origin, on="lineage", how="left", maintain_order="left").select(
        pl.when(named).then("place").otherwise("origin").alias("up")
    )["up"]
    return episodes.select("episode_id", episodes["task_id"].gather(resolve(up)))
