"""Nothing is measured on what it was chosen on; same labels, same bytes; only a better model replaces a champion."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import polars as pl
import pytest

from dash_pipeline.errors import DashError
from dash_pipeline.models import evaluation, training
from dash_pipeline.models.artifact import Artifact
from dash_pipeline.models.drift import SCORE
from dash_pipeline.models.labels import Labels
from dash_pipeline.models.spec import RawColumn, Spec
from dash_pipeline.models.training import compare, holdout, train, tune

COLUMNS = ("a", "b", "noise")
SPEC = Spec(
    name="toy",
    title="Toy",
    subject="pool",
    id_column="id",
    label_column="label",
    columns={name: RawColumn(name, "a test") for name in COLUMNS},
    derive=lambda raw: {**{name: raw[name] for name in COLUMNS}, "a_less_b": raw["a"] - raw["b"]},
    params={"num_leaves": 7, "min_data_in_leaf": 5, "learning_rate": 0.2, "bagging_fraction": 0.8, "bagging_freq": 1},
    rounds=15,
    bags=2,
    min_positives=10,
)
TIMED = replace(SPEC, split="time", horizon_s=3600.0)
BEGIN = datetime(2024, 1, 1, tzinfo=UTC)


def labelled(rows: int = 600, seed: int = 0, signal: float = 1.0, prefix: str = "r") -> Labels:
    """Rows whose label `a` and `b` explain in part, `noise` not at all; some cells are unknown."""
    random = np.random.default_rng(seed)
    raw = {name: random.normal(size=rows) for name in COLUMNS}
    label = (signal * (raw["a"] - raw["b"]) + random.normal(size=rows) > 0.7).astype(np.int8)
    raw["a"][random.random(rows) < 0.05] = np.nan
    frame = pl.DataFrame({"id": [f"{prefix}{i}" for i in range(rows)], "label": label, **raw})
    return Labels(frame, f"{seed:064x}", "a test")


def in_time(labels: Labels, minutes: float = 10) -> Labels:
    moments = [BEGIN + timedelta(minutes=minutes * i) for i in range(labels.frame.height)]
    frame = labels.frame.with_columns(pl.Series("as_of", moments, dtype=pl.Datetime("us", "UTC")))
    return Labels(frame, labels.sha256, labels.source)


@pytest.fixture(scope="module")
def trained() -> training.Trained:
    return train(SPEC, labelled())


def test_a_model_learns_what_there_is(trained: training.Trained) -> None:
    assert 0.8 < trained.metrics["auc"] < 0.95
    assert trained.metrics["mcc"] > 0.4
    low, high = trained.artifact.card["intervals_95"]["auc"]
    assert low < trained.metrics["auc"] < high
    assert trained.curves.auc == trained.metrics["auc"]
    importance = trained.artifact.card["importance"]
    assert next(iter(importance)) == "a_less_b"
    assert sum(importance.values()) == pytest.approx(1)


def test_probabilities_are_honest(trained: training.Trained) -> None:
    y, p = labelled().frame["label"].to_numpy(), trained.out_of_fold
    for low, high in ((0, 0.2), (0.2, 0.6), (0.6, 1)):
        some = (p >= low) & (p < high)
        assert y[some].mean() == pytest.approx(p[some].mean(), abs=0.1)


def test_the_same_labels_make_the_same_bytes(trained: training.Trained) -> None:
    again = train(SPEC, labelled())
    assert again.artifact.to_bytes() == trained.artifact.to_bytes()
    assert train(SPEC, labelled(), seed=1).artifact.to_bytes() != trained.artifact.to_bytes()


def test_the_artifact_is_what_was_measured(trained: training.Trained) -> None:
    artifact, labels = trained.artifact, labelled()
    assert list(artifact.reference) == [SCORE, *artifact.features] == [SCORE, "a", "b", "noise", "a_less_b"]
    assert len(artifact.boosters) == SPEC.bags
    for axis in artifact.calibration:
        assert (np.diff(axis) > 0).all(), "a calibration that is not steep everywhere takes ranks away"
    out = holdout(SPEC, labels)
    apart = Labels(labels.frame.filter(out), labels.sha256, labels.source)
    found = evaluation.evaluate(SPEC, artifact, apart)
    assert found.as_dict() == artifact.card["held_out"]
    assert trained.metrics["held_out_auc"] == found.auc
    data = artifact.card["data"]
    assert (data["rows"], data["held_out"], data["trained_on"]) == (600, out.sum(), 600 - out.sum())
    assert (
        Artifact.from_bytes(artifact.to_bytes(), _sha256(artifact), "toy").card["metrics"]["rows"] == data["trained_on"]
    )


def _sha256(artifact: Artifact) -> str:
    return hashlib.sha256(artifact.to_bytes()).hexdigest()


# --- what is kept apart


def test_held_out_rows_are_the_same_whatever_else_there_is() -> None:
    labels, more = labelled(), labelled(900)
    few, many = holdout(SPEC, labels), holdout(SPEC, more)
    assert (few == many[:600]).all()
    assert 0.06 < many.mean() < 0.14
    other = holdout(replace(SPEC, name="other"), labels)
    assert (other != few).any()


def test_held_out_rows_change_nothing_of_the_model(trained: training.Trained) -> None:
    labels = labelled()
    out = pl.Series(holdout(SPEC, labels))
    changed = labels.frame.with_columns(
        label=pl.when(out).then(1 - pl.col("label")).otherwise("label").cast(pl.Int8),
        a=pl.when(out).then(9).otherwise("a"),
    )
    again = train(SPEC, Labels(changed, labels.sha256, labels.source))
    assert again.artifact.boosters == trained.artifact.boosters
    assert again.artifact.calibration == trained.artifact.calibration
    assert again.artifact.threshold == trained.artifact.threshold
    np.testing.assert_array_equal(np.isnan(again.out_of_fold), out.to_numpy())
    np.testing.assert_array_equal(again.out_of_fold, trained.out_of_fold)


def test_a_rows_own_label_never_reaches_its_probability(trained: training.Trained) -> None:
    """Labels without any sense cannot be told out of fold, however well the model knows them by heart."""
    nonsense = train(replace(SPEC, rounds=60), labelled(signal=0.0))
    assert nonsense.metrics["auc"] == pytest.approx(0.5, abs=0.07)
    assert nonsense.metrics["mcc"] == pytest.approx(0, abs=0.1)
    assert nonsense.metrics["log_loss"] < 0.75


def test_a_fold_changes_neither_its_calibration_nor_its_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the labels of one fold turned around, its own probabilities and threshold stay: nothing of it was used."""
    labels = labelled()
    rows = training._Rows.of(SPEC, labels)
    fold = training._folds(SPEC, rows, training.SEED, 5)
    turned = replace(rows, y=np.where(fold == 2, 1 - rows.y, rows.y))
    monkeypatch.setattr(training, "_folds", lambda *args: fold)
    before, after = (training._leave_out(SPEC, some, training.SEED, lambda text: None) for some in (rows, turned))
    his = before.fold == 2
    np.testing.assert_array_equal(before.p[his], after.p[his])
    np.testing.assert_array_equal(before.threshold[his], after.threshold[his])
    assert (before.p[~his] != after.p[~his]).mean() > 0.9
    assert len(np.unique(before.threshold)) == 5


