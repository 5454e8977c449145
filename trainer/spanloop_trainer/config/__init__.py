"""`spanloop.toml`: what to read tasks from, what to reward, how to share credit."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from spanloop_trainer.config.credit import Credit
from spanloop_trainer.config.filters import Evaluation, Filters
from spanloop_trainer.config.rewards import Judge, RewardRule, Watermark
from spanloop_trainer.errors import ConfigError

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


class Config(_Strict):
    """The whole of `spanloop.toml`; every part has a default, so that an empty file is valid."""

    tasks: tuple[TaskFile, ...] = ()
    rewards: tuple[RewardRule, ...] = ()
    judge: Judge | None = None
    watermark: Watermark = Field(default_factory=Watermark)
    credit: Credit = Field(default_factory=Credit)
    filters: Filters = Field(default_factory=Filters)
    gateway: dict[str, Any] = Field(default_factory=dict, exclude=True)
    """Not ours: `spanloop up` reads and checks it. No dataset depends on it."""
    redaction: dict[str, Any] = Field(default_factory=dict, exclude=True)
    """Not ours either: `SPANLOOP_REDACTION` may name this file."""
    _folder: Path = PrivateAttr(default_factory=Path.cwd)

    @model_validator(mode="after")
    def _rewards_fit(self) -> Config:
        names = [rule.name for rule in self.rewards]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"[[rewards]] has {', '.join(twice)} twice; a name has one weight")
        judged = [rule.name for rule in self.rewards if rule.rubric]
        if judged and self.judge is None:
            raise ValueError(f"[[rewards]] {judged[0]!r} has a rubric, and there is no [judge] with a model")
        return self

    def verifier_path(self, rule: RewardRule) -> Path | None:
        """Where the file of a verifier lies; None: it comes by name."""
        file, _, function = rule.verifier.rpartition(":")
        return self._folder / file if function and file.endswith(".py") else None

    def task_path(self, task_file: TaskFile) -> Path:
        """Where a task file lies."""
        return self._folder / task_file.file

    def evaluation_path(self, evaluation: Evaluation) -> Path:
        """Where an evaluation's file lies."""
        return self._folder / evaluation.file

    def values_path(self) -> Path | None:
        """Where the value of every state lies; None: the method of credit needs none."""
        return self._folder / self.credit.values if self.credit.values else None

    def content_hash(self) -> str:
        """SHA-256 over every setting and every byte of the files that it names: what a dataset depends on beside the spans.

        Raises:
            ConfigError: one of these files cannot be read.
        """
        digest = hashlib.sha256(self.model_dump_json().encode())
        if values := self.values_path():
            digest.update(hashlib.sha256(_read(values, "values", "[credit]")).digest())
        for task_file in self.tasks:
            digest.update(hashlib.sha256(_read(self.task_path(task_file), "task file", "[[tasks]]")).digest())
        for evaluation in self.filters.decontaminate:
            path = self.evaluation_path(evaluation)
            digest.update(
                hashlib.sha256(_read(path, "evaluation file", "[[filters.decontaminate]]")).digest()
            )
        for rule in self.rewards:
            if verifier := self.verifier_path(rule):
                digest.update(hashlib.sha256(_read(verifier, "verifier", "[[rewards]]")).digest())
        return digest.hexdigest()


def _read(path: Path, what: str, table: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{what} {path} cannot be read: {error.strerror}",
            f"correct its place under {table} in spanloop.toml",
        ) from error


def _beside(place: tuple[str | int, ...]) -> str:
    """The settings of the table in which pydantic found one that it does not know, as a message has them."""
    table: Any = Config
    for name in place[:-1]:
        if isinstance(name, str):
            fields: dict[str, Any] = getattr(table, "model_fields", {})
            if name not in fields:
                return ""
            kind = fields[name].annotation
            table = next((inner for inner in get_args(kind) if isinstance(inner, type)), kind)
    names = [field.alias or name for name, field in getattr(table, "model_fields", {}).items()]
    return f"; valid: {', '.join(names)}" if names else ""


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
            (f"{'.'.join(map(str, e['loc']))}: " if e["loc"] else "")
            + (
                f"there is no such setting{_beside(e['loc'])}"
                if e["type"] == "extra_forbidden"
                else e["msg"].removeprefix("Value error, ")
            )
            for e in error.errors()
        )
        raise ConfigError(
            f"{path}: {lines}", "correct these settings; docs/configuration.md lists all"
        ) from error
    config._folder = path.resolve().parent
    values = config.values_path()
    if values and not values.is_file():
        raise ConfigError(
            f"{path} names the values {config.credit.values}, and {values} does not exist",
            "correct `values` under [credit] (it is relative to the configuration's folder)",
        )
    for task_file in config.tasks:
        if not config.task_path(task_file).is_file():
            raise ConfigError(
                f"{path} names the task file {task_file.file}, and {config.task_path(task_file)} does not exist",
                "correct `file` under [[tasks]] (it is relative to the configuration's folder)",
            )
    return config
