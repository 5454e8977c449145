"""Who may use a listening socket: this machine's users on loopback, elsewhere whoever shows the token."""

from __future__ import annotations

import hmac
import ipaddress

TOKEN_VARIABLE = "SPANLOOP_TOKEN"  # noqa: S105  # the variable's name, not a token


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
