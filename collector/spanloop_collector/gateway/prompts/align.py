"""Where two sequences of words differ: anchors that both have once, longest chain, then the same between them.

Time grows as n log n with the length; difflib's does with its square, and a prompt may have 20,000 words.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Final, NamedTuple

from spanloop_collector.gateway.prompts.words import Place, Token, breathe, is_word

# Length of anchors, in tokens: what is fixed is long; single words are taken for anchors only in short stretches.
_ANCHORS: Final = (12, 4, 1)
_SHORT: Final = 2000
# Pairs of tokens that difflib may look at.
_PAIRS: Final = 20_000
# Between two differences, what is the same must have this share of their words; else it is the same by chance.
_CHANCE: Final = 0.25
_ENOUGH_WORDS: Final = 12
MAX_HUNKS: Final = 32
_MANY: Final = 200


class Hunk(NamedTuple):
    """`a[a0:a1]` stands where `b[b0:b1]` stands."""

    a0: int
    a1: int
    b0: int
    b1: int


def differences(a: Sequence[Token], b: Sequence[Token]) -> list[Hunk]:
    """Where they differ, in order; what lies between is the same, and not by chance."""
    hunks: list[Hunk] = []
    at_a = at_b = 0
    for begin_a, begin_b, size in [*_same(a, b), (len(a), len(b), 0)]:
        if begin_a > at_a or begin_b > at_b:
            hunks.append(Hunk(at_a, begin_a, at_b, begin_b))
        at_a, at_b = begin_a + size, begin_b + size
    return _merged(a, b, hunks)


def _same(a: Sequence[Token], b: Sequence[Token]) -> list[tuple[int, int, int]]:
    """Runs that are the same, (begin in a, begin in b, length), in order."""
    runs: list[tuple[int, int, int]] = []
    waiting = [(0, len(a), 0, len(b), 0)]
    while waiting:
        a0, a1, b0, b1, level = waiting.pop()
        begin_a, begin_b = a0, b0
        while a0 < a1 and b0 < b1 and a[a0] == b[b0]:
            a0 += 1
            b0 += 1
        if a0 > begin_a:
            runs.append((begin_a, begin_b, a0 - begin_a))
        end_a = a1
        while a0 < a1 and b0 < b1 and a[a1 - 1] == b[b1 - 1]:
            a1 -= 1
            b1 -= 1
        if end_a > a1:
            runs.append((a1, b1, end_a - a1))
        if a0 == a1 or b0 == b1:
            continue
        if (a1 - a0) * (b1 - b0) <= _PAIRS:
            matcher = SequenceMatcher(None, a[a0:a1], b[b0:b1], autojunk=False)
            runs += [(a0 + i, b0 + j, size) for i, j, size in matcher.get_matching_blocks() if size]
            continue
        breathe()
        chain: list[tuple[int, int]] = []
        while level < len(_ANCHORS):
            size = _ANCHORS[level]
            if size > 1 or max(a1 - a0, b1 - b0) <= _SHORT:
                chain = _chain(a, a0, a1, b, b0, b1, size)
                if chain:
                    break
            level += 1
        # Between two anchors lies what comes next; each anchor is taken up by the stretch that begins with it.
        for (x, y), (next_x, next_y) in pairwise([*chain, (a1, b1)]):
            waiting.append((x, next_x, y, next_y, level))
        if chain:
            waiting.append((a0, chain[0][0], b0, chain[0][1], level))
    return sorted(runs)


def _chain(
    a: Sequence[Token], a0: int, a1: int, b: Sequence[Token], b0: int, b1: int, size: int
) -> list[tuple[int, int]]:
    """The longest rising chain of the stretches of that size that both have just once."""
    in_a, in_b = _once(a, a0, a1, size), _once(b, b0, b1, size)
    pairs = [(x, in_b[gram]) for gram, x in in_a.items() if gram in in_b]
    # Longest increasing subsequence by the place in b; pairs are in the order of a.
    tails: list[int] = []
    ends: list[int] = []
    before: list[int] = []
    for number, (_, y) in enumerate(pairs):
        at = bisect_left(tails, y)
        before.append(ends[at - 1] if at else -1)
        if at == len(tails):
            tails.append(y)
            ends.append(number)
        else:
            tails[at], ends[at] = y, number
    chain: list[tuple[int, int]] = []
    at = ends[-1] if ends else -1
    while at >= 0:
        chain.append(pairs[at])
        at = before[at]
    return chain[::-1]


def _once(tokens: Sequence[Token], begin: int, end: int, size: int) -> dict[tuple[Token, ...], int]:
    found: dict[tuple[Token, ...], int] = {}
    for at in range(begin, end - size + 1):
        gram = tuple(tokens[at : at + size])
        found[gram] = -1 if gram in found else at
        if not at % 4096:
            breathe()
    return {gram: at for gram, at in found.items() if at >= 0}


def words_in(tokens: Sequence[Token], begin: int, end: int) -> int:
    """How many words stand there."""
    return sum(map(is_word, tokens[begin:end]))


def _merged(a: Sequence[Token], b: Sequence[Token], hunks: list[Hunk]) -> list[Hunk]:
    """Without what is the same by chance between two differences, the weakest first."""
    sizes = [max(words_in(a, hunk.a0, hunk.a1), words_in(b, hunk.b0, hunk.b1)) for hunk in hunks]
    between = [words_in(a, one.a1, two.a0) for one, two in pairwise(hunks)]

    def strength(at: int) -> float:
        # Two places of a template that this very alignment confirms have stood apart before.
        if all(_is_place(a, hunk) for hunk in (hunks[at], hunks[at + 1])):
            return float("inf")
        wanted = min(_ENOUGH_WORDS, _CHANCE * (sizes[at] + sizes[at + 1]))
        return between[at] / wanted if wanted and between[at] else float(between[at])

    if len(hunks) > _MANY:  # two long texts that have little to do with each other: only long runs can matter
        joined = [hunks[0]]
        for hunk, words in zip(hunks[1:], between, strict=True):
            if words < _ENOUGH_WORDS:
                joined[-1] = Hunk(joined[-1].a0, hunk.a1, joined[-1].b0, hunk.b1)
            else:
                joined.append(hunk)
        if len(joined) > _MANY:
            return [Hunk(hunks[0].a0, hunks[-1].a1, hunks[0].b0, hunks[-1].b1)]
        return _merged(a, b, joined)
    while between:
        at = min(range(len(between)), key=strength)
        if strength(at) >= 1 and len(hunks) <= MAX_HUNKS:
            break
        one, two = hunks[at], hunks[at + 1]
        hunks[at : at + 2] = [Hunk(one.a0, two.a1, one.b0, two.b1)]
        sizes[at : at + 2] = [sizes[at] + sizes[at + 1] + between[at]]
        del between[at]
    return hunks


def _is_place(a: Sequence[Token], hunk: Hunk) -> bool:
    return hunk.a1 - hunk.a0 == 1 and isinstance(a[hunk.a0], Place)
