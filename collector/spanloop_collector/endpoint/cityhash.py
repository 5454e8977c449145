"""CityHash128 of release 1.0.2, the checksum of ClickHouse's compressed blocks, which its Go and Java clients verify.

After Google's CityHash 1.0.2 (MIT), which ClickHouse froze in contrib/cityhash102. Pure Python: about 10 MB a second, over
data that is compressed already.
"""

from __future__ import annotations

import struct

_MASK = (1 << 64) - 1
_K0, _K1, _K2, _K3 = 0xC3A5C85C97CB3127, 0xB492B66FBE98F273, 0x9AE16A3B2F90404F, 0xC949D7C7509E6557
_MUL = 0x9DDFEA08EB382D69
_CHUNK = struct.Struct("<8Q")  # half a round: 64 bytes
_QUAD = struct.Struct("<4Q")
_PAIR = struct.Struct("<QQ")


def checksum(data: bytes) -> bytes:
    """The 16 bytes in front of a compressed block: the hash of its header and its compressed bytes."""
    return _PAIR.pack(*_hash128(data))


def _hash128(data: bytes) -> tuple[int, int]:
    if len(data) >= 16:
        return _with_seed(data[16:], _word(data, 0) ^ _K3, _word(data, 8))
    if len(data) >= 8:
        return _with_seed(b"", _word(data, 0) ^ (len(data) * _K0 & _MASK), _word(data, len(data) - 8) ^ _K1)
    return _with_seed(data, _K0, _K1)


def _word(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")


def _rotate(value: int, by: int) -> int:
    return (value >> by | value << (64 - by)) & _MASK if by else value


def _mix(value: int) -> int:
    return value ^ value >> 47


def _fold(low: int, high: int) -> int:
    first = (low ^ high) * _MUL & _MASK
    first ^= first >> 47
    second = (high ^ first) * _MUL & _MASK
    second ^= second >> 47
    return second * _MUL & _MASK


def _weak(words: tuple[int, ...], a: int, b: int) -> tuple[int, int]:
    w, x, y, z = words
    a = a + w & _MASK
    b = _rotate(b + a + z & _MASK, 21)
    c = a
    a = a + x + y & _MASK
    b = b + _rotate(a, 44) & _MASK
    return a + z & _MASK, b + c & _MASK


def _short(data: bytes) -> int:
    """At most 16 bytes."""
    size = len(data)
    if size > 8:
        last = _word(data, size - 8)
        return _fold(_word(data, 0), _rotate(last + size & _MASK, size)) ^ last
    if size >= 4:
        first = int.from_bytes(data[:4], "little")
        return _fold(size + (first << 3), int.from_bytes(data[-4:], "little"))
    if size:
        return (
            _mix(((data[0] + (data[size >> 1] << 8)) * _K2 ^ (size + (data[-1] << 2)) * _K3) & _MASK) * _K2
            & _MASK
        )
    return _K2


def _murmur(data: bytes, a: int, b: int) -> tuple[int, int]:
    """Less than 128 bytes."""
    size = len(data)
    if size <= 16:
        a = _mix(a * _K1 & _MASK) * _K1 & _MASK
        c = b * _K1 + _short(data) & _MASK
        d = _mix(a + (_word(data, 0) if size >= 8 else c) & _MASK)
    else:
        c = _fold(_word(data, size - 8) + _K1 & _MASK, a)
        d = _fold(b + size & _MASK, c + _word(data, size - 16) & _MASK)
        a = a + d & _MASK
        for at in range(0, size - 16, 16):
            a = (a ^ _mix(_word(data, at) * _K1 & _MASK) * _K1 & _MASK) * _K1 & _MASK
            b ^= a
            c = (c ^ _mix(_word(data, at + 8) * _K1 & _MASK) * _K1 & _MASK) * _K1 & _MASK
            d ^= c
    a, b = _fold(a, c), _fold(d, b)
    return a ^ b, _fold(b, a)


def _with_seed(data: bytes, x: int, y: int) -> tuple[int, int]:
    size = len(data)
    if size < 128:
        return _murmur(data, x, y)
    z = size * _K1 & _MASK
    v0 = _rotate(y ^ _K1, 49) * _K1 + _word(data, 0) & _MASK
    v1 = _rotate(v0, 42) * _K1 + _word(data, 8) & _MASK
    w0 = _rotate(y + z & _MASK, 35) * _K1 + x & _MASK
    w1 = _rotate(x + _word(data, 88) & _MASK, 53) * _K1 & _MASK
    whole = size // 128 * 128
    for at in range(0, whole, 64):
        words = _CHUNK.unpack_from(data, at)
        x = _rotate(x + y + v0 + words[2] & _MASK, 37) * _K1 & _MASK
        y = _rotate(y + v1 + words[6] & _MASK, 42) * _K1 & _MASK
        x ^= w1
        y ^= v0
        z = _rotate(z ^ w0, 33)
        v0, v1 = _weak(words[:4], v1 * _K1 & _MASK, x + w0 & _MASK)
        w0, w1 = _weak(words[4:], z + w1 & _MASK, y)
        x, z = z, x
    y = y + _rotate(w0, 37) * _K0 + z & _MASK
    x = x + _rotate(v0 + z & _MASK, 49) * _K0 & _MASK
    for back in range(32, size - whole + 32, 32):
        # The last steps may read again what a round has read: never before the data's beginning, which is 128 bytes away.
        at = size - back
        y = _rotate(y - x & _MASK, 42) * _K0 + v1 & _MASK
        w0 = w0 + _word(data, at + 16) & _MASK
        x = _rotate(x, 49) * _K0 + w0 & _MASK
        w0 = w0 + v0 & _MASK
        v0, v1 = _weak(_QUAD.unpack_from(data, at), v0, v1)
    x, y = _fold(x, v0), _fold(y, w0)
    return _fold(x + v1 & _MASK, w1) + y & _MASK, _fold(x + w1 & _MASK, y + v1 & _MASK)
