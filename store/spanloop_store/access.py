"""Who may use a listening socket: this machine's users on loopback, elsewhere whoever shows a token."""

from __future__ import annotations

import hmac
import ipaddress

# The variables' names, not tokens. Which opens what: spanloop_collector.access.
TOKEN_VARIABLE = "SPANLOOP_TOKEN"  # noqa: S105
READ_TOKEN_VARIABLE = "SPANLOOP_READ_TOKEN"  # noqa: S105
ADMIN_TOKEN_VARIABLE = "SPANLOOP_ADMIN_TOKEN"  # noqa: S105


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`; any name but localhost counts as reachable from elsewhere."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def shows_token(authorization: str | None, token: str | None) -> bool:
    """Whether an `Authorization` header carries the token; always where none is needed."""
    if token is None:
        return True
    # A header's bytes that are no UTF-8 come as surrogates.
    shown = (authorization or "").encode(errors="surrogateescape")
    return hmac.compare_digest(shown, f"Bearer {token}".encode())
