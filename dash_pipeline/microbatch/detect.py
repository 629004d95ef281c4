"""Detection inside a micro-batch's transaction: what the pools it touched look like now, and what follows from that.

Belongs here: the order of steps, ids. Does not belong here: SQL (`storage/anomalies.py`), thresholds and arithmetic
(`dash_pipeline/anomalies/`).

Anomalies are a function of the committed rows. Whatever touches a pool (new rows, late rows, a reorg that takes rows
away) has the pool's anomalies computed anew from there on, and the stored ones made to agree: a replay changes nothing,
and what no longer holds is retracted. So arrival order, batch boundaries and kills do not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import polars as pl

from dash_pipeline.anomalies.detect import detect
from dash_pipeline.anomalies.gate import candidates
from dash_pipeline.anomalies.rules import Rules
from dash_pipeline.storage import anomalies as store
from dash_pipeline.storage.timescale import Connection

_SAID = (
    "pool", "ts", "event", "sender", "recipient", "amount0_f", "amount1_f", "reserve0_f", "reserve1_f", "liquidity",
    "sqrt_price_x96",
)  # fmt: skip


@dataclass(frozen=True)
class Detector:
    """What detection needs to know of a chain. `quotes`: addresses of its quote tokens, preferred ones first."""

    chain: str
    quotes: Sequence[bytes] = ()
    rules: Rules = field(default_factory=Rules)

    def begin(self, conn: Connection) -> None:
        """Count the last window anew: what a lane of a version that counts no minutes wrote, during an upgrade, is then
        in it. Whoever takes over partitions from such a lane begins after its last commit."""
        with conn.transaction():
            store.lock_detection(conn, self.chain)
            recent = store.recent_pools(conn, self.chain, self.rules.window_s)
            if recent.height:
                store.recount_minutes(conn, self.chain, recent)

    def run(
        self, conn: Connection, events: Sequence[pl.DataFrame], moved_blocks: Mapping[bytes, datetime], run_id: str
    ) -> int:
        """Bring the anomalies of pools up to date in the transaction that touched them, by new events (a frame per
        kind, as `abi.pool_events` makes them) or by blocks that changed sides (hash -> timestamp); how many were found,
        changed or retracted."""
        touched = store.pools_of_blocks(conn, self.chain, moved_blocks) if moved_blocks else touched_pools(events)
        if not touched.height:
            return 0
        store.lock_detection(conn, self.chain)
        moved, touched = touched.filter("moved"), touched.filter(~pl.col("moved"))
        if touched.height:
            if moved_blocks:
                store.recount_minutes(conn, self.chain, touched)
            else:
                store.add_minutes(conn, self.chain, pool_minutes(events))
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
        history = store.window_events(conn, self.chain, touched, pools, self.rules.lookback_s)
        lows = dict(touched.select("pool", "lo").iter_rows())
        found = detect(history, pools, self.rules, lows).iter_rows(named=True)
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


def pool_minutes(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """What these pool events, a frame per kind and not all of them transfers, say of their pools' minutes: the columns
    of MINUTES. Transfers say nothing."""
    pieces = [frame.select(_SAID) for frame in frames if frame.height and frame["event"][0] != "transfer"]
    swap = pl.col("event") == "swap"
    seen = {
        "reserve0": pl.col("reserve0_f"),
        "reserve1": pl.col("reserve1_f"),
        "liquidity": pl.col("liquidity").filter(swap).cast(pl.Float64),
        "root": pl.col("sqrt_price_x96").cast(pl.Float64),
    }
    return pl.concat(pieces).group_by("pool", pl.col("ts").dt.truncate("1m"), maintain_order=True).agg(
        swaps=swap.sum(),
        direct=(swap & (pl.col("recipient") != pl.col("sender"))).sum(),
        burns=(pl.col("event") == "burn").sum(),
        **{f"{name}_max": column.max() for name, column in seen.items()},
        **{f"{name}_min": column.min() for name, column in seen.items()},
        **{f"volume{i}": pl.col(f"amount{i}_f").filter(swap).abs().sum() for i in (0, 1)},
    )  # fmt: skip