def test_rows_of_a_group_stay_together() -> None:
    """A group's rows are copies: parted, they would tell each other's labels, which nothing else does."""
    some = labelled(150, signal=0.0).frame
    copies = pl.concat([some] * 4)
    apart = pl.int_range(copies.height, eager=True).cast(pl.String)
    spec = replace(SPEC, rounds=60)
    by_id = train(spec, Labels(copies, "0" * 64, "a test"))
    by_group = train(SPEC, Labels(copies.with_columns(group="id", id=apart), "0" * 64, "a test"))
    parted = train(replace(SPEC, rounds=60), Labels(copies.with_columns(id=apart), "0" * 64, "a test"))
    assert by_id.metrics["auc"] == pytest.approx(0.5, abs=0.12)
    assert by_group.metrics["auc"] == pytest.approx(0.5, abs=0.12)
    assert parted.metrics["auc"] > 0.9
    out = holdout(SPEC, Labels(copies, "", ""))
    assert (out.reshape(4, -1) == out[:150]).all(), "nor are they parted by being held out"


# --- time


def test_a_model_of_time_knows_the_past_alone() -> None:
    labels = in_time(labelled(800))
    before = train(TIMED, labels)
    cut = 600
    later = pl.int_range(800, eager=True) >= cut
    changed = labels.frame.with_columns(
        label=pl.when(later).then(1 - pl.col("label")).otherwise("label").cast(pl.Int8),
        b=pl.when(later).then(9).otherwise("b"),
    )
    after = train(TIMED, Labels(changed, labels.sha256, labels.source))
    first = np.flatnonzero(~np.isnan(before.out_of_fold))[0]
    assert 300 < first < 400, "the first windows are trained on, the next one is calibrated on"
    np.testing.assert_array_equal(before.out_of_fold[:cut], after.out_of_fold[:cut])
    assert (before.out_of_fold[cut:] != after.out_of_fold[cut:]).any()
    assert before.metrics["auc"] > 0.75
    assert before.artifact.card["data"]["from"].startswith("2024-01-01")


