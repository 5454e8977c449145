"""The registry's records of prompts: versions of system prompts, learnt from agents or written by people."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from spanloop_store.errors import RegistryError
from spanloop_store.pointers import CANDIDATE, PRODUCTION, aliases
from spanloop_store.records import NEVER, insert_record, json_text, split_reference
from spanloop_store.resources import KEY, check_name, next_version, rows
from spanloop_store.templates import Template

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

AGENT: Final = "agent"  # origin: the gateway read it in an agent's request
_ROLES: Final = frozenset({"user", "assistant", "tool", "system", "developer"})


@dataclass(frozen=True)
class PromptVersion:
    """One version of a prompt.

    Args:
        name: the prompt's name; by default the agent's.
        version: from 1, per name.
        content: the text, places written `{{name}}`.
        parent: NAME@VERSION that it was made from; empty: none.
        examples: messages (chat form) that go behind the system prompt.
        metadata: `origin` is "agent" where the gateway learnt it; `agent`, `model` and `tools` say whose it is;
            `same_as` names the version that it turned out to be the same as; `key` and `revision` are the registry's.
        created: UTC.
    """

    name: str
    version: int
    content: str
    parent: str = ""
    examples: tuple[Mapping[str, Any], ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    created: datetime = NEVER

    @property
    def id(self) -> str:
        """NAME@VERSION."""
        return f"{self.name}@{self.version}"

    @cached_property
    def template(self) -> Template:
        """The content, parsed."""
        return Template.parse(self.content)

    @property
    def learnt(self) -> bool:
        """Whether an agent sent it, and nobody wrote it here."""
        return self.metadata.get("origin") == AGENT

    @property
    def same_as(self) -> str:
        """NAME@VERSION that stands for it; empty: it stands for itself."""
        return str(self.metadata.get("same_as") or "")

    @property
    def revision(self) -> int:
        """How often its places were found anew; from 0."""
        found = self.metadata.get("revision")
        return found if isinstance(found, int) else 0


def content_hash(content: str) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def register_prompt(
    client: Client,
    name: str,
    content: str,
    *,
    parent: str = "",
    examples: Iterable[Mapping[str, Any]] = (),
    metadata: Mapping[str, Any] | None = None,
) -> PromptVersion:
    """Records a prompt as the next version of its name; one that says the same as a version there is that version.

    What an agent has said before somebody writes it here is theirs from then on: the gateway rewrites it no more.

    Args:
        client: the store.
        name: of the prompt.
        content: the text; `{{name}}` is a place that takes what stands there in the agent's own text.
        parent: NAME@VERSION that it was made from.
        examples: messages in chat form, put behind the system prompt.
        metadata: whatever else is to be recorded.

    Raises:
        RegistryError: a name or an example that cannot be one, or an empty content.
    """
    check_name("prompt", name)
    if not content.strip():
        raise RegistryError(f"the content of prompt {name!r} is empty", "give it a text")
    shots = checked_examples(examples)
    known = prompts(client, name)
    for version in known:
        if version.content == content and version.examples == shots and not version.same_as:
            learns = (metadata or {}).get("origin") == AGENT
            return version if learns or not version.learnt else _revised(client, version, {"origin": ""})
    # The agent that a name belongs to is recorded with its first version, and goes on from there.
    whose = {
        key: known[0].metadata[key]
        for key in ("agent", "model", "tools")
        if known and key in known[0].metadata
    }
    made = PromptVersion(name, 0, content, parent, shots, {**whose, **(metadata or {})})

    def write(number: int, key: str) -> None:
        _write(client, replace(made, version=number, metadata={**made.metadata, KEY: key}))

    number = next_version(client, "prompt", name, write)
    return next(version for version in prompts(client, name) if version.version == number)


def revise_prompt(
    client: Client, version: PromptVersion, *, content: str | None = None, same_as: str = ""
) -> PromptVersion:
    """Says anew what a learnt version is: more of its text is a place, or it is the same as another one.

    What stood in its places until then leaves the store.

    Raises:
        RegistryError: somebody wrote this version here, so that its words are meant.
    """
    if not version.learnt:
        raise RegistryError(f"{version.id} was not learnt from an agent, and stays as it is", "")
    return _revised(client, version, {"same_as": same_as} if same_as else {}, content)


def prompts(client: Client, name: str | None = None) -> list[PromptVersion]:
    """Versions by name and number; of one name where it is given."""
    found: dict[tuple[str, int], PromptVersion] = {}
    for row in rows(client, "prompt", name, ("content", "parent")):
        content, parent = row.values
        examples = tuple(row.metadata.pop("examples", ()))
        one = PromptVersion(row.name, row.version, content, parent, examples, row.metadata, row.created)
        before = found.get((one.name, one.version))
        if before is None or (
            one.metadata.get(KEY) == before.metadata.get(KEY) and one.revision > before.revision
        ):
            found[one.name, one.version] = one
    return list(found.values())


def fingerprint(client: Client) -> tuple[int, ...]:
    """Changes whenever a prompt or one of its aliases does; cheap, since no content is read."""
    row = client.query(
        "SELECT (SELECT count() FROM resources WHERE kind = 'prompt'),"
        " (SELECT sum(cityHash64(name, version, metadata)) FROM resources WHERE kind = 'prompt'),"
        " (SELECT count() FROM promotions WHERE kind = 'prompt')"
    ).result_rows[0]
    return tuple(int(value or 0) for value in row)


def prompt(client: Client, reference: str) -> PromptVersion:
    """The version that `NAME@VERSION`, `NAME@candidate`, `NAME@production` or `NAME` (production, else the newest) names.

    Raises:
        RegistryError: it names none; the message lists what there is.
    """
    name, rest = split_reference(reference)
    known = prompts(client, name)
    if not known:
        names = ", ".join(sorted({version.name for version in prompts(client)})) or "none yet"
        raise RegistryError(f"the registry has no prompt {name!r}; prompts: {names}", "spanloop prompt list")
    numbers = ", ".join(str(version.version) for version in known)
    if rest.isdecimal():
        wanted = int(rest)
    else:
        pointers = {alias.alias: alias.version for alias in aliases(client, "prompt") if alias.name == name}
        if rest and rest not in pointers:
            listed = ", ".join(f"{alias} → {name}@{number}" for alias, number in pointers.items()) or "none"
            raise RegistryError(
                f"prompt {name!r} has no alias {rest!r}; aliases: {listed}; versions: {numbers}",
                f"spanloop prompt point {known[-1].id} --alias {rest if rest == PRODUCTION else CANDIDATE}",
            )
        wanted = pointers.get(rest or PRODUCTION, known[-1].version)
    for version in known:
        if version.version == wanted:
            return version
    raise RegistryError(
        f"prompt {name!r} has no version {wanted}; versions: {numbers}", f"name one, as {known[-1].id}"
    )


def checked_examples(examples: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Messages in chat form.

    Raises:
        RegistryError: one that is none, by its number from 1.
    """
    shots = tuple(examples)
    for number, message in enumerate(shots, 1):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in _ROLES:
            raise RegistryError(
                f"example {number} is no chat message", 'write {"role": "user", "content": "…"} for each'
            )
        content = message.get("content")
        if not (isinstance(content, str | list) or (content is None and message.get("tool_calls"))):
            raise RegistryError(
                f"example {number} has no content", "give it a text, or tool_calls where it is an assistant's"
            )
    return shots


