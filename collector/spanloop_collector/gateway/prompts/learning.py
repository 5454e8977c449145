"""From prompts that agents send to versions: what is new, what is a developer's edit, and what is a place that takes values.

No thread, no clock, no store in here: `learn` and `seen` are told what came, in order, and write through a `Registry`.
docs/prompts.md has the rules in words.
"""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import Any, Final, Protocol

from spanloop_collector.gateway.prompts.generalise import Comparison
from spanloop_collector.gateway.prompts.index import ANYBODY, MIN_FIXED_CHARS, Entry, Index
from spanloop_collector.gateway.prompts.words import Token, is_word, split
from spanloop_store.prompts import AGENT, PromptVersion
from spanloop_store.templates import Template

_log = logging.getLogger(__name__)

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
# After so many values in a template's places, the words beside them are known to be fixed.
_ESTABLISHED: Final = 8
_TOOLS_ALIKE: Final = 0.5
_CANDIDATES: Final = 4
# Versions of one agent that are compared; an agent whose every prompt is another one must not cost more and more.
MAX_VERSIONS: Final = 256
_SESSIONS: Final = 2000


class Registry(Protocol):
    """Where versions are recorded; raises what the store raises."""

    def register(self, name: str, content: str, parent: str, metadata: dict[str, Any]) -> PromptVersion:
        """The next version of a name."""

    def revise(
        self, version: PromptVersion, *, content: str | None = None, same_as: str = ""
    ) -> PromptVersion:
        """What a version turned out to be."""


@dataclass(frozen=True)
class Caller:
    """Whose prompt it is.

    Args:
        service: "" where requests do not say.
        model: as it was asked for, without version or alias.
        tools: names of what the request offers.
    """

    service: str = ""
    model: str = ""
    tools: frozenset[str] = frozenset()


@dataclass(eq=False)
class _Known:
    prompt: PromptVersion
    service: str
    caller: Caller
    words: frozenset[Token]  # of the fixed text
    template: Template  # of the text before redaction
    first: int = 0  # when it came first and last, in calls
    last: int = 0
    session: str = ""  # of the last call
    values: set[int] = field(default_factory=set)  # hashes of what stood in its places, the first ones
    established: bool = False


