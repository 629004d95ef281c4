"""The published labelled data, where it lies beside the checkout: what the models reach on rows they did not see.

The data is not part of this repository: `../shared/data`, or DASH_SHARED_DATA, else these tests are skipped.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from dash_pipeline.models import pool_risk, training
from dash_pipeline.models.labels import Labels, read_labels

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("DASH_SHARED_DATA") or ROOT.parent / "shared" / "data") / "ml"
pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="the labelled data is not there: ../shared/data beside the checkout, or DASH_SHARED_DATA"
)


@pytest.fixture(scope="module")
def pools() -> Labels:
    return read_labels(pool_risk.SPEC, str(DATA / "uniswap_v2_rugpull_v1.9.csv"))


def test_counts_come_back_from_the_published_columns(pools: Labels) -> None:
    features = pool_risk.derive({name: pools.frame[name].to_numpy() for name in pool_risk.COLUMNS})
    raw = pools.frame["mint_ratio"].to_numpy() * features["events"]
    known = ~np.isnan(features["events"])
    assert known.mean() > 0.998
    assert np.isclose(raw[known], np.round(raw[known]), atol=0.02).mean() > 0.998, "whole numbers"


@pytest.mark.patient
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_pool_risk_on_rows_it_did_not_see(pools: Labels) -> None:
    trained = training.train(pool_risk.SPEC, pools)
    rows = int((~np.isnan(trained.out_of_fold)).sum())
    assert rows == (~training.holdout(pool_risk.SPEC, pools)).sum() == trained.metrics["rows"]
    assert trained.metrics["auc"] > 0.9895
    assert trained.metrics["mcc"] > 0.888
    assert trained.metrics["held_out_auc"] > 0.98
