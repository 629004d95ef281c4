"""Labelled rows of wallets: made of the recorded market, and the sample that comes with the project."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from dash_pipeline.market import RECORDED
from dash_pipeline.models import evaluation, training, wallet_risk
from dash_pipeline.models.labels import read_labels
from dash_pipeline.models.lifecycle import SAMPLES
from dash_pipeline.models.market_labels import Market, read_market, wallet_history, wallet_labels
from dash_pipeline.models.wallet_features import COLUMNS, wallet_raw


@pytest.fixture(scope="module")
def market() -> Market:
    return read_market(RECORDED)


@pytest.fixture(scope="module")
def rows(market: Market) -> pl.DataFrame:
    return wallet_labels(market)


def test_illicit_is_who_sent_a_rug_pull(market: Market, rows: pl.DataFrame) -> None:
    senders = dict(market.transactions.select("tx_hash", "from_address").iter_rows())
    rugs = [bytes.fromhex(label["tx"][2:]) for label in market.labels["labels"] if label["is_rug"]]
    illicit = {f"{market.name}:0x{senders[tx].hex()}" for tx in rugs}
    assert set(rows.filter(pl.col("FLAG") == 1)["Address"]) == illicit
    assert rows["Address"].n_unique() == rows.height == market.transactions["from_address"].n_unique()


def test_a_row_is_what_would_be_computed_live(market: Market, rows: pl.DataFrame) -> None:
    history = wallet_history(market)
    for row in rows.sample(10, seed=1).iter_rows(named=True):
        wallet = bytes.fromhex(row["Address"].split("0x")[1])
        live = wallet_raw(history, [wallet], row["as_of"]).select(*COLUMNS).row(0)
        assert live == tuple(row[name] for name in COLUMNS)


def test_its_transfers_are_those_that_the_exporter_found(market: Market) -> None:
    transfers = wallet_history(market).transfers
    pooled = {pool["token"] for pool in market.labels["pools"]} | {market.labels["weth"]}
    assert {f"0x{token.hex()}" for token in transfers["token"].unique()} >= {token.lower() for token in pooled}
    alone = transfers.filter(pl.col("wallet") == pl.col("sender")).height
    both = transfers.filter(pl.col("wallet") == pl.col("recipient")).height
    to_itself = transfers.filter(pl.col("sender") == pl.col("recipient")).height
    assert alone + both - to_itself == transfers.height


def test_the_shipped_sample_tells_the_recorded_markets_wallets_apart(rows: pl.DataFrame, tmp_path: Path) -> None:
    sample = read_labels(wallet_risk.SPEC, str(SAMPLES / "wallet_risk.csv"))
    file = tmp_path / "recorded.csv"
    rows.drop("as_of").write_csv(file)
    recorded = read_labels(wallet_risk.SPEC, str(file))
    trained = training.train(wallet_risk.SPEC, sample)
    scores = evaluation.score(wallet_risk.SPEC, trained.artifact, recorded)
    assert roc_auc_score(recorded.frame["label"].to_numpy(), scores) > 0.9


def test_what_the_model_sees_is_known(rows: pl.DataFrame) -> None:
    raw = {name: rows[name].to_numpy() for name in wallet_risk.COLUMNS}
    assert np.isfinite(np.column_stack(list(wallet_risk.derive(raw).values()))).all()
