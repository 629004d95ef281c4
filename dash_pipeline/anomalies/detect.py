"""The detectors: events of some pools in, anomalies out.

Belongs here: metrics and crossings. Does not belong here: thresholds (`rules.py`), reading and writing (`storage/`).

The unit is a pool's transaction: the state after its last event. An anomaly is the first transaction at which a metric
reaches a severity's threshold, with none at or above it in the window before. All windows end at the transaction and
are of the chain's time, so that a replay, in other batches or another order, finds the same.

Liquidity L is sqrt(reserve0 * reserve1) of a V2 pool and the active liquidity of a V3 pool: trades leave it as it is,
providers change it. It is held against what it was when the window began (of a younger pool: the most it ever was), and
a window before that, whichever was less, so that liquidity added and taken out again (just-in-time) is no withdrawal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import polars as pl

from dash_pipeline.anomalies.rules import Rules, Steps

_AT = ("pool", "block_number", "block_hash", "tx_hash")
_Q96 = 2.0**96

#: What `detect` gives.
FOUND: dict[str, Any] = {
    "pool": pl.Binary,
    "kind": pl.String,
    "severity": pl.String,
    "score": pl.Float64,
    "ts": pl.Datetime("us", "UTC"),
    "block_number": pl.Int64,
    "block_hash": pl.Binary,
    "tx_hash": pl.Binary,
    "log_indexes": pl.List(pl.Int32),
    "token": pl.Binary,
    "tokens": pl.List(pl.Binary),
    "wallets": pl.List(pl.Binary),
    "evidence": pl.String,
}


def candidates(stats: pl.DataFrame, rules: Rules) -> pl.Series:
    """The pools that may have an anomaly at the end of the window that `stats` (`storage.anomalies.STATS`) is of; the
    others cannot have one. Bounds only: the most a metric can be, from the extremes of the window."""
    lost0, lost1 = (1 - pl.col(f"reserve{i}_min") / pl.col(f"reserve{i}_max") for i in (0, 1))
    liquidity = 1 - ((1 - lost0) * (1 - lost1)).sqrt()
    price = -((1 - lost0) * (1 - lost1)).log()
    active = 1 - pl.col("liquidity_min") / pl.col("liquidity_max")
    swung = pl.col("root_max") / pl.col("root_min")
    volume = pl.max_horizontal(*(pl.col(f"volume{i}") / pl.col(f"reserve{i}_max") for i in (0, 1)))
    suspect = (
        (pl.col("burns") > 0)
        | (liquidity >= min(rules.withdrawal.values()))
        | (pl.max_horizontal(lost0, lost1) >= min(rules.drain.values()))
        | (price >= min(rules.price.values()))
        | (active >= min(rules.withdrawal.values()))
        | (swung >= 1 + min(rules.drain.values()))
        | (volume >= rules.volume_of_reserve)
        | (
            (pl.col("swaps") >= rules.burst_trades)
            & (pl.col("traders") <= pl.col("swaps") * (1 - rules.burst_share) + 1)
        )
    )
    return stats.filter(suspect)["pool"]


def detect(events: pl.DataFrame, pools: pl.DataFrame, rules: Rules) -> pl.DataFrame:
    """The anomalies among these events (`storage.anomalies.EVENTS` of `pools`, POOLS), as FOUND, by pool and place.

    Those of the first `rules.lookback_s` are not to be relied on: what was before is not known.
    """
    events = events.unique(["pool", "block_hash", "log_index", "event"]).sort("pool", "block_number", "log_index")
    points = _points(events.filter(pl.col("event") != "transfer"), pools, rules)
    if not points.height:
        return pl.DataFrame(schema=FOUND)
    found = [
        _crossings(points, "liquidity_withdrawal", "withdrawn", rules.withdrawal, rules.window_s, rules),
        _crossings(points, "slow_withdrawal", "withdrawn_slowly", rules.slow_withdrawal, rules.slow_window_s, rules),
        _crossings(points, "reserve_drain", "drained", rules.drain, rules.window_s, rules),
        _crossings(points, "price_spike", "price_moved", rules.price, rules.window_s, rules),
        _crossings(points, "volume_spike", "volume_factor", rules.volume, rules.window_s, rules),
        _bursts(points, events, rules),
    ]
    rows = pl.concat(found, how="diagonal").sort("pool", "block_number", "last_log", "kind", "severity")
    people = events.filter(pl.col("event") == "transfer")
    told = [_row(row, people, rules) for row in rows.iter_rows(named=True)]
    return pl.DataFrame([row for row in told if row is not None], FOUND, orient="row")


# ---------------------------------------------------------------------------------------------- states


def _points(events: pl.DataFrame, pools: pl.DataFrame, rules: Rules) -> pl.DataFrame:
    """A row per pool and transaction: the state after it, and every metric."""
    own = events.join(pools.select("pool", "token0", "token1", "quote", "creator"), on="pool", how="left")
    second = pl.col("quote").fill_null(1) == 1
    tick = pl.col("tick").forward_fill().over("pool")
    inside = (pl.col("tick_lower") <= tick) & (tick < pl.col("tick_upper"))
    moved = pl.when(pl.col("event").is_in(["mint", "burn"]) & inside).then(pl.col("liquidity_f")).otherwise(0.0)
    own = own.with_columns(moved=moved.fill_null(0.0).cum_sum().over("pool"))
    base = pl.when(pl.col("event") == "swap").then(pl.col("liquidity_f") - pl.col("moved"))
    active = base.forward_fill().over("pool") + pl.col("moved")
    root = pl.col("sqrt_price_f").forward_fill().over("pool") / _Q96
    own = own.with_columns(
        liquidity=pl.when(pl.col("protocol") == "uniswap_v3")
        .then(active)
        .otherwise((pl.col("reserve0_f") * pl.col("reserve1_f")).sqrt()),
        reserve=pl.when(pl.col("protocol") == "uniswap_v3")
        .then(pl.when(second).then(active * root).otherwise(active / root))
        .otherwise(pl.when(second).then("reserve1_f").otherwise("reserve0_f")),
        price=pl.when(pl.col("protocol") == "uniswap_v3")
        .then(root**2)
        .otherwise(pl.col("reserve1_f") / pl.col("reserve0_f")),
        volume=pl.when(pl.col("event") == "swap").then(
            pl.when(second).then(pl.col("amount1_f")).otherwise(pl.col("amount0_f")).abs()
        ),
    )
    points = own.group_by(_AT, maintain_order=True).agg(
        pl.col("ts").first(),
        pl.col("quote", "token0", "token1", "creator").first(),
        last_log=pl.col("log_index").max(),
        log_indexes=pl.col("log_index"),
        liquidity=pl.col("liquidity").drop_nulls().last(),
        reserve=pl.col("reserve").drop_nulls().last(),
        price=pl.col("price").drop_nulls().last(),
        volume=pl.col("volume").sum(),
        swaps=(pl.col("event") == "swap").sum(),
        burns=(pl.col("event") == "burn").sum(),
    )
    points = points.sort("pool", "block_number", "last_log").with_columns(
        pl.col("liquidity", "reserve", "price").forward_fill().over("pool")
    )
    return _with_metrics(points, rules)


def _before(points: pl.DataFrame, seconds: float, columns: Sequence[str], suffix: str) -> pl.DataFrame:
    """The state when the window of each point began, null where the pool is younger."""
    left = points.with_columns(began=pl.col("ts") - timedelta(seconds=seconds)).with_row_index("_row").sort("began")
    right = points.select("pool", pl.col("ts").alias("at"), *(pl.col(c).alias(f"{c}{suffix}") for c in columns))
    # Of several states at one time the last one counts: it is the one the block ended with.
    right = right.unique(["pool", "at"], keep="last", maintain_order=True).sort("at")
    joined = left.join_asof(
        right, left_on="began", right_on="at", by="pool", strategy="backward", check_sortedness=False
    )
    return joined.sort("_row").drop("_row", "began", "at", strict=False)


def _with_metrics(points: pl.DataFrame, rules: Rules) -> pl.DataFrame:
    points = _before(points, rules.window_s, ("liquidity", "reserve", "price"), "_then")
    points = _before(points, 2 * rules.window_s, ("liquidity",), "_earlier")
    points = _before(points, rules.slow_window_s, ("liquidity",), "_long_ago")
    points = points.with_columns(
        liquidity_then=pl.when(pl.col("liquidity_earlier") < pl.col("liquidity_then"))
        .then("liquidity_earlier")
        .otherwise("liquidity_then")
    )
    of_pool = {name: pl.col(name).cum_max().over("pool") for name in ("liquidity", "reserve")}
    then = {name: pl.coalesce(f"{name}_then", of_pool[name]) for name in ("liquidity", "reserve")}
    first_price = pl.col("price").first().over("pool")
    bucket = pl.col("ts").dt.epoch("s") // int(rules.window_s)
    points = points.with_columns(
        withdrawn=1 - pl.col("liquidity") / then["liquidity"],
        withdrawn_slowly=1 - pl.col("liquidity") / pl.coalesce("liquidity_long_ago", of_pool["liquidity"]),
        reserve_ref=then["reserve"],
        liquidity_ref=then["liquidity"],
        price_moved=(pl.col("price") / pl.coalesce("price_then", first_price)).log().abs(),
        peak=pl.col("reserve").rolling_max_by("ts", "7200s").over("pool"),
        bucket=bucket,
    )
    drop = 1 - pl.col("reserve") / pl.col("reserve_ref")
    points = points.with_columns(
        # Providers' doing is a withdrawal, and what a dead pool loses is nothing.
        drained=pl.when(
            (pl.col("withdrawn") < min(rules.withdrawal.values()))
            & (pl.col("reserve_ref") >= rules.crumbs * pl.col("peak"))
        ).then(
            pl.when(pl.col("reserve_ref") >= rules.high_of_peak * pl.col("peak"))
            .then(drop)
            .otherwise(drop.clip(upper_bound=rules.drain["high"] - 1e-9))
        ),
        withdrawn=pl.when(pl.col("liquidity_ref") > 0).then("withdrawn"),
        price_moved=pl.when((pl.col("swaps") > 0) & (pl.col("reserve_ref") >= rules.crumbs * pl.col("peak"))).then(
            "price_moved"
        ),
    )
    points = _restless(points, rules)
    return _with_volume(points, rules)


def _restless(points: pl.DataFrame, rules: Rules) -> pl.DataFrame:
    """How much the liquidity usually moves in a window, by the pool's own points of the hours before this window."""
    moves = points.select("pool", "ts", move=pl.col("withdrawn").abs()).filter(pl.col("move").is_finite())
    hourly = moves.group_by("pool", at=pl.col("ts").dt.truncate("10m") + timedelta(minutes=10)).agg(
        pl.col("move").max()
    )
    hourly = hourly.sort("pool", "at").with_columns(
        usual=pl.col("move").rolling_median_by("at", f"{int(rules.slow_window_s)}s", min_samples=4).over("pool")
    )
    left = (
        points.with_columns(began=pl.col("ts") - timedelta(seconds=rules.window_s)).with_row_index("_row").sort("began")
    )
    joined = left.join_asof(
        hourly.select("pool", "at", "usual").sort("at"),
        left_on="began",
        right_on="at",
        by="pool",
        strategy="backward",
        check_sortedness=False,
    )
    return joined.sort("_row").drop("_row", "began", "at", strict=False)


