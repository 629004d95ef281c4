"""wallet_risk: its columns are the labelled file's, its features carry no blank, and it keeps its promise.

The labelled files are not part of this repository: `../shared/data`, or DASH_SHARED_DATA, else their tests are skipped.
"""

from __future__ import annotations

import os
from pathlib import Path

import lightgbm
import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from dash_pipeline.models import wallet_features
from dash_pipeline.models.spec import Floats
from dash_pipeline.models.wallet_risk import COLUMNS, SPEC, derive

DATA = Path(os.environ.get("DASH_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data") / "ml"
FILES = [DATA / f"eth_illicit_accounts_{size}.csv" for size in (4681, 9841)]
labelled = pytest.mark.skipif(not all(file.exists() for file in FILES), reason="the labelled files are not there")

# What the set's program left at 0, and what is no number or says who the account is or where its row was.
LEFT_OUT = {
    "ERC20_avg_time_between_sent_tnx", "ERC20_avg_time_between_rec_tnx", "ERC20_avg_time_between_rec_2_tnx",
    "ERC20_avg_time_between_contract_tnx", "ERC20_min_val_sent_contract", "ERC20_max_val_sent_contract",
    "ERC20_avg_val_sent_contract",
}  # fmt: skip
NO_COLUMNS = {"Index", "Address", "FLAG", "ERC20_most_sent_token_type", "ERC20_most_rec_token_type"}

Raw = dict[str, Floats]


def read(file: Path, fill: float | None) -> tuple[Raw, npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Raw columns with blanks as `fill` (None: NaN), labels, and which rows have blanks."""
    frame = pl.read_csv(file, infer_schema_length=None)
    raw = {}
    for name, column in COLUMNS.items():
        (header,) = [header for header in frame.columns if header in column.names]
        raw[name] = frame[header].cast(pl.Float64).fill_null(float("nan") if fill is None else fill).to_numpy()
    (total,) = [header for header in frame.columns if header in COLUMNS["erc20_txs"].names]
    blank = frame[total].is_null().to_numpy()
    return raw, frame["FLAG"].to_numpy(), blank


def matrix(raw: Raw) -> Floats:
    return np.column_stack(list(derive(raw).values()))


def one(**values: float) -> Raw:
    return {name: np.array([values.get(name, 0.0)]) for name in COLUMNS}


# --- columns


def test_columns_are_those_that_are_computed_live() -> None:
    assert tuple(SPEC.columns) == wallet_features.COLUMNS
    assert SPEC.columns is COLUMNS
    tokens = {name for name in COLUMNS if name.startswith("erc20_")}
    assert {name for name, column in COLUMNS.items() if column.blank is not None} == tokens
    assert all(COLUMNS[name].blank == 0.0 for name in tokens)
    names = [name for column in COLUMNS.values() for name in column.names]
    assert not set(names) & NO_COLUMNS


@labelled
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_number_of_the_files_is_a_column_or_left_out_because_it_is_always_0(file: Path) -> None:
    frame = pl.read_csv(file, infer_schema_length=None)
    for header in frame.columns:
        columns = [name for name, column in COLUMNS.items() if header in column.names]
        plain = header.strip().replace(" ", "_")
        if plain in LEFT_OUT:
            assert not columns
            assert set(frame[header].unique()) <= {0, None}
        else:
            assert len(columns) == (plain not in NO_COLUMNS), header


# --- features


def test_decimals_are_those_that_an_amount_needs() -> None:
    for value, want in (
        (0.0, 0), (1.0, 0), (0.5, 1), (-0.25, 2), (100.0, 0), (1.337, 3), (0.000001, 6), (0.123456, 6), (20.0, 0),
        (123456.1234, 4), (123456789.5, 1), (1e10, 0), (1e59, 0), (1e308, 0), (0.1 + 0.2, 1), (9999.999999, 6),
        (1e-12, 0), (float("inf"), 0), (float("-inf"), 0), (float("nan"), 0),
    ):  # fmt: skip
        features = derive(one(max_sent=value, ether_balance=value))
        assert features["places_max_sent"][0] == want, value
        assert features["places_ether_balance"][0] == want, value
    precise = derive(one(max_sent=0.12345678, ether_balance=0.12345678))
    assert precise["places_max_sent"][0] == 6
    assert precise["places_ether_balance"][0] == 8


def test_amounts_from_the_file_and_live_ones_have_the_same_decimals() -> None:
    """The file has ten digits; live, sums have what floats leave them. A half in the last place may go either way."""
    rng = np.random.default_rng(4)
    round_ones = np.array([round(value, places) for value in 10 ** rng.uniform(-4, 5, 500) for places in range(5)])
    for live, exceptions in ((round_ones + 1e-12, 0), (10 ** rng.uniform(-4, 8, 5_000), 10)):
        file = np.array([float(f"{value:.10g}") for value in live])
        of_live, of_file = (derive(dict.fromkeys(COLUMNS, values)) for values in (live, file))
        for name in of_live:
            if name.startswith("places_"):
                assert (of_live[name] != of_file[name]).sum() <= exceptions


def test_features_are_made_row_by_row_of_anything() -> None:
    rng = np.random.default_rng(1)
    strange = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e308, -1e308, 5e-324, 2.0**256, 0.5])
    raw = {name: rng.choice(strange, 300) for name in COLUMNS}
    with np.errstate(all="raise", under="ignore"):
        together = derive(raw)
        assert list(together) == [*COLUMNS, *(name for name in together if name.startswith("places_"))]
        for values in together.values():
            assert values.dtype == np.float64
            assert values.shape == (300,)
        for i in range(300):
            alone = derive({name: values[i : i + 1] for name, values in raw.items()})
            assert list(alone) == list(together)
            for name, values in alone.items():
                assert values.tobytes() == together[name][i : i + 1].tobytes(), name
        assert all(len(values) == 0 for values in derive({name: np.empty(0) for name in COLUMNS}).values())


def test_a_blank_is_a_zero() -> None:
    rng = np.random.default_rng(2)
    raw = {name: rng.choice([0.0, 1.337, np.nan], 500) for name in COLUMNS}
    filled = {
        name: np.nan_to_num(values, nan=0.0) if COLUMNS[name].blank == 0.0 else values for name, values in raw.items()
    }
    for name, values in derive(raw).items():
        assert values.tobytes() == derive(filled)[name].tobytes(), name


# --- the labelled accounts


def params(seed: int) -> dict[str, object]:
    return {**SPEC.params, "seed": seed, "num_threads": 1, "verbosity": -1, "deterministic": True}


@labelled
def test_blanks_give_the_label_away_and_filled_ones_do_not() -> None:
    blanks, y, blank = read(FILES[0], None)
    zeros, _, _ = read(FILES[0], 0.0)
    assert blank.sum() > 500
    assert y[blank].all(), "as they are, blanks say illicit, without exception"
    assert np.array_equal(matrix(blanks), matrix(zeros), equal_nan=True)

    # What a model can know of an account's tokens: blank or none at all, it is the same row and gets the same score.
    tokens = [i for i, name in enumerate(derive(zeros)) if "erc20_" in name]
    x = matrix(zeros)[:, tokens]
    none = ~blank & (x == 0).all(axis=1)
    assert none.sum() > 1000
    assert not y[none].any(), "nor have accounts without tokens anything else in common"
    assert (x[blank] == 0).all()
    model = lightgbm.train(params(1), lightgbm.Dataset(x, y), 100)
    assert len(set(model.predict(x[blank | none]).tolist())) == 1  # type: ignore[union-attr]
    assert roc_auc_score(blank[blank | none], model.predict(x[blank | none])) == 0.5


@labelled
def test_ten_fold_cross_validation_is_better_than_what_was_published() -> None:
    """Of one bag and without calibration, so that it takes seconds; the threshold is not chosen at all."""
    raw, y, _ = read(FILES[0], 0.0)
    x = matrix(raw)
    auc, accuracy = [], []
    for train, test in StratifiedKFold(10, shuffle=True, random_state=7).split(x, y):
        model = lightgbm.train(params(0), lightgbm.Dataset(x[train], y[train]), SPEC.rounds)
        scores = np.asarray(model.predict(x[test], num_threads=1))
        auc.append(roc_auc_score(y[test], scores))
        accuracy.append(((scores > 0.5) == y[test]).mean())
    assert np.mean(auc) >= 0.9945
    assert np.mean(accuracy) >= 0.965