class Learner:
    """Knows all prompts of one gateway.

    Args:
        registry: takes new versions.
        redact: what must happen to a text before it is stored; bytes take the place of as many bytes.
    """

    def __init__(self, registry: Registry, redact: Callable[[str], str] = str) -> None:
        self._registry = registry
        self._redact = redact
        self._known: dict[tuple[str, int], _Known] = {}
        self._sessions: OrderedDict[str, list[tuple[str, int]]] = OrderedDict()
        self._calls = 0
        self._full: set[str] = set()
        self._pointed: frozenset[str] = frozenset()
        self.index = Index()

    def load(self, versions: Iterable[PromptVersion], pointed: Iterable[str] = ()) -> None:
        """Take over what the registry says.

        Args:
            versions: all of them.
            pointed: names that an alias of theirs points at some version of.
        """
        self._pointed = frozenset(pointed)
        for prompt in versions:
            known = self._known.get((prompt.name, prompt.version))
            if known is None:
                self._add(prompt, prompt.template, established=True)
            elif prompt.revision > known.prompt.revision or prompt.metadata.get(
                "key"
            ) != known.prompt.metadata.get("key"):
                self._revised(known, prompt, prompt.template)
        self._index_again()

    def seen(self, name: str, version: int, session: str, values: int) -> None:
        """A call with a known prompt.

        Args:
            name: of the prompt.
            version: its number.
            session: "" where it is not known.
            values: a hash of what stood in its places.
        """
        self._calls += 1
        known = self._known.get((name, version))
        if known is None:
            return
        known.first = known.first or self._calls
        known.last, known.session = self._calls, session
        if len(known.values) < _ESTABLISHED:
            known.values.add(values)
            known.established = known.established or len(known.values) >= _ESTABLISHED
        if session:
            self._in_session(session, known)

    def learn(self, text: str, caller: Caller, session: str = "") -> None:
        """A call with a prompt that was not known.

        Raises:
            What the registry raises; nothing is learnt then, and the same may be tried again.
        """
        if (found := self.index.find(caller.service, text)) is None:
            known = self._learnt(text, caller, session)
            if known is None:
                return
            self._index_again()
            entry_name, entry_version = known.prompt.name, known.prompt.version
            found = self.index.find(caller.service, text)
            values = hash(tuple(found.values.values())) if found else 0
        else:
            entry_name, entry_version = found.entry.name, found.entry.version
            values = hash(tuple(found.values.values()))
        self.seen(entry_name, entry_version, session, values)

    def _learnt(self, text: str, caller: Caller, session: str) -> _Known | None:
        if not _is_unicode(text):
            return None
        clean = self._redact(text)
        if clean != text and (known := self._by_content(caller.service, clean)) is not None:
            # Known from the registry, which has it without its secrets.
            known.template = unredacted(known.prompt.template, clean, text)
            return known
        live = [
            one
            for one in self._known.values()
            if one.service in (caller.service, ANYBODY) and not one.prompt.same_as
        ]
        if len(live) >= MAX_VERSIONS:
            if caller.service not in self._full:
                self._full.add(caller.service)
                _log.warning(
                    "%d prompts of service %r are known, and no more are learnt: most of each seems to differ. "
                    "Next: `spanloop prompt list`; `spanloop prompt add` can name the template.",
                    len(live),
                    caller.service,
                )
            return None
        words = split(clean)
        compared = self._compared(live, caller, words)
        for known, comparison in compared:
            if self._takes_at_once(known, comparison, session):
                return self._as_template(known, comparison, clean, text, caller)
            if (merged := self._merged(known, comparison, live, clean, text)) is not None:
                return merged
        if compared and compared[0][1].changed <= SAME_PROMPT and compared[0][1].fixed_words >= _SAME_WORDS:
            known, comparison = compared[0]
            template = comparison.generalised(self._names(known), all_places=False)
            if not _recognises(template, clean):
                template = Template.literal(clean)
            return self._new(known.prompt.name, template, clean, text, caller, known.prompt.id)
        return self._new(self._new_name(caller), Template.literal(clean), clean, text, caller)

    def _compared(
        self, live: Sequence[_Known], caller: Caller, words: Sequence[Token]
    ) -> list[tuple[_Known, Comparison]]:
        """The most similar prompts of the same agent, the least changed one first."""
        mine = frozenset(filter(is_word, words))
        ranked = sorted(
            (
                (len(mine & one.words) / max(1, min(len(mine), len(one.words))), one.last, number, one)
                for number, one in enumerate(live)
                if _alike(one.caller, caller)
            ),
            reverse=True,
        )
        compared = [
            (one, Comparison.of(one.prompt.template, words))
            for share, _, _, one in ranked[:_CANDIDATES]
            if share
        ]
        return sorted(
            compared, key=lambda pair: (pair[1].changed, -pair[1].fixed_words, -pair[0].prompt.version)
        )

    @staticmethod
    def _takes_at_once(known: _Known, comparison: Comparison, session: str) -> bool:
        """Whether only dates and the like differ, or what a place that is still new was not known to hold."""
        sorts = {"known", "value"}
        if session and session == known.session:
            sorts.add("number")  # nobody edits a prompt between two calls of one session
        if not known.established:
            sorts.add("beside")
        return (
            comparison.fixed_words >= _FIXED_WORDS and {one.sort for one in comparison.differences} <= sorts
        )

    def _as_template(
        self, known: _Known, comparison: Comparison, clean: str, text: str, caller: Caller
    ) -> _Known | None:
        template = comparison.generalised(self._names(known))
        if not _recognises(template, clean):
            return None
        if not known.prompt.learnt:  # its words are meant: what the agent sends is another version
            return self._new(known.prompt.name, template, clean, text, caller, known.prompt.id)
        prompt = self._registry.revise(known.prompt, content=template.content)
        self._revised(known, prompt, unredacted(template, clean, text))
        return known

    def _merged(
        self, known: _Known, comparison: Comparison, live: Sequence[_Known], clean: str, text: str
    ) -> _Known | None:
        """One template in place of all versions that differ in the same places only, if they are enough for that."""
        if not known.prompt.learnt or not comparison.edits:
            return None
        words = max(one.words for one in comparison.edits)
        is_text = words > _PHRASE_WORDS
        if comparison.fixed_words < (_FIXED_WORDS_OF_TEXTS if is_text else _FIXED_WORDS):
            return None
        template = comparison.generalised(self._names(known))
        if not _recognises(template, clean):
            return None
        members = [
            one
            for one in live
            if one.prompt.learnt and template.values(one.prompt.template.content) is not None
        ]
        if known not in members:
            return None
        returned = [one for one in members if any(one.first < other.first < one.last for other in members)]
        members.sort(key=lambda one: (one.prompt.created, one.prompt.name, one.prompt.version))
        if comparison.only("known", "value", "number"):
            wanted = NUMBERS
        elif not returned and _lasting(members):
            wanted = LASTING
        elif is_text:
            wanted = TEXTS if 2 * len(returned) <= len(members) else TEXTS_RETURNING
        else:
            wanted = ALTERNATING if returned else IN_TURN
        if len(members) + 1 < wanted:
            return None
        oldest = members[0]
        prompt = self._registry.revise(oldest.prompt, content=template.content)
        self._revised(oldest, prompt, unredacted(template, clean, text))
        for one in members[1:]:
            merged = self._registry.revise(one.prompt, content=template.content, same_as=prompt.id)
            self._revised(one, merged, one.template)
        return oldest

    def _in_session(self, session: str, known: _Known) -> None:
        """Two prompts that alternate in one session are two agents', however alike they are."""
        key = (known.prompt.name, known.prompt.version)
        recent = self._sessions.pop(session, [])
        if not recent or recent[-1] != key:
            recent = [*recent[-2:], key]
        self._sessions[session] = recent
        if len(self._sessions) > _SESSIONS:
            self._sessions.popitem(last=False)
        if len(recent) == 3 and recent[0] == key and recent[1][0] == key[0]:
            newer = self._known[max(key, recent[1])]
            if newer.prompt.learnt and not newer.prompt.same_as and key[0] not in self._pointed:
                self._set_apart(newer)

    def _set_apart(self, known: _Known) -> None:
        prompt = known.prompt
        made = self._registry.register(
            self._new_name(known.caller),
            prompt.content,
            prompt.id,
            {"origin": AGENT, **_whose(known.service, known.caller)},
        )
        apart = self._add(made, known.template, established=known.established)
        apart.first, apart.last, apart.session, apart.values = (
            known.first,
            known.last,
            known.session,
            known.values,
        )
        self._revised(known, self._registry.revise(prompt, same_as=made.id), known.template)
        self._index_again()

    def _new(
        self, name: str, template: Template, clean: str, text: str, caller: Caller, parent: str = ""
    ) -> _Known:
        prompt = self._registry.register(
            name, template.content, parent, {"origin": AGENT, **_whose(caller.service, caller)}
        )
        return self._add(prompt, unredacted(template, clean, text))

    def _add(self, prompt: PromptVersion, template: Template, *, established: bool = False) -> _Known:
        found = prompt.metadata
        service = found.get("agent")
        service = service if isinstance(service, str) else ANYBODY
        tools = found.get("tools")
        caller = Caller(
            service, str(found.get("model") or ""), frozenset(tools if isinstance(tools, list) else ())
        )
        known = _Known(
            prompt, service, caller, _fixed_words(prompt.template), template, established=established
        )
        self._known[prompt.name, prompt.version] = known
        return known

    def _revised(self, known: _Known, prompt: PromptVersion, template: Template) -> None:
        known.prompt, known.template = prompt, template
        known.words = _fixed_words(prompt.template)

    def _index_again(self) -> None:
        self.index = Index(
            (one.service, Entry(one.prompt.name, one.prompt.version, one.template, one.prompt.created))
            for one in self._known.values()
            if not one.prompt.same_as
        )

    def _by_content(self, service: str, clean: str) -> _Known | None:
        for one in self._known.values():
            if one.service in (service, ANYBODY) and not one.prompt.same_as:
                template = one.prompt.template
                if template.values(clean) is not None and (template.fixed_chars or not template.names):
                    return one
        return None

    def _names(self, known: _Known) -> set[str]:
        """Names of places in all versions of a prompt: a new place must not be taken for one of them."""
        return {
            name
            for one in self._known.values()
            if one.prompt.name == known.prompt.name
            for name in one.prompt.template.names
        }

    def _new_name(self, caller: Caller) -> str:
        base = re.sub(r"[^\w.-]+", "-", caller.service or caller.model).strip("-.") or "agent"
        taken = {name for name, _ in self._known}
        number = 1
        while (name := base if number == 1 else f"{base}-{number}") in taken:
            number += 1
        return name


