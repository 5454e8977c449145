"""A prompt's text as fixed parts with named places between them: written, rendered, matched against a text.

A place is written `{{name}}`; `\\{{name}}` is the literal text `{{name}}`. Backslashes before a place count double, and
nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

_PLACE: Final = re.compile(r"(\\*)(\{\{ ?([A-Za-z_][A-Za-z0-9_]{0,63}) ?\}\})")
_TRAILING: Final = re.compile(r"\\+\Z")


@dataclass(frozen=True)
class Template:
    """Fixed text and the names of what stands between.

    Args:
        literals: one more than names; each may be empty.
        names: of the places, in order; one that occurs twice has the same value in both.
    """

    literals: tuple[str, ...]
    names: tuple[str, ...] = ()

    @classmethod
    def literal(cls, text: str) -> Template:
        """A text without places, whatever it looks like."""
        return cls((text,))

    @classmethod
    def parse(cls, content: str) -> Template:
        """From its written form; every string is one."""
        if "{{" not in content:  # most texts, and none of them has to be looked through
            return cls((content,))
        literals, names = [""], []
        end = 0
        for found in _PLACE.finditer(content):
            backslashes = len(found[1])
            literals[-1] += content[end : found.start()] + "\\" * (backslashes // 2)
            end = found.end()
            if backslashes % 2:
                literals[-1] += found[2]
            else:
                names.append(found[3])
                literals.append("")
        literals[-1] += content[end:]
        return cls(tuple(literals), tuple(names))

    @cached_property
    def content(self) -> str:
        """The written form."""
        escaped = [_PLACE.sub(r"\1\1\\\2", literal) for literal in self.literals]
        parts = [_TRAILING.sub(lambda run: run[0] * 2, literal) for literal in escaped[:-1]]
        places = [f"{{{{{name}}}}}" for name in self.names]
        return "".join(part for pair in zip(parts, places, strict=True) for part in pair) + escaped[-1]

    @cached_property
    def fixed_chars(self) -> int:
        """Length of the fixed text."""
        return sum(map(len, self.literals))

    def values(self, text: str) -> tuple[str, ...] | None:
        """What stands in the places of `text`, one for each, as short as the fixed text behind it allows.

        Returns:
            None where the fixed text is another one. Else `render(match(text)) == text`.
        """
        literals = self.literals
        head = literals[0]
        if not self.names:
            return () if text == head else None
        tail = literals[-1]
        begin, end = len(head), len(text) - len(tail)
        if end < begin or not text.startswith(head) or not text.endswith(tail):
            return None
        found = []
        for literal in literals[1:-1]:
            at = text.find(literal, begin, end)
            if at < 0:
                return None
            found.append(text[begin:at])
            begin = at + len(literal)
        found.append(text[begin:end])
        return tuple(found)

    def other_values(self, text: str) -> dict[str, str] | None:
        """What stands in the places by name if each is as long as the fixed text allows, the last one excepted.

        Returns:
            None where that is the same as `match` says: there is one way only to take the text apart.
        """
        first = self.values(text)
        if first is None or len(first) < 2:
            return None
        begin, end = len(self.literals[0]), len(text) - len(self.literals[-1])
        found = []
        for literal in reversed(self.literals[1:-1]):
            at = text.rfind(literal, begin, end)
            found.append(text[at + len(literal) : end])
            end = at
        found = [text[begin:end], *reversed(found)]
        return None if tuple(found) == first else dict(zip(self.names, found, strict=True))

    def match(self, text: str) -> dict[str, str] | None:
        """The same by name; None also where one name would have two values."""
        found = self.values(text)
        if found is None:
            return None
        named = dict(zip(self.names, found, strict=True))
        if len(named) < len(self.names) and any(
            named[name] != value for name, value in zip(self.names, found, strict=True)
        ):
            return None
        return named

    def render(self, values: Mapping[str, str]) -> str:
        """The text with these values.

        Raises:
            KeyError: a name that has none.
        """
        parts = [self.literals[0]]
        for name, literal in zip(self.names, self.literals[1:], strict=True):
            parts += (values[name], literal)
        return "".join(parts)

    def missing(self, known: Iterable[str]) -> list[str]:
        """Names of this template that are not in `known`, sorted."""
        return sorted(set(self.names).difference(known))
