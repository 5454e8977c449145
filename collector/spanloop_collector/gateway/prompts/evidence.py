"""How much evidence makes a difference a place that takes values; docs/prompts.md has the rules in words."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise
from typing import Final

from spanloop_collector.gateway.prompts.generalise import Comparison
from spanloop_collector.gateway.prompts.index import MIN_FIXED_CHARS
from spanloop_collector.gateway.prompts.known import Known
from spanloop_store.templates import Template

# Of a prompt's words, this share may change and it is still the same prompt, edited.
SAME_PROMPT: Final = 0.35
# With fewer fixed words, two prompts are alike by chance.
_SAME_WORDS: Final = 5
# A difference of more words than this is no name or phrase, but a text.
_PHRASE_WORDS: Final = 8
# How many texts must differ in the same places, and nowhere else, before those are places that take values:
NUMBERS: Final = 3  # small numbers
ALTERNATING: Final = 4  # words, where one text came back after another
IN_TURN: Final = 6  # words, where each followed the last one for good, as edits do
LASTING: Final = 12  # either, where each stayed for an hour or more before the next one came
TEXTS: Final = 8  # whole texts, as retrieved ones are
TEXTS_RETURNING: Final = 16  # whole texts of which most came back: they may be agents that share a preamble
_LASTS: Final = timedelta(hours=1)
_FIXED_WORDS: Final = 3
_FIXED_WORDS_OF_TEXTS: Final = 12


def is_edit(comparison: Comparison) -> bool:
    """Whether it is the same prompt, edited."""
    return comparison.changed <= SAME_PROMPT and comparison.fixed_words >= _SAME_WORDS


def is_value_at_once(known: Known, comparison: Comparison, session: str) -> bool:
    """Whether only dates and the like differ, or what a place that is still new was not known to hold."""
    sorts = {"known", "value"}
    if session and session == known.session:
        sorts.add("number")  # nobody edits a prompt between two calls of one session
    if not known.established:
        sorts.add("beside")
    return comparison.fixed_words >= _FIXED_WORDS and {one.sort for one in comparison.differences} <= sorts


def may_be_template(comparison: Comparison) -> bool:
    """Whether enough is the same for the rest to be places."""
    fixed = _FIXED_WORDS_OF_TEXTS if _is_text(comparison) else _FIXED_WORDS
    return bool(comparison.edits) and comparison.fixed_words >= fixed


def texts_wanted(comparison: Comparison, members: Sequence[Known]) -> int:
    """How many texts must differ where `comparison` does before that is a place.

    Args:
        comparison: of the new text.
        members: the versions that differ there and nowhere else, the oldest first.
    """
    returned = [one for one in members if any(one.first < other.first < one.last for other in members)]
    if comparison.only("known", "value", "number"):
        return NUMBERS
    if not returned and _lasting(members):
        return LASTING
    if _is_text(comparison):
        return TEXTS if 2 * len(returned) <= len(members) else TEXTS_RETURNING
    return ALTERNATING if returned else IN_TURN


def recognises(template: Template, text: str) -> bool:
    """Whether a text is a case of a template that has enough fixed text of its own."""
    return template.fixed_chars >= MIN_FIXED_CHARS and template.values(text) is not None


def _is_text(comparison: Comparison) -> bool:
    return max((one.words for one in comparison.edits), default=0) > _PHRASE_WORDS


def _lasting(members: Sequence[Known]) -> bool:
    """Whether most of them stayed a while, as what a developer deploys does."""
    stayed = sorted(after.prompt.created - before.prompt.created for before, after in pairwise(members))
    return bool(stayed) and stayed[len(stayed) // 2] >= _LASTS
