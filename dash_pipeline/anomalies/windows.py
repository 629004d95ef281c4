"""Arithmetic on windows of many points at once.

Belongs here: pairs of a point and what lies in its window, sums and quantiles over them. Does not belong here: what is
measured (`detect.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dash_pipeline.columns import Bools, Floats, Ints


@dataclass(frozen=True)
class Pairs:
    """Every point with everything in its window: `owner` is the point's number, `item` the place of what is in it, both
    in order. No point's window is empty."""

    owner: Ints
    item: Ints
    starts: Ints

    @staticmethod
    def of(start: Ints, stop: Ints) -> Pairs:
        """The pairs of windows from `start` to before `stop`."""
        counts = stop - start
        starts = np.cumsum(counts) - counts
        owner = np.repeat(np.arange(len(counts)), counts)
        return Pairs(owner, np.arange(len(owner)) - starts[owner] + start[owner], starts)

    def sum(self, values: npt.NDArray[np.generic]) -> Floats:
        """The sum of each point's values: `values` by pair, the result float64 by point."""
        return np.add.reduceat(values.astype(np.float64), self.starts)

    def held(self, levels: Floats, seconds: Floats, need: Floats) -> Floats:
        """The highest level that each point's window was at or above for `need` seconds in sum; NaN where it never had
        any time."""
        order = np.lexsort((-levels, self.owner))
        until = np.cumsum(seconds[order])
        until -= np.concatenate([[0.0], until])[self.starts][self.owner]
        # A hair less than needed will do: sums of parts are not exact.
        enough = (until >= need[self.owner] - 1e-6) & (seconds[order] > 0)
        place = np.minimum.reduceat(np.where(enough, np.arange(len(order)), len(order)), self.starts)
        found = place < len(order)
        return np.where(found, levels[order][np.where(found, place, 0)], np.nan)


def highest(values: Floats, start: Ints, stop: Ints) -> Floats:
    """The highest of `values[start:stop]` for many ranges, NaN left out; minus infinity where there is none. No range
    is empty. Of every place the highest of the next 1, 2, 4 ... values is known; two of those cover a range."""
    table = [np.where(np.isnan(values), -np.inf, values)]
    length = stop - start
    while 2 ** len(table) <= length.max(initial=0):
        half = 2 ** (len(table) - 1)
        table.append(np.maximum(table[-1], np.concatenate([table[-1][half:], np.full(half, -np.inf)])))
    step = np.frexp(length)[1].astype(np.int64) - 1
    grid = np.stack(table)
    best: Floats = np.maximum(grid[step, start], grid[step, stop - 2**step])
    return best


def median(matrix: Floats) -> Floats:
    """The median of each row, NaN left out; NaN where all are."""
    ordered = np.sort(matrix, axis=1)
    count = np.isfinite(ordered).sum(axis=1)
    rows, last = np.arange(len(ordered)), matrix.shape[1] - 1
    low = ordered[rows, np.clip((count - 1) // 2, 0, last)]
    high = ordered[rows, np.clip(count // 2, 0, last)]
    return np.where(count > 0, (low + high) / 2, np.nan)


def first_crossings(pool: Ints, ts: Ints, level: Ints, quiet_s: float) -> Ints:
    """The severity (1 to 3) that each crossing is the first of, 0 for none. Crossings are in order; one of a severity
    is one of the lesser ones, and none is the first within `quiet_s` after another."""
    first = np.zeros(len(level), np.int64)
    for severity in (1, 2, 3):
        at = np.flatnonzero(level >= severity)
        again: Bools = np.zeros(len(at), np.bool_)
        again[1:] = (np.diff(pool[at]) == 0) & (np.diff(ts[at]) < quiet_s * 1e6)
        first[at[~again]] = severity
    return first
