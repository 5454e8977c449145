"""Verifiers: Python functions over an episode, by name; one that raises leaves that episode unscored, and no other."""

from __future__ import annotations

import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from spanloop_trainer.config import Config
from spanloop_trainer.config.rewards import RewardRule
from spanloop_trainer.errors import ConfigError
from spanloop_trainer.transform.datasets.schema import REWARD_PART
from spanloop_trainer.transform.rewards.checks import SHIPPED
from spanloop_trainer.transform.rewards.episode import Episode

# Entry points of other packages: `name = "package.module:function"`.
GROUP = "spanloop.verifiers"
Verifier = Callable[..., float | bool | None]


class Unscored(NamedTuple):
    """Why an episode has no reward of one name."""

    name: str
    episode_id: str
    reason: str  # without what differs from episode to episode
    detail: str


UNSCORED = pl.Schema(dict.fromkeys(Unscored._fields, pl.String))


class Check(NamedTuple):
    """One `[[rewards]]` with a verifier, found and ready."""

    rule: RewardRule
    function: Verifier


def find_verifiers(config: Config) -> list[Check]:
    """The functions of all `[[rewards]]` that name a verifier.

    Raises:
        ConfigError: there is no such verifier, it cannot be imported, or it does not take these options.
    """
    return [Check(rule, _find(rule, config)) for rule in config.rewards if rule.verifier]


def _find(rule: RewardRule, config: Config) -> Verifier:
    function = _load(rule, config)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise _broken(rule, error) from error
    try:
        signature.bind(None, **rule.options)
    except TypeError as error:
        taken = list(signature.parameters)[1:]
        valid = f"valid: {', '.join(taken)}" if taken else "it takes none"
        raise ConfigError(
            f"reward {rule.name!r}: {rule.verifier} cannot be called with these options: {error}; {valid}",
            "correct `options` of that [[rewards]] in spanloop.toml",
        ) from error
    return function


def _load(rule: RewardRule, config: Config) -> Verifier:
    if rule.verifier in SHIPPED:
        return SHIPPED[rule.verifier]
    if path := config.verifier_path(rule):
        return _from_file(rule, path)
    others = {point.name: point for point in entry_points(group=GROUP)}
    if rule.verifier not in others:
        raise ConfigError(
            f"reward {rule.name!r}: there is no verifier {rule.verifier!r}; valid: {', '.join(sorted({*SHIPPED, *others}))}",
            f"correct `verifier`, install the package that has it (entry points {GROUP!r}), or name FILE.py:FUNCTION",
        )
    try:
        found: Verifier = others[rule.verifier].load()
    except (Exception, SystemExit) as error:
        raise _broken(rule, error) from error
    return found


def _from_file(rule: RewardRule, path: Path) -> Verifier:
    name = rule.verifier.rpartition(":")[2]
    spec = importlib.util.spec_from_file_location(f"spanloop_verifiers_{path.stem}_{hash(path):x}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Where dataclasses and pickle look for it.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _broken(rule, error) from error
    functions = {key: value for key, value in vars(module).items() if inspect.isfunction(value)}
    if name not in functions:
        own = sorted(key for key, value in functions.items() if value.__module__ == module.__name__)
        raise ConfigError(
            f"reward {rule.name!r}: {path} has no function {name!r}; valid: {', '.join(own) or 'none'}",
            "correct `verifier` of that [[rewards]] in spanloop.toml",
        )
    function: Verifier = functions[name]
    return function


def _broken(rule: RewardRule, error: BaseException) -> ConfigError:
    return ConfigError(
        f"reward {rule.name!r}: {rule.verifier} cannot be imported: {type(error).__name__}: {error}",
        "correct that module, or `verifier` of that [[rewards]] in spanloop.toml",
    )


def verify(checks: Iterable[Check], episodes: Iterable[Episode]) -> tuple[pl.DataFrame, list[Unscored]]:
    """Ask every verifier about every episode.

    Returns:
        `episode_id` and the fields of a reward part; and who has none because a verifier raised, or gave no finite number.
        One that gave None is unscored by the verifier's own will, and not listed.
    """
    checks = list(checks)
    parts: list[tuple[str, str, float, str, str, str]] = []
    unscored: list[Unscored] = []
    for episode in episodes:
        for rule, function in checks:
            value = _ask(rule, function, episode)
            if isinstance(value, Unscored):
                unscored.append(value)
            elif value is not None:
                parts.append((episode.id, rule.name, value, "verifier", rule.verifier, rule.version))
    schema: Mapping[str, Any] = {"episode_id": pl.String, **REWARD_PART.to_schema()}
    return pl.DataFrame(parts, schema=schema, orient="row"), unscored


def _ask(rule: RewardRule, function: Verifier, episode: Episode) -> float | Unscored | None:
    try:
        value = function(episode, **rule.options)
    except (
        Exception,
        SystemExit,
    ) as error:  # whatever a user's function does: this episode has no reward, the others live
        why = f"the verifier {rule.verifier} raised {type(error).__name__}"
        return Unscored(rule.name, episode.id, why, str(error)[:500])
    if value is None:
        return None
    try:
        number = float(value)
    except Exception:  # a type of the user's own, again
        number = math.nan
    if isinstance(value, str | bytes) or not math.isfinite(number):
        why = f"the verifier {rule.verifier} gave no finite number"
        return Unscored(rule.name, episode.id, why, repr(value)[:500])
    return number
