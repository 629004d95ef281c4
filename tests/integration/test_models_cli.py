"""The commands about models, scores and alerts on the real S3 and TimescaleDB: what they print, and their exit codes.

Belongs here: `models`, `score` and `alerts` as a person or a program calls them. Does not belong here: what is behind
them (`test_lifecycle.py`, `test_alerts.py`).
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn import metrics

from dash_pipeline import cli
from dash_pipeline.alerts.rules import Policy
from dash_pipeline.microbatch.detect import Detector
from dash_pipeline.models import pool_risk, wallet_risk
from dash_pipeline.models.catalogue import MODELS
from dash_pipeline.models.lifecycle import SAMPLES
from dash_pipeline.models.registry import Registry
from dash_pipeline.models.scorer import Scorer
from dash_pipeline.settings import Settings
from dash_pipeline.storage import alerts as store
from dash_pipeline.storage import s3
from dash_pipeline.storage import timescale as db
from dash_pipeline.storage.anomalies import read_anomalies
from dash_pipeline.storage.migrate import upgrade
from tests.chain import Topics, address, merge
from tests.pools import WETH, Pool, block, life
from tests.run import Run

MODEL, CHAIN, BLOCKS = "pool_risk", "ethereum", 60
SAMPLE = SAMPLES / f"{MODEL}.csv"
DEVELOPER = "0x" + "d" * 40
ABSENT = "20200101T000000Z-000000000000"
POOL = Pool("x", DEVELOPER)


@dataclass(frozen=True)
class Place:
    """The settings, as they are and as the command's environment, and what the first trainings printed."""

    settings: Settings
    environment: dict[str, str]


@dataclass(frozen=True)
class Done:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


