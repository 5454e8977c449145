"""Which addresses may be listened on, and the token that anything but loopback needs."""

from __future__ import annotations

import hmac
import ipaddress
import socket

from spanloop_collector.errors import ListenError

TOKEN_VARIABLE = "SPANLOOP_TOKEN"  # noqa: S105  # the variable's name, not a token


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`; any name but localhost counts as reachable from elsewhere."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def token_for(host: str, token: str | None) -> str | None:
    """The token that senders must show: None on loopback.

    Raises:
        ListenError: `host` is reachable from other machines and there is no token.
    """
    if is_loopback(host):
        return None
    if not token:
        raise ListenError(
            f"--host {host} is reachable from other machines, and {TOKEN_VARIABLE} is not set",
            f"set {TOKEN_VARIABLE} (senders: OTEL_EXPORTER_OTLP_HEADERS='authorization=Bearer TOKEN'),"
            " or listen on 127.0.0.1",
        )
    return token


def shows_token(authorization: str | None, token: str | None) -> bool:
    """Whether an `Authorization` header carries the token; always where none is needed."""
    if token is None:
        return True
    return hmac.compare_digest((authorization or "").encode(), f"Bearer {token}".encode())


def reserve(host: str, port: int, option: str) -> socket.socket:
    """A listening socket; port 0 takes any free one.

    Raises:
        ListenError: somebody else listens there, or the address is not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise cannot_listen(host, port, option, error) from error
    listener.setblocking(False)
    return listener


def cannot_listen(host: str, port: int, option: str, error: OSError) -> ListenError:
    """The error for a port that is taken or forbidden."""
    return ListenError(
        f"cannot listen on {host}:{port} ({option}): {error.strerror or error}",
        f"stop the program that holds port {port}, or take another one: {option} {port + 1}",
    )
