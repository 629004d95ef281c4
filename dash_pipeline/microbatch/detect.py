"""Detection inside a micro-batch's transaction: what the pools it touched look like now, and what follows from that.

Belongs here: the order of steps, ids. Does not belong here: SQL (`storage/anomalies.py`), thresholds and arithmetic
(`dash_pipeline/anomalies/`).

Anomalies are a function of the committed rows. Whatever touches a pool (new rows, late rows, a reorg that takes rows
away) has the pool's anomalies computed anew from there on, and the stored ones made to agree: a replay changes nothing,
and what no longer holds is retracted. So arrival order, batch boundaries and kills do not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import polars as pl

from dash_pipeline.anomalies.detect import detect
from dash_pipeline.anomalies.gate import candidates
from dash_pipeline.anomalies.rules import Rules
from dash_pipeline.storage import anomalies as store
from dash_pipeline.storage.timescale import Connection


@dataclass(frozen=True)
class Detector:
    """What detection needs to know of a chain. `quotes`: addresses of its quote tokens, preferred ones first."""

    chain: str
    quotes: Sequence[bytes] = ()
    rules: Rules = field(default_factory=Rules)

    def run(self, conn: Connection, touched: pl.DataFrame, run_id: str) -> int:
        """Bring the anomalies of the pools in `touched` (columns: TOUCHED) up to date, in the transaction that touched
        them; how many were found, changed or retracted."""
        if not touched.height:
            return 0
        store.lock_detection(conn, self.chain)
        moved, touched = touched.filter("moved"), touched.filter(~pl.col("moved"))
        if moved.height:
            # A transfer touches no pool, but may name who is behind what was found before it came.
            since: datetime = moved["lo"].min()  # type: ignore[assignment]
            named = store.pools_found_since(conn, self.chain, since, moved["pool"].to_list())
            touched = pl.concat([touched, named]).group_by("pool").agg(pl.col("lo").min(), pl.col("hi").max())
        if not touched.height:
            return 0
        stats = store.window_stats(conn, self.chain, touched, self.rules.window_s, self.rules.burst_trades.low)
        suspects = set(candidates(stats, self.rules)) | set(stats.filter("found_before")["pool"])
        if not suspects:
            return 0
        touched = touched.filter(pl.col("pool").is_in(list(suspects)))
        pools = store.window_pools(conn, self.chain, list(suspects), self.quotes)
        events = store.window_events(conn, self.chain, touched, pools, self.rules.lookback_s)
        lows = dict(touched.select("pool", "lo").iter_rows())
        found = detect(events, pools, self.rules, lows).iter_rows(named=True)
        rows = [self._row(row) for row in found if row["ts"] >= lows[row["pool"]]]
        if not rows and not stats["found_before"].any():
            return 0
        return store.write_anomalies(conn, self.chain, touched, rows, run_id)

    def _row(self, found: dict[str, Any]) -> dict[str, Any]:
        return found | {"id": anomaly_id(self.chain, found), "token": found["token"] or found["pool"]}


def anomaly_id(chain: str, found: dict[str, Any]) -> bytes:
    """16 bytes that follow from what was found and where: the same anomaly has the same id whoever finds it."""
    parts = (chain, found["kind"], found["severity"], found["pool"].hex(), found["block_hash"].hex(),
             found["tx_hash"].hex())  # fmt: skip
    return hashlib.sha256("|".join(parts).encode()).digest()[:16]


def touched_pools(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """The pools and moved contracts in frames of pool events (one kind each, as `abi.pool_events` makes them), as
    TOUCHED."""
    pieces = [
        frame.select("pool", pl.lit(frame["event"][0] == "transfer").alias("moved"), "ts")
        for frame in frames
        if frame.height
    ]
    if not pieces:
        return pl.DataFrame(schema=store.TOUCHED)
    return pl.concat(pieces).group_by("pool", "moved").agg(lo=pl.col("ts").min(), hi=pl.col("ts").max())
