"""Which addresses may be listened on, and the token that anything but loopback needs."""

from __future__ import annotations

import errno
import socket

from spanloop_collector.errors import ListenError
from spanloop_store.access import TOKEN_VARIABLE, is_loopback, shows_token

__all__ = ["TOKEN_VARIABLE", "cannot_listen", "reserve", "shows_token", "token_for"]

_OTLP_SENDERS = "senders: OTEL_EXPORTER_OTLP_HEADERS='authorization=Bearer TOKEN'"


def token_for(host: str, token: str | None, *, how: str = _OTLP_SENDERS) -> str | None:
    """The token that whoever connects must show: None on loopback, where only this machine's users can connect.

    Args:
        host: the address to listen on.
        token: what TOKEN_VARIABLE says.
        how: for the hint, how clients send it.

    Raises:
        ListenError: `host` is reachable from other machines and there is no token.
    """
    if is_loopback(host):
        return None
    if not token:
        raise ListenError(
            f"--host {host} is reachable from other machines, and {TOKEN_VARIABLE} is not set",
            f"set {TOKEN_VARIABLE} ({how}), or listen on 127.0.0.1",
        )
    return token


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
    """The error for a port that is taken or forbidden, or an address that is not this machine's."""
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        hint = f"{host} is no address of this machine; use --host 127.0.0.1"
    elif error.errno == errno.EACCES:
        hint = f"ports below 1024 need rights that this user lacks; take another one: {option} {port + 8000}"
    else:
        hint = f"stop the program that holds port {port}, or take another one: {option} {port % 65535 + 1}"
    return ListenError(f"cannot listen on {host}:{port} ({option}): {error.strerror or error}", hint)
