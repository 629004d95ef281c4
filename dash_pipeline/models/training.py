"""Labelled rows -> a model: fitted, calibrated, measured on rows it did not see, compared with the champion.

Belongs here: which rows are parted how, LightGBM's calls, calibration, the card, the comparison. Does not belong here:
reading labels (`labels.py`), what is measured (`evaluation.py`), promoting (`lifecycle.py`).

Nothing that is measured was chosen on the rows it is measured on. Each fold is left out once, which gives its rows a
probability by a model that did not know them; and each pair of folds is left out once, which gives the rows outside a
fold one by models that knew neither. On the latter the fold's calibration and threshold are fitted. Where time orders
the rows, a window's are fitted on the windows before it.

A tenth of the rows, chosen by a hash, is kept from every version for ever: on those a challenger meets the champion.
Fits are deterministic: the same labels and libraries give an artifact of the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import combinations
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from dash_pipeline.errors import DashError
from dash_pipeline.models import evaluation
from dash_pipeline.models.artifact import Artifact
from dash_pipeline.models.drift import SCORE, histogram
from dash_pipeline.models.labels import AS_OF, GROUP, Labels
from dash_pipeline.models.plots import Curves
from dash_pipeline.models.spec import Floats, Spec

if TYPE_CHECKING:
    import optuna
    from lightgbm import Booster

SEED = 20261125
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Say = Callable[[str], None]
#: Rows that are trained on, and rows that the model then scores.
Part = tuple[Ints, Ints]
#: Raw probabilities, and what they are worth.
Calibration = tuple[list[float], list[float]]

_FOLDS, _FEW_FOLDS, _FEWEST_FOLDS = 10, 5, 3
# Of fewer rows ten folds are slow for what they tell.
_FEW_ROWS = 2_000
# Time is cut into so many windows of as many rows; the first ones are only trained on.
_WINDOWS, _FIRST_WINDOWS = 10, 3
_HELD_OUT = 10  # one row of so many
# A comparison needs so many held-out rows of each class, and a challenger is better in so many of the resamples.
_LEAST_OF_CLASS, _SURE_SHARE = 5, 0.9
_MOST_THREADS = 4
# One thread per fit and several fits: OpenMP's threads spin while they wait, which on a busy machine costs most.
_FIXED = {"objective": "binary", "deterministic": True, "force_row_wise": True, "num_threads": 1, "verbosity": -1}


@dataclass(frozen=True)
class Trained:
    """`out_of_fold`: of each labelled row its calibrated probability by a model that did not know it; NaN of held-out
    rows, and of the first ones where time orders them. `metrics`: out-of-fold ones by name, and those of the held-out
    rows as `held_out_...`, without those that mean nothing. `curves`: out-of-fold."""

    artifact: Artifact
    out_of_fold: Floats
    curves: Curves
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Verdict:
    """Whether a challenger replaces the champion, and why, in a sentence."""

    better: bool
    reason: str


def train(spec: Spec, labels: Labels, *, seed: int = SEED, progress: Say | None = None) -> Trained:
    """A model of all labelled rows but the held-out ones, with what it is worth.

    Raises DashError when there are too few rows of a class to train on, or to part.
    """
    say = progress or (lambda text: None)
    rows = _Rows.of(spec, labels)
    tested = _walk_forward(spec, rows, seed, say) if spec.split == "time" else _leave_out(spec, rows, seed, say)
    say(f"{spec.name}: the model itself, of {len(rows.kept):,} rows")
    with _pool() as pool:
        boosters = list(pool.map(lambda bag: _fit(spec, rows, rows.kept, seed + bag), range(spec.bags)))
    calibration, threshold = _use(rows.y[tested.rows], tested.raw, seed)
    artifact = Artifact(
        model=spec.name,
        features=list(rows.features),
        boosters=[booster.model_to_string() for booster in boosters],
        calibration=calibration,
        threshold=threshold,
        reference={
            SCORE: histogram(tested.p),
            **{name: histogram(rows.matrix[rows.kept, i]) for i, name in enumerate(rows.features)},
        },
        card={},
    )
    out_of_fold = np.full(len(rows.y), np.nan)
    out_of_fold[tested.rows] = tested.p
    y = rows.y[tested.rows]
    metrics = evaluation.measure(y, tested.p, tested.threshold).as_dict()
    apart = Labels(labels.frame[rows.held_out], labels.sha256, labels.source)
    held_out = evaluation.evaluate(spec, artifact, apart).as_dict()
    importance = _importance(rows.features, boosters)
    card = {
        "model": spec.name,
        "title": spec.title,
        "data": _about(labels, rows),
        "split": spec.split,
        "seed": seed,
        "parameters": {**_FIXED, **spec.params, "rounds": spec.rounds, "bags": spec.bags},
        "versions": {name: version(name) for name in ("lightgbm", "numpy", "polars", "scikit-learn")},
        "threshold": threshold,
        "metrics": metrics,
        "intervals_95": evaluation.intervals(
            y, tested.p, tested.threshold, groups=_group_numbers(rows.groups[tested.rows]), seed=seed
        ),
        "folds": tested.by_fold(rows.y),
        "held_out": held_out,
        "importance": importance,
    }
    measured = metrics | {f"held_out_{name}": value for name, value in held_out.items()}
    return Trained(
        msgspec.structs.replace(artifact, card=card),
        out_of_fold,
        evaluation.curves(y, tested.p, importance),
        {name: value for name, value in measured.items() if value is not None},
    )


def holdout(spec: Spec, labels: Labels) -> Bools:
    """Which rows no version is ever trained on: a tenth, by a hash of the row's group, or of its id where there are no
    groups. What becomes of a row does not depend on the others."""
    hashes = (hashlib.sha256(f"{spec.name}:{key}".encode()).digest() for key in labels.frame[_group_column(labels)])
    chosen = [int.from_bytes(digest[:8], "big") % _HELD_OUT == 0 for digest in hashes]
    return np.array(chosen, dtype=np.bool_)


def compare(spec: Spec, labels: Labels, challenger: Artifact, champion: Artifact | None) -> Verdict:
    """Whether the challenger beats the champion on the held-out rows of these labels.

    It does when its log loss there is smaller, in nine of ten resamples of the rows (of whole groups, where there are
    any) too, and its AUC is not clearly smaller. The log loss asks for both, good ranks and honest probabilities.
    """
    if champion is None:
        return Verdict(True, "there was no champion")
    rows = Labels(labels.frame.filter(holdout(spec, labels)), labels.sha256, labels.source)
    y = rows.frame["label"].to_numpy()
    fewest = min(int((y == 1).sum()), int((y == 0).sum()))
    if fewest < _LEAST_OF_CLASS:
        few = f"of the {len(y):,} held-out rows {fewest} are of one class, too few to compare it with the champion"
        return Verdict(False, f"not compared: {few}; promote it by hand if it should replace that one")
    new = evaluation.score(spec, challenger, rows)
    try:
        old = evaluation.score(spec, champion, rows)
    except DashError as error:
        return Verdict(True, f"the champion does not score any more: {error}")
    now, before = (evaluation.measure(y, p, 0.5) for p in (new, old))
    groups = _group_numbers(rows.frame[_group_column(rows)].to_numpy())
    gains = evaluation.paired(y, new, old, groups=groups, seed=SEED)
    share = float(np.mean(gains.log_loss > 0))
    figures = (
        f"on {len(y):,} held-out rows its log loss is {now.log_loss:.4f} and the champion's {before.log_loss:.4f}"
        f" (smaller in {share:.0%} of resamples), AUC {now.auc:.4f} and {before.auc:.4f}"
    )
    if share < _SURE_SHARE:
        return Verdict(False, f"not better: {figures}")
    if np.nanpercentile(gains.auc, 95) < 0:
        return Verdict(False, f"it ranks worse: {figures}")
    return Verdict(True, f"better: {figures}")


def tune(spec: Spec, labels: Labels, trials: int, seed: int = SEED, progress: Say | None = None) -> Spec:
    """The spec with those of LightGBM's parameters that gave the smallest log loss on rows left out of the fit, in so
    many trials; its own are the first trial.

    Held-out rows take no part. The others do, so that out-of-fold figures of a later `train` flatter a little.
    Raises DashError as `train` does.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rows = _Rows.of(spec, labels)
    parts = _windows(spec, rows) if spec.split == "time" else _each_left_out(_folds(spec, rows, seed, _FEW_FOLDS))
    y = np.concatenate([rows.y[test] for _, test in parts])

    def loss(trial: optuna.Trial) -> float:
        tried = _suggested(spec, trial)
        p = np.concatenate(_probabilities(replace(tried, bags=1), rows, parts, seed))
        value = evaluation.measure(y, p, 0.5).log_loss
        if progress:
            progress(f"{spec.name}: trial {trial.number + 1} of {trials}: log loss {value:.5f}")
        return value

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.enqueue_trial(_present(spec))
    study.optimize(loss, n_trials=trials)
    return _suggested(spec, optuna.trial.FixedTrial(study.best_params))