def _with_volume(points: pl.DataFrame, rules: Rules) -> pl.DataFrame:
    """A window's volume so far, as a multiple of the median window of the hour before; null where there is no history
    or little volume. Windows begin at multiples of their length."""
    per = points.group_by("pool", "bucket").agg(total=pl.col("volume").sum())
    before = pl.concat(
        [per.select("pool", (pl.col("bucket") + step).alias("bucket"), "total") for step in range(1, 7)]
    ).filter(pl.col("total") > 0)
    usual = before.group_by("pool", "bucket").agg(usual_volume=pl.col("total").median(), windows=pl.len())
    points = points.join(usual, ["pool", "bucket"], "left", maintain_order="left").with_columns(
        volume_now=pl.col("volume").cum_sum().over("pool", "bucket")
    )
    much = (pl.col("windows") >= rules.volume_history) & (
        pl.col("volume_now") >= rules.volume_of_reserve * pl.col("reserve_ref")
    )
    return points.with_columns(volume_factor=pl.when(much).then(pl.col("volume_now") / pl.col("usual_volume")))


# ---------------------------------------------------------------------------------------------- crossings


def _crossings(
    points: pl.DataFrame, kind: str, metric: str, steps: Steps, window_s: float, rules: Rules
) -> pl.DataFrame:
    """The first points at each severity's threshold."""
    value = pl.col(metric)
    usual = pl.col("usual").fill_null(0.0) * rules.restless
    found = []
    for severity, step in steps.items():
        least = usual.clip(step, max(step, rules.most_restless)) if kind.endswith("withdrawal") else pl.lit(step)
        above = (value >= least).fill_null(False) & value.is_finite().fill_null(False)
        since = pl.col("ts") - pl.when(above).then(pl.col("ts")).shift(1).forward_fill().over("pool")
        first = above & ((since > timedelta(seconds=window_s)) | since.is_null()).fill_null(True)
        found.append(
            points.filter(first).with_columns(
                kind=pl.lit(kind), severity=pl.lit(severity), score=value.clip(0, None), metric=pl.lit(metric)
            )
        )
    return pl.concat(found)


