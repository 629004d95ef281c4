"""Which pools are worth reading a history for.

Belongs here: bounds on what `detect` can find, from a few aggregates. Does not belong here: the aggregates' SQL
(`storage/anomalies.py`), and what is found (`detect.py`).
"""

from __future__ import annotations

from math import exp, log

import polars as pl

from dash_pipeline.anomalies.rules import Rules

_Q96 = 2.0**96


def candidates(stats: pl.DataFrame, rules: Rules) -> pl.Series:
    """The pools (Binary) that may have an anomaly at one of the newest events.

    `stats` (`storage.anomalies.STATS`): a row per pool, of its events from `rules.window_s` before the oldest new one
    to the newest, the extremes including the state before them. The others cannot have one: every level that a metric
    is held against lies between the extremes, and what moves it is a burn, a trade or a Sync that are counted here.
    """
    spans = [pl.col(f"reserve{i}_max") / pl.max_horizontal(f"reserve{i}_min", pl.lit(1.0)) for i in (0, 1)]
    both = spans[0] * spans[1]
    # Without a burn, liquidity goes only where a Sync says so.
    lost = both.sqrt() >= 1 / (1 - rules.withdrawal.low)
    # What a pool holds at the least; of V3, what its liquidity stands for.
    root = [pl.col(f"root_{end}") / _Q96 for end in ("min", "max")]
    least = [
        pl.col("reserve0_min").fill_null(pl.col("liquidity_min") / root[1]),
        pl.col("reserve1_min").fill_null(pl.col("liquidity_min") * root[0]),
    ]
    turned = [pl.col(f"volume{i}") / least[i] for i in (0, 1)]
    price = exp(min(rules.price.low, -2 * log(1 - rules.drain.low)))
    moved = both.fill_null((root[1] / root[0]) ** 2) >= price
    traded = (
        moved | (pl.max_horizontal(*turned) >= rules.volume_of_reserve) | (pl.col("busiest") >= rules.burst_trades.low)
    )
    suspect = (pl.col("burns") > 0) | lost.fill_null(False) | ((pl.col("swaps") > 0) & traded.fill_null(True))
    return stats.filter(suspect)["pool"]
