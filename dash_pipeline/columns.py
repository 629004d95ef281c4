"""Columns of small frames, without polars' queries.

Belongs here: what can be asked of a column as it is. Does not belong here: what columns mean.

An expression, and many a method of Series that is made of one, is a query: it is planned, handed to polars' own thread
and waited for. That costs more than all rows of a small batch, and on a busy machine two turns of waiting for a
processor. These take what is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def constant(value: str | None, dtype: pl.DataType | type[pl.DataType], rows: int) -> pl.Series:
    """A column that holds one value throughout, or nulls."""
    return _one(value, dtype).new_from_index(0, rows)


@cache
def _one(value: str | None, dtype: pl.DataType | type[pl.DataType]) -> pl.Series:
    return pl.Series([value], dtype=dtype)


def filled(values: pl.Series) -> Bools:
    """Whether each value is not null: bool by row."""
    if not values.null_count():
        return np.ones(len(values), np.bool_)
    there: Bools = np.array(values.to_list(), object) != None  # noqa: E711
    return there


def taken(values: pl.Series, places: Ints) -> pl.Series:
    """The values at these places, in their order."""
    return values[pl.Series(places, dtype=pl.UInt32)]


def ranked(values: Sequence[Any]) -> tuple[list[Any], Ints]:
    """The distinct values in order, None left out, and each value's place among them: int64 by row, -1 for None."""
    distinct = sorted({*values} - {None})
    places = {value: place for place, value in enumerate(distinct)} | {None: -1}
    return distinct, np.fromiter(map(places.__getitem__, values), np.int64, len(values))


def equal(values: pl.Series, other: pl.Series | str) -> Bools:
    """Whether each value is this one, or the one beside it in another column: bool by row. A null equals nothing."""
    return (values == other).to_numpy().astype(np.bool_)
