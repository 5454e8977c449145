"""Counts from spans to usable transitions: every loss has a reason, and rows that can be looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import polars as pl

# Kept for each reason, so that a bad day with millions of losses does not fill memory and disk.
ROWS_A_REASON = 10_000
# Losses of spans that a build does not read: what there was is looked up in the store.
NO_MODEL_CALL = "no model call (tools, agents, HTTP, …)"
NOT_READ = "model call of a flavour that is not read"
ANOTHER_AGENT = "call of another agent"
_LOST: dict[str, pl.DataType | type[pl.DataType]] = {
    "reason": pl.String,
    "trace_id": pl.String,
    "span_id": pl.String,
    "start": pl.Datetime("ns"),
    "episode_id": pl.String,  # null: lost before there were episodes
    "task_id": pl.String,
    "detail": pl.String,  # of a twin the span that stayed, of a duplicate the episode, of a hit the evaluation's text
}
LOST = pl.Schema(_LOST)


@dataclass
class Funnel:
    """What came in, what was lost at each place and why, what came out.

    Attributes:
        counts: totals by name, in the order of the pipeline.
        lost: reason → number of things lost for it.
        rows: for each reason that says which, the first `ROWS_A_REASON` spans lost for it, in the order of start; columns `LOST`.
            Reasons are in the order of the pipeline here, those of which nothing was lost too.
        examples: what tells most of a loss, in full: goes into the manifest.
    """

    counts: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    rows: dict[str, pl.DataFrame] = field(default_factory=dict)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def count(self, name: str, number: int) -> None:
        """Note a total."""
        self.counts[name] = int(number)

    def add_to(self, name: str, number: int) -> None:
        """Add to a total."""
        self.counts[name] = self.counts.get(name, 0) + int(number)

    def lose(self, reason: str, number: int, rows: pl.DataFrame | None = None) -> None:
        """Note a loss; nothing is noted for zero, so that a table of reasons holds only what happened.

        Args:
            rows: the spans lost: `trace_id`, `span_id`, and those of `LOST` that are known. None: they are not in memory.
        """
        known = self.rows.setdefault(reason, LOST.to_frame())
        if not number:
            return
        self.lost[reason] = self.lost.get(reason, 0) + int(number)
        if rows is None:
            return
        shown = rows.select(
            pl.lit(reason).alias("reason"),
            *(
                (pl.col(name) if name in rows.columns else pl.lit(None)).cast(dtype).alias(name)
                for name, dtype in LOST.items()
                if name != "reason"
            ),
        )
        self.rows[reason] = _first(pl.concat([known, shown]))

    def add(self, part: Funnel) -> None:
        """Add what was counted of another part of the same spans."""
        for name, number in part.counts.items():
            self.add_to(name, number)
        for reason, rows in part.rows.items():
            known = self.rows.get(reason, LOST.to_frame())
            self.rows[reason] = _first(pl.concat([known, rows])) if rows.height else known
            if reason in part.lost:
                self.lost[reason] = self.lost.get(reason, 0) + part.lost[reason]
        self.examples |= part.examples

    def lost_rows(self) -> pl.DataFrame:
        """All of `rows` in one frame."""
        return pl.concat([LOST.to_frame(), *self.rows.values()])

    def as_dict(self) -> dict[str, Any]:
        """The manifest's `counts`."""
        examples = {"examples": self.examples} if self.examples else {}
        lost = {reason: self.lost[reason] for reason in self.rows if reason in self.lost}
        return {**self.counts, "lost": lost, **examples}


def _first(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.sort("start", "trace_id", "span_id", "detail").head(ROWS_A_REASON)
