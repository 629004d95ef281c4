"""256-bit arithmetic by the column, against Python's integers."""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np
import pytest

from dash_pipeline.events import amounts

MAX = amounts.MAX_UINT256
EDGES = sorted(
    {0, 1, 9, 10, 9999, 10_000, MAX, MAX - 1, 2**255, 2**255 - 1, 10**77}
    | {base**n + d for base, most in ((10, 77), (2, 255), (65536, 15)) for n in range(most + 1) for d in (-1, 0, 1)}
)


def words(values: Iterable[int]) -> np.ndarray:
    data = b"".join((value % 2**256).to_bytes(32, "big") for value in values)
    return np.frombuffer(data, np.uint8).reshape(-1, 32)


def check(limbs: amounts.Limbs, values: list[int]) -> None:
    exact, floats = amounts.to_columns(limbs)
    assert exact.to_list() == [str(value) for value in values]
    assert floats.to_list() == pytest.approx([float(value) for value in values], rel=1e-14, abs=0)


def some(rng: random.Random, count: int) -> list[int]:
    """Of all sizes: most real amounts are far below 2^256."""
    return [rng.getrandbits(rng.randrange(257)) for _ in range(count)]


def test_edges_all_at_once_and_each_alone() -> None:
    check(amounts.unsigned(words(EDGES)), EDGES)
    for value in EDGES:
        check(amounts.unsigned(words([value])), [value])


def test_edges_with_signs() -> None:
    values = [sign * value for value in EDGES for sign in (1, -1) if value < 2**255] + [-(2**255)]
    check(amounts.signed(words(values)), values)
    for value in values:
        check(amounts.signed(words([value])), [value])


@pytest.mark.parametrize("seed", range(20))
def test_unsigned_words(seed: int) -> None:
    values = some(random.Random(seed), 300)
    check(amounts.unsigned(words(values)), values)


@pytest.mark.parametrize("seed", range(20))
def test_signed_words(seed: int) -> None:
    rng = random.Random(seed)
    values = [value // 2 * rng.choice([1, -1]) for value in some(rng, 300)]
    check(amounts.signed(words(values)), values)


@pytest.mark.parametrize("seed", range(20))
def test_differences_and_negations(seed: int) -> None:
    rng = random.Random(seed)
    left, right = some(rng, 300), some(rng, 300)
    for i in range(0, 300, 3):
        right[i] = min(MAX, left[i] + rng.choice([0, 1, -1]) if left[i] else 0)
    a, b = amounts.unsigned(words(left)), amounts.unsigned(words(right))
    check(a - b, [x - y for x, y in zip(left, right, strict=True)])
    check(-a, [-x for x in left])


def test_the_extremes_of_a_difference() -> None:
    a, b = amounts.unsigned(words([0, MAX, MAX])), amounts.unsigned(words([MAX, 0, MAX]))
    check(a - b, [-MAX, MAX, 0])


def test_no_rows() -> None:
    exact, floats = amounts.to_columns(amounts.unsigned(words([])))
    assert exact.to_list() == floats.to_list() == []
