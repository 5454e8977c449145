"""Who may use the endpoint: one read-write user, one read-only user, each with a generated password and, if set, a token."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace

from spanloop_collector.access import Tokens, same_text
from spanloop_collector.endpoint.errors import AUTHENTICATION_FAILED, EndpointError
from spanloop_store import READER_ROLE, WRITER_ROLE

_PASSWORD_BYTES = 24  # 192 bits


@dataclass(frozen=True, repr=False)
class User:
    """A user.

    Args:
        name: as clients send it.
        password: the generated one of this run, which is in `owner.json`.
        role: the engine's role that its queries run in.
        token: the password that lasts, from the environment; None: there is none.
        by_token: of one that showed a password: whether it was the token. The administrator's uses are audited.
    """

    name: str
    password: str
    role: str
    token: str | None = None
    by_token: bool = False


@dataclass(frozen=True, repr=False)
class Credentials:
    """The endpoint's two users."""

    writer: User
    reader: User

    @classmethod
    def generate(
        cls, writer: str = "spanloop", reader: str = "spanloop_reader", tokens: Tokens | None = None
    ) -> Credentials:
        """New random passwords, for one run of the collector, beside the tokens that were set."""
        tokens = tokens or Tokens()
        return cls(
            User(writer, secrets.token_urlsafe(_PASSWORD_BYTES), WRITER_ROLE, tokens.admin),
            User(reader, secrets.token_urlsafe(_PASSWORD_BYTES), READER_ROLE, tokens.read),
        )

    def authenticate(self, headers: Mapping[str, str], query: Mapping[str, str]) -> User:
        """The user of a request, from basic auth, `X-ClickHouse-User` / `-Key`, or `user` / `password` parameters.

        Raises:
            EndpointError: no credentials, wrong ones, or ones in two places at a time.
        """
        given = _given(headers, query)
        found = None
        # All are always compared, in constant time, so that the answer's delay says nothing.
        for user in (self.writer, self.reader):
            same_name = same_text(given[0], user.name)
            same_password = same_text(given[1], user.password)
            same_token = user.token is not None and same_text(given[1], user.token)
            if same_name and (same_password or same_token):
                found = replace(user, by_token=same_token)
        if found is None:
            raise EndpointError(
                AUTHENTICATION_FAILED,
                f"{given[0]}: Authentication failed: password is incorrect, or there is no user with such name."
                " The credential of this run is in owner.json in the store's folder; SPANLOOP_READ_TOKEN and"
                " SPANLOOP_ADMIN_TOKEN of the collector's environment are passwords that last",
            )
        return found


def _given(headers: Mapping[str, str], query: Mapping[str, str]) -> tuple[str, str]:
    found: list[tuple[str, str]] = []
    if authorization := headers.get("Authorization"):
        scheme, _, value = authorization.partition(" ")
        if scheme.lower() != "basic":
            raise EndpointError(AUTHENTICATION_FAILED, f"authorization scheme {scheme!r} is not supported")
        try:
            name, _, password = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise EndpointError(AUTHENTICATION_FAILED, "basic authorization is not base64") from error
        found.append((name, password))
    if "X-ClickHouse-User" in headers or "X-ClickHouse-Key" in headers:
        found.append((headers.get("X-ClickHouse-User", "default"), headers.get("X-ClickHouse-Key", "")))
    if "user" in query or "password" in query:
        found.append((query.get("user", "default"), query.get("password", "")))
    if len(found) > 1:
        raise EndpointError(AUTHENTICATION_FAILED, "credentials are given in more than one way")
    return found[0] if found else ("default", "")
