"""How good probabilities are: numbers, their confidence intervals, and curves.

Belongs here: everything that is measured of labels and probabilities; pure but for `evaluate`. Does not belong here:
which rows a model was not trained on (`training.py`), drawing (`plots.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields

import numpy as np
import numpy.typing as npt

from dash_pipeline.models.artifact import Artifact
from dash_pipeline.models.labels import Labels
from dash_pipeline.models.plots import Curves
from dash_pipeline.models.spec import Floats, Raw, Spec

Ints = npt.NDArray[np.int64]
# A probability of 0 or 1 that is wrong would be an infinite loss.
_SURE = 1e-6


@dataclass(frozen=True)
class Metrics:
    """Of `rows` labelled rows, `positives` of them positive: what does not depend on the threshold (`auc`,
    `average_precision`, `brier`, `log_loss`) and what calling positive from the threshold on does. NaN where it means
    nothing: areas of rows of one class. Precision of nothing called positive is 0, and so is MCC of one class."""

    rows: int
    positives: int
    auc: float
    average_precision: float
    accuracy: float
    precision: float
    recall: float
    f1: float
    mcc: float
    brier: float
    log_loss: float

    def as_dict(self) -> dict[str, float | None]:
        """By name, all dimensionless; None instead of NaN, which JSON does not know."""
        return {name: None if math.isnan(value) else value for name, value in asdict(self).items()}


#: The metrics that have a confidence interval.
MEASURED = tuple(field.name for field in fields(Metrics) if field.name not in ("rows", "positives"))


def measure(y: npt.ArrayLike, p: npt.ArrayLike, threshold: float | Floats) -> Metrics:
    """Metrics of labels `y` (0 or 1), probabilities `p` and a threshold, or each row's own."""
    return _Ranked(y, p, threshold).measure()


