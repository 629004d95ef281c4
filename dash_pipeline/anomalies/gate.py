"""Which pools are worth reading a history for.

Belongs here: bounds on what `detect` can find, from a few aggregates. Does not belong here: the aggregates' SQL
(`storage/anomalies.py`), and what is found (`detect.py`).
"""

from __future__ import annotations

from math import exp, log

import numpy as np
import polars as pl

from dash_pipeline.anomalies.rules import Rules


def lost(rules: Rules) -> float:
    """How far apart reserves lie at the least when liquidity is lost: the ratio of the highest to the lowest, the mean
    of both tokens'."""
    return 1 / (1 - rules.withdrawal.low)


def candidates(stats: pl.DataFrame, rules: Rules) -> pl.Series:
    """The pools (Binary) that may have an anomaly at one of the newest events.

    `stats` (`storage.anomalies.STATS`): a row per pool, of its events from `rules.window_s` before the oldest new one
    to the newest, the extremes including the state before them. The others cannot have one: every level that a metric
    is held against lies between the extremes, and what moves it is a burn, a trade or a Sync that are counted here.
    Liquidity goes by one transaction, so that of burns and Syncs only the new ones matter: a pool that was drained a
    while ago is like any other.
    """
    # Column by column, without expressions: each of polars' queries costs more than all rows of a small batch.
    of = {name: column.to_numpy() for name in stats.columns if (column := stats[name]).dtype.is_numeric()}
    with np.errstate(all="ignore"):
        near = [of[f"near{i}_max"] / np.fmax(of[f"near{i}_min"], 1.0) for i in (0, 1)]
        # Without a burn, liquidity goes only where a Sync says so.
        gone = np.sqrt(near[0] * near[1]) >= lost(rules)
        spans = [of[f"reserve{i}_max"] / np.fmax(of[f"reserve{i}_min"], 1.0) for i in (0, 1)]
        root = of["root_max"] / of["root_min"]
        moved = np.where(np.isnan(root), spans[0] * spans[1], root**2)
        turned = np.fmax(of["turned0"], of["turned1"])
    price = exp(min(rules.price.low, -2 * log(1 - rules.drain.low)))
    # What is not known may be anything.
    traded = ~(moved < price) | ~(turned < rules.volume_of_reserve) | (of["busiest"] >= rules.burst_trades.low)
    suspect = (of["burns"] > 0) | gone | ((of["swaps"] > 0) & traded)
    return stats["pool"].filter(pl.Series(suspect))
