"""What can be erased, and the attributes by which a session's or a user's spans are known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from spanloop_store.errors import EraseError

# Attributes of spans and log records. `build` makes episodes of the first four of the sessions.
ATTRIBUTES: Final[Mapping[str, tuple[str, ...]]] = {
    "session": (
        "session.id",
        "gen_ai.conversation.id",
        "traceloop.association.properties.session_id",
        "traceloop.association.properties.thread_id",
        "spanloop.session.id",
        "ai.telemetry.metadata.sessionId",
        "langfuse.session.id",
    ),
    "user": (
        "user.id",
        "enduser.id",
        "enduser.pseudo.id",
        "gen_ai.user",  # `user` of a request, as two instrumentors record it
        "llm.user",
        "traceloop.association.properties.user_id",
        "ai.telemetry.metadata.userId",
        "langfuse.user.id",
    ),
}
# Attributes of the resource: a process that works for one session or user.
RESOURCE: Final[Mapping[str, tuple[str, ...]]] = {
    "session": ("session.id",),
    "user": ("user.id", "enduser.id"),
}
# Fields of attributes that are JSON: the request's parameters and metadata, as OpenInference records them.
FIELDS: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "session": (("metadata", "session_id"),),
    "user": (("llm.invocation_parameters", "user"), ("metadata", "user_id")),
}
# Characters of an id from which on a text or bytes that hold it are taken for its.
PLAIN: Final = 6
_TRACE = re.compile(r"[0-9a-f]{32}")
# The maps of attributes of each table. A reward that a view made of an event has the event's.
_MAPS: Final = {
    "otel_traces": ("SpanAttributes", "ResourceAttributes"),
    "otel_logs": ("LogAttributes", "ResourceAttributes"),
    "rewards": ("attributes", ""),
}


@dataclass(frozen=True)
class Subject:
    """What is to be erased.

    Args:
        kind: trace, session or user.
        id: of a trace 32 hex digits; else as the agent's instrumentation records it.
        pseudonyms: what redaction put in the id's place, where it is an e-mail address or the like.
    """

    kind: str
    id: str
    pseudonyms: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """All that spans may call it."""
        return (self.id, *self.pseudonyms)

    @property
    def names(self) -> tuple[str, ...]:
        """What is written down of it: where there is a pseudonym, that, and not what it stands for."""
        return self.pseudonyms or (self.id,)

    def __str__(self) -> str:
        return f"{self.kind}:{self.names[0]}"

    @classmethod
    def of(cls, kind: str, text: str) -> Subject:
        """The subject that a user names.

        Raises:
            EraseError: no such kind, or an id that is none.
        """
        if kind not in ("trace", *ATTRIBUTES):
            raise EraseError(f"{kind!r} cannot be erased", "name a trace, a session or a user")
        text = text.strip()
        if kind == "trace":
            text = text.lower().replace("-", "")
            if not _TRACE.fullmatch(text) or not text.strip("0"):
                raise EraseError(
                    f"{text[:80]!r} is no trace id", "a trace id has 32 hex digits, as in `TraceId`"
                )
        elif not text:
            raise EraseError(f"an empty {kind} id", f"name the {kind}'s id, as the spans have it")
        return cls(kind, text)


def condition(table: str, kind: str, comparison: str) -> str:
    """SQL: whether a row names a session or user.

    Args:
        table: `otel_traces`, `otel_logs` or `rewards`.
        kind: `session` or `user`.
        comparison: what follows each value, as `IN ('x')`.
    """
    return " OR ".join(f"{value} {comparison}" for value in values(table, kind))


def values(table: str, kind: str) -> list[str]:
    """SQL of each attribute that may name a session or user."""
    column, resource = _MAPS[table]
    found = [f"{column}['{key}']" for key in ATTRIBUTES[kind]]
    if resource:
        found += [f"{resource}['{key}']" for key in RESOURCE[kind]]
    found += [f"JSONExtractString({column}['{key}'], '{name}')" for key, name in FIELDS[kind]]
    return found + ["session_id"] * (table == "rewards" and kind == "session")
