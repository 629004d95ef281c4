"""The detectors on hand-made lives of a pool, and on the recorded market; without servers."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest

from dash_pipeline.anomalies.detect import candidates, detect
from dash_pipeline.anomalies.rules import Rules
from dash_pipeline.events.abi import pool_events
from dash_pipeline.events.decode import decode
from dash_pipeline.market import RECORDED
from dash_pipeline.models.market_labels import read_market
from dash_pipeline.storage.anomalies import EVENTS, POOLS, STATS
from tests.chain import Messages, merge
from tests.pools import WETH, Pool, block, life

RULES = Rules()
DEVELOPER, PARTNER = "0x" + "d" * 40, "0x" + "e" * 40


def raw(text: str) -> bytes:
    return bytes.fromhex(text[2:])


def frames(blocks: list[tuple[str, Messages]], pool: Pool) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The pool's events and the pool, as the detectors take them."""
    logs = merge(messages for _, messages in blocks)["log"]
    events = pl.concat(pool_events(decode(logs, "log", "anvil", 1 << 20).frame))
    return as_events(events, {raw(pool.address): raw(pool.token)}), pl.DataFrame(
        [(raw(pool.address), "uniswap_v2", raw(pool.token), raw(WETH), 1, raw(pool.developer))], POOLS, orient="row"
    )


def as_events(events: pl.DataFrame, base: dict[bytes, bytes]) -> pl.DataFrame:
    """Rows of table pool_events -> EVENTS of these pools (pool -> its base token)."""
    events = events.with_columns(
        liquidity_f=pl.col("liquidity").cast(pl.Float64),
        sqrt_price_f=pl.col("sqrt_price_x96").cast(pl.Float64),
        token=pl.lit(None, pl.Binary),
    )
    own = events.filter(pl.col("pool").is_in(list(base)))
    moves = events.filter(pl.col("event") == "transfer").drop("token")
    tokens = pl.DataFrame({"into": list(base), "pool": list(base.values())}, {"into": pl.Binary, "pool": pl.Binary})
    moved = moves.join(tokens, on="pool").filter(
        (pl.col("sender") == pl.col("into")) | (pl.col("recipient") == pl.col("into"))
    )
    moved = moved.with_columns(token=pl.col("pool"), pool=pl.col("into"))
    return pl.concat([own.select(*EVENTS), moved.select(*EVENTS)])


def found(blocks: list[tuple[str, Messages]], pool: Pool) -> list[dict[str, Any]]:
    return detect(*frames(blocks, pool), RULES).to_dicts()


def after(blocks: list[tuple[str, Messages]], pool: Pool, share: float) -> list[dict[str, Any]]:
    """What is found when the developer takes out so much in the next block."""
    n = len(blocks)
    return found([*blocks, (f"A{n}", block(f"A{n}", f"A{n - 1}", [(pool.developer, pool.drained(share))]))], pool)


@pytest.mark.parametrize(
    ("share", "severities"),
    [
        (0.1, set()),
        (0.2, {"low"}),
        (0.4, {"low", "medium"}),
        (0.6, {"low", "medium", "high"}),
        (0.999, {"low", "medium", "high"}),
    ],
)
def test_a_withdrawal_is_as_severe_as_it_is_large(share: float, severities: set[str]) -> None:
    pool = Pool("x", DEVELOPER)
    rows = [row for row in after(life(pool, 60), pool, share) if row["kind"] == "liquidity_withdrawal"]
    assert {row["severity"] for row in rows} == severities
    for row in rows:
        assert row["score"] == pytest.approx(share, abs=0.01)
        assert row["wallets"] == [raw(DEVELOPER)]
        assert row["token"] == raw(pool.token)
        assert json.loads(row["evidence"])["withdrawn"] == pytest.approx(share, abs=0.01)


def test_a_young_pool_can_be_pulled_too() -> None:
    pool = Pool("x", DEVELOPER)
    assert "high" in {row["severity"] for row in after(life(pool, 3), pool, 0.95)}


def test_trades_alone_are_nothing() -> None:
    pool = Pool("x", DEVELOPER)
    assert found(life(pool, 80), pool) == []


def test_several_steps_are_one_anomaly_of_each_severity() -> None:
    pool = Pool("x", DEVELOPER)
    blocks = life(pool, 60)
    for n in range(60, 66):
        blocks.append((f"A{n}", block(f"A{n}", f"A{n - 1}", [(DEVELOPER, pool.drained(0.25))])))
    rows = [row for row in found(blocks, pool) if row["kind"] == "liquidity_withdrawal"]
    assert [row["severity"] for row in rows] == ["low", "medium", "high"]
    assert [row["block_number"] for row in rows] == [60, 61, 62]


