"""Keccak-256, as Ethereum uses it (not SHA3-256, whose padding differs): small and slow."""

from __future__ import annotations

_MASK = 2**64 - 1


def _rotate(value: int, by: int) -> int:
    return (value << by | value >> (64 - by)) & _MASK if by else value


def _round_constants() -> list[int]:
    constants, bits = [], 1
    for _ in range(24):
        value = 0
        for j in range(7):
            if bits & 1:
                value |= 1 << (2**j - 1)
            bits = bits << 1 ^ (0x171 if bits & 0x80 else 0)
        constants.append(value)
    return constants


def _permute(a: list[list[int]]) -> list[list[int]]:
    for constant in _round_constants():
        c = [a[x][0] ^ a[x][1] ^ a[x][2] ^ a[x][3] ^ a[x][4] for x in range(5)]
        d = [c[x - 1] ^ _rotate(c[(x + 1) % 5], 1) for x in range(5)]
        a = [[a[x][y] ^ d[x] for y in range(5)] for x in range(5)]
        x, y, current = 1, 0, a[1][0]
        for t in range(24):
            x, y = y, (2 * x + 3 * y) % 5
            current, a[x][y] = a[x][y], _rotate(current, (t + 1) * (t + 2) // 2 % 64)
        a = [[a[x][y] ^ (~a[(x + 1) % 5][y] & _MASK & a[(x + 2) % 5][y]) for y in range(5)] for x in range(5)]
        a[0][0] ^= constant
    return a


def keccak256(data: bytes) -> bytes:
    """The hash of `data`."""
    rate = 136
    padded = bytearray(data + b"\x01")
    padded = padded.ljust((len(data) // rate + 1) * rate, b"\0")
    padded[-1] |= 0x80
    state = [[0] * 5 for _ in range(5)]
    for start in range(0, len(padded), rate):
        for i in range(rate // 8):
            state[i % 5][i // 5] ^= int.from_bytes(padded[start + 8 * i : start + 8 * i + 8], "little")
        state = _permute(state)
    return b"".join(state[i % 5][i // 5].to_bytes(8, "little") for i in range(4))
