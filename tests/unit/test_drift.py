"""The index says what it should: nothing of the same population, much of another, whatever the columns hold."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from dash_pipeline.errors import DashError
from dash_pipeline.models.artifact import Histogram
from dash_pipeline.models.drift import DRIFTED, MODERATE, SCORE, Column, Report, drift, histogram, psi
from dash_pipeline.models.scorer import Scorer
from tests.small_model import COLUMNS, SPEC, artifact, rows


def test_a_histogram_has_quantiles_for_edges() -> None:
    found = histogram(np.arange(100.0), bins=4)
    assert found.edges == [24, 49, 74]
    assert found.shares == pytest.approx([0.25] * 4)
    assert found.unknown == 0


@pytest.mark.parametrize("seed", range(20))
def test_every_row_is_in_one_bin_or_unknown(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.choice([random.normal(size=300), random.integers(0, 3, 300), random.pareto(0.3, 300)])
    values[random.random(300) < 0.2] = np.nan
    values[:5] = [np.inf, -np.inf, 1e308, -1e308, 0]
    found = histogram(values)
    assert len(found.shares) == len(found.edges) + 1
    assert all(map(math.isfinite, found.edges))
    assert found.edges == sorted(set(found.edges))
    assert sum(found.shares) + found.unknown == pytest.approx(1)
    assert found.unknown == np.isnan(values).mean()
    assert psi(found, values) == pytest.approx(0)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Histogram) == found


@pytest.mark.parametrize("values", [[], [np.nan] * 3, [np.inf, -np.inf], [7.0], [7.0] * 50])
def test_columns_that_say_little(values: list[float]) -> None:
    found = histogram(np.array(values, dtype=np.float64))
    assert psi(found, np.array(values, dtype=np.float64)) == pytest.approx(0)
    assert psi(found, np.empty(0)) == 0
    assert math.isfinite(psi(found, np.array([1.0, np.nan, np.inf])))


def test_the_index_is_the_sum_over_bins() -> None:
    reference = Histogram([0.0], [0.4, 0.5], 0.1)
    live = np.array([-1.0] * 20 + [1.0] * 60 + [np.nan] * 20)
    expected = (0.2 - 0.4) * math.log(0.2 / 0.4) + (0.6 - 0.5) * math.log(0.6 / 0.5) + 0.1 * math.log(2)
    assert psi(reference, live) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("trained", "live"),
    [
        ([7.0] * 100, [6.9] * 100),
        ([7.0] * 100, [7.1] * 100),
        ([1.0] * 95 + [0.0] * 5, [1.0] * 60 + [0.0] * 40),
        ([0.0] * 95 + [1.0] * 5, [0.0] * 60 + [1.0] * 40),
        ([0.0] * 60 + list(range(1, 41)), [0.0] * 10 + list(range(1, 91))),
        ([1.0, 2.0] * 50, [1.0, np.nan] * 50),
        ([1.0, 2.0] * 50, [1.0, np.inf] * 50),
    ],
)
def test_what_moved_is_seen(trained: list[float], live: list[float]) -> None:
    """Also of columns whose quantiles are all the same."""
    assert psi(histogram(np.array(trained)), np.array(live)) > DRIFTED


@pytest.mark.parametrize("count", [20, 200, 5_000])
def test_chance_is_no_drift(count: int) -> None:
    reference = histogram(np.random.default_rng(0).normal(size=5_000))
    for seed in range(1, 101):
        values = np.random.default_rng(seed).normal(size=count)
        chance = (10 + 4 * math.sqrt(20)) / count
        assert Column("x", psi(reference, values), chance).level == "stable", seed


def test_levels() -> None:
    of = {value: Column("x", value, 0.0).level for value in (0.0, MODERATE - 0.01, MODERATE, DRIFTED - 0.01, DRIFTED)}
    assert list(of.values()) == ["stable", "stable", "moderate", "moderate", "drifted"]
    assert Column("x", 5.0, 6.0).level == "stable"


def test_a_report_of_the_training_rows_themselves_and_of_others() -> None:
    model = artifact()
    scorer, raw = Scorer(SPEC, model, "v"), rows(600)
    same = drift(model, SPEC, raw, scorer.score(raw))
    assert same.rows == 600
    assert same.columns[0].name == SCORE
    assert {column.name for column in same.columns} == {SCORE, *model.features}
    # The score's reference in this model is of the rows before calibration; the features' must fit.
    assert [column.level for column in same.columns[1:]] == ["stable"] * len(model.features)

    other = rows(600, seed=4)
    other["reserve"] *= 50
    found = drift(model, SPEC, other, scorer.score(other))
    assert found.columns[1].name == "reserve"
    assert found.columns[1].level == "drifted"
    assert [c.psi for c in found.columns[1:]] == sorted((c.psi for c in found.columns[1:]), reverse=True)


def report(score: float, *features: float) -> Report:
    return Report(1000, (Column(SCORE, score, 0), *(Column(f"f{i}", value, 0) for i, value in enumerate(features))))


def test_a_single_feature_asks_for_no_training() -> None:
    assert not report(0.0, 9.0, 0.0, 0.0).drifted
    assert report(0.0, 9.0, 9.0, 0.0).drifted
    assert report(0.3, 0.0, 0.0).drifted
    assert not report(0.2, *[0.2] * 20).drifted
    assert not report(0.0, *[9.0] * 4, *[0.0] * 16).drifted
    assert report(0.0, *[9.0] * 5, *[0.0] * 15).drifted


def test_no_rows_are_no_drift() -> None:
    empty = {name: np.empty(0) for name in COLUMNS}
    assert not drift(artifact(), SPEC, empty, np.empty(0)).drifted


def test_a_model_without_a_features_histogram_is_an_error() -> None:
    model = artifact()
    lacking = msgspec.structs.replace(model, reference={SCORE: model.reference[SCORE]})
    with pytest.raises(DashError, match=r"^small: .*reserve, trades, age_s, trades_per_s"):
        drift(lacking, SPEC, rows(10), np.zeros(10))
