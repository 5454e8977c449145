"""The endpoint's errors, worded and numbered as ClickHouse does, since its clients read them."""

from __future__ import annotations

import re

SYNTAX_ERROR = 62
UNKNOWN_TABLE = 60
BAD_ARGUMENTS = 36
UNKNOWN_FORMAT = 73
UNKNOWN_COMPRESSION_METHOD = 89
INCORRECT_DATA = 117
READONLY = 164
NETWORK_ERROR = 210
UNKNOWN_EXCEPTION = 1002
SAME_QUERY_ID = 216
MEMORY_LIMIT_EXCEEDED = 241
SESSION_NOT_FOUND = 372
SESSION_IS_LOCKED = 373
ACCESS_DENIED = 497
AUTHENTICATION_FAILED = 516

_NAMES = {
    SYNTAX_ERROR: "SYNTAX_ERROR",
    UNKNOWN_TABLE: "UNKNOWN_TABLE",
    BAD_ARGUMENTS: "BAD_ARGUMENTS",
    UNKNOWN_FORMAT: "UNKNOWN_FORMAT",
    UNKNOWN_COMPRESSION_METHOD: "UNKNOWN_COMPRESSION_METHOD",
    INCORRECT_DATA: "INCORRECT_DATA",
    READONLY: "READONLY",
    NETWORK_ERROR: "NETWORK_ERROR",
    UNKNOWN_EXCEPTION: "UNKNOWN_EXCEPTION",
    SAME_QUERY_ID: "QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING",
    MEMORY_LIMIT_EXCEEDED: "MEMORY_LIMIT_EXCEEDED",
    SESSION_NOT_FOUND: "SESSION_NOT_FOUND",
    SESSION_IS_LOCKED: "SESSION_IS_LOCKED",
    ACCESS_DENIED: "ACCESS_DENIED",
    AUTHENTICATION_FAILED: "AUTHENTICATION_FAILED",
}
# The statuses that ClickHouse's HTTP handler gives; anything else is 500.
_STATUSES = {
    **dict.fromkeys((6, 27, 36, 38, 41, 42, 43, 44, 46, 47, 53, 62, 72, 89, 115, 117, 164, 194, 456), 400),
    **dict.fromkeys((60, 73, 81, 372), 404),
    373: 423,
    497: 403,
    516: 401,
}
_CODE = re.compile(r"Code: (\d+)\.")


class EndpointError(Exception):
    """A request that is answered with an error.

    Args:
        code: ClickHouse's number for it.
        text: the whole message, in ClickHouse's words where the engine gave it.
        status: the HTTP status; None: what ClickHouse gives for the code.
    """

    def __init__(self, code: int, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.status = status or _STATUSES.get(code, 500)
        self.text = (
            text if text.startswith("Code: ") else f"Code: {code}. DB::Exception: {text} ({_NAMES[code]})"
        )


def from_engine(error: Exception) -> EndpointError:
    """An exception of chDB as an answer: its text has the code already."""
    text = _said(error)
    if isinstance(error, TypeError) and "incompatible function arguments" in text:
        # chDB takes text only, where a server takes any bytes.
        return EndpointError(
            BAD_ARGUMENTS, "the query or a parameter is not UTF-8; write bytes as unhex('ff')"
        )
    if text.startswith("send_insert "):
        # chDB's own parser reads SELECT, FROM or a file where the rows should begin.
        return EndpointError(
            BAD_ARGUMENTS, "an INSERT with rows behind its FORMAT takes no SELECT and no FROM"
        )
    if isinstance(error.__cause__, RuntimeError) and not str(error.__cause__):
        # Python before 3.11.4 loses the engine's message, bytes and all, where it quotes data that is no UTF-8.
        return EndpointError(
            INCORRECT_DATA, "the query or its data is no UTF-8, and neither is what the engine says of it"
        )
    start = text.find("Code: ")
    match = _CODE.search(text)
    if match is None or start < 0:
        return EndpointError(UNKNOWN_EXCEPTION, text.strip() or type(error).__name__)
    code = int(match[1])
    if code == ACCESS_DENIED and "READ ON FILE" in text:
        # The embedded `default` database falls back to files of the working directory for a name that is no table.
        return EndpointError(
            UNKNOWN_TABLE,
            "There is no such table (a name that is no table would be read as a file, which is closed to network users)",
        )
    if code == MEMORY_LIMIT_EXCEEDED:
        return EndpointError(code, f"{text[start:].strip()} (SPANLOOP_ENGINE_MEMORY sets the limit)")
    return EndpointError(code, text[start:].strip())


def _said(error: BaseException) -> str:
    """What the engine said. Where it quotes data that is no UTF-8, chDB fails over its own message and keeps the bytes."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UnicodeDecodeError):
            return cause.object.decode("utf-8", "backslashreplace")
        cause = cause.__cause__
    return str(error)
