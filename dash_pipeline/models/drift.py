"""Drift: how far live rows are from the rows a model was trained on, by the population stability index (PSI).

Belongs here: histograms of training columns, the index, and what its values mean; all pure. Does not belong here: which
rows are looked at and when (`assets/intelligence/`), and what is done about drift.

A column's bins are made once, of the training rows, and travel in the artifact. PSI is the sum over the bins of
(live - trained) * ln(live / trained), with unknown values as one more bin. By convention a value below 0.1 is no
change, from 0.1 to 0.25 a moderate one, above it a column of another population.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dash_pipeline.errors import DashError
from dash_pipeline.models.artifact import Artifact, Histogram
from dash_pipeline.models.spec import Floats, Raw, Spec

MODERATE, DRIFTED = 0.1, 0.25
#: The reference's name of the calibrated score's histogram, beside those of the features.
SCORE = "score"
# What a bin without rows counts as, or half a row if that is more: the index of an empty bin would be infinite.
_LEAST_SHARE = 1e-4
# Of n rows that have not drifted the index is about chi-square / n; it must exceed that by so many deviations.
_DEVIATIONS = 4.0


@dataclass(frozen=True)
class Column:
    """A feature, or the score: its index, what chance alone may make of so few rows, and what that means."""

    name: str
    psi: float
    chance: float

    @property
    def level(self) -> str:
        """ "stable", "moderate" or "drifted"; chance alone is never more than stable."""
        if self.psi < MODERATE or self.psi <= self.chance:
            return "stable"
        return "moderate" if self.psi < DRIFTED else "drifted"


@dataclass(frozen=True)
class Report:
    """`columns`: the score first, then the features, the most drifted first. `rows`: how many were compared."""

    rows: int
    columns: tuple[Column, ...]

    @property
    def drifted(self) -> bool:
        """Whether the rows are of another population than those of the training: by their scores, or by more than a
        fifth of the features (and two at least). One that moves while the scores stay asks for no training."""
        score, *features = (column.level == "drifted" for column in self.columns)
        return score or sum(features) > max(1, len(features) // 5)


def histogram(values: Floats, bins: int = 10) -> Histogram:
    """The distribution of a training column, float64, NaN where unknown: quantiles are the edges, `bins` or fewer bins.

    A bin holds what is greater than its lower edge and not greater than its upper one. A value so frequent that several
    quantiles are the same has a bin of its own, with an edge just below it: of a column of zeros and ones with few
    zeros, those would otherwise share the ones' bin. Infinities count in the outermost bins. Never raises for a
    column without values: one bin.
    """
    known = values[~np.isnan(values)]
    finite = known[np.isfinite(known)]
    if not finite.size:
        edges: Floats = np.empty(0)
    else:
        quantiles = np.quantile(finite, np.arange(1, bins) / bins, method="inverted_cdf")
        edges, times = np.unique(quantiles, return_counts=True)
        edges = np.union1d(edges, np.nextafter(edges[times > 1], -np.inf))
        edges = edges[np.isfinite(edges)]
    counts = _counts(edges, known)
    rows = max(values.size, 1)
    return Histogram(edges.tolist(), (counts / rows).tolist(), (values.size - known.size) / rows)


def psi(reference: Histogram, values: Floats) -> float:
    """The index of these values, float64, against a histogram; dimensionless, 0.0 of no values."""
    if not values.size:
        return 0.0
    known = values[~np.isnan(values)]
    counts = np.append(_counts(np.asarray(reference.edges, dtype=np.float64), known), values.size - known.size)
    least = max(_LEAST_SHARE, 0.5 / values.size)
    live = np.maximum(counts / values.size, least)
    trained = np.maximum(np.append(reference.shares, reference.unknown), least)
    return float(np.sum((live - trained) * np.log(live / trained)))


def drift(artifact: Artifact, spec: Spec, raw: Raw, scores: Floats) -> Report:
    """Live rows (`raw`, with their calibrated `scores`) against those the artifact was trained on.

    Raises DashError when the artifact has no histogram of a feature of `spec` or of the score.
    """
    live = {SCORE: scores, **spec.derive(raw)}
    missing = [name for name in live if name not in artifact.reference]
    if missing:
        raise DashError(f"{artifact.model}: the model has no histogram of {', '.join(missing)}: train it again")
    columns = [_column(name, artifact.reference[name], values) for name, values in live.items()]
    features = sorted(columns[1:], key=lambda column: -column.psi)
    return Report(scores.size, (columns[0], *features))


def _column(name: str, reference: Histogram, values: Floats) -> Column:
    freedom = len(reference.edges) + 1
    chance = (freedom + _DEVIATIONS * np.sqrt(2 * freedom)) / max(values.size, 1)
    return Column(name, psi(reference, values), float(chance))


def _counts(edges: Floats, known: Floats) -> npt.NDArray[np.int64]:
    return np.bincount(np.searchsorted(edges, known, side="left"), minlength=edges.size + 1)
