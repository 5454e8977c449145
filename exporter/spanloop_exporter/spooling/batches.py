"""What goes to a target in one go, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from spanloop_store.otlp.signals import Signal


class Outcome(Enum):
    """What became of a batch."""

    DELIVERED = "delivered"
    LATER = "later"  # nothing was taken, or nobody knows: the same batch again
    REFUSED = "refused"  # for good
    TOO_LARGE = "too large"


@dataclass(frozen=True)
class Answer:
    """How an attempt ended.

    Args:
        outcome: what became of the batch.
        reason: in a line; empty where there is nothing to say.
        retry_after_s: when the target wants to be asked again, in seconds; None: it did not say.
        rejected: items of a delivered batch that the target did not take.
    """

    outcome: Outcome
    reason: str = ""
    retry_after_s: float | None = None
    rejected: int = 0


@dataclass(frozen=True)
class Batch:
    """What is sent in one go, the same at every attempt.

    Args:
        name: its identity for ever.
        signal: what it holds.
        data: frames, of one span or log record each.
        path: the segment's file, which holds just this; None: only a part, or it was never on a disk.
        items: spans or log records in it; 0: nobody counted.
        again: an earlier attempt may have succeeded unseen.
    """

    name: str
    signal: Signal
    data: bytes
    path: Path | None
    items: int
    again: bool


class Target(Protocol):
    """Takes batches, from one thread."""

    @property
    def name(self) -> str:
        """For messages: the address, without secrets."""

    def send(self, batch: Batch) -> Answer:
        """One attempt."""
