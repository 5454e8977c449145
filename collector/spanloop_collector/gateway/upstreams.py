"""The configured back ends: `--upstream [NAME=]URL`, found by a model's name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from yarl import URL

from spanloop_collector.gateway.backends import Backend
from spanloop_collector.gateway.errors import GatewayConfigError
from spanloop_collector.gateway.pools import Pool


class Upstreams:
    """Pools by name; the same name (or none) given several times makes a pool."""

    def __init__(self, backends: Iterable[tuple[str, str]]) -> None:
        grouped: dict[str, list[Backend]] = {}
        for name, base in backends:
            pool = grouped.setdefault(name, [])
            if any(other.base == base for other in pool):
                raise GatewayConfigError(
                    f"--upstream {name or 'the default'}: {base} is given twice", "leave one of them out"
                )
            pool.append(Backend(base, name or "default"))
        self._by_name = {name: Pool(name, members) for name, members in grouped.items()}

    @classmethod
    def parse(cls, options: Iterable[str]) -> Upstreams:
        """Read `[NAME=]URL` options.

        Raises:
            GatewayConfigError: not an http(s) URL, or the same back end twice.
        """
        return cls(_parse_one(option) for option in options)

    @property
    def default(self) -> Pool | None:
        """The pool for every model that no other one is named for."""
        return self._by_name.get("")

    @property
    def names(self) -> list[str]:
        """Names of the pools that are not the default, in the order given."""
        return [name for name in self._by_name if name]

    def __iter__(self) -> Iterator[Pool]:
        return iter(self._by_name.values())

    def find(self, model: str) -> Pool | None:
        """The pool of a model called NAME or NAME@…; else the default one; None where there is none."""
        return self._by_name.get(model.partition("@")[0]) or self.default


def _parse_one(option: str) -> tuple[str, str]:
    # A URL may hold "=" in its query, so a name only counts where it stands before the scheme.
    name, separator, url = option.partition("=")
    if not separator or "://" in name:
        name, url = "", option
    try:
        parsed = URL(url) if "://" in url else None
    except ValueError:  # a port that is no number, brackets that do not close
        parsed = None
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host:
        raise GatewayConfigError(
            f"--upstream {option!r} is not [NAME=]URL with an http or https URL",
            "for example --upstream calculator=http://127.0.0.1:8000/v1",
        )
    if "@" in name:
        raise GatewayConfigError(
            f"--upstream {option!r}: a name stands for all versions of a model and holds no '@'",
            f"--upstream {name.partition('@')[0]}={url}",
        )
    return name.strip(), url.rstrip("/")
