"""Numbers against scikit-learn's, and against cases whose answer is known without it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn import metrics as reference

from dash_pipeline.models.evaluation import MEASURED, best_threshold, curves, intervals, log_odds, measure, paired


def case(seed: int, rows: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities that know something of them; every second case has ties."""
    random = np.random.default_rng(seed)
    y = (random.random(rows) < 0.3).astype(np.int8)
    p = 1 / (1 + np.exp(-(2 * y - 1 + random.normal(0, 1.5, rows))))
    return y, np.round(p, 1) if seed % 2 else p


@pytest.mark.parametrize("seed", range(6))
def test_numbers_are_scikit_learns(seed: int) -> None:
    y, p = case(seed)
    called = p >= 0.4
    found = measure(y, p, 0.4)
    assert (found.rows, found.positives) == (len(y), y.sum())
    expected = {
        "auc": reference.roc_auc_score(y, p),
        "average_precision": reference.average_precision_score(y, p),
        "accuracy": reference.accuracy_score(y, called),
        "precision": reference.precision_score(y, called),
        "recall": reference.recall_score(y, called),
        "f1": reference.f1_score(y, called),
        "mcc": reference.matthews_corrcoef(y, called),
        "brier": reference.brier_score_loss(y, p),
        "log_loss": reference.log_loss(y, np.clip(p, 1e-6, 1 - 1e-6)),
    }
    assert {name: getattr(found, name) for name in MEASURED} == pytest.approx(expected)


def test_each_row_may_have_its_own_threshold() -> None:
    found = measure([1, 1, 0, 0], [0.3, 0.3, 0.3, 0.3], np.array([0.2, 0.4, 0.2, 0.4]))
    assert (found.precision, found.recall, found.accuracy) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("y", [[], [0, 0, 0], [1, 1, 1]])
def test_what_means_nothing_is_unknown_and_never_an_error(y: list[int]) -> None:
    found = measure(y, [0.1, 0.2, 0.9][: len(y)], 0.5)
    assert math.isnan(found.auc)
    assert found.mcc == 0
    assert found.as_dict()["auc"] is None
    json.dumps(found.as_dict(), allow_nan=False)
    assert "auc" not in intervals(y, [0.1, 0.2, 0.9][: len(y)], 0.5, resamples=20)
    curves(y, [0.1, 0.2, 0.9][: len(y)], {})
    assert 0 < best_threshold(y, [0.1, 0.2, 0.9][: len(y)]) < 1


def test_certainty_that_is_wrong_costs_much_but_not_everything() -> None:
    assert 10 < measure([1], [0.0], 0.5).log_loss < 20
    assert np.isfinite(log_odds(np.array([0.0, 0.5, 1.0]))).all()


def test_an_interval_holds_the_value_and_narrows_with_the_rows() -> None:
    few, many = (intervals(*case(0, rows), 0.5, resamples=200) for rows in (200, 5000))
    value = measure(*case(0, 5000), 0.5)
    for name in MEASURED:
        low, high = many[name]
        assert low < getattr(value, name) < high
        assert high - low < 0.5 * (few[name][1] - few[name][0])
    assert many == intervals(*case(0, 5000), 0.5, resamples=200), "the same rows, the same interval"


def test_rows_of_a_group_are_no_independent_evidence() -> None:
    y, p = case(0, 300)
    again, groups = 10, np.tile(np.arange(300), 10)
    y, p = np.tile(y, again), np.tile(p, again)
    alone, together = intervals(y, p, 0.5, resamples=300), intervals(y, p, 0.5, groups=groups, resamples=300)
    width = {name: (together[name][1] - together[name][0]) / (alone[name][1] - alone[name][0]) for name in MEASURED}
    assert min(width.values()) > 2
    assert np.mean(list(width.values())) == pytest.approx(math.sqrt(again), rel=0.15)


@pytest.mark.parametrize("seed", range(4))
def test_the_threshold_is_where_mcc_is_highest(seed: int) -> None:
    y, p = case(seed, 4000)
    highest = max(measure(y, p, at).mcc for at in np.linspace(0.05, 0.95, 91))
    assert measure(y, p, best_threshold(y, p)).mcc > highest - 0.01


def test_the_threshold_parts_what_can_be_parted() -> None:
    assert best_threshold([0] * 50 + [1] * 50, [0.2] * 50 + [0.3] * 50) == pytest.approx(0.247, abs=0.01)


def test_of_two_models_the_better_one_gains() -> None:
    y, p = case(0, 2000)
    worse = 1 / (1 + np.exp(-(log_odds(p) + np.random.default_rng(1).normal(0, 2, len(p)))))
    gains, losses = paired(y, p, worse, resamples=100), paired(y, worse, p, resamples=100)
    assert (gains.log_loss > 0).all()
    assert (gains.auc > 0).all()
    np.testing.assert_allclose(gains.log_loss, -losses.log_loss)
    assert not paired(y, p, p, resamples=10).log_loss.any()


def test_curves_end_where_they_should() -> None:
    y, p = case(0)
    found = curves(y, p, {"a": 1.0})
    assert (found.fpr[0], found.tpr[0], found.fpr[-1], found.tpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(found.fpr) >= 0).all()
    assert (np.diff(found.tpr) >= 0).all()
    assert np.trapezoid(found.tpr, found.fpr) == pytest.approx(found.auc)
    assert found.recall[-1] == 1
    assert found.precision[-1] == found.positives == y.mean()
    assert found.rows.sum() == len(y)
    some = found.rows > 0
    assert found.predicted[some] @ found.rows[some] == pytest.approx(p.sum())
    assert found.observed[some] @ found.rows[some] == pytest.approx(y.sum())
