"""What was asked: explicit id, else the task file's id whose prompt it is, else a hash of the first user message."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from spanloop_trainer.config import Config
from spanloop_trainer.errors import ConfigError
from spanloop_trainer.transform.calls.tree import resolve
from spanloop_trainer.transform.reading.hashes import hash_of, prompt_hash

# Share of tasks in no file that go to the test split, in percent.
TEST_PERCENT = 20


def read_tasks(config: Config) -> pl.DataFrame:
    """All tasks: `task_id`, `prompt` (stripped), `expected` (text), `split`, and `task_<field>` for every other field.

    Raises:
        ConfigError: a file is missing or is not JSON lines with `id` and `prompt`; one prompt has two ids or splits.
    """
    frames = [_read_file(config.task_path(task_file), task_file.split) for task_file in config.tasks]
    empty = pl.DataFrame(
        schema={"task_id": pl.String, "prompt": pl.String, "expected": pl.String, "split": pl.String}
    )
    tasks = pl.concat([empty, *frames], how="diagonal_relaxed").unique(maintain_order=True)
    for column in ("prompt", "task_id"):
        twice = tasks.filter(pl.col(column).is_duplicated())
        if twice.height:
            files = ", ".join(task_file.file for task_file in config.tasks)
            raise ConfigError(
                f"{files}: {twice.height} tasks share their {column.removeprefix('task_')}, for example {twice[column][0]!r}",
                "give every task one id, one prompt and one split",
            )
    return tasks


def _read_file(path: Path, split: str) -> pl.DataFrame:
    try:
        frame = pl.read_ndjson(path, infer_schema_length=None)
    except OSError as error:
        raise ConfigError(
            f"task file {path} cannot be read: {error}", "correct `file` under [[tasks]]"
        ) from error
    except pl.exceptions.PolarsError as error:
        raise ConfigError(
            f"task file {path} is not JSON lines: {_first_problem(path) or error}",
            'write one JSON object a line, at least {"id": "…", "prompt": "…"}',
        ) from error
    missing = {"id", "prompt"} - set(frame.columns)
    if missing:
        raise ConfigError(
            f"task file {path} has no field {' and no field '.join(sorted(missing))}",
            'each line needs at least {"id": "…", "prompt": "…"}',
        )
    if "expected" not in frame.columns:
        frame = frame.with_columns(pl.lit(None, pl.String).alias("expected"))
    others = [name for name in frame.columns if name not in ("id", "prompt", "expected")]
    return frame.select(
        pl.col("id").cast(pl.String).alias("task_id"),
        pl.col("prompt").cast(pl.String).str.strip_chars(),
        pl.col("expected").cast(pl.String),
        pl.lit(split).alias("split"),
        *(pl.col(name).alias(f"task_{name}") for name in others),
    )


def _first_problem(path: Path) -> str:
    """The first line that is no JSON object, since Polars counts characters; empty: Polars objects to something else."""
    lines = path.read_bytes().splitlines()
    if not any(line.strip() for line in lines):
        return "it is empty"
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line) if line.strip() else {}
        except json.JSONDecodeError as error:
            return f"line {number}, column {error.colno}: {error.msg}"
        except UnicodeDecodeError as error:
            return f"line {number} is no UTF-8 text: {error.reason}"
        if not isinstance(value, dict):
            return f"line {number} is no object"
    return ""


def assign_tasks(calls: pl.DataFrame, tasks: pl.DataFrame) -> pl.DataFrame:
    """`episode_id`, `task_id` and `split` of every episode.

    Args:
        calls: of whole episodes, in the order of `row`: `episode_id`, `explicit_task`, `asked` (`prompt_hash` of the first
            user message; both may be null), `lineage` (the episode whose task this one keeps; null: its own).
        tasks: of `read_tasks`.
    """
    episodes = calls.group_by("episode_id", maintain_order=True).agg(
        pl.col("explicit_task").drop_nulls().first(), pl.col("asked").first(), pl.col("lineage").first()
    )
    known = tasks.select(prompt_hash(tasks["prompt"]).alias("asked"), pl.col("task_id").alias("found"))
    episodes = episodes.join(known, on="asked", how="left", maintain_order="left").select(
        "episode_id", "explicit_task", "lineage",
        pl.coalesce("explicit_task", "found", "asked", pl.lit("prompt-none")).alias("task_id"),
    )  # fmt: skip
    episodes = _of_lineage(episodes)
    episodes = episodes.join(
        tasks.select("task_id", "split"), on="task_id", how="left", maintain_order="left"
    )
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
