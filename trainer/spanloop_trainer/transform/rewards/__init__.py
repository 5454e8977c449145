"""Rewards of episodes and calls: computed by rules, verifiers and a judge (D), or found in table `rewards` (E), and added up.

`scorer` computes, `naming` and `addressing` find what judgements by others judge, `totals` adds up, `stored` writes what was
computed to the store, `watermark` keeps out what is too young to have its judgements.
"""

from __future__ import annotations

from spanloop_trainer.transform.rewards.addressing import Found, address
from spanloop_trainer.transform.rewards.naming import name_answers
from spanloop_trainer.transform.rewards.scorer import Scorer, Scores, scorer_of
from spanloop_trainer.transform.rewards.stored import write_computed
from spanloop_trainer.transform.rewards.totals import total
from spanloop_trainer.transform.rewards.watermark import waited_for, watermark_of

__all__ = [
    "Found",
    "Scorer",
    "Scores",
    "address",
    "name_answers",
    "scorer_of",
    "total",
    "waited_for",
    "watermark_of",
    "write_computed",
]