def _suggested(spec: Spec, trial: optuna.trial.BaseTrial) -> Spec:
    params = {
        **spec.params,
        "learning_rate": trial.suggest_float("learning_rate", 0.01, 0.2, log=True),
        "num_leaves": trial.suggest_int("num_leaves", 4, 63, log=True),
        "min_data_in_leaf": trial.suggest_int("min_data_in_leaf", 3, 100, log=True),
        "feature_fraction": trial.suggest_float("feature_fraction", 0.2, 1.0),
        "bagging_fraction": trial.suggest_float("bagging_fraction", 0.4, 1.0),
        "bagging_freq": 1,
        "lambda_l2": trial.suggest_float("lambda_l2", 0.01, 30.0, log=True),
    }
    return replace(spec, params=params, rounds=trial.suggest_int("rounds", 10, 600, log=True))


def _present(spec: Spec) -> dict[str, Any]:
    """What the spec says now; LightGBM's own defaults where it says nothing."""
    defaults = {
        "learning_rate": 0.1, "num_leaves": 31, "min_data_in_leaf": 20, "feature_fraction": 1.0,
        "bagging_fraction": 1.0, "lambda_l2": 0.01,
    }  # fmt: skip
    return {name: spec.params.get(name, value) for name, value in defaults.items()} | {"rounds": spec.rounds}