def _revised(
    client: Client, version: PromptVersion, metadata: Mapping[str, Any], content: str | None = None
) -> PromptVersion:
    """Puts a row in the place of a version's; `metadata` is added to what it has."""
    revision = version.revision + 1
    made = replace(
        version,
        content=version.content if content is None else content,
        metadata={**version.metadata, **metadata, "revision": revision},
    )
    _write(client, made)
    client.command(
        "DELETE FROM resources WHERE kind = 'prompt' AND name = {name:String} AND version = {version:UInt32}"
        " AND JSONExtractString(metadata, 'key') = {key:String}"
        " AND JSONExtractUInt(metadata, 'revision') < {revision:UInt64}",
        parameters={
            "name": version.name,
            "version": version.version,
            "key": str(version.metadata.get(KEY, "")),
            "revision": revision,
        },
    )
    return made


def _write(client: Client, version: PromptVersion) -> None:
    metadata: dict[str, Any] = dict(version.metadata)
    if version.examples:
        metadata["examples"] = _plain(version.examples)
    insert_record(
        client,
        "resources",
        {
            "kind": "prompt",
            "name": version.name,
            "version": version.version,
            **({} if version.created == NEVER else {"created": version.created}),
            "uri": "",
            "content": version.content,
            "content_hash": content_hash(version.content),
            "parent": version.parent,
            "dataset_id": "",
            "training_run_id": "",
            "metadata": json_text(metadata),
        },
    )


def _plain(examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [dict(message) for message in examples]
