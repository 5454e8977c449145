"""Finds everything in a text and replaces it: one pass of a fast engine finds the places, exact checks decide."""

from __future__ import annotations

import fnmatch
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from spanloop_exporter.errors import RedactionError
from spanloop_exporter.redaction import credentials
from spanloop_exporter.redaction.escapes import Found, Lazy, unescaped
from spanloop_exporter.redaction.pseudonyms import Pseudonyms, inside_pseudonym, is_pseudonym
from spanloop_exporter.redaction.rules import BEFORE_ESCAPED, Check, Rule, kinds, rules, union

# Bytes of states that the engine may remember; what 157 kinds need on text, base64 and random bytes is below 10 MB.
_ENGINE_MEMORY: Final = 64 << 20
# Each round finds only what the round before uncovered; two are the rule.
_MOST_ROUNDS: Final = 8
# What is looked at of a text: around a place that the scan of the message gave, and around what was replaced.
# _REACH is bytes behind a place, for what begins there and goes on: longer than a core matches but by abuse.
_REACH: Final = 4096
_AROUND: Final = 512  # bytes before and behind what was replaced, that it may have uncovered something in
_Windows = Sequence[tuple[int, int]]
# What pseudonyms are labelled with. Keys and passwords share one: where the same value stands bare and after `password=`, it
# has to stay the same value.
_LABELS: Final = {"key": b"secret", "password": b"secret", "private_key": b"secret"}
_USERS: Final = "custom"
_IN_JSON_BEFORE: Final = Lazy(r"(?:[:\[,]|\\+[nt])[ \t\r\n]*\Z")
_IN_JSON_AFTER: Final = Lazy(r"[ \t\r\n]*(?:[,\]}]|\\+[nr])")


class Redactor:
    """Finds and replaces. Threads may share one.

    Args:
        salt: of the pseudonyms.
        disable: kinds or groups of kinds that are left as they are.
        allow: values that are left as they are, compared without case; `*` stands for anything.
        patterns: the user's own, by name.

    Raises:
        RedactionError: the engine cannot be loaded, or a pattern is wrong.
    """

    def __init__(
        self,
        salt: bytes,
        *,
        disable: Sequence[str] = (),
        allow: Sequence[str] = (),
        patterns: Sequence[tuple[str, str]] = (),
    ) -> None:
        engine = _load()
        self.counts: Counter[str] = Counter()
        self._pseudonyms = Pseudonyms(salt)
        self._disabled = frozenset(disable)
        self._allowed = (
            re.compile("|".join(fnmatch.translate(value.lower()) for value in allow)) if allow else None
        )
        self._rules = [rule for rule in rules() if rule.group not in self._disabled]
        unknown = self._disabled - kinds()
        if unknown:
            raise RedactionError(
                f"redaction: there is no kind {', '.join(sorted(unknown))} to disable",
                "the kinds are in docs/redaction.md",
            )
        self._patterns = tuple(patterns)
        self._compile(engine)
        # The checks worth trying where a match begins, and a little behind that, by the byte that stands there.
        self._checks = _by_first(rule for rule in self._rules if not rule.number)
        self._numbers = _by_first(rule for rule in self._rules if rule.number)
        self.needs_context = any(_has_context(pattern) for _, pattern in patterns)

    def _compile(self, engine: Any) -> None:
        self._process = os.getpid()
        self._scan = _compiled(engine, union(self._rules)) if self._rules else None
        self._own = [(name, _own(engine, name, pattern)) for name, pattern in self._patterns]

    def _notice_fork(self) -> None:
        # The engine searches without the interpreter's lock, under locks of its own: what another thread held when this
        # process was forked stays locked here, and a search would wait for ever.
        if self._process != os.getpid():
            self._of_parent = (self._scan, self._own)  # kept: a lock that is held must not be destroyed
            engine = _load()
            engine.purge()  # it would hand out the same ones again
            self._compile(engine)

    def places(self, data: bytes) -> list[tuple[int, int]]:
        """Where in bytes of any kind something may stand; a message is then looked at field by field there."""
        self._notice_fork()
        found: list[tuple[int, int]] = []
        for engine in (self._scan, *(pattern for _, pattern in self._own)):
            position = 0
            while engine is not None and (match := engine.search(data, position)) is not None:
                start, end = match.span()
                found.append((start, end))
                # Not from its end: the tag before the next text may be the last thing that it took.
                position = max(start + 1, end - 3)
        found.sort()
        return found

    def find(self, text: bytes, windows: _Windows | None = None) -> list[Found]:
        """What stands in a text, from left to right, none within another.

        Args:
            text: one whole text.
            windows: where something may begin, in order, as `places` says it; None: anywhere.
        """
        self._notice_fork()
        found = [*self._known(text, ((0, len(text)),) if windows is None else windows), *self._users(text)]
        if len(found) < 2 or not self._own:
            return found
        found.sort(key=lambda one: (one.start, -one.end))
        apart = found[:1]
        for one in found[1:]:
            if one.start >= apart[-1].end:
                apart.append(one)
            elif one.end > apart[-1].end:  # one value from two sides: what is left of it would show
                apart[-1] = apart[-1]._replace(end=one.end)
        return apart

    def redact(self, text: bytes, windows: _Windows | None = None) -> bytes:
        """The text with pseudonyms; the same object where nothing was found.

        Args:
            text: one whole text in UTF-8 (other bytes are left as they are).
            windows: as for `find`.
        """
        for _ in range(_MOST_ROUNDS):
            found = self.find(text, windows)
            if not found:
                break
            text = self.replace(text, found)
            windows = _around(found)
        return text

    def redact_text(self, text: str) -> str:
        """The same for a string; one that UTF-8 cannot carry comes back with question marks."""
        data = text.encode("utf-8", "replace")
        changed = self.redact(data)
        return text if changed is data else changed.decode("utf-8", "replace")

    def replace(self, text: bytes, found: Sequence[Found]) -> bytes:
        """Puts pseudonyms in the places found, and counts them."""
        parts: list[bytes] = []
        position = 0
        for one in found:
            parts += (text[position : one.start], self._stand_in(text, one))
            position = one.end
            self.counts[one.kind] += 1
        return b"".join((*parts, text[position:]))

    def _known(self, text: bytes, windows: _Windows) -> Iterator[Found]:
        if self._scan is None:
            return
        search, position, done = self._scan.search, 0, 0
        for low, high in windows:
            position, stop = max(low, position), min(high + _REACH, len(text))
            while position <= high and (match := search(text, position, stop)) is not None:
                start, end = match.span()
                if start > high:
                    break
                found = self._at(text, start, end)
                if (
                    found is None or found.start < done
                ):  # the latter looks back, into what has been found already
                    # One further, and not past it: another kind may begin within.
                    position = start + 1
                    continue
                yield found
                position = done = max(found.end, start + 1)

    def _at(self, text: bytes, start: int, end: int) -> Found | None:
        for check in self._checks[text[start]]:
            if (found := check(text, start)) is not None and self._wanted(text, found):
                return found
        # The match of a number begins with what stands before it: nothing, a byte or two, or an escape.
        escape = BEFORE_ESCAPED.match(text, start)
        places: tuple[int, ...] = (start, start + 1, start + 2, escape.end() if escape else end)
        for place in places:
            if place >= end:
                continue
            for check in self._numbers[text[place]]:
                if (found := check(text, place)) is not None and self._wanted(text, found):
                    return found
        return None

    def _users(self, text: bytes) -> Iterator[Found]:
        for name, pattern in self._own:
            for match in pattern.finditer(text):
                # The group that took part; none: all of it, rather than nothing.
                groups = (match.span(group) for group in range(1, match.re.groups + 1))
                start, end = next((span for span in groups if span[0] >= 0), match.span())
                found = Found(start, end, name, _USERS)
                if start < end and not inside_pseudonym(text, start, end) and self._wanted(text, found):
                    yield found

    def _wanted(self, text: bytes, found: Found) -> bool:
        if found.kind in self._disabled or found.group in self._disabled:
            return False
        if is_pseudonym(text[found.start : found.end]):
            return False
        if self._allowed is None:
            return True
        value = unescaped(text[found.start : found.end]).decode("utf-8", "replace").lower()
        return self._allowed.match(value) is None

    def _stand_in(self, text: bytes, found: Found) -> bytes:
        data = text[found.start : found.end]
        label = _LABELS.get(found.group) or found.group.encode()
        if found.kind == "private_key":
            return self._lines(label, data)
        if data.isdigit() and _is_json_number(text, found.start, found.end):
            return self._pseudonyms.number(label, data, len(data))
        return self._pseudonyms.text(label, unescaped(data), len(data))

    def _lines(self, label: bytes, data: bytes) -> bytes:
        """A key's body, whose line ends stay: they are as long as the text is deeply nested."""
        pieces = credentials.KEY_PIECE.split(data)
        body = b"".join(pieces)
        stand_in = self._pseudonyms.text(label, unescaped(body), len(body))
        parts, position = [], 0
        ends = credentials.KEY_PIECE.findall(data)
        for index, piece in enumerate(pieces):
            parts.append(stand_in[position : position + len(piece)])
            position += len(piece)
            parts.extend(ends[index : index + 1])
        return b"".join(parts)


