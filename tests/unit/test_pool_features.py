"""Raw columns of pool_risk against the data set's definitions, written down again row by row, and at the edges."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import lightgbm
import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from dash_pipeline.market import RECORDED, SOURCES
from dash_pipeline.models.market_labels import Market, pool_labels, read_market
from dash_pipeline.models.pool_features import (
    COLUMNS,
    NO_HISTORY,
    NO_TOKENS,
    SCHEMAS,
    ZERO,
    PoolHistory,
    empty,
    pool_raw,
)

SAMPLE = SOURCES / "labels" / "pool_risk.csv"
BEGIN = datetime(2024, 6, 1, tzinfo=UTC)
MAX = float(2**256 - 1)
WEEK = 7 * 24 * 3600
POOL, TOKEN, QUOTE, DEV, LOCKER, BOB, DEAD = (bytes([n]) * 20 for n in (1, 2, 3, 4, 5, 6, 7))
BURNED = bytes(18) + b"\xde\xad"


@pytest.fixture(scope="module")
def market() -> Market:
    return read_market(RECORDED)


class Made:
    """A history written by hand; each call is one block, 60 s after the one before."""

    def __init__(self, *, base_first: bool | None = True, creator: bytes | None = DEV) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SCHEMAS}
        self.block = 0
        known = base_first is not None
        tokens = {"base": TOKEN, "quote": QUOTE, "base_first": base_first} if known else {}
        self.rows["pools"].append({"pool": POOL, "creator": creator, "cut": False, **tokens})

    def place(self) -> dict[str, Any]:
        return {"ts": BEGIN + timedelta(seconds=60 * self.block), "block_number": self.block, "log_index": 0}

    def add(self, frame: str, *, step: int = 1, **values: Any) -> Made:
        self.block += step
        self.rows[frame].append({**self.place(), **values})
        return self

    def event(self, event: str, base: float | None = None, quote: float | None = None, **values: Any) -> Made:
        return self.add("events", pool=POOL, event=event, amount0_f=base, amount1_f=quote, **values)

    def share(self, sender: bytes, recipient: bytes, amount: float) -> Made:
        return self.event("transfer", amount, sender=sender, recipient=recipient)

    def token(self, sender: bytes, recipient: bytes, amount: float) -> Made:
        return self.add("transfers", token=TOKEN, sender=sender, recipient=recipient, amount_f=amount)

    def history(self, shuffle: int | None = None) -> PoolHistory:
        frames = [pl.DataFrame(rows, schema=SCHEMAS[name]) for name, rows in self.rows.items()]
        if shuffle is not None:
            frames[1:] = [frame.sample(fraction=1, shuffle=True, seed=shuffle) for frame in frames[1:]]
        return PoolHistory(*frames)

    def raw(self) -> dict[str, Any]:
        (row,) = pool_raw(self.history()).to_dicts()
        assert list(row) == ["pool", *COLUMNS, "reason"]
        for shuffle in range(3):
            assert pool_raw(self.history(shuffle)).equals(pool_raw(self.history())), "rows come in any order"
        return row


def a_pool() -> Made:
    made = Made().token(ZERO, DEV, 1e24).share(ZERO, ZERO, 1000.0).share(ZERO, DEV, 4e20)
    return made.event("mint", 1e23, 2e18, sender=DEV)


def test_activity_is_counted_from_the_first_mint() -> None:
    raw = (
        a_pool()
        .event("swap", -5.0, 1.0)
        .event("swap", 5.0, -1.0)
        .event("burn", -1.0, -1.0)
        .event("swap", -1.0, 9.0)
        .raw()
    )
    active = 4 * 60
    weeks = active / WEEK + 1
    assert raw["mint_count_per_week"] == pytest.approx(1 / weeks)
    assert raw["burn_count_per_week"] == pytest.approx(1 / weeks)
    assert (raw["mint_ratio"], raw["swap_ratio"], raw["burn_ratio"]) == (0.2, 0.6, 0.2)
    assert raw["mint_mean_period"] == 0
    assert raw["swap_mean_period"] == pytest.approx(math.floor((60 + 120 + 240) / 3) / active)
    assert raw["burn_mean_period"] == pytest.approx(180 / active)
    assert raw["swap_in_per_week"] == pytest.approx(2 / weeks), "the quote token came in: bought"
    assert raw["swap_out_per_week"] == pytest.approx(1 / weeks)
    assert raw["swap_rate"] == 2 / (1 + 1)


def test_which_way_a_trade_goes_depends_on_which_token_is_the_quote() -> None:
    made = Made(base_first=False).event("mint", 1.0, 1.0).event("swap", -5.0, 1.0).event("swap", -5.0, 1.0)
    raw = made.raw()
    assert raw["swap_in_per_week"] == 0
    assert raw["swap_rate"] == 0
    assert raw["swap_out_per_week"] > 1.9


def test_one_holder_has_all_shares() -> None:
    raw = a_pool().raw()
    assert (raw["lp_avg"], raw["lp_std"], raw["lp_creator_holding_ratio"], raw["lp_lock_ratio"]) == (100, 0, 1, 0)


def test_shares_passed_to_a_locker_are_locked_and_may_come_back() -> None:
    made = a_pool().share(DEV, LOCKER, 3e20)
    raw = made.raw()
    assert raw["lp_creator_holding_ratio"] == 0.25
    assert raw["lp_lock_ratio"] == 0.75
    assert raw["lp_avg"] == 100, "as in the data set: who minted holds"
    raw = made.share(LOCKER, DEV, 3e20).raw()
    assert (raw["lp_creator_holding_ratio"], raw["lp_lock_ratio"]) == (1, 0)


def test_holders_are_those_who_minted_and_did_not_burn() -> None:
    made = a_pool().share(ZERO, BOB, 1e20).event("mint", 1.0, 1.0)
    raw = made.raw()
    assert raw["lp_avg"] == 50
    assert raw["lp_std"] == pytest.approx(30), "80 and 20 percent"
    assert raw["lp_creator_holding_ratio"] == 0.8
    raw = made.share(BOB, POOL, 1e20 - 3).share(POOL, ZERO, 1e20 - 3).event("burn", -1.0, -1.0).raw()
    assert (raw["lp_avg"], raw["lp_std"]) == (100, 0), "three units are dust"
    raw = made.share(DEV, POOL, 4e20).share(POOL, ZERO, 4e20).raw()
    assert all(math.isnan(raw[name]) for name in ("lp_avg", "lp_std", "lp_creator_holding_ratio", "lp_lock_ratio"))
    assert raw["reason"] is None


def test_what_became_of_the_supply() -> None:
    made = a_pool().token(DEV, POOL, 1e23).token(DEV, BURNED, 3e23).token(BOB, ZERO, 2e23).token(DEV, BOB, 1e23)
    raw = made.raw()
    assert raw["token_burn_ratio"] == pytest.approx(5e23 / 8e23), "what goes to zero is no supply any more"
    assert raw["token_creator_holding_ratio"] == pytest.approx(5e23 / 8e23)
    made = Made().event("mint", 1.0, 1.0)
    assert math.isnan(made.raw()["token_burn_ratio"]), "a supply that nobody saw"
    made.rows["pools"][0]["supply"] = 1e24
    assert made.token(BOB, DEV, 1e23).raw()["token_creator_holding_ratio"] == pytest.approx(0.1)


def test_the_creator_is_who_got_the_first_supply_else_who_made_the_pool() -> None:
    made = a_pool()
    for wallet, token in ((DEV, TOKEN), (DEV, DEAD), (DEV, DEAD), (BOB, BURNED)):
        made.rows["creations"].append({"wallet": wallet, "token": token, "ts": BEGIN, "block_number": 0})
    assert made.raw()["number_of_token_creation_of_creator"] == 2
    made.rows["transfers"][0]["recipient"] = LOCKER
    assert made.raw()["number_of_token_creation_of_creator"] == 1, "nothing of his is known: this one, at least"
    assert math.isnan(Made(creator=None).event("mint", 1.0, 1.0).raw()["number_of_token_creation_of_creator"])


def test_nothing_and_half_known() -> None:
    raw = Made().token(ZERO, DEV, 1e24).raw()
    assert raw["reason"] == NO_HISTORY
    assert all(math.isnan(raw[name]) for name in COLUMNS)
    raw = Made(base_first=None).event("mint", 1.0, 1.0).event("swap", 1.0, -1.0).share(ZERO, DEV, 5e20).raw()
    assert raw["reason"] == NO_TOKENS
    assert raw["mint_ratio"] == 0.5
    assert raw["lp_creator_holding_ratio"] == 1
    assert math.isnan(raw["swap_rate"])
    assert math.isnan(raw["token_burn_ratio"])
    assert pool_raw(PoolHistory(*map(empty, SCHEMAS))).height == 0
    one = Made().event("mint", 1.0, 1.0).raw()
    assert (one["mint_mean_period"], one["mint_count_per_week"]) == (0, 1), "all of one moment"


def test_concentrated_liquidity_has_no_shares() -> None:
    """V3: mints and burns name positions, not shares."""
    raw = Made().event("mint", 1.0, 1.0, recipient=DEV).event("swap", 1.0, -1.0).event("burn", -1.0, -1.0).raw()
    assert raw["reason"] is None
    assert raw["burn_ratio"] == pytest.approx(1 / 3)
    assert math.isnan(raw["lp_avg"])


def test_the_largest_amounts_there_are() -> None:
    made = Made().token(ZERO, DEV, MAX).token(ZERO, DEV, MAX).token(DEV, ZERO, MAX).share(ZERO, DEV, MAX)
    made.share(ZERO, BOB, MAX).share(DEV, POOL, MAX).event("mint", MAX, MAX).event("swap", MAX, -MAX)
    raw = made.event("swap", -MAX, MAX).event("burn", -MAX, -MAX).raw()
    known = {name: value for name, value in raw.items() if name in COLUMNS}
    assert all(math.isfinite(value) for value in known.values()), known
    assert raw["lp_avg"] == 100
    assert raw["token_burn_ratio"] == 1


def test_only_what_was_there_by_then_counts() -> None:
    made = a_pool()
    then = made.place()["ts"]
    before = made.raw()
    made.token(DEV, BURNED, 1e23).share(DEV, LOCKER, 1e20).event("swap", 1.0, -1.0)
    made.rows["creations"].append({"wallet": DEV, "token": DEAD, "ts": made.place()["ts"], "block_number": made.block})
    assert pool_raw(made.history(), then).to_dicts() == [before]
    assert pool_raw(made.history().before(5, 0)).to_dicts() == [before]
    assert pool_raw(made.history()).to_dicts() != [before]


# --- a whole market


def by_hand(history: PoolHistory, pool: dict[str, Any]) -> dict[str, float]:
    """The data set's definitions for one pool, row by row."""
    events = history.events.filter(pl.col("pool") == pool["pool"]).sort("block_number", "log_index").to_dicts()
    kinds = {kind: [e for e in events if e["event"] == kind] for kind in ("mint", "burn", "swap", "transfer")}
    start = kinds["mint"][0]["ts"]
    last = max(e["ts"] for kind in ("mint", "burn", "swap") for e in kinds[kind])
    active = (last - start).total_seconds()
    weeks, total = active / WEEK + 1, sum(len(kinds[kind]) for kind in ("mint", "burn", "swap"))
    raw: dict[str, float] = {}
    for kind in ("mint", "burn", "swap"):
        mean = sum((e["ts"] - start).total_seconds() for e in kinds[kind]) / max(len(kinds[kind]), 1)
        raw[f"{kind}_mean_period"] = int(mean) / active
        raw[f"{kind}_ratio"] = len(kinds[kind]) / total
        raw[f"{kind}_count_per_week"] = len(kinds[kind]) / weeks
    del raw["swap_count_per_week"]
    quote = "amount1_f" if pool["base_first"] else "amount0_f"
    came = sum(e[quote] > 0 for e in kinds["swap"])
    raw["swap_in_per_week"], raw["swap_out_per_week"] = came / weeks, (len(kinds["swap"]) - came) / weeks
    raw["swap_rate"] = came / (len(kinds["swap"]) - came + 1)

    holders: dict[bytes, float] = {}
    creator, holds = None, 0.0
    for e in kinds["transfer"]:
        if e["sender"] == ZERO and e["recipient"] != ZERO:
            creator = creator or e["recipient"]
            holders[e["recipient"]] = holders.get(e["recipient"], 0.0) + e["amount0_f"]
        if e["recipient"] == pool["pool"]:
            holders[e["sender"]] = holders.get(e["sender"], 0.0) - e["amount0_f"]
            if holders[e["sender"]] < 1e7:
                del holders[e["sender"]]
        holds += e["amount0_f"] * ((e["recipient"] == creator) - (e["sender"] == creator))
    shares = [100 * held / sum(holders.values()) for held in holders.values()]
    if shares:
        assert creator
        raw["lp_avg"], raw["lp_std"] = 100 / len(shares), float(np.std(shares))
        raw["lp_creator_holding_ratio"] = holds / sum(holders.values())
        raw["lp_lock_ratio"] = (holders.get(creator, 0.0) - holds) / sum(holders.values())
    moved = history.transfers.filter(pl.col("token") == pool["base"]).sort("block_number", "log_index").to_dicts()
    supply = sum(t["amount_f"] for t in moved if t["sender"] == ZERO)
    owner = next(t["recipient"] for t in moved if t["sender"] == ZERO)
    kept = sum(t["amount_f"] * ((t["recipient"] == owner) - (t["sender"] == owner)) for t in moved)
    raw["token_creator_holding_ratio"], raw["token_burn_ratio"] = kept / supply, 0.0
    made = history.creations.filter(pl.col("wallet") == owner)
    raw["number_of_token_creation_of_creator"] = float(made.height)
    return raw


