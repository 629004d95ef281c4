"""Today's detectors on any time of the past: anomalies derived from pool_events, archived or hot.

Belongs here: giving detectors the windows that a lane would give them, from history. Does not belong here: what is an
anomaly (`anomalies/`), the lane's own way (`microbatch/detect.py`).

It is an answer, and changes nothing. `intel.anomalies` is the outbox of `dash.anomalies`: what is written there is
published, predicted on, and people are told of it, which they should not be of last March.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

import polars as pl

from dash_pipeline.anomalies.detect import FOUND, detect
from dash_pipeline.anomalies.rules import Rules
from dash_pipeline.archive.export import DAY
from dash_pipeline.archive.manifest import midnight
from dash_pipeline.errors import DashError
from dash_pipeline.microbatch.detect import anomaly_id
from dash_pipeline.settings import Settings
from dash_pipeline.storage.anomalies import EVENTS, active_ids, window_pools
from dash_pipeline.storage.history import collect, history
from dash_pipeline.storage.timescale import session

#: What `anomalies` gives: `id` is the one that a lane would give it, `stored`: a lane has found it, and it holds.
PAST: dict[str, Any] = {"id": pl.Binary, "stored": pl.Boolean, "chain": pl.String, **FOUND}
_IS_STATE = (pl.col("event") == "sync") | ((pl.col("event") == "swap") & pl.col("liquidity_f").is_not_null())
_CREATED = pl.col("event").is_in(["pair_created", "pool_created"])
_TRANSFER = pl.col("event") == "transfer"
_NOBODY = bytes(20)


def anomalies(
    settings: Settings,
    chain: str,
    quotes: Sequence[bytes],
    first: date,
    last: date,
    rules: Rules | None = None,
) -> pl.DataFrame:
    """The anomalies (PAST) of the days from `first` to `last` by these rules (without: those of lanes), by time.

    `quotes`: addresses of the chain's quote tokens, preferred ones first. What happened before the range is read as far
    back as a lane has it hot: `DASH_RETENTION_DAYS`. A day is in memory at a time. Raises Unavailable when a server
    does not answer or an object cannot be read.
    """
    if last < first:
        raise DashError(f"anomalies: the range ends ({last}) before it begins ({first})")
    rules = rules or Rules()
    back = timedelta(seconds=rules.lookback_s)
    rows, states = pl.DataFrame(schema=EVENTS), pl.DataFrame(schema=EVENTS)
    makers = pl.DataFrame(schema={"pool": pl.Binary, "maker": pl.Binary})
    found = []
    day = first - settings.retention_days * timedelta(days=1)
    while day <= last:
        start = midnight(day)
        today = _events(settings, chain, day)
        makers = pl.concat([makers, _makers(today)]).unique("pool", keep="first", maintain_order=True)
        old = pl.col("ts") < start - back
        # What was in a quiet pool before the window.
        states = pl.concat([states, rows.filter(old & _IS_STATE)])
        states = states.sort("ts", "block_number", "log_index").unique("pool", keep="last", maintain_order=True)
        rows = pl.concat([rows.filter(~old), today])
        if day >= first:
            with session(settings) as conn:
                active = rows.filter(~_TRANSFER)["pool"].unique().to_list()
                pools = window_pools(conn, chain, active, quotes).join(makers, on="pool", how="left")
            pools = pools.with_columns(creator=pl.coalesce("creator", "maker"))
            events = pl.concat([_of_pools(rows, pools), states.filter(pl.col("pool").is_in(active))])
            found.append(detect(events, pools, rules).filter(pl.col("ts") >= start))
        day += DAY
    return _told(settings, chain, pl.concat(found))


def _events(settings: Settings, chain: str, day: date) -> pl.DataFrame:
    """A day's pool events as EVENTS, `token` empty."""
    start = midnight(day)
    return collect(
        history(settings, "pool_events")
        .filter((pl.col("chain") == chain) & (pl.col("ts") >= start) & (pl.col("ts") < start + DAY))
        .select(
            pl.lit(None, pl.Binary).alias("token")
            if name == "token"
            else pl.col({"liquidity_f": "liquidity", "sqrt_price_f": "sqrt_price_x96"}.get(name, name))
            .cast(dtype)
            .alias(name)
            for name, dtype in EVENTS.items()
        )
    )


def _of_pools(rows: pl.DataFrame, pools: pl.DataFrame) -> pl.DataFrame:
    """The pools' own events, and the transfers of their base tokens into and out of them."""
    own = rows.join(pools.select("pool"), on="pool", how="semi")
    base = pools.select("pool", token=pl.when(pl.col("quote") == 0).then("token1").otherwise("token0"))
    moved = rows.filter(_TRANSFER).drop("token").rename({"pool": "token"})
    ways = [
        moved.join(base.with_columns(pl.col("pool").alias(way)), on=["token", way]).select(*EVENTS)
        for way in ("sender", "recipient")
    ]
    return pl.concat([own, *ways])


def _makers(rows: pl.DataFrame) -> pl.DataFrame:
    """Of each pool that was created, `maker`: who got the first shares in the transaction that created it."""
    created = rows.filter(_CREATED).select("pool", "block_hash", "tx_hash")
    shares = rows.filter(_TRANSFER & (pl.col("sender") == _NOBODY) & (pl.col("recipient") != _NOBODY))
    given = shares.join(created, on=["pool", "block_hash", "tx_hash"], how="semi").sort("ts", "log_index")
    return given.unique("pool", keep="first", maintain_order=True).select("pool", maker="recipient")


def _told(settings: Settings, chain: str, found: pl.DataFrame) -> pl.DataFrame:
    ids = [anomaly_id(chain, row) for row in found.iter_rows(named=True)]
    with session(settings) as conn:
        stored = active_ids(conn, ids)
    return (
        found.with_columns(
            id=pl.Series(ids, dtype=pl.Binary),
            stored=pl.Series([one in stored for one in ids], dtype=pl.Boolean),
            chain=pl.lit(chain),
        )
        .select(*PAST)
        .sort("ts", "block_number", "pool", "kind")
    )
