"""The features give back what the raw columns were made of, of any pool, and never raise."""

from __future__ import annotations

import numpy as np
import pytest

from dash_pipeline.models.pool_features import COLUMNS as COMPUTED
from dash_pipeline.models.pool_risk import COLUMNS, SPEC, WEEK_S, derive
from dash_pipeline.models.spec import Floats

HISTORY = ("mints", "burns", "buys", "sells", "age_s", "lp_holders")


def histories(rows: int, seed: int) -> dict[str, Floats]:
    """Counts and ages of pools small and large; everybody was bought from."""
    random = np.random.default_rng(seed)
    large = np.exp(random.uniform(0, 9, rows))
    return {
        "mints": np.ceil(large * random.random(rows) * 0.1),
        "burns": np.floor(large * random.random(rows) * 0.1),
        "buys": np.ceil(large * random.random(rows)),
        "sells": np.floor(large * random.random(rows)),
        "age_s": np.round(np.exp(random.uniform(2, 17.3, rows))),
        "lp_holders": np.ceil(large**0.3),
        "mint_mean_s": random.random(rows),
        "swap_mean_s": random.random(rows),
        "burn_mean_s": random.random(rows),
    }


def raw_of(of: dict[str, Floats], digits: int | None = None) -> dict[str, Floats]:
    """The raw columns, as the published set defines them; `digits`: significant ones, as in a csv."""
    weeks = of["age_s"] / WEEK_S + 1
    events = of["mints"] + of["burns"] + of["buys"] + of["sells"]
    rows = len(weeks)
    raw = {
        "mint_count_per_week": of["mints"] / weeks,
        "burn_count_per_week": of["burns"] / weeks,
        "mint_ratio": of["mints"] / events,
        "swap_ratio": (of["buys"] + of["sells"]) / events,
        "burn_ratio": of["burns"] / events,
        "mint_mean_period": of["mint_mean_s"],
        "swap_mean_period": of["swap_mean_s"],
        "burn_mean_period": of["burn_mean_s"],
        "swap_in_per_week": of["buys"] / weeks,
        "swap_out_per_week": of["sells"] / weeks,
        "swap_rate": of["buys"] / (of["sells"] + 1),
        "lp_avg": 100 / of["lp_holders"],
        "lp_std": np.zeros(rows),
        "lp_creator_holding_ratio": np.full(rows, 0.25),
        "lp_lock_ratio": np.full(rows, 0.75 - 7.9e-11),
        "token_burn_ratio": np.full(rows, 1e-12),
        "token_creator_holding_ratio": np.full(rows, 0.125),
        "number_of_token_creation_of_creator": np.ones(rows),
    }
    if digits:
        raw = {name: np.array([float(f"{value:.{digits}g}") for value in values]) for name, values in raw.items()}
    return raw


def test_the_columns_are_those_that_are_computed_live() -> None:
    assert tuple(SPEC.columns) == COMPUTED == tuple(COLUMNS)


@pytest.mark.parametrize("seed", range(5))
def test_counts_and_age_come_back_from_exact_columns(seed: int) -> None:
    of = histories(500, seed)
    features = derive(raw_of(of))
    for name in HISTORY:
        np.testing.assert_array_equal(features[name], of[name], err_msg=name)
    events = of["mints"] + of["burns"] + of["buys"] + of["sells"]
    np.testing.assert_array_equal(features["events"], events)
    np.testing.assert_array_equal(features["net_buys"], of["buys"] - of["sells"])
    np.testing.assert_allclose(features["swap_mean_to_end_s"], of["age_s"] * (1 - of["swap_mean_s"]), rtol=1e-9)


def test_counts_come_back_from_a_csv_of_nine_digits() -> None:
    of = histories(2000, 0)
    features = derive(raw_of(of, digits=9))
    for name in HISTORY:
        same = features[name] == of[name]
        assert same.mean() > 0.97, name
        np.testing.assert_allclose(features[name], of[name], rtol=1e-3, atol=2)


def test_noise_of_floats_is_no_information() -> None:
    features = derive(raw_of(histories(3, 0)))
    assert features["lp_lock_ratio"].tolist() == [0.75] * 3
    assert features["token_burn_ratio"].tolist() == [0] * 3
    assert features["lp_creator_minted_ratio"].tolist() == [1] * 3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, -1.0, 1e308, -1e308, 5e-324, float(2**256 - 1)])
def test_any_value_becomes_a_finite_or_unknown_feature(value: float) -> None:
    alone = derive({name: np.full(2, value) for name in COLUMNS})
    for name in COLUMNS:
        usual = raw_of(histories(2, 1))
        one = derive(usual | {name: np.full(2, value)})
        assert list(one) == list(alone) == list(derive(usual))
        for values in [*one.values(), *alone.values()]:
            assert values.dtype == np.float64
            assert values.shape == (2,)
            assert not np.isinf(values).any()


def test_a_pool_nobody_bought_from_has_no_counts_but_features() -> None:
    of = histories(4, 2)
    of["buys"] = np.zeros(4)
    features = derive(raw_of(of))
    assert np.isnan(features["events"]).all()
    assert not np.isnan(features["mint_count_per_week"]).any()


def test_a_row_depends_on_no_other_row_and_the_input_stays() -> None:
    raw = raw_of(histories(50, 3))
    before = {name: values.copy() for name, values in raw.items()}
    together = derive(raw)
    for i in range(50):
        alone = derive({name: values[i : i + 1] for name, values in raw.items()})
        assert all(alone[name].tobytes() == together[name][i : i + 1].tobytes() for name in together)
    assert all((raw[name] == before[name]).all() for name in raw)
    assert all(len(values) == 0 for values in derive({name: np.empty(0) for name in COLUMNS}).values())
