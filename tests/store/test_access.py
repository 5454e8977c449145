"""What counts as loopback, and which header shows the token."""

from __future__ import annotations

import pytest

from spanloop_store.access import is_loopback, shows_token


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("box", False),
    ],
)
def test_only_this_machine_counts_as_loopback(host: str, local: bool) -> None:
    assert is_loopback(host) is local


@pytest.mark.parametrize(
    ("header", "shown"),
    [
        ("Bearer t", True),
        (None, False),
        ("", False),
        ("t", False),
        ("Bearer T", False),
        ("Bearer t ", False),
        ("Bearer \udcff", False),
    ],
)
def test_only_the_whole_token_opens(header: str | None, shown: bool) -> None:
    assert shows_token(header, "t") is shown
    assert shows_token(header, None)
