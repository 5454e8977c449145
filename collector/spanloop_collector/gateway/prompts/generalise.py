"""How a text differs from a known prompt, and the template that says both."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

from spanloop_collector.gateway.prompts.align import Hunk, differences
from spanloop_collector.gateway.prompts.words import Place, Token, is_word, kind_of, split
from spanloop_store.templates import Template

# known: what a place holds; value: dates, ids and the like; number: small numbers; beside: words next to a place; edit: all else
Sort = Literal["known", "value", "number", "beside", "edit"]
# So many fixed words next to a place, or between two, may turn out to belong to it.
_BESIDE_WORDS: Final = 3
_BETWEEN_WORDS: Final = 12
_VARIABLE: Final = re.compile(r"variable_(\d+)")


@dataclass(frozen=True)
class Difference:
    """One place where they differ.

    Args:
        hunk: where.
        sort: what it looks like.
        lost: words of the fixed text that are gone.
        gained: words that stand there instead, places' values included.
        names: of the template's places in it.
    """

    hunk: Hunk
    sort: Sort
    lost: int
    gained: int
    names: tuple[str, ...]

    @property
    def words(self) -> int:
        """Its size."""
        return max(self.lost, self.gained)


@dataclass(frozen=True)
class Comparison:
    """A known prompt beside a text.

    Args:
        known: the prompt's words and places.
        text: the text's words.
        differences: in order.
    """

    known: Sequence[Token]
    text: Sequence[Token]
    differences: tuple[Difference, ...]

    @classmethod
    def of(cls, template: Template, text: Sequence[Token]) -> Comparison:
        """Align them; the text comes as `words.split` gives it."""
        known = tokens_of(template)
        hunks = differences(known, text)
        return cls(known, text, tuple(_difference(known, text, hunk) for hunk in hunks))

    def only(self, *sorts: Sort) -> bool:
        """Whether there are differences of these sorts and of no other."""
        return bool(self.differences) and all(one.sort in sorts for one in self.differences)

    @cached_property
    def edits(self) -> tuple[Difference, ...]:
        """What the template does not foresee."""
        return tuple(one for one in self.differences if one.sort != "known")

    @cached_property
    def fixed_words(self) -> int:
        """Words that both have as fixed text."""
        return sum(map(is_word, self.known)) - sum(one.lost for one in self.differences)

    @cached_property
    def changed_words(self) -> int:
        """Words of fixed text that became others; values of places, dates and the like do not count."""
        return sum(one.words for one in self.differences if one.sort == "edit") + sum(
            one.lost for one in self.differences if one.sort == "beside"
        )

    @property
    def changed(self) -> float:
        """Share of the words that changed, 0 to 1."""
        words = self.changed_words + self.fixed_words
        return self.changed_words / words if words else 1.0

    def generalised(self, used: Collection[str] = (), *, all_places: bool = True) -> Template:
        """The template that both are cases of.

        Args:
            used: names that new places must not have.
            all_places: False: only dates and the like become places, and edits are taken as the text has them.
        """
        taken = {token.name for token in self.known if isinstance(token, Place)} | set(used)
        literals, names = [""], list[str]()
        at = 0
        for one in self.differences:
            literals[-1] += "".join(_text(self.known[at : one.hunk.a0]))
            at = one.hunk.a1
            before, after = "", ""
            if not all_places and one.sort in ("number", "beside", "edit"):
                around = self._around(one) if one.sort == "beside" else None
                if around is None:
                    literals[-1] += "".join(_text(self.text[one.hunk.b0 : one.hunk.b1]))
                    continue
                before, after = around
            literals[-1] += before
            names.append(one.names[0] if one.names else _new_name(taken))
            taken.add(names[-1])
            literals.append(after)
        literals[-1] += "".join(_text(self.known[at:]))
        return Template(tuple(literals), tuple(names))

    def _around(self, one: Difference) -> tuple[str, str] | None:
        """What the text has before and after a place whose neighbours were edited, word for word; None: nobody can tell."""
        hunk = one.hunk
        at = [number for number in range(hunk.a0, hunk.a1) if isinstance(self.known[number], Place)]
        before, after = at[0] - hunk.a0, hunk.a1 - at[-1] - 1
        if len(at) > 1 or before + after >= hunk.b1 - hunk.b0:
            return None
        text = self.text
        return (
            "".join(_text(text[hunk.b0 : hunk.b0 + before])),
            "".join(_text(text[hunk.b1 - after : hunk.b1])),
        )


def tokens_of(template: Template) -> list[Token]:
    """Words and places."""
    found = split(template.literals[0])
    for name, literal in zip(template.names, template.literals[1:], strict=True):
        found.append(Place(name))
        found += split(literal)
    return found


def _difference(known: Sequence[Token], text: Sequence[Token], hunk: Hunk) -> Difference:
    before, after = known[hunk.a0 : hunk.a1], text[hunk.b0 : hunk.b1]
    names = tuple(token.name for token in before if isinstance(token, Place))
    lost = [token for token in before if isinstance(token, str) and is_word(token)]
    gained = [token for token in after if isinstance(token, str) and is_word(token)]
    return Difference(hunk, _sort(len(before), names, lost, gained), len(lost), len(gained), names)


def _sort(size: int, names: Sequence[str], lost: Sequence[str], gained: Sequence[str]) -> Sort:
    if names and size == 1:
        return "known"
    kinds = {kind_of(word) for word in lost}
    if names:
        if kinds <= {"value", "number"}:
            return "value"
        return "beside" if len(lost) <= (_BETWEEN_WORDS if len(names) > 1 else _BESIDE_WORDS) else "edit"
    kinds |= {kind_of(word) for word in gained}
    if lost and gained and kinds == {"value"}:
        return "value"
    if lost and gained and kinds <= {"value", "number"}:
        return "number"
    return "edit"


def _text(tokens: Sequence[Token]) -> list[str]:
    return [token for token in tokens if isinstance(token, str)]


def _new_name(taken: Collection[str]) -> str:
    numbers = [int(found[1]) for name in taken if (found := _VARIABLE.fullmatch(name))]
    return f"variable_{max(numbers, default=0) + 1}"
