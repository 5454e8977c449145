"""`[gateway]` of spanloop.toml: limits, time-outs, canary shares and sampling settings, checked when the gateway starts."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from spanloop_collector.gateway.errors import GatewayConfigError

# All that spanloop.toml may hold; the others are read by `build` and by redaction.
TABLES: Final = frozenset(
    {"credit", "filters", "gateway", "judge", "redaction", "rewards", "tasks", "watermark"}
)
SAMPLING: Final = frozenset(
    {
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "max_tokens",
        "seed",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
    }
)


@dataclass(frozen=True)
class SamplingSettings:
    """What requests of one model name are sent with.

    Args:
        values: by the name of chat's request parameter.
        override: replace what the client set, too; else only what it left open is filled.
    """

    values: Mapping[str, float]
    override: bool = False


@dataclass(frozen=True)
class GatewaySettings:
    """All of `[gateway]`; times are in seconds."""

    connect_timeout_s: float = 5.0
    """To have a connection to a back end."""
    first_byte_timeout_s: float = 600.0
    """From the request's last byte to the answer's first one."""
    idle_timeout_s: float = 300.0
    """Between two pieces of an answer."""
    total_timeout_s: float = 3600.0
    """Of one call with all its attempts."""
    retries: int = 2
    """Further attempts of a call whose answer has not begun to reach the client."""
    max_in_flight: int = 512
    """Calls that one back end works on at the same time."""
    max_waiting: int = 512
    """Calls that wait for a back end of one pool, or for the end of a pause."""
    max_wait_s: float = 60.0
    """How long one of them waits before it is answered 503."""
    max_body_bytes: int = 64 << 20
    """Of one request, not compressed."""
    learn_prompts: bool = True
    """Record the system prompts of agents as versions; false: know only those that somebody wrote."""
    canary: Mapping[str, float] = field(default_factory=dict)
    """Name → share of its sessions that `NAME@candidate` serves, 0 to 1."""
    sampling: Mapping[str, SamplingSettings] = field(default_factory=dict)
    """NAME or NAME@ALIAS → sampling settings."""

    @classmethod
    def read(cls, path: Path | None) -> GatewaySettings:
        """From spanloop.toml; None: all defaults.

        Raises:
            GatewayConfigError: the file cannot be read, or says something that we do not understand.
        """
        if path is None:
            return cls()
        try:
            found = tomllib.loads(path.read_bytes().decode())
        except OSError as error:
            raise GatewayConfigError(
                f"configuration {path} cannot be read: {error.strerror}", "check --config"
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise GatewayConfigError(
                f"{path} is not TOML: {error}", "correct that line and start again"
            ) from error
        for name in found.keys() - TABLES:
            raise GatewayConfigError(
                f"{path}: {name}: there is no such table", f"tables are {', '.join(sorted(TABLES))}"
            )
        return cls.of(found.get("gateway", {}), str(path))

    @classmethod
    def of(cls, table: object, where: str = "spanloop.toml") -> GatewaySettings:
        """From the table itself.

        Raises:
            GatewayConfigError: an unknown setting, or a value of the wrong kind.
        """
        if not isinstance(table, dict):
            raise _wrong(where, "gateway", "it is a table: [gateway]")
        known = {found.name: found.default for found in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for name, value in table.items():
            if name == "canary":
                values[name] = _canary(value, where)
            elif name == "sampling":
                values[name] = _sampling(value, where)
            elif name not in known:
                raise _wrong(where, f"gateway.{name}", "there is no such setting")
            elif isinstance(known[name], bool):
                if not isinstance(value, bool):
                    raise _wrong(where, f"gateway.{name}", "it is true or false")
                values[name] = value
            else:
                values[name] = _limit(value, known[name], f"gateway.{name}", where)
        return cls(**values)


def _limit(value: object, default: object, name: str, where: str) -> float | int:
    whole = type(default) is int
    if type(value) is int and value >= 0 and (whole or value > 0):
        return value
    if not whole and type(value) is float and math.isfinite(value) and value > 0:
        return value
    raise _wrong(where, name, "it is a whole number from 0" if whole else "it is a number of seconds above 0")


def _canary(table: object, where: str) -> dict[str, float]:
    if not isinstance(table, dict):
        raise _wrong(where, "gateway.canary", "it is a table: NAME = SHARE")
    for name, share in table.items():
        if type(share) not in (int, float) or not 0 <= share <= 1:
            raise _wrong(where, f"gateway.canary.{name}", "it is a share from 0 to 1")
        if "@" in name:
            raise _wrong(where, f"gateway.canary.{name!r}", "it is a model's name without @")
    return table


def _sampling(table: object, where: str) -> dict[str, SamplingSettings]:
    if not isinstance(table, dict):
        raise _wrong(where, "gateway.sampling", 'it has tables: [gateway.sampling."NAME@candidate"]')
    found = {}
    for model, values in table.items():
        name = f"gateway.sampling.{model!r}"
        if not isinstance(values, dict):
            raise _wrong(where, name, f'it is a table: [gateway.sampling."{model}"]')
        override = values.get("override", False)
        if not isinstance(override, bool):
            raise _wrong(where, f"{name}.override", "it is true or false")
        numbers = {key: value for key, value in values.items() if key != "override"}
        for key, value in numbers.items():
            if key not in SAMPLING:
                raise _wrong(
                    where, f"{name}.{key}", f"there is no such setting, but {', '.join(sorted(SAMPLING))}"
                )
            if type(value) not in (int, float) or not math.isfinite(value):
                raise _wrong(where, f"{name}.{key}", "it is a number")
        found[model] = SamplingSettings(numbers, override)
    return found


def _wrong(where: str, name: str, what: str) -> GatewayConfigError:
    return GatewayConfigError(f"{where}: {name}: {what}", "correct this setting; docs/gateway.md lists all")