@pytest.fixture(scope="module")
def place(database: Settings, unique: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A database with a pool that was traded and drained, its anomalies and alerts; an empty bucket."""
    settings = database.model_copy(update={"s3_bucket": unique("cli-")})
    s3.bucket(settings).client.create_bucket(Bucket=settings.s3_bucket)
    upgrade(settings)
    run = Run(settings, CHAIN)
    run.detector = Detector(CHAIN, [bytes.fromhex(WETH[2:])])
    blocks = [messages for _, messages in life(POOL, BLOCKS)]
    blocks.append(block(f"A{BLOCKS}", f"A{BLOCKS - 1}", [(DEVELOPER, POOL.drained())]))
    run.take(Topics(CHAIN).produce(merge(blocks)))
    ids = [id_ for (id_,) in run.conn.execute("SELECT id FROM intel.anomalies WHERE chain = %s", (CHAIN,)).fetchall()]
    with run.conn.transaction():
        store.raise_alerts(run.conn, Policy(min_severity="low", cooldown_s=0), read_anomalies(run.conn, ids), "run")
    environment = {"DASH_STACK_DIR": str(tmp_path_factory.mktemp("stack"))}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if name.startswith(("s3_", "timescale", "opensearch_url", "kafka")) and value is not None:
            environment[f"DASH_{name.upper()}"] = getattr(value, "get_secret_value", lambda value=value: str(value))()
    return Place(settings, environment)


Command = Callable[..., Done]


@pytest.fixture
def command(place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`dash-pipeline` in this process, with models that are quick to train."""
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    for spec in (pool_risk.SPEC, wallet_risk.SPEC):
        monkeypatch.setitem(MODELS, spec.name, replace(spec, rounds=25, bags=1))

    def run(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["dash-pipeline", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        return Done(int(end.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def model(place: Place, command: Command) -> Iterator[str]:
    """The version of pool_risk that is trained on the sample, as champion; nothing else is left afterwards."""
    yield command("models", "train", MODEL, "--labels", SAMPLE, "--json").json["version"]
    bucket = s3.bucket(place.settings)
    for key in bucket.keys(""):
        bucket.client.delete_object(Bucket=bucket.name, Key=key)


def wrong_in(file: Path, every: int) -> Path:
    """The sample with a part of its labels turned round."""
    with SAMPLE.open(newline="") as given:
        header, *rows = csv.reader(given)
    label = header.index("Label")
    for row in rows[::every]:
        row[label] = "1" if row[label] == "0" else "0"
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([header, *rows])
    return file


def one_line(done: Done, said: str, code: int = 2) -> None:
    """It ended with this code, and a single line that says so."""
    assert (done.code, done.out) == (code, "")
    (line,) = done.err.splitlines()
    assert said in line


# --- models


def test_models_are_trained_listed_promoted_and_rolled_back(
    command: Command, place: Place, model: str, tmp_path: Path
) -> None:
    again = command("models", "train", MODEL, "--labels", SAMPLE)
    assert again.code == 0
    assert f"{model}: not promoted: not better:" in again.out
    assert "95 %" in again.out
    assert f"{MODEL}: training on 724 rows of {SAMPLE}" in again.err
    other = command("models", "train", MODEL, "--labels", wrong_in(tmp_path / "wrong.csv", 5), "--json").json
    assert other["version"] != model
    assert (other["model"], other["rows"], other["champion_before"]) == (MODEL, 724, model)
    assert "plots" not in other
    listed = {one["version"]: one for one in command("models", "list", "--json").json}
    assert set(listed) == {model, other["version"]}
    first = listed[model]
    assert (first["rows"], first["positives"], first["labels"]) == (724, 143, str(SAMPLE))
    assert first["metrics"]["auc"] > 0.95
    assert first["bytes"] == Registry(place.settings).version(MODEL, model).bytes

    def champion() -> list[str]:
        return [one["version"] for one in command("models", "list", MODEL, "--json").json if one["champion"]]

    for version in (other["version"], model):
        done = command("models", "promote", MODEL, version)
        assert (done.code, champion()) == (0, [version])
        assert f"{MODEL}: {version} is the champion, in place of" in done.out.replace("\n", " ")
    done = command("models", "rollback", MODEL)
    assert (done.code, champion()) == (0, [other["version"]])
    assert f"{other['version']} is the champion again" in done.out.replace("\n", " ")
    table = command("models", "list").out
    assert f"{other['version']} *" in table
    assert f"{model} *" not in table
    assert command("models", "list", "wallet_risk", "--json").json == []


def test_evaluate_says_what_sklearn_says(command: Command, place: Place, model: str, tmp_path: Path) -> None:
    file = wrong_in(tmp_path / "rows.csv", 7)
    found = command("models", "evaluate", MODEL, file, "--json").json
    registry = Registry(place.settings)
    champion = registry.champion(MODEL)
    assert champion is not None
    scorer = Scorer(MODELS[MODEL], registry.load_champion(MODEL, champion), champion.version)
    rows = pl.read_csv(file, infer_schema_length=None)
    raw = {name: rows[name].cast(pl.Float64).fill_null(float("nan")).to_numpy() for name in MODELS[MODEL].columns}
    scores, y = scorer.score(raw), rows["Label"].to_numpy()
    called = scores >= scorer.threshold
    assert (found["model"], found["version"], found["labels"]) == (MODEL, model, str(file))
    assert (found["rows"], found["positives"]) == (len(y), int(y.sum()))
    wanted = {
        "auc": metrics.roc_auc_score(y, scores), "accuracy": metrics.accuracy_score(y, called),
        "precision": metrics.precision_score(y, called), "recall": metrics.recall_score(y, called),
        "f1": metrics.f1_score(y, called), "mcc": metrics.matthews_corrcoef(y, called),
        "average_precision": metrics.average_precision_score(y, scores), "brier": metrics.brier_score_loss(y, scores),
    }  # fmt: skip
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name
    assert 0.5 < found["mcc"] < 0.9, "neither all wrong nor all right"
    table = command("models", "evaluate", MODEL, file).out
    for name in ("auc", "accuracy", "precision", "recall", "f1", "mcc"):
        assert any(line.split() == [name, f"{wanted[name]:.4f}"] for line in table.splitlines()), name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "pool_riks"], "there is no model pool_riks; there are: pool_risk, wallet_risk, liquidity_outlook"),
        (["list", "x"], "there is no model x"),
        (["promote", "x", ABSENT], "there is no model x"),
        (["rollback", "x"], "there is no model x"),
        (["evaluate", "x", str(SAMPLE)], "there is no model x"),
        (["promote", MODEL, "newest"], f"{MODEL}: there is no version newest; `dash-pipeline models list` shows"),
        (["rollback", MODEL], f"{MODEL}: no champion yet, so none to go back to"),
        (["evaluate", MODEL, str(SAMPLE)], f"{MODEL}: no champion yet; `dash-pipeline models train {MODEL}` makes one"),
        (["train", MODEL, "--labels", "/absent.csv"], "labels: /absent.csv: No such file or directory"),
        (["train", MODEL, "--labels", str(SAMPLES / "wallet_risk.csv")], "columns of pool_risk are missing: id, Label"),
    ],
)
def test_what_is_wrong_is_one_line(command: Command, arguments: list[str], said: str) -> None:
    one_line(command("models", *arguments), said)


def test_a_store_that_is_away_is_exit_code_3(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASH_S3_ENDPOINT", "http://127.0.0.1:1")
    one_line(command("models", "list"), "no connection to http://127.0.0.1:1", code=3)


def test_in_a_process_of_its_own_too(place: Place) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from dash_pipeline.cli import main; main()", "models", "rollback", "x"],
        env=os.environ | place.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    one_line(Done(done.returncode, done.stdout, done.stderr), "there is no model x")


# --- score


def test_a_pool_is_scored_and_why(command: Command, place: Place, model: str) -> None:
    risk, outlook = command("score", POOL.address, "--json").json
    assert (risk["model"], risk["version"], risk["pool"], risk["chain"]) == (MODEL, model, POOL.address, CHAIN)
    assert (risk["reason"], risk["as_of"]) == (None, "2024-01-05T00:12:00+00:00")
    artifact = Registry(place.settings).load(MODEL, model)
    scorer = Scorer(MODELS[MODEL], artifact, model)
    raw = {name: np.array([value if value is not None else np.nan]) for name, value in risk["features"].items()}
    assert set(raw) == set(pool_risk.COLUMNS)
    assert risk["score"] == pytest.approx(scorer.score(raw)[0])
    assert list(risk["contributions"].items()) == [(n, pytest.approx(v)) for n, v in scorer.explain(raw)[0]]
    assert len(risk["contributions"]) == 5
    assert outlook["model"] == "liquidity_outlook"
    assert (outlook["score"], outlook["contributions"]) == (None, {})
    assert "no champion yet" in outlook["reason"]
    shown = command("score", POOL.address)
    assert shown.code == 0
    for name, value in risk["contributions"].items():
        assert any(line.split() == [name, f"{value:+.3f}"] for line in shown.out.splitlines()), name
    assert f"{risk['score']:.1%}" in shown.out


def test_a_wallet_is_scored_and_why(command: Command, model: str) -> None:
    trained = command("models", "train", "wallet_risk", "--labels", SAMPLES / "wallet_risk.csv", "--json").json
    (risk,) = command("score", DEVELOPER.upper().replace("0X", "0x"), "--json").json
    assert (risk["model"], risk["version"], risk["wallet"]) == ("wallet_risk", trained["version"], DEVELOPER)
    assert 0 < risk["score"] < 1
    sizes = [abs(value) for value in risk["contributions"].values()]
    assert 0 < len(sizes) <= 5
    assert sizes == sorted(sizes, reverse=True)
    assert risk["features"]["sent"] == 2
    (nobody,) = command("score", address("nobody"), "--json").json
    assert nobody["score"] is None
    assert nobody["reason"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["0x12"], "0x12 is no address: 0x and 40 hex digits are"),
        (["pool"], "pool is no address"),
        ([" ".join(["0xaa"] + ["aa"] * 19)], "is no address"),
        ([POOL.address, "--chain", "nowhere"], "--chain: no nowhere in the registry (known: ethereum, bsc,"),
        ([POOL.address, "--chain", "bsc"], "bsc: no block is stored yet; `dash-pipeline feed` brings some"),
    ],
)
def test_nothing_to_score_is_one_line(command: Command, arguments: list[str], said: str) -> None:
    one_line(command("score", *arguments), said)


# --- alerts


def test_alerts_are_listed(command: Command, place: Place) -> None:
    with db.connect(place.settings) as conn:
        raised = {bytes(i).hex(): s for i, s in conn.execute("SELECT id, severity FROM intel.alerts").fetchall()}
    assert "high" in raised.values()
    found = command("alerts", "--json").json
    assert {one["id"]: one["severity"] for one in found} == raised
    assert {one["pool"] for one in found} == {POOL.address}
    high = command("alerts", "--severity", "high", "--json").json
    assert {one["id"] for one in high} == {id_ for id_, severity in raised.items() if severity == "high"}
    assert any(one["kind"] == "liquidity_withdrawal" and DEVELOPER in one["wallets"] for one in high)
    assert command("alerts", "--chain", "bsc", "--json").json == []
    assert len(command("alerts", "--size", "1", "--json").json) == 1
    shown = command("alerts", "--severity", "high")
    assert POOL.address in shown.out
    assert "high liquidity withdrawal" in shown.out
    assert command("alerts", "--severity", "loud").code == 2
