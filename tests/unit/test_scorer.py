"""Scores are LightGBM's, to the bit, however rows are batched, whatever they hold, whoever scores meanwhile."""

from __future__ import annotations

import threading
from dataclasses import replace

import lightgbm
import msgspec
import numpy as np
import pytest

from dash_pipeline.errors import DashError
from dash_pipeline.models import scorer as module
from dash_pipeline.models.artifact import Artifact
from dash_pipeline.models.scorer import Scorer
from dash_pipeline.models.spec import Floats
from tests.small_model import COLUMNS, SPEC, artifact, derive, rows

MAX = float(2**256 - 1)


@pytest.fixture(scope="module")
def model() -> Artifact:
    return artifact()


@pytest.fixture(scope="module")
def scorer(model: Artifact) -> Scorer:
    return Scorer(SPEC, model, "v1")


@pytest.fixture(params=[1, 2, 4])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with so many processors."""
    monkeypatch.setattr(module, "_threads", lambda: request.param)
    module._pool.cache_clear()


def by_lightgbm(model: Artifact, raw: dict[str, Floats], **how: object) -> Floats:
    matrix = np.column_stack([derive(raw)[name] for name in model.features])
    return np.array([lightgbm.Booster(model_str=text).predict(matrix, **how) for text in model.boosters])


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", [1, 2, 23, 24, 50, 1000])
def test_a_score_is_the_mean_of_the_boosters_calibrated(scorer: Scorer, model: Artifact, count: int) -> None:
    raw = rows(count, seed=5)
    mean = by_lightgbm(model, raw).mean(axis=0)
    expected = [np.interp(p, [0.0, 0.3, 0.7, 1.0], [0.01, 0.2, 0.8, 0.99]) for p in mean]
    np.testing.assert_allclose(scorer.score(raw), expected, rtol=1e-12)
    if count >= 23:
        assert np.ptp(scorer.score(raw)) > 0.5, "the model tells rows apart"


@pytest.mark.usefixtures("threads")
def test_a_row_scores_the_same_alone_and_among_others(scorer: Scorer) -> None:
    raw = rows(200, seed=6)
    together = scorer.score(raw)
    alone = [scorer.score({name: values[i : i + 1] for name, values in raw.items()})[0] for i in range(200)]
    assert together.tolist() == alone


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, -1.0, MAX, -MAX, 1e308])
def test_no_value_is_too_much(scorer: Scorer, value: float) -> None:
    for name in COLUMNS:
        raw = {**rows(1), name: np.array([value])}
        (score,) = scorer.score(raw)
        assert 0 <= score <= 1
        assert all(np.isfinite(part) for _, part in scorer.explain(raw)[0])
    (score,) = scorer.score({name: np.array([value]) for name in COLUMNS})
    assert 0 <= score <= 1


def test_no_rows_no_scores(scorer: Scorer) -> None:
    raw = rows(0)
    assert scorer.score(raw).tolist() == []
    assert scorer.explain(raw) == []


def test_all_contributions_together_are_the_log_odds(scorer: Scorer, model: Artifact) -> None:
    raw = rows(30, seed=7)
    odds = by_lightgbm(model, raw, raw_score=True).mean(axis=0)
    base = by_lightgbm(model, raw, pred_contrib=True).mean(axis=0)[:, -1]
    for parts, expected in zip(scorer.explain(raw, top=99), odds - base, strict=True):
        assert sum(value for _, value in parts) == pytest.approx(expected, abs=1e-9)
        assert {name for name, _ in parts} <= set(model.features)


def test_the_largest_contributions_come_first(scorer: Scorer) -> None:
    raw = rows(30, seed=8)
    for two, parts in zip(scorer.explain(raw, top=2), scorer.explain(raw, top=99), strict=True):
        sizes = [abs(value) for _, value in parts]
        assert sizes == sorted(sizes, reverse=True)
        assert 0.0 not in sizes
        assert two == parts[:2]


def test_threads_do_not_disturb_each_other(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_threads", lambda: 2)
    raw = rows(60, seed=9)
    scores, parts = scorer.score(raw).tolist(), scorer.explain(raw)
    wrong: list[str] = []

    def work() -> None:
        for _ in range(25):
            if scorer.score(raw).tolist() != scores:
                wrong.append("score")
            if scorer.explain(raw) != parts:
                wrong.append("explanation")

    workers = [threading.Thread(target=work) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    assert wrong == []


def test_what_it_says_of_itself(scorer: Scorer) -> None:
    assert (scorer.version, scorer.threshold, scorer.spec) == ("v1", 0.5, SPEC)


def test_other_features_than_it_was_trained_on_are_refused(model: Artifact) -> None:
    def other(raw: dict[str, Floats]) -> dict[str, Floats]:
        return {**{name: raw[name] for name in COLUMNS}, "trades_per_h": raw["trades"]}

    def turned(raw: dict[str, Floats]) -> dict[str, Floats]:
        return dict(reversed(derive(raw).items()))

    with pytest.raises(DashError, match=r"^small v1: .*not derived any more: trades_per_s; .*not know: trades_per_h;"):
        Scorer(replace(SPEC, derive=other), model, "v1")
    with pytest.raises(DashError, match="order of its features"):
        Scorer(replace(SPEC, derive=turned), model, "v1")


def test_a_model_that_does_not_run_is_refused(model: Artifact) -> None:
    half = [text[: len(text) // 2] for text in model.boosters]
    for boosters in ([], ["tree\nnonsense"], half):
        with pytest.raises(DashError, match=r"^small v1: "):
            Scorer(SPEC, msgspec.structs.replace(model, boosters=boosters), "v1")
    with pytest.raises(DashError, match="no probability"):
        Scorer(SPEC, msgspec.structs.replace(model, calibration=([0.0, 1.0], [2.0, 3.0])), "v1")
    with pytest.raises(DashError, match=r"^small v1: "):
        Scorer(SPEC, msgspec.structs.replace(model, calibration=([], [])), "v1")
