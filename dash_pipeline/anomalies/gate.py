"""Which pools are worth reading a history for.

Belongs here: bounds on what `detect` can find, from a few aggregates. Does not belong here: the aggregates' SQL
(`storage/anomalies.py`), and what is found (`detect.py`).
"""

from __future__ import annotations

from math import exp, log

import numpy as np
import polars as pl

from dash_pipeline.anomalies.rules import Rules
from dash_pipeline.columns import Floats

_Q96 = 2.0**96


def candidates(stats: pl.DataFrame, rules: Rules) -> pl.Series:
    """The pools (Binary) that may have an anomaly at one of the newest events.

    `stats` (`storage.anomalies.STATS`): a row per pool, of its events from `rules.window_s` before the oldest new one
    to the newest, the extremes including the state before them. The others cannot have one: every level that a metric
    is held against lies between the extremes, and what moves it is a burn, a trade or a Sync that are counted here.
    """
    # Column by column, without expressions: each of polars' queries costs more than all rows of a small batch.
    of = {name: column.to_numpy() for name in stats.columns if (column := stats[name]).dtype.is_numeric()}
    with np.errstate(all="ignore"):
        spans = [of[f"reserve{i}_max"] / np.fmax(of[f"reserve{i}_min"], 1.0) for i in (0, 1)]
        both = spans[0] * spans[1]
        # Without a burn, liquidity goes only where a Sync says so.
        lost = np.sqrt(both) >= 1 / (1 - rules.withdrawal.low)
        # What a pool holds at the least; of V3, what its liquidity stands for.
        root = [of[f"root_{end}"] / _Q96 for end in ("min", "max")]
        least = [
            _or(of["reserve0_min"], of["liquidity_min"] / root[1]),
            _or(of["reserve1_min"], of["liquidity_min"] * root[0]),
        ]
        turned = np.fmax(of["volume0"] / least[0], of["volume1"] / least[1])
        moved = _or(both, (root[1] / root[0]) ** 2)
    price = exp(min(rules.price.low, -2 * log(1 - rules.drain.low)))
    # What is not known may be anything.
    traded = ~(moved < price) | ~(turned < rules.volume_of_reserve) | (of["busiest"] >= rules.burst_trades.low)
    suspect = (of["burns"] > 0) | lost | ((of["swaps"] > 0) & traded)
    return stats["pool"].filter(pl.Series(suspect))


def _or(values: Floats, others: Floats) -> Floats:
    return np.where(np.isnan(values), others, values)
