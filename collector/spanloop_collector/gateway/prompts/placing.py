"""What is sent where the registry names a version: its text with the values of this call, or the agent's own, and why."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from spanloop_collector.gateway.prompts.finding import Found, replaced
from spanloop_collector.gateway.prompts.index import Recognised
from spanloop_store.templates import Template

if TYPE_CHECKING:
    from spanloop_collector.gateway.prompts.book import Book
    from spanloop_store.prompts import PromptVersion

# What redaction puts in the place of letters and signs; the shortest could be a word of somebody's.
_PSEUDONYM: Final = re.compile(r"~(?:[a-z]{2,10}~)?[bcdfghjklmnpqrstvwxz]{5,24}~*(?![\w~])")


@dataclass(slots=True)
class Applied:
    """What became of a request.

    Args:
        body: the request to send; the same object where nothing was changed.
        requested: NAME@VERSION that the agent sent, where another one was put in its place.
        skipped: why the version that the registry names was not put in its place.
    """

    body: Mapping[str, Any]
    requested: str | None = None
    skipped: str | None = None
    _version: str | None = None
    _later: Callable[[], str | None] | None = None

    @property
    def version(self) -> str | None:
        """NAME@VERSION that it runs with; None: no prompt, or one that is being learnt.

        Asked again when the call ends, it may be known by then.
        """
        if self._version is None and self._later is not None:
            self._version = self._later()
        return self._version


def placed(body: dict[str, Any], found: Found, known: Recognised, book: Book, *, candidate: bool) -> Applied:
    """The version that the registry names in place of the one that was sent."""
    entry = known.entry
    pointer = book.target(entry.name, candidate=candidate)
    if pointer is None:
        return Applied(body, _version=entry.id)
    target, since = pointer
    same = target.id == entry.id
    if same and not target.examples:
        return Applied(body, _version=entry.id)
    if not same and entry.created > since:
        reason = f"{target.id}: {entry.id} is newer than the decision for it"
        return Applied(body, _version=entry.id, skipped=reason)
    examples = [_example(message) for message in target.examples]
    text = Template.literal(found.text) if same else target.template
    missing = set(text.missing(known.values))
    for message in examples:
        if isinstance(content := message["content"], Template):
            missing.update(content.missing(known.values))
    if missing:
        reason = f"{target.id}: no value for {', '.join(sorted(missing))}"
        return Applied(body, _version=entry.id, skipped=reason)
    sent = book.versions.get((entry.name, entry.version))
    if not same and _holds_pseudonyms(target, sent, entry.template, found.text):
        return Applied(body, _version=entry.id, skipped=f"{target.id}: it has pseudonyms in place of secrets")
    filled = _filled(text, examples, known.values)
    other = entry.template.other_values(found.text)
    if other is not None and _filled(text, examples, other) != filled:
        reason = f"{target.id}: what stands in the places of {entry.id} cannot be told apart"
        return Applied(body, _version=entry.id, skipped=reason)
    made = replaced(body, found, *filled)
    return Applied(made, _version=target.id, requested=None if same else entry.id)


def _filled(
    text: Template, examples: Sequence[Mapping[str, Any]], values: Mapping[str, str]
) -> tuple[str, list[Mapping[str, Any]]]:
    shots = [
        {**message, "content": message["content"].render(values)}
        if isinstance(message["content"], Template)
        else message
        for message in examples
    ]
    return text.render(values), shots


def _example(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    return {**message, "content": Template.parse(content) if isinstance(content, str) else content}


def _holds_pseudonyms(target: PromptVersion, sent: PromptVersion | None, raw: Template, text: str) -> bool:
    """Whether a version was written from a text whose secrets redaction had replaced, and still has those replacements.

    Args:
        target: the version.
        sent: the one that the agent's text is; None: the registry has it no more.
        raw: how that looks before redaction.
        text: the agent's own, which may have pseudonyms of its own.
    """
    if any(word not in text for word in _pseudonyms(target.content)):
        return True
    stored = raw.literals if sent is None else sent.template.literals
    if stored == raw.literals:
        return False
    secret = {
        word
        for before, after in zip(raw.literals, stored, strict=False)
        if before != after
        for word in set(after.split()) - set(before.split())
    }
    return any(word in target.content for word in secret)


@lru_cache(maxsize=256)  # of what aliases point at, asked for at every call
def _pseudonyms(content: str) -> frozenset[str]:
    return frozenset(_PSEUDONYM.findall(content))
