"""A trained model as it is stored and shipped: everything that scoring needs, in one object of bytes.

Belongs here: the value and its wire format. Does not belong here: where it is kept (`registry.py`), how it scores
(`scorer.py`), how it came to be (`training.py`).
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import zstandard

from dash_pipeline.errors import DashError


class Histogram(msgspec.Struct, frozen=True):
    """A training column's distribution: `edges` of the bins (len n-1, inner edges), `shares` of rows in each (len n),
    `unknown`: share of NaN. What drift is measured against."""

    edges: list[float]
    shares: list[float]
    unknown: float


class Artifact(msgspec.Struct, frozen=True):
    """`boosters`: LightGBM model texts; a row's raw probability is the mean of theirs. `calibration`: raw probabilities
    and what they are worth, increasing, interpolated in between. `threshold`: calibrated probability from which on a
    subject is called positive. `reference`: histograms of the features and of the score ("score")."""

    model: str
    features: list[str]
    boosters: list[str]
    calibration: tuple[list[float], list[float]]
    threshold: float
    reference: dict[str, Histogram]
    card: dict[str, Any]

    def to_bytes(self) -> bytes:
        """Compressed JSON; the same artifact, the same bytes."""
        return zstandard.compress(msgspec.json.encode(self, order="deterministic"), 10)

    @staticmethod
    def from_bytes(data: bytes, sha256: str, name: str) -> Artifact:
        """The artifact; raises DashError naming it when the bytes are not those with this hash, or not an artifact."""
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise DashError(f"{name}: the object's sha256 is {found}, not {sha256}: it was altered; not loaded")
        try:
            return msgspec.json.decode(zstandard.decompress(data), type=Artifact)
        except (zstandard.ZstdError, msgspec.MsgspecError) as error:
            raise DashError(f"{name}: not a model: {error}") from None
