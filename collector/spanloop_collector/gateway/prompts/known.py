"""A prompt's version as the learner knows it: whose it is, how it looks before redaction, and what was seen of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from spanloop_collector.gateway.prompts.index import ANYBODY, Entry
from spanloop_collector.gateway.prompts.words import Token, is_word, split
from spanloop_store.prompts import PromptVersion
from spanloop_store.templates import Template

_TOOLS_ALIKE: Final = 0.5


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

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Caller:
        """As the registry has it."""
        service, tools = metadata.get("agent"), metadata.get("tools")
        return cls(
            service if isinstance(service, str) else ANYBODY,
            str(metadata.get("model") or ""),
            frozenset(tools if isinstance(tools, list) else ()),
        )

    def metadata(self) -> dict[str, Any]:
        """The same for the registry."""
        found: dict[str, Any] = {"model": self.model, "tools": sorted(self.tools)}
        return found if self.service == ANYBODY else {"agent": self.service, **found}

    def is_like(self, other: Caller) -> bool:
        """Whether they can be one agent: at least half of all tools are in both; without a service, the model is the same, too."""
        if self.service == ANYBODY:
            return True
        if not self.service and self.model != other.model:
            return False
        every = self.tools | other.tools
        return not every or len(self.tools & other.tools) >= _TOOLS_ALIKE * len(every)


@dataclass(eq=False)
class Known:
    """One version.

    Args:
        prompt: what the registry says.
        caller: whose it is.
        template: of the text before redaction.
        established: whether the words beside its places are known to be fixed.
        first: when it came first, in calls.
        last: when it came last.
        session: of the last call.
        values: hashes of what stood in its places, the first ones.
    """

    prompt: PromptVersion
    caller: Caller
    template: Template
    established: bool = False
    first: int = 0
    last: int = 0
    session: str = ""
    values: set[int] = field(default_factory=set)
    _words: tuple[Template, frozenset[Token]] | None = None

    @property
    def service(self) -> str:
        """The calling service, "" where that is not known, or ANYBODY."""
        return self.caller.service

    @property
    def words(self) -> frozenset[Token]:
        """Of the fixed text. Split when they are first asked for: of many long prompts that takes seconds."""
        template = self.prompt.template
        if self._words is None or self._words[0] is not template:
            self._words = (
                template,
                frozenset(token for part in template.literals for token in split(part) if is_word(token)),
            )
        return self._words[1]

    @property
    def entry(self) -> Entry:
        """For the index."""
        return Entry(self.prompt.name, self.prompt.version, self.template, self.prompt.created)

    def revised(self, prompt: PromptVersion, template: Template) -> None:
        """Take over what it turned out to be."""
        self.prompt, self.template = prompt, template


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
