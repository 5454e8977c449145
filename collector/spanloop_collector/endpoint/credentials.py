"""Who may use the endpoint: one generated read-write user, one generated read-only user."""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from spanloop_collector.endpoint.errors import AUTHENTICATION_FAILED, EndpointError
from spanloop_store import READER_ROLE, WRITER_ROLE

_PASSWORD_BYTES = 24  # 192 bits


@dataclass(frozen=True, repr=False)
class User:
    """A name, its password, and the engine role that its queries run in."""

    name: str
    password: str
    role: str


@dataclass(frozen=True, repr=False)
class Credentials:
    """The endpoint's two users."""

    writer: User
    reader: User

    @classmethod
    def generate(cls, writer: str = "spanloop", reader: str = "spanloop_reader") -> Credentials:
        """New random passwords, for one run of the collector."""
        return cls(
            User(writer, secrets.token_urlsafe(_PASSWORD_BYTES), WRITER_ROLE),
            User(reader, secrets.token_urlsafe(_PASSWORD_BYTES), READER_ROLE),
        )

    def authenticate(self, headers: Mapping[str, str], query: Mapping[str, str]) -> User:
        """The user of a request, from basic auth, `X-ClickHouse-User` / `-Key`, or `user` / `password` parameters.

        Raises:
            EndpointError: no credentials, wrong ones, or ones in two places at a time.
        """
        given = _given(headers, query)
        found = None
        # Both are always compared, in constant time, so that the answer's delay says nothing.
        # A header's bytes that are no UTF-8 come as surrogates.
        for user in (self.writer, self.reader):
            same_name = hmac.compare_digest(given[0].encode(errors="surrogateescape"), user.name.encode())
            same_password = hmac.compare_digest(
                given[1].encode(errors="surrogateescape"), user.password.encode()
            )
            if same_name and same_password:
                found = user
        if found is None:
            raise EndpointError(
                AUTHENTICATION_FAILED,
                f"{given[0]}: Authentication failed: password is incorrect, or there is no user with such name."
                " The credential of this run is in owner.json in the store's folder",
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
