"""From prompts that agents send to versions: what is new, what is a developer's edit, and what is a place that takes values.

No thread, no clock, no store in here: `learn` and `seen` are told what came, in order, and write through a `Registry`.
docs/prompts.md has the rules in words.
"""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

from spanloop_collector.gateway.prompts.evidence import (
    is_edit,
    is_value_at_once,
    may_be_template,
    recognises,
    texts_wanted,
)
from spanloop_collector.gateway.prompts.generalise import Comparison
from spanloop_collector.gateway.prompts.index import ANYBODY, Index
from spanloop_collector.gateway.prompts.known import Caller, Known, unredacted
from spanloop_collector.gateway.prompts.words import Token, is_word, split
from spanloop_store.prompts import AGENT, PromptVersion
from spanloop_store.templates import Template

_log = logging.getLogger(__name__)

# After so many values in a template's places, the words beside them are known to be fixed.
_ESTABLISHED: Final = 8
_CANDIDATES: Final = 4
# Versions of one agent that are compared; an agent whose every prompt is another one must not cost more and more.
MAX_VERSIONS: Final = 256
# All of them, merged ones included, and their text: who calls may name a new service each time.
MAX_KNOWN: Final = 4096
MAX_KNOWN_CHARS: Final = 64 << 20
_SESSIONS: Final = 2000


class Registry(Protocol):
    """Where versions are recorded; raises what the store raises."""

    def register(self, name: str, content: str, parent: str, metadata: dict[str, Any]) -> PromptVersion:
        """The next version of a name."""

    def revise(
        self, version: PromptVersion, *, content: str | None = None, same_as: str = ""
    ) -> PromptVersion:
        """What a version turned out to be."""


class Learner:
    """Knows all prompts of one gateway.

    Args:
        registry: takes new versions.
        redact: what must happen to a text before it is stored; bytes take the place of as many bytes.
    """

    def __init__(self, registry: Registry, redact: Callable[[str], str] = str) -> None:
        self._registry = registry
        self._redact = redact
        self._known: dict[tuple[str, int], Known] = {}
        self._sessions: OrderedDict[str, list[tuple[str, int]]] = OrderedDict()
        self._calls = 0
        self._chars = 0  # of all known prompts
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
                known.revised(prompt, prompt.template)
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

    def _learnt(self, text: str, caller: Caller, session: str) -> Known | None:
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
        if self._is_full(caller.service, len(live)):
            return None
        words = split(clean)
        compared = self._compared(live, caller, words)
        for known, comparison in compared:
            if is_value_at_once(known, comparison, session):
                return self._as_template(known, comparison, clean, text, caller)
            if (merged := self._merged(known, comparison, live, clean, text)) is not None:
                return merged
        if compared and is_edit(compared[0][1]):
            known, comparison = compared[0]
            template = comparison.generalised(self._names(known), all_places=False)
            if not recognises(template, clean):
                template = Template.literal(clean)
            return self._new(known.prompt.name, template, clean, text, caller, known.prompt.id)
        return self._new(self._new_name(caller), Template.literal(clean), clean, text, caller)

    def _is_full(self, service: str, live: int) -> bool:
        if len(self._known) >= MAX_KNOWN or self._chars >= MAX_KNOWN_CHARS:
            whose, count = "all services", len(self._known)
        elif live >= MAX_VERSIONS:
            whose, count = f"service {service!r}", live
        else:
            return False
        if whose not in self._full:
            self._full.add(whose)
            _log.warning(
                "%d prompts of %s are known, and no more are learnt: most of each seems to differ. "
                "Next: `spanloop prompt list`; `spanloop prompt add` can name the template.",
                count,
                whose,
            )
        return True

    def _compared(
        self, live: Sequence[Known], caller: Caller, words: Sequence[Token]
    ) -> list[tuple[Known, Comparison]]:
        """The most similar prompts of the same agent, the least changed one first."""
        mine = frozenset(filter(is_word, words))
        ranked = sorted(
            (
                (len(mine & one.words) / max(1, min(len(mine), len(one.words))), one.last, number, one)
                for number, one in enumerate(live)
                if one.caller.is_like(caller)
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

    def _as_template(
        self, known: Known, comparison: Comparison, clean: str, text: str, caller: Caller
    ) -> Known | None:
        template = comparison.generalised(self._names(known))
        if not recognises(template, clean):
            return None
        if not known.prompt.learnt:  # its words are meant: what the agent sends is another version
            return self._new(known.prompt.name, template, clean, text, caller, known.prompt.id)
        prompt = self._registry.revise(known.prompt, content=template.content)
        known.revised(prompt, unredacted(template, clean, text))
        return known

    def _merged(
        self, known: Known, comparison: Comparison, live: Sequence[Known], clean: str, text: str
    ) -> Known | None:
        """One template in place of all versions that differ in the same places only, if they are enough for that."""
        if not known.prompt.learnt or not may_be_template(comparison):
            return None
        template = comparison.generalised(self._names(known))
        if not recognises(template, clean):
            return None
        members = [
            one
            for one in live
            if one.prompt.learnt and template.values(one.prompt.template.content) is not None
        ]
        if known not in members:
            return None
        members.sort(key=lambda one: (one.prompt.created, one.prompt.name, one.prompt.version))
        if len(members) + 1 < texts_wanted(comparison, members):
            return None
        oldest = members[0]
        prompt = self._registry.revise(oldest.prompt, content=template.content)
        oldest.revised(prompt, unredacted(template, clean, text))
        for one in members[1:]:
            merged = self._registry.revise(one.prompt, content=template.content, same_as=prompt.id)
            one.revised(merged, one.template)
        return oldest

    def _in_session(self, session: str, known: Known) -> None:
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

    def _set_apart(self, known: Known) -> None:
        prompt = known.prompt
        made = self._registry.register(
            self._new_name(known.caller),
            prompt.content,
            prompt.id,
            {"origin": AGENT, **known.caller.metadata()},
        )
        apart = self._add(made, known.template, established=known.established)
        apart.first, apart.last, apart.session, apart.values = (
            known.first,
            known.last,
            known.session,
            known.values,
        )
        known.revised(self._registry.revise(prompt, same_as=made.id), known.template)
        self._index_again()

    def _new(
        self, name: str, template: Template, clean: str, text: str, caller: Caller, parent: str = ""
    ) -> Known:
        prompt = self._registry.register(
            name, template.content, parent, {"origin": AGENT, **caller.metadata()}
        )
        return self._add(prompt, unredacted(template, clean, text))

    def _add(self, prompt: PromptVersion, template: Template, *, established: bool = False) -> Known:
        known = Known(prompt, Caller.of(prompt.metadata), template, established)
        self._known[prompt.name, prompt.version] = known
        self._chars += len(prompt.content)
        return known

    def _index_again(self) -> None:
        self.index = Index((one.service, one.entry) for one in self._known.values() if not one.prompt.same_as)

    def _by_content(self, service: str, clean: str) -> Known | None:
        for one in self._known.values():
            if one.service in (service, ANYBODY) and not one.prompt.same_as:
                template = one.prompt.template
                if template.values(clean) is not None and (template.fixed_chars or not template.names):
                    return one
        return None

    def _names(self, known: Known) -> set[str]:
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


def _is_unicode(text: str) -> bool:
    """JSON can write half a surrogate pair, and the store cannot keep it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