def _bursts(points: pl.DataFrame, events: pl.DataFrame, rules: Rules) -> pl.DataFrame:
    """The trade with which a wallet has made so many of a pool's trades of a window."""
    trades = events.filter((pl.col("event") == "swap") & (pl.col("recipient") != pl.col("sender"))).with_columns(
        bucket=pl.col("ts").dt.epoch("s") // int(rules.window_s)
    )
    trades = trades.with_columns(
        mine=pl.int_range(1, pl.len() + 1).over("pool", "bucket", "recipient"),
        all=pl.int_range(1, pl.len() + 1).over("pool", "bucket"),
    )
    first = trades.filter(
        (pl.col("mine") == rules.burst_trades) & (pl.col("mine") >= rules.burst_share * pl.col("all"))
    ).select(*_AT, trader="recipient", trades="mine", of_trades="all")
    return points.join(first, _AT, "inner", maintain_order="left").with_columns(
        kind=pl.lit("wallet_burst"), severity=pl.lit("low"), score=pl.col("trades") / pl.col("of_trades"),
        metric=pl.lit("trades"),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- what is told

_EVIDENCE: Mapping[str, Sequence[str]] = {
    "liquidity_withdrawal": ("withdrawn", "liquidity_ref", "liquidity", "reserve_ref", "reserve", "usual", "burns"),
    "slow_withdrawal": ("withdrawn_slowly", "liquidity_long_ago", "liquidity", "reserve", "burns"),
    "reserve_drain": ("drained", "reserve_ref", "reserve", "peak", "withdrawn", "price_then", "price"),
    "price_spike": ("price_moved", "price_then", "price", "reserve"),
    "volume_spike": ("volume_factor", "volume_now", "usual_volume", "windows", "reserve"),
    "wallet_burst": ("trades", "of_trades"),
}


def _row(row: dict[str, Any], transfers: pl.DataFrame, rules: Rules) -> dict[str, Any] | None:
    """An anomaly as it is stored, None where who is behind it makes it none. `score`: shares as they are, other metrics
    squeezed below 1."""
    tokens = [token for token in (row["token0"], row["token1"]) if token is not None]
    base = row["token1"] if row["quote"] == 0 else row["token0"]
    score = row["score"] if row["score"] <= 1 else 1 - 1 / (1 + row["score"])
    window_s = rules.slow_window_s if row["kind"] == "slow_withdrawal" else rules.window_s
    wallets = _wallets(row, transfers, window_s, rules.wallets)
    strangers = row["creator"] is not None and wallets and row["creator"] not in wallets
    if row["kind"] == "liquidity_withdrawal" and row["severity"] == "high" and strangers and score < rules.stranger:
        return None
    evidence = {name: row[name] for name in _EVIDENCE[row["kind"]] if row[name] is not None}
    return {name: row[name] for name in FOUND if name in row} | {
        "score": score,
        "token": base,
        "tokens": tokens,
        "wallets": wallets,
        "evidence": json.dumps(evidence | {"window_s": window_s, "threshold": row["severity"]}),
    }


def _wallets(row: dict[str, Any], transfers: pl.DataFrame, window_s: float, most: int) -> list[bytes]:
    """Who is behind it: those who gave back shares, those who sold into the pool; the most involved first."""
    if row["kind"] == "wallet_burst":
        return [row["trader"]]
    withdrawal = row["kind"].endswith("withdrawal")
    involved = transfers.filter(
        (pl.col("pool") == row["pool"])
        & (pl.col("recipient") == row["pool"])
        & (pl.col("sender") != row["pool"])
        & (pl.col("token").is_null() if withdrawal else pl.col("token").is_not_null())
        & (pl.col("ts") > row["ts"] - timedelta(seconds=window_s))
        & (pl.col("block_number") <= row["block_number"])
    )
    by_amount = involved.group_by("sender").agg(pl.col("amount0_f").sum()).sort("amount0_f", "sender", descending=True)
    return by_amount["sender"].head(most).to_list()
