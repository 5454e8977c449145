"""`spanloop.toml`: what to read tasks from, what to reward, how to share credit."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from spanloop_trainer.errors import ConfigError

CreditMethod = Literal["identical", "group_relative", "leave_one_out"]
Split = Literal["train", "test"]


class _Strict(BaseModel):
    """A misspelt setting is an error: silently ignored, it would train on something else."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskFile(_Strict):
    """A JSON-lines file of tasks: `id`, `prompt`, and any further fields (`expected`, …)."""

    file: str
    """Relative to the folder of `spanloop.toml`."""
    split: Split
    """Every task of the file belongs to it."""


class RewardRule(_Strict):
    """One source of reward."""

    name: str
    expression: str = ""
    """Polars SQL over the episode columns; null means unscored. Empty: only rows of table `rewards` with this name."""
    weight: float = 1.0
    """Factor in the sum that makes the reward."""
    version: str = "1"
    """Recorded with every value; raise it when the meaning of the rule changes."""


class Credit(_Strict):
    """How an episode's reward becomes the advantage of its steps."""

    method: CreditMethod = "identical"


class Config(_Strict):
    """The whole of `spanloop.toml`; every part has a default, so that an empty file is valid."""

    tasks: tuple[TaskFile, ...] = ()
    rewards: tuple[RewardRule, ...] = ()
    credit: Credit = Field(default_factory=Credit)
    gateway: dict[str, Any] = Field(default_factory=dict, exclude=True)
    """Not ours: `spanloop up` reads and checks it. No dataset depends on it."""
    redaction: dict[str, Any] = Field(default_factory=dict, exclude=True)
    """Not ours either: `SPANLOOP_REDACTION` may name this file."""
    _folder: Path = PrivateAttr(default_factory=Path.cwd)

    def task_path(self, task_file: TaskFile) -> Path:
        """Where a task file lies."""
        return self._folder / task_file.file

    def content_hash(self) -> str:
        """SHA-256 over every setting and every byte of the task files: what a dataset depends on beside the spans.

        Raises:
            ConfigError: a task file cannot be read.
        """
        digest = hashlib.sha256(self.model_dump_json().encode())
        for task_file in self.tasks:
            digest.update(hashlib.sha256(_read(self.task_path(task_file))).digest())
        return digest.hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"task file {path} cannot be read: {error.strerror}",
            "correct `file` under [[tasks]] in spanloop.toml",
        ) from error


def load_config(path: Path | str | None) -> Config:
    """Read `spanloop.toml`; None gives the defaults (no tasks, no rewards, identical credit).

    Raises:
        ConfigError: the file is missing, is not TOML, has an unknown setting, or names a task file that is missing.
    """
    if path is None:
        return Config()
    path = Path(path)
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else f"it is no UTF-8 text: {error.reason}"
        raise ConfigError(f"configuration {path} cannot be read: {why}", "check --config") from error
    try:
        config = Config.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}", "correct that line and run it again") from error
    except ValidationError as error:
        lines = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: "
            + ("there is no such setting" if e["type"] == "extra_forbidden" else e["msg"])
            for e in error.errors()
        )
        raise ConfigError(
            f"{path}: {lines}", "correct these settings; docs/configuration.md lists all"
        ) from error
    config._folder = path.resolve().parent
    for task_file in config.tasks:
        if not config.task_path(task_file).is_file():
            raise ConfigError(
                f"{path} names the task file {task_file.file}, and {config.task_path(task_file)} does not exist",
                "correct `file` under [[tasks]] (it is relative to the configuration's folder)",
            )
    return config
