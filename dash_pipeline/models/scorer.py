"""A model in memory: raw columns in, calibrated probabilities and their reasons out, in well under a millisecond.

Belongs here: running an artifact. Does not belong here: which version that is (`champions.py`), how it was trained
(`training.py`).

Trees are evaluated by LightGBM's own `Booster.predict`. Of 5 boosters of 300 trees of 31 leaves on 40 features (noise
for the most part, so that no branch can be foreseen), one thread, median time for one row and for 50:

    Booster.predict (4.7)                0.19 ms   4.4 ms   parses in 0.2 s
    the C interface's single-row call    0.11 ms   5.4 ms   (row by row)
    lleaves 1.3                          0.09 ms   1.6 ms   compiles for 53 s, runs with llvmlite 0.43, not 0.50
    tl2cgen 1.0                          0.18 ms   3.5 ms   compiles for 31 s, needs a C compiler
    treelite's interpreter 4.8           0.33 ms   9.2 ms

Only lleaves is faster at 50 rows. But its compilation would be paid by every lane that meets a new champion, and it
stands still. The rest of what it gains is had by parting larger batches among threads: LightGBM holds no lock of
Python's meanwhile. Its own threads (OpenMP) are as fast in the median, but spin while they wait: on a machine with
other work, one call in a hundred takes 10 to 25 ms.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np

from dash_pipeline.errors import DashError
from dash_pipeline.models.artifact import Artifact
from dash_pipeline.models.spec import Floats, Raw, Spec

# A piece of fewer rows costs more than it saves.
_PIECE_ROWS, _PIECES = 12, 16
_MOST_THREADS = 4


class Scorer:
    """An artifact ready to score; may be used by several threads at once.

    Raises DashError when the artifact was trained on other features than `spec` derives, or does not run.
    """

    def __init__(self, spec: Spec, artifact: Artifact, version: str) -> None:
        from lightgbm import Booster
        from lightgbm.basic import LightGBMError

        self.spec, self.version, self.threshold = spec, version, artifact.threshold
        self.features = tuple(artifact.features)
        self._worth = np.asarray(artifact.calibration, dtype=np.float64)
        # When an explanation begins LightGBM writes into the trees how deep they are, which others rely on meanwhile.
        self._explaining = threading.Lock()
        unknown = {name: np.full(1, np.nan) for name in spec.columns}
        derived = tuple(spec.derive(unknown))
        if derived != self.features:
            raise DashError(f"{spec.name} {version}: {_difference(self.features, derived)}; train the model again")
        # Of half a model LightGBM makes a crash of the process, not an error.
        if not all(text.startswith("tree\n") and "\nend of trees" in text for text in artifact.boosters):
            raise DashError(f"{spec.name} {version}: a booster is no whole LightGBM model; train the model again")
        try:
            self._boosters = [Booster(model_str=text) for text in artifact.boosters]
            fit = all(booster.num_feature() == len(self.features) for booster in self._boosters)
            (score,) = self.score(unknown) if fit and self._boosters else (np.nan,)
        except (LightGBMError, ValueError) as error:
            raise DashError(f"{spec.name} {version}: LightGBM does not take the model: {error}") from None
        if not 0 <= score <= 1:
            raise DashError(f"{spec.name} {version}: the model scores nothing or no probability; train it again")

    def score(self, raw: Raw) -> Floats:
        """The calibrated probability of each row, float64. A row's is the same alone and among others."""
        matrix = self._matrix(raw)
        return np.asarray(np.interp(self._parted(self._mean, matrix), *self._worth))

    def explain(self, raw: Raw, top: int = 5) -> list[list[tuple[str, float]]]:
        """Of each row the features that moved its score most, the largest first, with their SHAP values: what they
        added to the log-odds before calibration, averaged over the boosters. Features that moved nothing are left out.

        Costs some 5 ms a row for 1,500 trees.
        """
        matrix = self._matrix(raw)
        with self._explaining:
            values = self._contributions(matrix)
        largest = np.argsort(-np.abs(values), axis=1, kind="stable")[:, :top]
        return [
            [(self.features[i], float(row[i])) for i in order if row[i] != 0]
            for order, row in zip(largest, values, strict=True)
        ]

    def _matrix(self, raw: Raw) -> Floats:
        """The features of each row, float64 (rows, features), row by row in memory."""
        columns = self.spec.derive(raw)
        return np.ascontiguousarray(np.array([columns[name] for name in self.features], dtype=np.float64).T)

    def _parted(self, work: Callable[[Floats], Floats], matrix: Floats) -> Floats:
        """`work` of the whole matrix, in pieces when it has many rows: this thread does what no other has begun yet, so
        that on a busy machine it waits for one piece at most."""
        pieces = min(_PIECES, matrix.shape[0] // _PIECE_ROWS)
        if pieces < 2 or _threads() < 2:
            return work(matrix)
        parts = np.array_split(matrix, pieces)
        begun = [_pool().submit(work, part) for part in parts[1:]]
        done = {0: work(parts[0])}
        for i in reversed(range(1, pieces)):
            if begun[i - 1].cancel():
                done[i] = work(parts[i])
        return np.concatenate([done[i] if i in done else begun[i - 1].result() for i in range(pieces)])

    def _mean(self, matrix: Floats) -> Floats:
        """The mean of the boosters' probabilities, (rows,)."""
        return self._average(matrix, np.zeros(matrix.shape[0]))

    def _contributions(self, matrix: Floats) -> Floats:
        """The mean of the boosters' SHAP values, (rows, features)."""
        total = np.zeros((matrix.shape[0], matrix.shape[1] + 1))  # the last column is what all rows have in common
        return self._average(matrix, total, pred_contrib=True)[:, :-1]

    def _average(self, matrix: Floats, total: Floats, **how: Any) -> Floats:
        if not matrix.shape[0]:
            return total
        for booster in self._boosters:  # one by one: the order of additions must not depend on how many rows there are
            # Always one thread: the number is LightGBM's for the whole process, and a call that finds it raised between
            # making its buffers and using them writes beyond them.
            total += booster.predict(matrix, num_threads=1, **how)
        return total / len(self._boosters)


def _difference(trained: tuple[str, ...], derived: tuple[str, ...]) -> str:
    gone, new = (", ".join(sorted(set(a) - set(b))) for a, b in ((trained, derived), (derived, trained)))
    parts = [f"features are not derived any more: {gone}"] * bool(gone) + [f"it does not know: {new}"] * bool(new)
    return "; ".join(parts) or "the order of its features is another one"


@lru_cache(maxsize=1)
def _threads() -> int:
    return min(_MOST_THREADS, len(os.sched_getaffinity(0)))


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_threads() - 1, thread_name_prefix="score")
