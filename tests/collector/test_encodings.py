"""Content encodings: what was packed comes out, and nothing larger than allowed."""

from __future__ import annotations

import gzip
import random
import sys
import zlib
from collections.abc import Callable

import lz4.frame
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanloop_collector.encodings import BadEncoding, TooLarge, UnknownEncoding, decode

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "identity": bytes,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstd.compress,
    "lz4": lz4.frame.compress,
}
packed_ones = pytest.mark.parametrize("encoding", [name for name in PACKERS if name not in ("", "identity")])


@settings(deadline=None)  # a busy machine is no failure
@given(st.sampled_from(sorted(PACKERS)), st.lists(st.binary(max_size=200), min_size=1, max_size=4))
def test_what_was_packed_comes_out(encoding: str, members: list[bytes]) -> None:
    body, whole = b"".join(PACKERS[encoding](member) for member in members), b"".join(members)
    assert decode(body, f" {encoding.upper()} ", len(whole)) == whole
    if whole:
        with pytest.raises(TooLarge):
            decode(body, encoding, len(whole) - 1)


@packed_ones
def test_a_bomb_stops_at_the_limit(encoding: str) -> None:
    with pytest.raises(TooLarge, match="more than 1000 bytes"):
        decode(PACKERS[encoding](bytes(10_000_000)), encoding, 1000)


@packed_ones
def test_a_cut_or_broken_body_is_refused(encoding: str) -> None:
    body = PACKERS[encoding](bytes(range(256)))
    for broken in (body[:-9], body[:1], b"plain text", body + b"trailing"):
        with pytest.raises(BadEncoding):
            decode(broken, encoding, 1000)


@packed_ones
def test_members_without_end_are_refused(encoding: str) -> None:
    """Each costs 20 bytes to send and copies all that follows it: 64 MiB of them would hold the receivers for an hour."""
    with pytest.raises(BadEncoding, match="more than 10000 members"):
        decode(PACKERS[encoding](b"") * 10_001, encoding, 1000)
    assert decode(PACKERS[encoding](b"x") * 1000, encoding, 1000) == b"x" * 1000


@packed_ones
def test_members_may_end_anywhere(encoding: str) -> None:
    """Before, at and behind the pieces that are unpacked one at a time."""
    noise = random.Random(1).randbytes(70_000)
    for cut in (1, 65_000, 65_530, 65_536, 65_540, 69_999):
        body = PACKERS[encoding](noise[:cut]) + PACKERS[encoding](noise[cut:])
        assert decode(body, encoding, len(noise)) == noise


def test_an_unknown_encoding_is_told_apart() -> None:
    with pytest.raises(UnknownEncoding, match="'br' is not supported"):
        decode(b"x", "br", 1000)