def test_a_market_is_as_computed_by_hand(market: Market) -> None:
    rows = pool_raw(market.history)
    assert rows["reason"].null_count() == rows.height == 22
    for row, pool in zip(rows.to_dicts(), market.history.pools.to_dicts(), strict=True):
        want = by_hand(market.history, pool)
        for name in COLUMNS:
            if name in want:
                assert row[name] == pytest.approx(want[name], rel=1e-9, abs=1e-12), name
            else:
                assert math.isnan(row[name]), name


def test_one_pool_alone_is_the_same_to_the_last_bit(market: Market) -> None:
    rng = random.Random(1)
    for _ in range(4):
        until = BEGIN + timedelta(seconds=rng.randrange(3000, 12_000))
        many = pool_raw(market.history, until)
        pools = market.history.pools["pool"].to_list()
        for i, pool in enumerate(pools):
            assert pool_raw(market.history.of([pool]), until).equals(many[i]), "alone"
        some = rng.sample(pools, 5)
        assert pool_raw(market.history.of(some), until).equals(many.filter(pl.col("pool").is_in(some))), "some"


# --- labelled rows


def test_labelled_rows_are_of_the_rugs_transactions_and_of_others_events(market: Market) -> None:
    rows = pool_labels(market)
    assert rows["id"].is_unique().all()
    rugs = [label for label in market.labels["labels"] if label["is_rug"]]
    assert rows["Label"].sum() == len(rugs)
    assert set(rows.filter(pl.col("Label") == 1)["kind"]) == {"rug_burn", "rug_steps", "rug_swap"}
    assert not set(rows.filter(pl.col("Label") == 0)["kind"]) & {"rug_burn", "rug_steps", "rug_swap"}
    assert rows.group_by("group").len()["len"].max() <= 6
    times = {label["timestamp"] for label in rugs}
    assert {int(at.timestamp()) for at in rows.filter(pl.col("Label") == 1)["as_of"]} == times
    burned = rows.filter(pl.col("kind") == "rug_burn")
    assert (burned["burn_ratio"] > 0).all(), "the rug's own burn counts"
    assert (pool_labels(market, before=True).filter(pl.col("kind") == "rug_burn")["burn_ratio"] == 0).all()


def test_the_shipped_sample_separates_the_rugs_of_another_market(market: Market) -> None:
    """The recorded market has another seed than any of the sample's."""
    sample = pl.read_csv(SAMPLE)
    assert sample.columns == ["id", "Label", "group", *COLUMNS]
    assert sample["id"].is_unique().all()
    assert {row.split(":")[0] for row in sample["id"]}.isdisjoint({market.name})
    assert sample["Label"].sum() > 100
    assert sample.height > 4 * sample["Label"].sum()
    parameters = {"objective": "binary", "verbose": -1, "num_threads": 1, "num_leaves": 15, "min_data_in_leaf": 5}
    data = lightgbm.Dataset(sample.select(*COLUMNS).to_numpy(), sample["Label"].to_numpy())
    booster = lightgbm.train({**parameters, "learning_rate": 0.05, "seed": 1}, data, 150)
    rows = pool_labels(market)
    scores = booster.predict(rows.select(*COLUMNS).to_numpy())
    assert roc_auc_score(rows["Label"].to_numpy(), scores) > 0.95