def _around(found: Iterable[Found]) -> _Windows:
    windows: list[tuple[int, int]] = []
    for one in found:
        low, high = max(0, one.start - _AROUND), one.end + _AROUND
        if windows and low <= windows[-1][1]:
            windows[-1] = (windows[-1][0], high)
        else:
            windows.append((low, high))
    return windows


def _load() -> Any:
    try:
        import re2  # late, and only where redaction is on
    except ImportError as error:
        raise RedactionError(
            f"redaction needs the package google-re2, which cannot be loaded: {error}",
            "pip install google-re2; or SPANLOOP_REDACTION=off, where nothing has to stay secret",
        ) from error
    return re2


def _compiled(engine: Any, pattern: str) -> Any:
    options = engine.Options()
    options.encoding = engine.Options.Encoding.LATIN1
    options.never_capture = True
    options.log_errors = False
    options.max_mem = _ENGINE_MEMORY
    return engine.compile(pattern.encode("latin-1"), options)


def _by_first(rules: Iterable[Rule]) -> list[list[Check]]:
    table: list[list[Check]] = [[] for _ in range(256)]
    for rule in rules:
        for byte in rule.first:
            table[byte].append(rule.check)
    return table


def _own(engine: Any, name: str, pattern: str) -> Any:
    options = engine.Options()
    options.log_errors = False
    try:
        compiled = engine.compile(pattern, options)
    except engine.error as error:
        raise RedactionError(
            f"redaction: the pattern {name!r} is no regular expression: {error}",
            "it takes RE2's syntax, without look-around and back-references: github.com/google/re2/wiki/Syntax",
        ) from error
    if compiled.search(b"") is not None:
        raise RedactionError(
            f"redaction: the pattern {name!r} matches the empty text", "let it ask for one character at least"
        )
    return compiled


def _has_context(pattern: str) -> bool:
    """Whether what stands around a match matters to it, so that it must be shown each text by itself."""
    return re.search(r"[\^$]|\\[bBAzZQE]", pattern) is not None


def _is_json_number(text: bytes, start: int, end: int) -> bool:
    return bool(_IN_JSON_BEFORE.search(text, max(0, start - 16), start) and _IN_JSON_AFTER.match(text, end))
