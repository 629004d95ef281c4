"""Exact 256-bit integers by the column: EVM words <-> decimal text and floats.

Belongs here: the arithmetic. Does not belong here: which word is which field (`abi.py`).

A column of integers is a matrix of limbs (rows, 16) int64, most significant first: the value of a row is
`sum(limb[i] * 65536 ** (15 - i))`. Limbs may be negative, so signed words and differences are no case of their own.
"""

from __future__ import annotations

from itertools import repeat

import numpy as np
import numpy.typing as npt
import polars as pl

MAX_UINT256 = 2**256 - 1

Limbs = npt.NDArray[np.int64]

_LIMBS, _DIGITS = 16, 20
# Row i: the base-10000 digits of 65536 ** (15 - i). A sum of 16 products stays below 2**53: exact in float64.
_WEIGHTS = np.array(
    [
        [(65536 ** (_LIMBS - 1 - i) // 10000 ** (_DIGITS - 1 - j)) % 10000 for j in range(_DIGITS)]
        for i in range(_LIMBS)
    ],
    np.float64,
)
_POWERS = 10000.0 ** np.arange(_DIGITS - 1, -1, -1)
_ZERO = pl.Series(["0"])
_ASCII = np.array([list(f"{i:04d}".encode()) for i in range(10000)], np.uint8)


def unsigned(words: npt.NDArray[np.uint8]) -> Limbs:
    """Limbs of uint256 words, a matrix (rows, 32) of big-endian bytes."""
    return np.ascontiguousarray(words).view(">u2").astype(np.int64)


def signed(words: npt.NDArray[np.uint8]) -> Limbs:
    """Limbs of int256 words (two's complement), a matrix (rows, 32) of big-endian bytes; limb 0 has the sign."""
    limbs = unsigned(words)
    limbs[:, 0] -= (limbs[:, 0] >= 0x8000) * 0x10000
    return limbs


def to_columns(limbs: Limbs) -> tuple[pl.Series, pl.Series]:
    """Decimal text (String, exact) and floats (Float64) of a column of integers of at most 256 bits and a sign."""
    rows = np.arange(len(limbs))
    negative = limbs[rows, (limbs != 0).argmax(axis=1)] < 0
    # Most amounts are far below 2**256: leading limbs and digits that no row uses are left out.
    top = min(int((limbs != 0).any(axis=0).argmax()), _LIMBS - 1)
    lead = _DIGITS - -(-len(str(65536 ** (_LIMBS - top))) // 4)
    digits = np.where(negative[:, None], -limbs, limbs)[:, top:].astype(np.float64) @ _WEIGHTS[top:, lead:]
    width = digits.shape[1]
    for place in range(width - 1, 0, -1):
        carry = np.floor(digits[:, place] / 10000)
        digits[:, place] -= carry * 10000
        digits[:, place - 1] += carry
    floats = np.where(negative, -1.0, 1.0) * (digits @ _POWERS[lead:])
    text = _ASCII[digits.astype(np.int64)].reshape(len(limbs), 4 * width).view(f"V{4 * width}").ravel()
    exact = pl.Series(list(map(bytes.lstrip, text.tolist(), repeat(b"0"))), dtype=pl.Binary).cast(pl.String)
    exact = exact.zip_with(exact != "", _ZERO.new_from_index(0, len(exact)))
    if negative.any():
        exact = pl.Series(np.where(negative, "-", "").tolist(), dtype=pl.String) + exact
    return exact, pl.Series(floats)