# ---------------------------------------------------------------------------------------------- the rows


@dataclass(frozen=True)
class _Rows:
    """Labelled rows as LightGBM takes them. `groups`: of each row its group's name, or its id; `seconds`: its `as_of`
    since 1970, 0 where there is none. `kept`, `held_out`: positions of the rows that may and may not be trained on."""

    features: tuple[str, ...]
    matrix: Floats
    y: Ints
    groups: npt.NDArray[np.object_]
    seconds: Floats
    kept: Ints
    held_out: Ints

    @staticmethod
    def of(spec: Spec, labels: Labels) -> _Rows:
        """The rows. Raises DashError when there are too few of a class."""
        frame = labels.frame
        y = frame["label"].to_numpy().astype(np.int64)
        for what, count in (("positive", int(y.sum())), ("negative", int(len(y) - y.sum()))):
            if count < spec.min_positives:
                raise DashError(
                    f"{spec.name}: too few {what}s: {count:,} of {len(y):,} labelled rows are {what}, training takes"
                    f" {spec.min_positives:,} at least; nothing was trained"
                )
        features = spec.derive(evaluation.raw_of(spec, labels))
        dated = AS_OF in frame.columns
        seconds = frame[AS_OF].dt.epoch("us").to_numpy() / 1e6 if dated else np.zeros(frame.height)
        apart = holdout(spec, labels)
        return _Rows(
            tuple(features),
            np.column_stack(list(features.values())),
            y,
            frame[_group_column(labels)].to_numpy(),
            seconds,
            np.flatnonzero(~apart),
            np.flatnonzero(apart),
        )


def _group_column(labels: Labels) -> str:
    return GROUP if GROUP in labels.frame.columns else "id"


def _group_numbers(groups: npt.NDArray[np.object_]) -> Ints:
    numbers: Ints = np.unique(groups.astype(str), return_inverse=True)[1]
    return numbers


def _about(labels: Labels, rows: _Rows) -> dict[str, Any]:
    about: dict[str, Any] = {
        "source": labels.source,
        "sha256": labels.sha256,
        "rows": len(rows.y),
        "positives": int(rows.y.sum()),
        "trained_on": len(rows.kept),
        "held_out": len(rows.held_out),
    }
    if AS_OF in labels.frame.columns:
        first, last = labels.frame[AS_OF].min(), labels.frame[AS_OF].max()
        about |= {"from": str(first), "until": str(last)}
    return about


