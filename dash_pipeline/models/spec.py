"""What a model is about: the columns of its labelled data, and the one function that makes features of them.

Belongs here: the description that labels, training, scoring, drift and documentation share. Does not belong here: any
one model (`pool_risk.py`, `wallet_risk.py`, `liquidity_outlook.py`).

Raw columns are what a labelled file holds and what the platform computes live from its own tables. Features are made
of raw columns by `derive`, in training and in scoring alike: there is no second way, so there is no skew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
#: Raw column -> values, float64, one per row; NaN where unknown.
Raw = Mapping[str, Floats]


@dataclass(frozen=True)
class RawColumn:
    """A raw column: what it means with its unit, what the platform computes it from, what a blank cell becomes (None: a
    blank stays unknown, NaN), and other names that labelled files give it."""

    about: str
    source: str
    blank: float | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spec:
    """A model's description.

    `derive`: raw columns -> features, a dict of float64 columns of the same length in a fixed order; pure, row by row
    (a row's features depend on no other row), never raises for NaN or infinities.
    `split`: how rows may be parted in evaluation: by "group" (those of one column `group`, or of one id, stay together)
    or by "time" (walk-forward by column `as_of`).
    `horizon_s`: a row's label is known only so many seconds after its `as_of`: when training ends at a cut, rows whose
    horizon reaches beyond it are left out.
    `params`: LightGBM's parameters; `rounds`: boosting rounds; `bags`: boosters with other seeds that are averaged.
    """

    name: str
    title: str
    subject: Literal["pool", "wallet"]
    id_column: str
    label_column: str
    columns: Mapping[str, RawColumn]
    derive: Callable[[Raw], dict[str, Floats]]
    split: Literal["group", "time"] = "group"
    horizon_s: float = 0.0
    params: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = 300
    bags: int = 1
    min_positives: int = 20
