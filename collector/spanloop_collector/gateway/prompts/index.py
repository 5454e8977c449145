"""Recognition of known prompts: the exact text first, then templates, those with the most fixed text first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

from spanloop_store.templates import Template

# A prompt that no agent has sent yet may be anybody's.
ANYBODY: Final = "*"
# With less fixed text than this a template would recognise the prompts of others.
MIN_FIXED_CHARS: Final = 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One known version, as it looks in a request.

    Args:
        template: of the agent's own text, before redaction.
        created: when the version was recorded, UTC.
    """

    name: str
    version: int
    template: Template
    created: datetime

    @property
    def id(self) -> str:
        """NAME@VERSION."""
        return f"{self.name}@{self.version}"


class Recognised(NamedTuple):
    """A version, and what stands in its places, by name."""

    entry: Entry
    values: dict[str, str]


class Index:
    """Immutable: the learner makes a new one, and calls go on with the one that they have.

    Args:
        entries: with the service that they belong to, `ANYBODY`, or "" where services are not known.
    """

    def __init__(self, entries: Iterable[tuple[str, Entry]] = ()) -> None:
        self._texts: dict[str, dict[str, Entry]] = {}
        self._templates: dict[str, list[Entry]] = {}
        for service, entry in sorted(
            entries, key=lambda pair: (pair[1].created, pair[1].name, pair[1].version)
        ):
            if not entry.template.names:
                self._texts.setdefault(service, {}).setdefault(entry.template.literals[0], entry)
            elif entry.template.fixed_chars >= MIN_FIXED_CHARS:
                self._templates.setdefault(service, []).append(entry)
        for templates in self._templates.values():
            templates.sort(key=lambda entry: -entry.template.fixed_chars)

    def find(self, service: str, text: str) -> Recognised | None:
        """The version that a text is; None: not known."""
        for whose in (service, ANYBODY):
            entry = self._texts.get(whose, _NO_TEXTS).get(text)
            if entry is not None:
                return Recognised(entry, {})
        for whose in (service, ANYBODY):
            for entry in self._templates.get(whose, ()):
                values = entry.template.match(text)
                if values is not None:
                    return Recognised(entry, values)
        return None


_NO_TEXTS: Final[dict[str, Entry]] = {}