def test_rows_whose_future_was_not_over_are_left_out() -> None:
    rows = training._Rows.of(TIMED, in_time(labelled(800)))
    parts = training._windows(TIMED, rows)
    assert len(parts) == 7
    for on, test in parts:
        assert rows.seconds[on].max() + 3600 <= rows.seconds[test].min()
        assert rows.seconds[on].max() + 3600 > rows.seconds[test].min() - 1800, "and no more than those"
        assert set(on) | set(test) <= set(rows.kept)
    assert len(set(np.concatenate([test for _, test in parts]))) == sum(len(test) for _, test in parts)


def test_too_little_time() -> None:
    with pytest.raises(DashError, match="cover too little time"):
        train(TIMED, in_time(labelled(), minutes=0.01))


# --- too few


@pytest.mark.parametrize(
    ("positives", "says"), [(9, "too few positives: 9 of 600"), (0, "too few positives"), (595, "too few negatives: 5")]
)
def test_too_few_of_a_class(positives: int, says: str) -> None:
    labels = labelled()
    frame = labels.frame.with_columns(label=(pl.int_range(600) < positives).cast(pl.Int8))
    with pytest.raises(DashError, match=says) as caught:
        train(SPEC, Labels(frame, labels.sha256, labels.source))
    assert "\n" not in str(caught.value)
    assert "nothing was trained" in str(caught.value)


def test_too_few_groups() -> None:
    labels = labelled()
    frame = labels.frame.with_columns(group=pl.when(pl.col("label") == 1).then(pl.lit("x")).otherwise("id"))
    with pytest.raises(DashError, match=r"one class has \d rows or groups"):
        train(SPEC, Labels(frame, labels.sha256, labels.source))


def test_the_fewest_rows_that_can_be_trained_on() -> None:
    found = train(replace(SPEC, min_positives=5), labelled(40))
    assert 0 <= found.artifact.threshold <= 1


# --- comparing, tuning


@pytest.fixture(scope="module")
def many() -> Labels:
    return labelled(1900, seed=5, prefix="c")


@pytest.fixture(scope="module")
def good(many: Labels) -> Artifact:
    return train(replace(SPEC, rounds=30), many).artifact


@pytest.fixture(scope="module")
def poor(many: Labels) -> Artifact:
    return train(replace(SPEC, rounds=2, bags=1, params={"num_leaves": 2}), many).artifact


def test_the_first_model_is_better_than_none(many: Labels, good: Artifact) -> None:
    assert compare(SPEC, many, good, None).better


def test_the_better_model_replaces_the_other_and_not_the_other_way(
    many: Labels, good: Artifact, poor: Artifact
) -> None:
    won, lost = compare(SPEC, many, good, poor), compare(SPEC, many, poor, good)
    assert won.better
    assert not lost.better
    assert won.reason.startswith("better: on 1")
    assert "held-out rows" in won.reason
    assert lost.reason.startswith("not better")


def test_a_model_does_not_beat_itself(many: Labels, good: Artifact) -> None:
    assert not compare(SPEC, many, good, good).better


def test_a_champion_that_does_not_score_any_more_is_replaced(many: Labels, good: Artifact, poor: Artifact) -> None:
    older = msgspec.structs.replace(poor, features=["a", "b"])
    verdict = compare(SPEC, many, good, older)
    assert verdict.better
    assert "does not score any more" in verdict.reason


def test_too_few_held_out_rows_decide_nothing(good: Artifact, poor: Artifact) -> None:
    verdict = compare(SPEC, labelled(40), good, poor)
    assert not verdict.better
    assert "too few" in verdict.reason


def test_tuning_finds_no_worse_parameters_than_the_present_ones() -> None:
    labels, bad = labelled(300), replace(SPEC, params={**SPEC.params, "learning_rate": 0.01}, rounds=50)
    said: list[str] = []
    found = tune(bad, labels, 6, progress=said.append)
    assert len(said) == 6
    assert replace(found, params={}, rounds=0) == replace(bad, params={}, rounds=0), "nothing else changes"
    assert found.params["learning_rate"] > 0.01
    assert found == tune(bad, labels, 6)
    losses = [train(spec, labels).metrics["log_loss"] for spec in (bad, found)]
    assert losses[1] < losses[0]


def test_tuning_in_the_order_of_time() -> None:
    assert tune(TIMED, in_time(labelled(300)), 1).params["num_leaves"] == 7, (
        "the present parameters are the first trial"
    )