# ---------------------------------------------------------------------------------------------- parting them


@dataclass(frozen=True)
class _Tested:
    """Rows with what models say of them that did not know them: `fold` of each, `raw` and calibrated (`p`)
    probability, and the threshold that was chosen without it."""

    rows: Ints
    fold: Ints
    raw: Floats
    p: Floats
    threshold: Floats

    def by_fold(self, y: Ints) -> list[dict[str, float | None]]:
        """The metrics of each fold."""
        of = [self.fold == i for i in np.unique(self.fold)]
        return [evaluation.measure(y[self.rows[i]], self.p[i], self.threshold[i]).as_dict() for i in of]


def _leave_out(spec: Spec, rows: _Rows, seed: int, say: Say) -> _Tested:
    """Every row by folds, calibrated by what pairs of folds left out tell."""
    fold = _folds(spec, rows, seed, _FOLDS if len(rows.kept) >= _FEW_ROWS else _FEW_FOLDS)
    count = int(fold.max()) + 1
    pairs = list(combinations(range(count), 2))
    both = [np.isin(fold, pair) & (fold >= 0) for pair in pairs]
    twice = [(np.flatnonzero(~out & (fold >= 0)), np.flatnonzero(out)) for out in both]
    parts = [*_each_left_out(fold), *twice]
    say(f"{spec.name}: {count} folds, {len(parts) * spec.bags} fits")
    found = _probabilities(spec, rows, parts, seed)
    # Of each fold the rows outside it, as seen by models that knew neither.
    outside: list[list[tuple[Ints, Floats]]] = [[] for _ in range(count)]
    for (i, j), (_, test), raw in zip(pairs, twice, found[count:], strict=True):
        for one, other in ((i, j), (j, i)):
            his = fold[test] == other
            outside[one].append((test[his], raw[his]))
    pieces = []
    for i, (_, test) in enumerate(parts[:count]):
        known = np.concatenate([some for some, _ in outside[i]])
        calibration, threshold = _use(rows.y[known], np.concatenate([raw for _, raw in outside[i]]), seed)
        p = np.interp(found[i], *calibration)
        pieces.append(_Tested(test, np.full(len(test), i), found[i], p, np.full(len(test), threshold)))
    return _joined(pieces)


def _walk_forward(spec: Spec, rows: _Rows, seed: int, say: Say) -> _Tested:
    """Window after window, each by a model and a calibration of what was known when it began."""
    parts = _windows(spec, rows)
    say(f"{spec.name}: {len(parts)} windows, {len(parts) * spec.bags} fits")
    found = _probabilities(spec, rows, parts, seed)
    tests = [test for _, test in parts]
    pieces = []
    for i in range(1, len(parts)):
        begins = rows.seconds[tests[i]].min()
        earlier, raw = np.concatenate(tests[:i]), np.concatenate(found[:i])
        known = rows.seconds[earlier] + spec.horizon_s <= begins
        calibration, threshold = _use(rows.y[earlier[known]], raw[known], seed)
        p = np.interp(found[i], *calibration)
        pieces.append(_Tested(tests[i], np.full(len(p), i), found[i], p, np.full(len(p), threshold)))
    return _joined(pieces)


def _joined(pieces: Sequence[_Tested]) -> _Tested:
    columns = ([getattr(piece, name) for piece in pieces] for name in ("rows", "fold", "raw", "p", "threshold"))
    return _Tested(*map(np.concatenate, columns))