def unredacted(template: Template, clean: str, text: str) -> Template:
    """A template of redacted text as it looks in the text itself: redaction keeps the number of bytes.

    Args:
        template: matches `clean`.
        clean: `text`, redacted.
        text: what the agent sent.
    """
    values = template.values(clean)
    if clean == text or values is None:
        return template
    raw = text.encode("utf-8", "surrogatepass")
    literals, at = [], 0
    for literal, value in zip(template.literals, (*values, ""), strict=True):
        end = at + len(literal.encode("utf-8", "surrogatepass"))
        literals.append(raw[at:end].decode("utf-8", "replace"))
        at = end + len(value.encode("utf-8", "surrogatepass"))
    return Template(tuple(literals), template.names)


def _lasting(members: Sequence[_Known]) -> bool:
    """Whether most of them stayed a while, as what a developer deploys does."""
    stayed = sorted(after.prompt.created - before.prompt.created for before, after in pairwise(members))
    return bool(stayed) and stayed[len(stayed) // 2] >= _LASTS


def _is_unicode(text: str) -> bool:
    """JSON can write half a surrogate pair, and the store cannot keep it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _recognises(template: Template, text: str) -> bool:
    return template.fixed_chars >= MIN_FIXED_CHARS and template.values(text) is not None


def _fixed_words(template: Template) -> frozenset[Token]:
    return frozenset(token for literal in template.literals for token in split(literal) if is_word(token))


def _whose(service: str, caller: Caller) -> dict[str, Any]:
    found: dict[str, Any] = {"model": caller.model, "tools": sorted(caller.tools)}
    return found if service == ANYBODY else {"agent": service, **found}


def _alike(one: Caller, other: Caller) -> bool:
    """Whether they can be one agent: at least half of all tools are in both; without a service, the model is the same, too."""
    if one.service == ANYBODY:
        return True
    if not one.service and one.model != other.model:
        return False
    every = one.tools | other.tools
    return not every or len(one.tools & other.tools) >= _TOOLS_ALIKE * len(every)
