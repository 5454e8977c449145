"""The three tokens: which there are, and which of them opens what.

| variable | opens | does not open |
|---|---|---|
| `SPANLOOP_TOKEN` | OTLP, feedback, model calls, `/flush`: what an agent does | anything that shows what is stored |
| `SPANLOOP_READ_TOKEN` | the endpoint's read-only user (its password), `/metrics` | any change |
| `SPANLOOP_ADMIN_TOKEN` | the endpoint's read-write user (its password), `/erase`, the gateway's pause and resume | OTLP and model calls |

Each use of the last one is in the store's `audit` table. On loopback the first two are not asked for; what the last one opens
always wants it, or the credential in `owner.json`, which only the user of the collector can read.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from spanloop_collector.addresses import token_for
from spanloop_collector.errors import TokenError
from spanloop_store.access import (
    ADMIN_TOKEN_VARIABLE,
    READ_TOKEN_VARIABLE,
    TOKEN_VARIABLE,
    is_loopback,
    shows_token,
)

# Half of what `openssl rand -hex 16` makes; a shorter one can be tried out.
LEAST_CHARACTERS: Final = 16


@dataclass(frozen=True, repr=False)
class Tokens:
    """What the environment says; None: not set.

    Args:
        write: `SPANLOOP_TOKEN`.
        read: `SPANLOOP_READ_TOKEN`.
        admin: `SPANLOOP_ADMIN_TOKEN`.
    """

    write: str | None = None
    read: str | None = None
    admin: str | None = None

    @classmethod
    def of(cls, environ: Mapping[str, str] | None = None) -> Tokens:
        """The tokens of an environment; this process's when None.

        Raises:
            TokenError: two are the same, so that one who may only write or read could do what the other may; or a token
                that opens what is stored is short enough to be tried out.
        """
        environ = os.environ if environ is None else environ
        found = {
            name: environ.get(name) or None
            for name in (TOKEN_VARIABLE, READ_TOKEN_VARIABLE, ADMIN_TOKEN_VARIABLE)
        }
        for one, other in combinations(found, 2):
            if found[one] is not None and found[one] == found[other]:
                raise TokenError(
                    f"{one} and {other} are the same: whoever has one could do what the other is for",
                    f"give each its own: export {other}=$(openssl rand -hex 24)",
                )
        for name in (READ_TOKEN_VARIABLE, ADMIN_TOKEN_VARIABLE):
            if (token := found[name]) is not None and len(token) < LEAST_CHARACTERS:
                raise TokenError(
                    f"{name} has {len(token)} characters; what it opens is worth at least {LEAST_CHARACTERS}",
                    f"export {name}=$(openssl rand -hex 24)",
                )
        return cls(*found.values())


@dataclass(frozen=True, repr=False)
class Access:
    """What each door of one listening address asks for.

    Args:
        write: what senders show; None: nothing.
        read: what those show who look at `/metrics`; None: nothing.
        admin: `SPANLOOP_ADMIN_TOKEN`; None: not set.
        local: the generated credential of `owner.json`; None: there is none, the store is a server.
    """

    write: str | None = None
    read: str | None = None
    admin: str | None = None
    local: str | None = None

    @classmethod
    def to(cls, host: str, tokens: Tokens, local: str | None = None) -> Access:
        """The access to what listens on `host`.

        Raises:
            ListenError: it is reachable from other machines and there is no `SPANLOOP_TOKEN`.
        """
        write = token_for(host, tokens.write)
        # Nothing is open to a network: without a token for those who look, it is the other one, as at the gateway.
        read = None if is_loopback(host) else tokens.read or write
        return cls(write, read, tokens.admin, local)

    def may_send(self, authorization: str | None) -> bool:
        """Whether the bearer of this header may send spans, logs and feedback."""
        return shows_token(authorization, self.write)

    def may_look(self, authorization: str | None) -> bool:
        """Whether it may see the counters."""
        return shows_token(authorization, self.read)

    def administrator(self, authorization: str | None) -> str:
        """`admin` or `local`, by what was shown; empty: nobody who may administer."""
        # Both are compared, whichever it is.
        known = {
            "admin": self.admin is not None and shows_token(authorization, self.admin),
            "local": self.local is not None and shows_token(authorization, self.local),
        }
        return next((who for who, shown in known.items() if shown), "")


def same_text(given: str, wanted: str) -> bool:
    """Whether two secrets are equal, in a time that does not say where they differ."""
    # A header's bytes that are no UTF-8 come as surrogates.
    return hmac.compare_digest(given.encode(errors="surrogateescape"), wanted.encode())
