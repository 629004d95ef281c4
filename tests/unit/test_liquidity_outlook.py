"""liquidity_outlook: columns of the past only, labels of the hour that follows, and nothing of it in training."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from dash_pipeline.market import RECORDED
from dash_pipeline.models import liquidity_outlook as outlook
from dash_pipeline.models.liquidity_outlook import (
    COLUMNS,
    HORIZON,
    SPEC,
    derive,
    outlook_dataset,
    outlook_labels,
    outlook_raw,
)
from dash_pipeline.models.market_labels import Market, read_market
from dash_pipeline.models.pool_features import NO_HISTORY, SCHEMAS, ZERO, PoolHistory

BEGIN = datetime(2024, 6, 1, tzinfo=UTC)
POOL, OTHER, TOKEN, QUOTE, DEV, BOB = (bytes([n]) * 20 for n in (1, 2, 3, 4, 5, 6))


@pytest.fixture(scope="module")
def market() -> Market:
    return read_market(RECORDED)


def minutes(n: float) -> datetime:
    return BEGIN + timedelta(minutes=n)


def made(
    *events: tuple[float, str, dict[str, Any]], transfers: tuple[tuple[float, bytes, bytes, float], ...] = ()
) -> PoolHistory:
    """One pool: events at minutes; values by short names (q: quote, b: base, rq and rb: reserves after)."""
    names = {"b": "amount0_f", "q": "amount1_f", "rb": "reserve0_f", "rq": "reserve1_f"}
    rows = [
        {"pool": POOL, "ts": minutes(at), "block_number": int(at * 10), "log_index": i, "event": event}
        | {names.get(name, name): value for name, value in values.items()}
        for i, (at, event, values) in enumerate(events)
    ]
    moved = [
        {"token": TOKEN, "ts": minutes(at), "block_number": int(at * 10), "log_index": i, "sender": sender}
        | {"recipient": recipient, "amount_f": amount}
        for i, (at, sender, recipient, amount) in enumerate(transfers)
    ]
    pools = [{"pool": POOL, "base": TOKEN, "quote": QUOTE, "base_first": True, "creator": DEV}]
    frames = {"pools": pools, "events": rows, "transfers": moved, "creations": []}
    return PoolHistory(*(pl.DataFrame(frames[name], schema=schema) for name, schema in SCHEMAS.items()))


def at(*when: float) -> pl.DataFrame:
    return pl.DataFrame({"pool": [POOL] * len(when), "as_of": [minutes(n) for n in when]}).with_columns(
        pl.col("as_of").cast(pl.Datetime("us", "UTC"))
    )


def a_pool() -> PoolHistory:
    return made(
        (0, "transfer", {"sender": ZERO, "recipient": DEV, "b": 80.0}),
        (0, "sync", {"rb": 1000.0, "rq": 100.0}),
        (0, "mint", {"b": 1000.0, "q": 100.0}),
        (10, "sync", {"rb": 500.0, "rq": 200.0}),
        (10, "swap", {"b": -500.0, "q": 100.0}),
        (20, "transfer", {"sender": ZERO, "recipient": BOB, "b": 20.0}),
        (50, "transfer", {"sender": DEV, "recipient": POOL, "b": 40.0}),
        (50, "transfer", {"sender": POOL, "recipient": ZERO, "b": 40.0}),
        (50, "sync", {"rb": 250.0, "rq": 100.0}),
        (50, "burn", {"b": -250.0, "q": -100.0}),
        (62, "sync", {"rb": 500.0, "rq": 50.0}),
        (62, "swap", {"b": 250.0, "q": -50.0}),
        transfers=((0, ZERO, DEV, 3000.0), (1, DEV, POOL, 1000.0)),
    )


def test_the_columns_at_a_moment() -> None:
    row = outlook_raw(a_pool(), at(64)).to_dicts()[0]
    assert row["reason"] is None
    want = {
        "age_s": 64 * 60, "idle_s": 120, "liquidity_of_peak": 0.25, "liquidity_of_first": 0.5,
        "liquidity_change_5m": math.log(50 / 100), "liquidity_change_15m": math.log(50 / 200),
        "liquidity_change_60m": math.log(50 / 100), "mints": 1, "burns": 1, "burns_60m": 1, "withdrawn_share": 1,
        "withdrawn_5m": 0, "withdrawn_15m": 100 / 150, "withdrawn_60m": 100 / 150, "largest_withdrawal": 0.5,
        "since_withdrawal_s": 14 * 60, "trades_per_hour": 2 / (64 / 60), "trades_5m": 1, "trades_60m": 2,
        "bought_5m": 0, "bought_60m": 2, "sold_5m": 1, "sold_60m": 1, "price_change_5m": math.log(0.25),
        "price_change_60m": math.log(0.1 / 0.1), "price_change_first": 0,
        "volatility_60m": math.sqrt(math.log(4) ** 2 + math.log(4) ** 2), "lp_holders": 2, "lp_top_share": 40 / 60,
        "creator_tokens": 2000 / 500,
    }  # fmt: skip
    for name, value in want.items():
        assert row[name] == pytest.approx(value, abs=1e-12), name
    assert math.isnan(row["withdrawal_every_s"])


def test_a_moment_sees_what_is_of_its_very_second_and_no_later() -> None:
    rows = outlook_raw(a_pool(), at(49.99, 50)).to_dicts()
    assert [row["burns"] for row in rows] == [0, 1]
    assert [row["lp_top_share"] for row in rows] == pytest.approx([0.8, 40 / 60])


def test_a_label_is_of_the_hour_that_follows() -> None:
    history = a_pool()
    known = minutes(122)
    labels = outlook_labels(history, at(0, 5, 10, 49, 50, 61, 62, 62.1, 122), known)
    #  100 -> 100 at the least; at 5 -> 50 at 62; 200 -> 50; 200 -> 50; 100 -> 50; 100 -> 50; 50 -> 50; too new; too new
    assert labels.to_list() == [0, 1, 1, 1, 1, 1, 0, None, None]
    assert outlook_labels(history, at(1), minutes(61)).to_list() == [0], "the loss is two seconds after its hour"
    assert outlook_labels(history, at(50), minutes(109)).to_list() == [None], "known to be lost, and still unknown"


def test_no_reserves_and_no_history_have_reasons() -> None:
    rows = outlook_raw(a_pool(), pl.concat([at(-1), at(3).with_columns(pool=pl.lit(OTHER))])).to_dicts()
    assert [row["reason"] for row in rows] == [NO_HISTORY, NO_HISTORY]
    assert all(math.isnan(row[name]) for row in rows for name in COLUMNS)
    v3 = outlook_raw(made((0, "mint", {"b": 1.0, "q": 1.0}), (1, "swap", {"b": 1.0, "q": -1.0})), at(2)).to_dicts()[0]
    assert v3["reason"] == outlook.NO_RESERVES
    assert outlook_labels(a_pool(), at(-1), minutes(200)).to_list() == [None]
    assert outlook_raw(a_pool(), at()).height == 0
    nothing = PoolHistory(*(pl.DataFrame(schema=schema) for schema in SCHEMAS.values()))
    assert outlook_raw(nothing, at(1))["reason"].to_list() == [NO_HISTORY]
    assert outlook_dataset(nothing, minutes(500)).height == 0


def test_the_largest_amounts_there_are() -> None:
    top = float(2**256 - 1)
    history = made(
        (0, "transfer", {"sender": ZERO, "recipient": DEV, "b": top}),
        (0, "sync", {"rb": top, "rq": top}),
        (0, "mint", {"b": top, "q": top}),
        (5, "swap", {"b": top, "q": -top}),
        (6, "sync", {"rb": top, "rq": 1.0}),
        (6, "burn", {"b": -top, "q": -top}),
        (7, "sync", {"rb": 0.0, "rq": 1.0}),
        (8, "sync", {"rb": 1.0, "rq": 0.0}),
        transfers=((0, ZERO, DEV, top), (1, ZERO, DEV, top)),
    )
    raw = outlook_raw(history, at(0, 5, 6, 7, 8))
    assert raw["reason"].to_list() == [None, None, None, None, outlook.NO_RESERVES]
    features = derive({name: raw[name].to_numpy() for name in COLUMNS})
    assert not any(np.isinf(values).any() for values in features.values())


# --- the recorded market


def moments_of(market: Market, seed: int, count: int) -> pl.DataFrame:
    rng = random.Random(seed)
    pools = market.history.pools["pool"].to_list()
    span = int((market.end - BEGIN).total_seconds())
    chosen = [(rng.choice(pools), BEGIN + timedelta(seconds=rng.randrange(span))) for _ in range(count)]
    return pl.DataFrame(chosen, schema={"pool": pl.Binary, "as_of": pl.Datetime("us", "UTC")}, orient="row")


def test_one_row_alone_is_the_same_to_the_last_bit(market: Market) -> None:
    """Training computes all pools at all times at once; scoring one pool, now."""
    moments = moments_of(market, 5, 150)
    together = outlook_raw(market.history, moments)
    for i, (pool, as_of) in enumerate(moments.iter_rows()):
        alone = outlook_raw(market.history.of([pool]).until(as_of), moments[i])
        assert alone.equals(together[i]), as_of


def test_labels_are_what_the_reserves_say(market: Market) -> None:
    moments = moments_of(market, 6, 200)
    labels = outlook_labels(market.history, moments, market.end)
    found = {0: 0, 1: 0, None: 0}
    for (pool, as_of), label in zip(moments.iter_rows(), labels, strict=True):
        first = market.history.pools.filter(pl.col("pool") == pool)["base_first"][0]
        syncs = market.history.events.filter((pl.col("pool") == pool) & (pl.col("event") == "sync"))
        syncs = syncs.sort("block_number", "log_index").select("ts", r="reserve1_f" if first else "reserve0_f")
        past = syncs.filter(pl.col("ts") <= as_of)["r"]
        ahead = syncs.filter((pl.col("ts") > as_of) & (pl.col("ts") <= as_of + HORIZON))["r"]
        want = None
        if len(past) and as_of + HORIZON <= market.end:
            want = int(len(ahead) > 0 and ahead.min() <= 0.5 * past[-1])
        assert label == want
        found[label] += 1
    assert min(found.values()) > 10, "each kind was there"


def changed_after(history: PoolHistory, cut: datetime, seed: int) -> PoolHistory:
    """The same past and another future: amounts, kinds and wallets of everything after the cut."""
    rng = np.random.default_rng(seed)

    def other(frame: pl.DataFrame) -> pl.DataFrame:
        after = (frame["ts"] > cut).to_numpy()
        mixed = rng.permutation(np.flatnonzero(after))
        order = np.arange(frame.height)
        order[after] = mixed
        for name in frame.columns:
            if name in ("pool", "token", "ts", "block_number", "log_index", "wallet"):
                continue
            column = frame[name][order]
            if column.dtype == pl.Float64:
                column = column * np.where(after, rng.uniform(0.0, 3.0, frame.height), 1.0)
            frame = frame.with_columns(column.alias(name))
        return frame

    return PoolHistory(history.pools, other(history.events), other(history.transfers), other(history.creations))


def usable_at(rows: pl.DataFrame, cut: datetime) -> pl.DataFrame:
    """The rows of a data set that may be trained on at `cut`: those whose hour of future was over by then."""
    return rows.filter(pl.col("as_of") + HORIZON <= cut)


# ------------------------------------------------------------------------------------------------ the past of a moment


@pytest.mark.parametrize("seed", range(6))
def test_nothing_of_the_time_after_a_cut_reaches_training(market: Market, seed: int) -> None:
    """Neither by a column nor by a label that looks ahead; and the cut does part: without the purge it would."""
    cut = BEGIN + timedelta(seconds=random.Random(seed).randrange(6000, 11_000))
    rows = outlook_dataset(market.history, market.end)
    other = outlook_dataset(changed_after(market.history, cut, seed), market.end)
    train = usable_at(rows, cut)
    assert train.height > 20
    assert usable_at(other, cut).equals(train)
    assert train["as_of"].max() <= cut - HORIZON

    past = outlook_dataset(market.history.until(cut), cut)
    assert past.equals(train), "the rows of a training that runs at the cut, when no more is known"
    unpurged = rows.filter(pl.col("as_of") <= cut)
    columns = list(COLUMNS)
    same = other.filter(pl.col("as_of") <= cut).join(unpurged, on="id", how="inner")
    assert same.select(columns).equals(same.select(pl.col(f"{c}_right").alias(c) for c in columns)), "columns: the past"
    assert same["label"].to_list() != same["label_right"].to_list(), "labels of the last hour do look beyond the cut"


def test_the_data_set(market: Market) -> None:
    rows = outlook_dataset(market.history, market.end, 300, "m")
    assert rows.columns == ["id", "label", "as_of", "group", *COLUMNS]
    assert rows["id"].is_unique().all()
    assert rows["label"].dtype == pl.Int8
    assert rows["as_of"].max() <= market.end - HORIZON
    assert (rows["as_of"].dt.epoch("s") % 300 == 0).all()
    assert (rows["liquidity_of_peak"] > outlook.EMPTY).all()
    assert 0.05 < rows["label"].mean() < 0.5
    assert rows["group"].str.starts_with("m:0x").all()


def test_too_many_moments_are_thinned_out(market: Market) -> None:
    whole = outlook_dataset(market.history, market.end)
    thinned = outlook_dataset(market.history, market.end, most=whole.height // 3)
    assert thinned.height <= whole.height // 3
    assert thinned.height > whole.height // 8
    assert thinned.equals(whole.join(thinned.select("id"), on="id", how="semi"))


def test_many_transfers_of_shares_are_looked_at_in_parts(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = outlook_dataset(market.history, market.end)
    monkeypatch.setattr(outlook, "_EXPANDED", 7)
    assert outlook_dataset(market.history, market.end).equals(whole)


def test_a_history_with_a_hole_makes_no_rows(market: Market) -> None:
    whole = outlook_dataset(market.history, market.end)
    pool = market.history.pools["pool"][3]
    holed = market.history.pools.with_columns(cut=pl.col("pool") == pool)
    history = PoolHistory(holed, market.history.events, market.history.transfers, market.history.creations)
    rows = outlook_dataset(history, market.end)
    assert rows.equals(whole.filter(pl.col("group") != f"0x{pool.hex()}"))
    assert rows.height < whole.height


def test_features_are_row_by_row_and_finite(market: Market) -> None:
    rows = outlook_dataset(market.history, market.end)
    raw = {name: rows[name].to_numpy() for name in COLUMNS}
    features = derive(raw)
    assert list(features)[: len(COLUMNS)] == list(COLUMNS) == list(SPEC.columns)
    for i in (0, 7, rows.height - 1):
        alone = derive({name: values[i : i + 1] for name, values in raw.items()})
        assert all(np.array_equal(alone[name], features[name][i : i + 1], equal_nan=True) for name in features)
    wild = derive({name: np.array([np.nan, np.inf, -np.inf, 0.0, 1e308]) for name in COLUMNS})
    assert all(len(values) == 5 and not np.isinf(values).any() for values in wild.values())