def test_a_provider_who_did_not_make_the_pool_may_leave_with_his_own() -> None:
    pool = Pool("x", DEVELOPER)
    blocks = life(pool, 60)
    pool.developer = PARTNER  # who takes it out; the pool's maker stays DEVELOPER in the frame below
    blocks.append(("A60", block("A60", "A59", [(PARTNER, pool.drained(0.6))])))
    events, pools = frames(blocks, pool)
    made_by = pools.with_columns(creator=pl.lit(raw(DEVELOPER)))
    assert set(detect(events, made_by, RULES)["severity"]) == {"low", "medium"}
    assert "high" in set(detect(events, pools.with_columns(creator=pl.lit(None, pl.Binary)), RULES)["severity"])


def test_the_order_of_rows_and_doubled_rows_do_not_matter() -> None:
    pool = Pool("x", DEVELOPER)
    blocks = life(pool, 60)
    blocks.append(("A60", block("A60", "A59", [(DEVELOPER, pool.drained(0.9))])))
    events, pools = frames(blocks, pool)
    whole = detect(events, pools, RULES)
    shuffled = pl.concat([events, events]).sample(fraction=1, shuffle=True, seed=1)
    assert detect(shuffled, pools, RULES).equals(whole)


@pytest.mark.parametrize("reserve", [0.0, float("nan"), float("inf"), 1.2e77, None])
def test_amounts_that_make_no_sense_are_no_crash(reserve: float | None) -> None:
    pool = Pool("x", DEVELOPER)
    events, pools = frames(life(pool, 30), pool)
    last = pl.col("block_number") == 29
    detect(events.with_columns(reserve1_f=pl.when(last).then(pl.lit(reserve)).otherwise("reserve1_f")), pools, RULES)


def test_nothing_in_nothing_out() -> None:
    assert detect(pl.DataFrame(schema=EVENTS), pl.DataFrame(schema=POOLS), RULES).height == 0
    assert len(candidates(pl.DataFrame(schema=STATS), RULES)) == 0


def test_one_event_of_a_pool_nobody_knows() -> None:
    pool = Pool("x", DEVELOPER)
    events, pools = frames(life(pool, 2), pool)
    unknown = pools.with_columns(
        token0=pl.lit(None, pl.Binary), token1=pl.lit(None, pl.Binary), quote=pl.lit(None, pl.Int8),
        creator=pl.lit(None, pl.Binary),
    )  # fmt: skip
    assert detect(events.filter(pl.col("event") == "sync").head(1), unknown, RULES).height == 0


def stats(**values: float) -> pl.DataFrame:
    quiet = {"swaps": 10, "traders": 9, "burns": 0, "reserve0_max": 1.0, "reserve0_min": 0.99, "reserve1_max": 1.0,
             "reserve1_min": 0.99, "volume0": 0.1, "volume1": 0.1, "found_before": False}  # fmt: skip
    return pl.DataFrame([dict.fromkeys(STATS) | quiet | {"pool": b"p"} | values], STATS)


@pytest.mark.parametrize(
    ("values", "suspect"),
    [
        ({}, False),
        ({"burns": 1}, True),
        ({"reserve1_min": 0.3}, True),
        ({"reserve0_min": 0.8, "reserve1_min": 0.8}, True),
        ({"volume1": 1.5}, True),
        ({"swaps": 100, "traders": 95}, False),
        ({"swaps": 100, "traders": 20}, True),
        ({"liquidity_max": 2.0, "liquidity_min": 1.0}, True),
        ({"root_max": 2.0, "root_min": 1.0}, True),
    ],
)
def test_what_is_looked_at_closely(values: dict[str, float], suspect: bool) -> None:
    assert (len(candidates(stats(**values), RULES)) == 1) is suspect


def test_every_rug_pull_of_the_recorded_market_is_found_and_nothing_else_is_called_one() -> None:
    market = read_market(RECORDED)
    known = market.history.pools
    pools = known.select(
        "pool", "protocol", token0=pl.when("base_first").then("base").otherwise("quote"),
        token1=pl.when("base_first").then("quote").otherwise("base"),
        quote=pl.col("base_first").cast(pl.Int8), creator="creator",
    )  # fmt: skip
    events = as_events(market.events, dict(known.select("pool", "base").iter_rows()))
    rugs = {raw(label["pool"]) for label in market.labels["labels"] if label["is_rug"]}
    assert len(rugs) == 6
    assert set(detect(events, pools, RULES).filter(pl.col("severity") == "high")["pool"]) == rugs