def _folds(spec: Spec, rows: _Rows, seed: int, most: int) -> Ints:
    """Each row's fold, with as many positives in each as can be; -1 of held-out rows. Rows of a group share one.

    Raises DashError when the rows of a class, or their groups, are too few to be parted.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    y, groups = rows.y[rows.kept], _group_numbers(rows.groups[rows.kept])
    smallest = min(len(np.unique(groups[y == label])) for label in (0, 1))
    count = min(most, smallest)
    if count < _FEWEST_FOLDS:
        raise DashError(
            f"{spec.name}: one class has {smallest} rows or groups beside the held-out ones, training takes"
            f" {_FEWEST_FOLDS} at least; nothing was trained"
        )
    fold = np.full(len(rows.y), -1)
    if groups.max() + 1 < len(groups):
        parts = StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(y, y, groups)
    else:  # the same for groups of one row each, and much faster
        parts = StratifiedKFold(count, shuffle=True, random_state=seed).split(y, y)
    for i, (_, test) in enumerate(parts):
        fold[rows.kept[test]] = i
    return fold


def _each_left_out(fold: Ints) -> list[Part]:
    return [(np.flatnonzero((fold >= 0) & (fold != i)), np.flatnonzero(fold == i)) for i in range(fold.max() + 1)]


def _windows(spec: Spec, rows: _Rows) -> list[Part]:
    """For each window of time the rows whose label was known when it began, and its own rows.

    Raises DashError when there are less than two windows with rows of both classes before them.
    """
    times = rows.seconds[rows.kept]
    cuts = np.unique(np.quantile(times, np.arange(_FIRST_WINDOWS, _WINDOWS) / _WINDOWS, method="inverted_cdf"))
    parts = []
    for begins, ends in zip(cuts, [*cuts[1:], np.inf], strict=True):
        before = rows.kept[times + spec.horizon_s <= begins]
        if 0 < rows.y[before].sum() < len(before):
            parts.append((before, rows.kept[(times >= begins) & (times < ends)]))
    if len(parts) < 2:
        raise DashError(
            f"{spec.name}: the rows cover too little time: before {len(parts)} of {len(cuts)} windows there are rows"
            " of both classes, two windows are needed; nothing was trained"
        )
    return parts


# ---------------------------------------------------------------------------------------------- fitting


def _fit(spec: Spec, rows: _Rows, on: Ints, seed: int) -> Booster:
    import lightgbm

    params = {**spec.params, **_FIXED, "seed": seed}
    data = lightgbm.Dataset(rows.matrix[on], rows.y[on], feature_name=list(rows.features), params=params)
    return lightgbm.train(params, data, spec.rounds)


def _probabilities(spec: Spec, rows: _Rows, parts: Sequence[Part], seed: int) -> list[Floats]:
    """Of each part, what a model of its first rows says of its other rows."""

    def of(work: tuple[Part, int]) -> Floats:
        (on, test), bag = work
        found: Floats = np.asarray(_fit(spec, rows, on, seed + bag).predict(rows.matrix[test], num_threads=1))
        return found

    with _pool() as pool:
        found = list(pool.map(of, ((part, bag) for part in parts for bag in range(spec.bags))))
    bags = spec.bags
    return [np.mean(found[i * bags : (i + 1) * bags], axis=0) for i in range(len(parts))]


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(_MOST_THREADS, len(os.sched_getaffinity(0))), thread_name_prefix="fit")


def _importance(features: Sequence[str], boosters: Sequence[Booster]) -> dict[str, float]:
    """Each feature's share of the gain, the largest first."""
    gains = np.mean([booster.feature_importance("gain") for booster in boosters], axis=0)
    shares = gains / (gains.sum() or 1.0)
    return {features[i]: float(shares[i]) for i in np.argsort(-shares, kind="stable")}


def _use(y: Ints, raw: Floats, seed: int) -> tuple[Calibration, float]:
    """How raw probabilities are used, from rows that the models did not know: what they are worth, and from which
    worth on a row is called positive."""
    calibration = _calibration(y, raw)
    return calibration, evaluation.best_threshold(y, np.interp(raw, *calibration), seed=seed)


def _calibration(y: Ints, raw: Floats) -> Calibration:
    """Two numbers, a slope and a shift of the log-odds, drawn as a line that rises everywhere: steps, as isotonic
    regression makes them, would take ranks away. Of rows of one class the probabilities stay as they are."""
    from sklearn.linear_model import LogisticRegression

    odds = np.linspace(-13.5, 13.5, 271)
    slope, shift = 1.0, 0.0
    if 0 < y.sum() < len(y):
        model = LogisticRegression(C=100.0).fit(evaluation.log_odds(raw)[:, None], y)
        slope, shift = max(float(model.coef_[0, 0]), 0.01), float(model.intercept_[0])
    said, worth = (1 / (1 + np.exp(-some)) for some in (odds, slope * odds + shift))
    return [0.0, *said.tolist(), 1.0], [0.0, *worth.tolist(), 1.0]
