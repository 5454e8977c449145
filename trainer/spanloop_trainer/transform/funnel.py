"""Counts from spans to usable transitions: every loss has a reason."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Funnel:
    """What came in, what was lost at each place and why, what came out.

    Attributes:
        counts: totals by name, in the order of the pipeline.
        lost: reason → number of things lost for it.
    """

    counts: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)

    def count(self, name: str, number: int) -> None:
        """Note a total."""
        self.counts[name] = int(number)

    def lose(self, reason: str, number: int) -> None:
        """Note a loss; nothing is noted for zero, so that a table of reasons holds only what happened."""
        if number:
            self.lost[reason] = self.lost.get(reason, 0) + int(number)

    def as_dict(self) -> dict[str, int | dict[str, int]]:
        """The manifest's `counts`."""
        return {**self.counts, "lost": dict(self.lost)}
