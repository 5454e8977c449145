"""What was asked: explicit id, else the task file's id whose prompt it is, else a hash of the first user message."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import polars as pl

from spanloop_trainer.config import Config
from spanloop_trainer.errors import ConfigError

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


def assign_tasks(episodes: pl.DataFrame, tasks: pl.DataFrame) -> pl.DataFrame:
    """Add `task_id`, `split`, `expected` and the `task_<field>` columns.

    Args:
        episodes: `explicit_task` and `first_user` (both may be null), one row an episode.
    """
    prompt = pl.col("first_user").str.strip_chars()
    episodes = episodes.with_columns(prompt.alias("prompt"))
    by_prompt = tasks.select("prompt", pl.col("task_id").alias("found"))
    episodes = episodes.join(by_prompt, on="prompt", how="left", maintain_order="left")
    hashes = _hashes(
        episodes.filter(pl.col("found").is_null() & pl.col("explicit_task").is_null())["prompt"], "prompt"
    )
    episodes = episodes.join(hashes, on="prompt", how="left", maintain_order="left").with_columns(
        pl.coalesce("explicit_task", "found", "hash", pl.lit("prompt-none")).alias("task_id")
    )
    episodes = episodes.drop("found", "hash", "prompt").join(
        tasks.drop("prompt"), on="task_id", how="left", maintain_order="left"
    )
    unknown = _hashes(episodes.filter(pl.col("split").is_null())["task_id"], "task_id")
    hashed = pl.col("hash").str.slice(7, 8).str.to_integer(base=16) % 100 < TEST_PERCENT
    return (
        episodes.join(unknown, on="task_id", how="left", maintain_order="left")
        .with_columns(
            pl.coalesce("split", pl.when(hashed).then(pl.lit("test")).otherwise(pl.lit("train"))).alias(
                "split"
            )
        )
        .drop("hash")
    )


def _hashes(values: pl.Series, name: str) -> pl.DataFrame:
    """`prompt-` and 64 bits of SHA-256 for every distinct value: the same on every machine and in every version."""
    distinct = values.drop_nulls().unique().alias(name)
    hashes = [f"prompt-{hashlib.sha256(value.encode()).hexdigest()[:16]}" for value in distinct.to_list()]
    return pl.DataFrame([distinct, pl.Series("hash", hashes, dtype=pl.String)])
