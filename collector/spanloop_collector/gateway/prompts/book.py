"""What the registry says of prompts at one moment, and reading it only when it has changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from spanloop_store.pointers import CANDIDATE, PRODUCTION

if TYPE_CHECKING:
    from spanloop_store.prompts import PromptVersion


@dataclass(frozen=True)
class Book:
    """All versions and where the aliases point.

    Args:
        versions: by (name, number).
        aliases: (name, alias) → number, and since when.
    """

    versions: Mapping[tuple[str, int], PromptVersion] = field(default_factory=dict)
    aliases: Mapping[tuple[str, str], tuple[int, datetime]] = field(default_factory=dict)

    def target(self, name: str, *, candidate: bool = False) -> tuple[PromptVersion, datetime] | None:
        """The version that is to be sent for a prompt, and since when; None: whatever the agent sends.

        Args:
            name: of the prompt.
            candidate: the candidate, where there is one.
        """
        found = self.aliases.get((name, CANDIDATE)) if candidate else None
        found = found or self.aliases.get((name, PRODUCTION))
        version = self.versions.get((name, found[0])) if found else None
        return None if found is None or version is None else (self.standing_for(version), found[1])

    def standing_for(self, version: PromptVersion) -> PromptVersion:
        """The version that a merged one turned out to be."""
        for _ in range(8):  # a chain; should it ever be a ring, it ends here
            name, _, number = version.same_as.rpartition("@")
            following = self.versions.get((name, int(number))) if number.isdecimal() else None
            if following is None:
                return version
            version = following
        return version


class BookReader:
    """Gives the same object as long as the registry says the same: only a fingerprint is asked for then."""

    def __init__(self) -> None:
        self._fingerprint: tuple[int, ...] | None = None
        self._book = Book()

    def __call__(self, client: Any) -> Book:
        """The registry's prompts now.

        Raises:
            The database driver's error: the store did not answer.
        """
        # Late: the database driver comes with them.
        from spanloop_store.pointers import aliases
        from spanloop_store.prompts import fingerprint, prompts

        now = fingerprint(client)
        if now != self._fingerprint:
            # Aliases first: the versions read after them hold whatever they point at.
            pointed = aliases(client, "prompt")
            versions = prompts(client)
            self._book = Book(
                {(version.name, version.version): version for version in versions},
                {(alias.name, alias.alias): (alias.version, alias.time) for alias in pointed},
            )
            self._fingerprint = now
        return self._book
