"""A model's life on the real S3 and TimescaleDB: labels kept, trained, compared, promoted, rolled back, watched.

Belongs here: what the steps do together and what they leave in the bucket. Does not belong here: the registry's own
promises (`test_registry.py`), the command line (`test_models_cli.py`).
"""

from __future__ import annotations

import copy
import csv
import hashlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest

from dash_pipeline.archive.retain import retain
from dash_pipeline.errors import DashError
from dash_pipeline.models import evaluation, lifecycle, pool_risk, show, training
from dash_pipeline.models.catalogue import MODELS
from dash_pipeline.models.champions import Champions
from dash_pipeline.models.labels import Labels, read_labels
from dash_pipeline.models.liquidity_outlook import COLUMNS, HORIZON
from dash_pipeline.models.registry import Registry
from dash_pipeline.models.spec import Floats
from dash_pipeline.settings import Settings
from dash_pipeline.storage import s3
from dash_pipeline.storage import timescale as db
from dash_pipeline.storage.migrate import upgrade
from dash_pipeline.storage.predictions import Prediction, write_predictions
from tests.chain import Messages, Topics, address, merge
from tests.days import set_tip
from tests.pools import Log, Pool, block
from tests.run import Run

MODEL, OUTLOOK = "pool_risk", lifecycle.OUTLOOK
SAMPLE = lifecycle.SAMPLES / f"{MODEL}.csv"
# The same model, trained in less than a second.
SPEC = replace(pool_risk.SPEC, rounds=25, bags=1)
ABSENT = "20200101T000000Z-000000000000"
Row = list[str]


@pytest.fixture(scope="module")
def migrated(database: Settings, unique: Callable[[str], str]) -> Settings:
    """A database and a bucket of this module's own."""
    upgrade(database)
    own = database.model_copy(update={"s3_bucket": unique("lifecycle-")})
    s3.bucket(own).client.create_bucket(Bucket=own.s3_bucket)
    return own


