"""Which version a session gets where a candidate is tried on a share of them: sticky, without any state."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

from spanloop_collector.gateway.versions import PRODUCTION, Snapshot

SESSION_HEADER: Final = "x-spanloop-session-id"
CANDIDATE: Final = "candidate"


def session_of(headers: Mapping[str, str], body: Mapping[str, Any], trace_id: int) -> str:
    """What a call's session is known by: our header, the baggage's `session.id`, the user, the prompt cache's key, the trace."""
    if session := headers.get(SESSION_HEADER):
        return session
    if baggage := headers.get("baggage"):
        for member in baggage.split(","):
            key, _, value = member.partition(";")[0].partition("=")
            if key.strip() == "session.id" and value.strip():
                return unquote(value.strip())
    for field in ("user", "prompt_cache_key"):
        named = body.get(field)
        if isinstance(named, str) and named:
            return named
    return f"{trace_id:032x}"


def is_canary(name: str, session: str, share: float) -> bool:
    """Whether this share of sessions includes `session`: always the same answer for one name, session and share.

    A growing share keeps the sessions that it had.
    """
    digest = hashlib.blake2b(f"{name}\0{session}".encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def canary_of(
    model: str, shares: Mapping[str, float], snapshot: Snapshot | None, session: str
) -> bool | None:
    """Whether the candidate serves a call for `model`; None where no candidate is tried on it.

    Only a bare NAME is shared out: who names an alias or a version gets that.
    """
    share = shares.get(model)
    if share is None or snapshot is None:
        return None
    candidate = snapshot.aliases.get((model, CANDIDATE))
    if candidate is None or candidate == snapshot.aliases.get((model, PRODUCTION)):
        return None
    return is_canary(model, session, share)