def intervals(
    y: npt.ArrayLike,
    p: npt.ArrayLike,
    threshold: float | Floats,
    *,
    groups: Ints | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """The 95 % confidence interval of each of MEASURED: percentiles over resamples of the rows (bootstrap).

    With `groups` (each row's number, from 0) whole groups are drawn: rows of a group are no independent evidence.
    """
    ranked = _Ranked(y, p, threshold)
    drawn = (ranked.measure(weights) for weights in _resampled(len(ranked.y), groups, resamples, seed))
    values = np.array([[getattr(one, name) for name in MEASURED] for one in drawn])
    known = ((name, column[~np.isnan(column)]) for name, column in zip(MEASURED, values.T, strict=True))
    return {name: tuple(np.percentile(column, [2.5, 97.5]).tolist()) for name, column in known if len(column)}


@dataclass(frozen=True)
class Paired:
    """What one model has over another on the same rows, in each resample of them: how much smaller its log loss is,
    how much larger its AUC (NaN where a resample has one class only)."""

    log_loss: Floats
    auc: Floats


def paired(
    y: npt.ArrayLike,
    new: npt.ArrayLike,
    old: npt.ArrayLike,
    *,
    groups: Ints | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Paired:
    """Resamples of rows, or of whole `groups`, each scored by two models: `new` and `old` are their probabilities."""
    both = _Ranked(y, new, 0.5), _Ranked(y, old, 0.5)
    drawn = [[one.measure(weights) for one in both] for weights in _resampled(len(both[0].y), groups, resamples, seed)]
    return Paired(
        np.array([b.log_loss - a.log_loss for a, b in drawn], np.float64),
        np.array([a.auc - b.auc for a, b in drawn], np.float64),
    )


def _resampled(rows: int, groups: Ints | None, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each row is drawn, for each resample: as many rows, or groups, as there are."""
    random = np.random.default_rng(seed)
    count = rows if groups is None else int(groups.max(initial=-1)) + 1
    for _ in range(resamples):
        times = np.bincount(random.integers(0, max(count, 1), count), minlength=count).astype(np.float64)
        yield times if groups is None else times[groups]


def best_threshold(y: npt.ArrayLike, p: npt.ArrayLike, *, resamples: int = 50, seed: int = 0) -> float:
    """The threshold (a probability) of the highest MCC: the mean, in log-odds, of the best ones of resamples of the
    rows. The best one of the rows themselves hangs on a few of them."""
    label, odds = np.asarray(y, np.float64), log_odds(np.asarray(p, np.float64))
    order = np.argsort(-odds, kind="stable")
    label, odds = label[order], odds[order]
    drawn = _resampled(len(label), None, resamples, seed)
    found = [_best_cut(label, odds, weights) for weights in drawn if 0 < weights @ label < weights.sum()]
    return float(1 / (1 + np.exp(-np.mean(found)))) if found else 0.5


def _best_cut(y: Floats, odds: Floats, weights: Floats) -> float:
    """The log-odds, between two rows, from which on calling positive gives the highest MCC; rows in falling order."""
    tp, fp = np.cumsum(weights * y), np.cumsum(weights * (1 - y))
    fn, tn = tp[-1] - tp, fp[-1] - fp
    with np.errstate(all="ignore"):
        mcc = np.nan_to_num((tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    mcc[:-1][odds[:-1] == odds[1:]] = -1.0  # equal rows are not parted
    at = int(np.argmax(mcc))
    return float((odds[at] + odds[min(at + 1, len(odds) - 1)]) / 2)


def log_odds(p: Floats) -> Floats:
    """The natural logarithm of `p / (1 - p)`, by element; of a probability of 0 or 1, that of one close to it."""
    sure = np.clip(p, _SURE, 1 - _SURE)
    odds: Floats = np.log(sure) - np.log1p(-sure)
    return odds


def curves(y: npt.ArrayLike, p: npt.ArrayLike, importance: Mapping[str, float], bins: int = 10) -> Curves:
    """What is drawn of labels and probabilities; `importance`: feature -> gain. Calibration in bins of equal width."""
    label, said = np.asarray(y, np.float64), np.asarray(p, np.float64)
    ranked = _Ranked(label, said, 0.5)
    tp, fp = ranked.cumulated(np.ones(len(label)))
    metrics = ranked.measure()
    with np.errstate(all="ignore"):
        tpr, fpr, precision = tp / tp[-1:], fp / fp[-1:], tp / (tp + fp)
    of = np.minimum((said * bins).astype(np.int64), bins - 1)
    rows = np.bincount(of, minlength=bins)
    with np.errstate(all="ignore"):
        predicted, observed = (np.bincount(of, values, bins) / rows for values in (said, label))
    return Curves(
        fpr=np.concatenate(([0.0], fpr)),
        tpr=np.concatenate(([0.0], tpr)),
        recall=tpr,
        precision=precision,
        predicted=predicted,
        observed=observed,
        rows=rows,
        importance=importance,
        positives=float(label.mean()) if len(label) else float("nan"),
        auc=metrics.auc,
        average_precision=metrics.average_precision,
    )


def evaluate(spec: Spec, artifact: Artifact, labels: Labels) -> Metrics:
    """How good a trained model is on labelled rows, at its own threshold. Raises DashError when the artifact is not of
    this spec."""
    y = labels.frame["label"].to_numpy()
    return measure(y, score(spec, artifact, labels), artifact.threshold)


def score(spec: Spec, artifact: Artifact, labels: Labels) -> Floats:
    """The artifact's calibrated probability of each labelled row, as the platform would compute it live."""
    from dash_pipeline.models.scorer import Scorer

    return Scorer(spec, artifact, "").score(raw_of(spec, labels))


def raw_of(spec: Spec, labels: Labels) -> Raw:
    """The raw columns of labelled rows."""
    return {name: labels.frame[name].to_numpy() for name in spec.columns}


class _Ranked:
    """Labels and probabilities sorted once, to be measured with many weights."""

    def __init__(self, y: npt.ArrayLike, p: npt.ArrayLike, threshold: float | Floats) -> None:
        self.y, said = np.asarray(y, np.float64), np.asarray(p, np.float64)
        self._called = said >= threshold
        # Place of each row's probability among the distinct ones, the highest first.
        distinct, self._place = np.unique(-said, return_inverse=True)
        self._distinct = len(distinct)
        sure = np.clip(said, _SURE, 1 - _SURE)
        self._loss: Floats = -np.where(self.y == 1, np.log(sure), np.log1p(-sure))
        self._square = (said - self.y) ** 2

    def cumulated(self, weights: Floats) -> tuple[Floats, Floats]:
        """Positives and negatives called positive, for each distinct probability as the threshold."""
        tp: Floats = np.cumsum(np.bincount(self._place, weights * self.y, self._distinct))
        fp: Floats = np.cumsum(np.bincount(self._place, weights * (1 - self.y), self._distinct))
        return tp, fp

    def measure(self, weights: Floats | None = None) -> Metrics:
        """The metrics, of rows that count so often each."""
        weights = np.ones(len(self.y)) if weights is None else weights
        rows, positives = float(weights.sum()), float(weights @ self.y)
        negatives = rows - positives
        tp, fp = (float((weights * which * self._called).sum()) for which in (self.y, 1 - self.y))
        fn, tn = positives - tp, negatives - fp
        precision, recall = _part(tp, tp + fp), _part(tp, positives)
        cumulated_tp, cumulated_fp = self.cumulated(weights)
        steps = np.diff(cumulated_tp, prepend=0.0)
        with np.errstate(all="ignore"):
            area = np.sum(np.diff(cumulated_fp, prepend=0.0) * (cumulated_tp - steps / 2)) / (positives * negatives)
            average = np.sum(steps * np.nan_to_num(cumulated_tp / (cumulated_tp + cumulated_fp))) / positives
            loss, brier = weights @ self._loss / rows, weights @ self._square / rows
        return Metrics(
            rows=round(rows),
            positives=round(positives),
            auc=float(area) if positives and negatives else float("nan"),
            average_precision=float(average) if positives else float("nan"),
            accuracy=_part(tp + tn, rows),
            precision=precision,
            recall=recall,
            f1=_part(2 * tp, 2 * tp + fp + fn),
            mcc=_part(tp * tn - fp * fn, math.sqrt((tp + fp) * positives * negatives * (tn + fn))),
            brier=float(brier),
            log_loss=float(loss),
        )


def _part(some: float, of: float) -> float:
    return some / of if of else 0.0