@pytest.fixture
def place(migrated: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Nothing in the bucket, and a model that is quick to train."""
    monkeypatch.setitem(MODELS, MODEL, SPEC)
    yield migrated
    bucket = s3.bucket(migrated)
    for key in bucket.keys(""):
        bucket.client.delete_object(Bucket=bucket.name, Key=key)


def objects(place: Settings) -> dict[str, bytes]:
    """All there is in the bucket."""
    bucket = s3.bucket(place)
    return {key: bucket.get(key) or b"" for key in bucket.keys("")}


def changed(file: Path, change: Callable[[Row, list[Row]], None]) -> str:
    """The sample, altered: `change` gets the header and the rows."""
    header, *rows = csv.reader(io.StringIO(SAMPLE.read_text()))
    change(header, rows)
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([header, *rows])
    return str(file)


@pytest.fixture
def shuffled(tmp_path: Path) -> str:
    """The sample, but what may be trained on has another row's label; those that versions are compared on are right."""
    known = np.flatnonzero(~training.holdout(SPEC, read_labels(SPEC, str(SAMPLE))))
    other = np.random.default_rng(1).permutation(known)

    def change(header: Row, rows: list[Row]) -> None:
        label = header.index("Label")
        for i, value in zip(known, [rows[j][label] for j in other], strict=True):
            rows[i][label] = value

    return changed(tmp_path / "shuffled.csv", change)


def trained(place: Settings, source: str = str(SAMPLE)) -> lifecycle.Training:
    lifecycle.store_labels(place, MODEL, source)
    return lifecycle.train(place, MODEL)


def champion(place: Settings) -> str | None:
    found = Registry(place).champion(MODEL)
    return found.version if found else None


def refused(place: Settings, version: str, said: str) -> None:
    """Neither promoted nor evaluated."""
    with pytest.raises(DashError, match=said):
        lifecycle.promote(place, MODEL, version)
    with pytest.raises(DashError, match=said):
        lifecycle.evaluate(place, MODEL, str(SAMPLE), version)


# --- training


def test_trained_on_the_sample_a_version_has_all_there_is_to_know(place: Settings) -> None:
    stored = lifecycle.store_labels(place, MODEL)
    digest = hashlib.sha256(SAMPLE.read_bytes()).hexdigest()
    assert (stored.rows, stored.positives, stored.sha256, stored.source) == (724, 143, digest, str(SAMPLE))
    kept = lifecycle.kept_labels(place, MODEL)
    assert kept.frame.equals(read_labels(SPEC, str(SAMPLE)).frame, null_equal=True)
    said: list[str] = []
    done = lifecycle.train(place, MODEL, say=said.append)
    assert (done.promoted, done.champion_before, done.verdict) == (True, None, "there was no champion")
    assert said[-1] == f"{MODEL}: {done.version}: there was no champion"
    assert champion(place) == done.version
    registry = Registry(place)
    card = registry.version(MODEL, done.version).card
    assert card == msgspec.json.decode(msgspec.json.encode(done.card))
    about = {"source": str(SAMPLE), "sha256": digest, "rows": 724, "positives": 143, "trained_on": 661, "held_out": 63}
    assert card["data"] == about
    assert (card["parameters"]["rounds"], card["parameters"]["learning_rate"]) == (25, 0.05)
    for name in ("auc", "accuracy", "precision", "recall", "f1", "mcc"):
        low, high = card["intervals_95"][name]
        assert low <= card["metrics"][name] <= high, name
    assert card["metrics"]["auc"] > 0.95
    assert card["metrics"]["rows"] == 661
    assert set(card["importance"]) == set(registry.load(MODEL, done.version).features)
    assert sum(card["importance"].values()) == pytest.approx(1)
    plots = registry.plots(MODEL, done.version)
    assert set(plots) == {"roc", "precision_recall", "calibration", "importance"}
    assert all(png.startswith(b"\x89PNG") for png in plots.values())

    again = trained(place)
    assert again.version == done.version, "the same labels, the same model"
    assert not again.promoted
    assert again.verdict.startswith("not better: ")
    assert len(registry.versions(MODEL)) == 1


def test_a_worse_challenger_is_kept_and_a_better_one_promoted(place: Settings, shuffled: str) -> None:
    worse = trained(place, shuffled)
    better = trained(place)
    assert (worse.promoted, better.promoted, better.champion_before) == (True, True, worse.version)
    assert better.verdict.startswith("better: on 63 held-out rows")
    again = trained(place, shuffled)
    assert (again.version, again.promoted, champion(place)) == (worse.version, False, better.version)
    assert again.verdict.startswith("not better: ")
    assert {one.version for one in Registry(place).versions(MODEL)} == {worse.version, better.version}

    said = lifecycle.promote(place, MODEL, worse.version)
    assert said == f"{MODEL}: {worse.version} is the champion, in place of {better.version}"
    assert champion(place) == worse.version
    said = lifecycle.rollback(place, MODEL)
    assert said == f"{MODEL}: {better.version} is the champion again, in place of {worse.version}"
    refused(place, ABSENT, f"there is no version {ABSENT}")
    assert champion(place) == better.version


def test_a_promotion_while_a_training_compares_is_not_undone(
    place: Settings, shuffled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trained(place, shuffled)
    monkeypatch.setitem(MODELS, MODEL, replace(SPEC, rounds=10))
    by_hand = trained(place)
    lifecycle.rollback(place, MODEL)
    compare = training.compare

    def meanwhile(*arguments: Any) -> training.Verdict:
        lifecycle.promote(place, MODEL, by_hand.version)
        return compare(*arguments)

    monkeypatch.setattr(training, "compare", meanwhile)
    monkeypatch.setitem(MODELS, MODEL, SPEC)
    with pytest.raises(DashError, match=f"the champion is {by_hand.version}, promoted by hand .* not {first.version}"):
        lifecycle.train(place, MODEL)
    assert champion(place) == by_hand.version


def test_labels_in_a_bucket(place: Settings) -> None:
    s3.bucket(place).put("given/labels.csv", SAMPLE.read_bytes())
    source = f"s3://{place.s3_bucket}/given/labels.csv"
    configured = place.model_copy(update={"labels": {MODEL: source}})
    stored = lifecycle.store_labels(configured, MODEL)
    assert (stored.source, stored.rows) == (source, 724)
    assert lifecycle.state(configured, MODEL) == lifecycle.State(None, None, None)
    with pytest.raises(DashError, match=rf"labels: {source}x: there is no such object"):
        lifecycle.store_labels(place, MODEL, f"{source}x")


# --- what is wrong changes nothing


def cell(row: int, column: str, text: str, until: int = 0) -> Callable[[Row, list[Row]], None]:
    """That text in a cell, or in those of several rows; row -1 is the header."""

    def change(header: Row, rows: list[Row]) -> None:
        at = header.index(column)
        for one in [header] if row < 0 else rows[row : until or row + 1]:
            one[at] = text

    return change


def test_wrong_labels_are_told_and_change_nothing(place: Settings, tmp_path: Path) -> None:
    trained(place)
    before = objects(place)
    for change, said in (
        (cell(-1, "Label", "Other"), "columns of pool_risk are missing: Label"),
        (cell(4, "swap_rate", "many"), "row 5 (line 6), column swap_rate: 'many' is not a number; nothing was read"),
        (cell(0, "Label", "?"), "row 1 (line 2), column Label: '?' is none of TRUE, FALSE, 1, 0; nothing was read"),
        (None, "No such file or directory"),
    ):
        source = changed(tmp_path / "wrong.csv", change) if change else str(tmp_path / "absent.csv")
        with pytest.raises(DashError) as error:
            lifecycle.store_labels(place, MODEL, source)
        assert str(error.value) == f"labels: {source}: {said}"
        assert objects(place) == before, "the kept labels, the versions and the champion are as they were"


def test_too_few_positives_train_nothing(place: Settings, tmp_path: Path) -> None:
    trained(place)
    stored = lifecycle.store_labels(place, MODEL, changed(tmp_path / "few.csv", cell(80, "Label", "0", 724)))
    assert 0 < stored.positives < SPEC.min_positives
    before, few = objects(place), f"too few positives: {stored.positives} of 724 labelled rows are positive"
    with pytest.raises(DashError, match=f"{MODEL}: {few}, training takes 20 at least; nothing was trained"):
        lifecycle.train(place, MODEL)
    assert objects(place) == before


def test_kept_labels_that_are_gone_or_damaged_are_told(place: Settings) -> None:
    bucket = s3.bucket(place)
    with pytest.raises(DashError, match=f"labels of {MODEL}: none are kept yet"):
        lifecycle.train(place, MODEL)
    stored = lifecycle.store_labels(place, MODEL)
    for key, content in ((stored.key, b"PAR1"), (f"labels/{MODEL}/current.json", b"{")):
        bucket.put(key, content)
        with pytest.raises(DashError, match=rf"{key} is damaged.*materialise labels/{MODEL} again"):
            lifecycle.train(place, MODEL)
    lifecycle.store_labels(place, MODEL)
    bucket.client.delete_object(Bucket=bucket.name, Key=stored.key)
    with pytest.raises(DashError, match="is gone from the bucket"):
        lifecycle.train(place, MODEL)


# --- damage


def test_a_corrupt_model_is_refused_and_the_last_good_one_stays(place: Settings, shuffled: str) -> None:
    good, bad = trained(place), trained(place, shuffled)
    bucket, registry = s3.bucket(place), Registry(place)
    with Champions(place, {MODEL: SPEC}, 0.1) as champions:
        assert champions.get(MODEL) is not None
        key = f"models/{MODEL}/versions/{bad.version}/model.bin"
        bucket.put(key, (bucket.get(key) or b"")[:-1] + b"?")
        refused(place, bad.version, rf"{MODEL} {bad.version}: the object's sha256 is .* altered; not loaded")
        assert champion(place) == good.version
        pointer = registry.champion(MODEL)
        assert pointer is not None
        digest = registry.version(MODEL, bad.version).sha256
        named = msgspec.structs.replace(pointer, version=bad.version, sha256=digest)
        bucket.put(f"models/{MODEL}/champion.json", msgspec.json.encode(named))
        deadline = time.monotonic() + 20
        while champions.problem(MODEL) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert "sha256" in (champions.problem(MODEL) or "")
        scorer = champions.get(MODEL)
        assert scorer is not None
        assert scorer.version == good.version
    # A champion that nobody can load is no reason to stay without one.
    again = trained(place)
    assert (again.version, again.promoted) == (good.version, True)
    assert again.verdict.startswith(f"the champion cannot be loaded: {MODEL} {bad.version}: the object's sha256")


def test_a_damaged_pointer_hides_no_version_and_a_promotion_by_hand_replaces_it(place: Settings) -> None:
    version = trained(place).version
    s3.bucket(place).put(f"models/{MODEL}/champion.json", b"{")
    assert [(one["version"], one["champion"]) for one in show.versions(place)] == [(version, False)]
    assert lifecycle.promote(place, MODEL, version) == f"{MODEL}: {version} is the champion, in place of none"
    assert champion(place) == version


# --- watching


def test_the_state_of_a_model(place: Settings, tmp_path: Path) -> None:
    digest = hashlib.sha256(SAMPLE.read_bytes()).hexdigest()
    assert lifecycle.state(place, MODEL) == lifecycle.State(None, digest, None)
    absent = place.model_copy(update={"labels": {MODEL: str(tmp_path / "absent.csv")}})
    problem = f"labels of {MODEL}: {tmp_path}/absent.csv: No such file or directory"
    assert lifecycle.state(absent, MODEL) == lifecycle.State(None, None, problem)
    assert lifecycle.state(place, OUTLOOK) == lifecycle.State(None, None, "no chain has 3 hours of blocks yet")
    with pytest.raises(DashError, match=f"labels of {OUTLOOK}: no chain has 3 hours of blocks yet"):
        lifecycle.store_labels(place, OUTLOOK)
    done = trained(place)
    assert lifecycle.state(place, MODEL) == lifecycle.State(done.version, digest, None)


def test_drift(place: Settings) -> None:
    """Rows that the model did not know, as live ones are: those of the labels with their out-of-fold scores."""
    assert lifecycle.drift(place, MODEL) == lifecycle.Drifted(0, {}, False, "no champion yet")
    labels = read_labels(SPEC, str(SAMPLE))
    version, model = trained(place).version, training.train(SPEC, labels)
    at = np.random.default_rng(2).permutation(np.flatnonzero(~np.isnan(model.out_of_fold)))[:300]
    known = Labels(labels.frame[at], labels.sha256, labels.source)
    number = iter(range(10_000))

    def predicted(rows: Labels, scores: Floats, version: str = version) -> None:
        raw = evaluation.raw_of(SPEC, rows)
        made = [
            Prediction(
                next(number).to_bytes(16, "big"), MODEL, b"\1" * 20, "pool", "c", datetime.fromisoformat(
                    "2024-01-05T00:00:00Z"), version, float(score),
                features={name: None if np.isnan(raw[name][i]) else float(raw[name][i]) for name in raw},
            )
            for i, score in enumerate(scores)
        ]  # fmt: skip
        with db.connect(place) as conn:
            assert write_predictions(conn, made, "run") == len(made)

    predicted(Labels(known.frame[:150], "", ""), model.out_of_fold[at][:150])
    predicted(known, np.ones(300), ABSENT)
    few = lifecycle.drift(place, MODEL)
    assert few == lifecycle.Drifted(150, {}, False, f"150 rows scored by {version}; 200 are compared")
    predicted(Labels(known.frame[150:], "", ""), model.out_of_fold[at][150:])
    same = lifecycle.drift(place, MODEL)
    assert (same.rows, same.drifted, same.summary) == (300, False, "no drift")
    assert set(same.psi) == {"score", *SPEC.derive(evaluation.raw_of(SPEC, known))}
    with db.connect(place) as conn:
        set_tip(conn, "c", datetime.fromisoformat("2024-01-15T00:00:00Z"))
        assert retain(place, "run", ["predictions"]) == 600
        assert lifecycle.drift(place, MODEL) == same  # archived ones count where few are hot
        conn.execute("TRUNCATE ops.archive_manifest")
    numbers = [name for name in SPEC.columns if name in known.frame.columns]
    far = Labels(known.frame.with_columns(pl.col(numbers) * 50 + 7), "", "")
    predicted(far, evaluation.score(SPEC, model.artifact, far))
    other = lifecycle.drift(place, MODEL)
    assert (other.rows, other.drifted) == (300, True)
    assert other.summary.startswith("drifted: ")
    assert other.psi["swap_rate"] > 0.25


# --- own history

CUT, BLOCKS = 170, 241


def minute(branch: str, number: int, parent: str, transactions: Sequence[tuple[str, list[Log]]]) -> Messages:
    """A block a minute."""
    return block(f"{branch}{number}", f"{parent}{number - 1}", transactions, later=48 * number)


def test_own_history_looks_forward_and_never_at_what_comes_after(
    fresh_database: Settings, place: Settings, unique: Callable[[str], str]
) -> None:
    settings = fresh_database.model_copy(update={"s3_bucket": place.s3_bucket})
    upgrade(settings)
    run, topics = Run(settings, chain := unique("c")), Topics(chain)
    pools = [Pool(name, address(f"developer{name}")) for name in "xyz"]
    made = [minute("A", 0, "A", [(pool.developer, pool.opened()) for pool in pools])]
    cut: list[Pool] = []
    for n in range(1, BLOCKS):
        wallet = address(f"trader{n % 7}")
        logs = [(wallet, pool.traded(wallet)) for pool in pools[: 1 + n % 3]]
        if n == 90:
            logs.append((pools[2].developer, pools[2].drained()))
        if n == CUT:
            cut = copy.deepcopy(pools)
        made.append(minute("A", n, "A", logs))
    run.take(topics.produce(merge(made)))

    stored = lifecycle.store_labels(settings, OUTLOOK)
    assert lifecycle.state(settings, OUTLOOK) == lifecycle.State(None, None, None)
    kept = lifecycle.kept_labels(settings, OUTLOOK)
    before = kept.frame
    assert (stored.source, stored.rows, kept.source) == (lifecycle.OWN_HISTORY, before.height, lifecycle.OWN_HISTORY)
    assert set(before["group"]) == {f"{chain}:{pool.address}" for pool in pools}
    begin = run.one("SELECT min(ts) FROM chain.blocks WHERE chain = %s", chain)
    tip = begin + timedelta(minutes=BLOCKS - 1)
    newest = before["as_of"].max()
    assert tip - HORIZON - timedelta(minutes=5) < newest <= tip - HORIZON
    drained = begin + timedelta(minutes=90)
    wanted = (pl.col("group").str.ends_with(pools[2].address)) & pl.col("as_of").is_between(
        drained - HORIZON, drained, closed="left"
    )
    assert before.filter(pl.col("label") == 1)["id"].to_list() == before.filter(wanted)["id"].to_list() != []

    # A fork: after the cut the second pool is drained, the others rest.
    forked = [minute("B", CUT + 1, "A", [(cut[1].developer, cut[1].drained())])]
    forked += [minute("B", n, "B", []) for n in range(CUT + 2, BLOCKS + 1)]
    run.take(topics.produce(merge(forked)))
    lifecycle.store_labels(settings, OUTLOOK)
    after = lifecycle.kept_labels(settings, OUTLOOK).frame
    moment = begin + timedelta(minutes=CUT)
    labelled = pl.col("as_of") <= moment - HORIZON
    assert before.filter(labelled).equals(after.filter(labelled))
    seen = pl.col("as_of") <= moment
    assert before.filter(seen).select("id", *COLUMNS).equals(after.filter(seen).select("id", *COLUMNS))
    assert not before.filter(seen)["label"].equals(after.filter(seen)["label"]), "what came after was another future"
