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
from datetime import UTC, datetime, timedelta
from itertools import chain as chain_of
from typing import Any

import numpy as np
import polars as pl

from dash_pipeline.anomalies.detect import detect
from dash_pipeline.anomalies.gate import candidates, lost
from dash_pipeline.anomalies.rules import Rules
from dash_pipeline.columns import Bools, Floats, Ints, ranked
from dash_pipeline.storage import anomalies as store
from dash_pipeline.storage.anomalies import Touched
from dash_pipeline.storage.timescale import Connection

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MINUTE_US = 60_000_000


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
            if recent := store.recent_pools(conn, self.chain, self.rules.window_s):
                store.recount_minutes(conn, self.chain, recent)

    def run(
        self, conn: Connection, events: Sequence[pl.DataFrame], moved_blocks: Mapping[bytes, datetime], run_id: str
    ) -> int:
        """Bring the anomalies of pools up to date in the transaction that touched them, by new events (a frame per
        kind, as `abi.pool_events` makes them) or by blocks that changed sides (hash -> timestamp); how many were found,
        changed or retracted."""
        rules = self.rules
        if moved_blocks:
            touched, moved = store.pools_of_blocks(conn, self.chain, moved_blocks)
        else:
            minutes = pool_minutes(events)
            touched = _spans(zip(minutes["pool"], zip(minutes["lo"], minutes["hi"], strict=True), strict=True))
            moved = moved_contracts(events)
        if not touched and not moved:
            return 0
        with conn.pipeline():
            store.lock_detection(conn, self.chain)
            if touched and moved_blocks:
                store.recount_minutes(conn, self.chain, touched)
            elif touched:
                store.add_minutes(conn, self.chain, minutes)
            if moved:
                # A transfer touches no pool, but may name who is behind what was found before it came.
                named = store.pools_found_since(conn, self.chain, min(moved.values()), moved)
                touched = _spans([*touched.items(), *named.items()])
            if not touched:
                return 0
            stats = store.window_stats(conn, self.chain, touched, rules.window_s, rules.burst_trades.low, lost(rules))
        found_before = stats["pool"].filter(stats["found_before"]).to_list()
        suspects = {*candidates(stats, rules).to_list(), *found_before}
        if not suspects:
            return 0
        touched = {pool: times for pool, times in touched.items() if pool in suspects}
        pools = store.window_pools(conn, self.chain, list(suspects), self.quotes)
        history = store.window_events(conn, self.chain, touched, pools, rules.lookback_s)
        lows = {pool: lo for pool, (lo, _) in touched.items()}
        found = detect(history, pools, rules, lows).iter_rows(named=True)
        rows = [self._row(row) for row in found if row["ts"] >= lows[row["pool"]]]
        if not rows and not found_before:
            return 0
        return store.write_anomalies(conn, self.chain, touched, rows, run_id)

    def _row(self, found: dict[str, Any]) -> dict[str, Any]:
        return found | {"id": anomaly_id(self.chain, found), "token": found["token"] or found["pool"]}


def anomaly_id(chain: str, found: dict[str, Any]) -> bytes:
    """16 bytes that follow from what was found and where: the same anomaly has the same id whoever finds it."""
    parts = (chain, found["kind"], found["severity"], found["pool"].hex(), found["block_hash"].hex(),
             found["tx_hash"].hex())  # fmt: skip
    return hashlib.sha256("|".join(parts).encode()).digest()[:16]


def moved_contracts(frames: Iterable[pl.DataFrame]) -> dict[bytes, datetime]:
    """The contracts whose tokens or shares frames of pool events (one kind each, as `abi.pool_events` makes them) saw
    moved, and a time before which none was."""
    moved = [frame for frame in frames if frame.height and frame["event"][0] == "transfer"]
    since: datetime = min((frame["ts"].min() for frame in moved), default=_EPOCH)  # type: ignore[assignment, type-var]
    return dict.fromkeys(chain_of.from_iterable(frame["pool"].to_list() for frame in moved), since)


def pool_minutes(frames: Iterable[pl.DataFrame]) -> dict[str, list[Any]]:
    """What pool events, a frame per kind, say of their pools' minutes: the columns of MINUTES, and between which times
    (`lo`, `hi`). Transfers say nothing."""
    frames = [frame for frame in frames if frame.height and frame["event"][0] != "transfer"]
    if not frames:
        return {name: [] for name in (*store.MINUTES, "lo", "hi")}
    # Column by column, without expressions: each of polars' queries costs more than all rows of a small batch.
    known, pool = ranked(list(chain_of.from_iterable(frame["pool"].to_list() for frame in frames)))
    ts = np.concatenate([frame["ts"].cast(pl.Int64).to_numpy() for frame in frames])
    order = np.lexsort((ts, pool))
    pool, ts = pool[order], ts[order]
    minute = ts // _MINUTE_US
    first = np.flatnonzero((np.diff(pool, prepend=-1) != 0) | (np.diff(minute, prepend=0) != 0))
    last = np.append(first[1:], len(ts)) - 1

    def of(column: str, event: str = "") -> Floats:
        """A column's numbers; NaN where there is none, or where the row is of another kind."""
        return np.concatenate([_floats(frame, column, event) for frame in frames])[order]

    def count(marked: Iterable[Bools]) -> list[int]:
        numbers: list[int] = np.add.reduceat(np.concatenate(list(marked))[order].astype(np.int64), first).tolist()
        return numbers

    kinds = [(frame["event"][0], frame) for frame in frames]
    seen = {
        "reserve0": of("reserve0_f"),
        "reserve1": of("reserve1_f"),
        "liquidity": of("liquidity", "swap"),
        "root": np.concatenate([_root(frame) for frame in frames])[order],
    }
    traded = {f"volume{i}": np.nan_to_num(np.abs(of(f"amount{i}_f", "swap")), nan=0.0) for i in (0, 1)}
    return {
        "pool": [known[number] for number in pool[first].tolist()],
        "ts": _times(minute[first] * _MINUTE_US),
        "lo": _times(ts[first]),
        "hi": _times(ts[last]),
        "swaps": count(np.full(frame.height, kind == "swap") for kind, frame in kinds),
        "burns": count(np.full(frame.height, kind == "burn") for kind, frame in kinds),
        "direct": count(
            (frame["recipient"] != frame["sender"]).to_numpy() if kind == "swap" else np.zeros(frame.height, np.bool_)
            for kind, frame in kinds
        ),
        **{f"{name}_max": _some(np.fmax.reduceat(values, first)) for name, values in seen.items()},
        **{f"{name}_min": _some(np.fmin.reduceat(values, first)) for name, values in seen.items()},
        **{name: np.add.reduceat(values, first).tolist() for name, values in traded.items()},
    }


def _floats(frame: pl.DataFrame, column: str, event: str) -> Floats:
    # A column is null in all rows of a frame or in none.
    if frame[column].null_count() or (event and frame["event"][0] != event):
        return np.full(frame.height, np.nan)
    return frame[column].cast(pl.Float64).to_numpy()


def _root(frame: pl.DataFrame) -> Floats:
    """The square root of token1's price in token0 as events say it; of V2, of amounts of at least 1."""
    if frame["event"][0] != "sync":
        return _floats(frame, "sqrt_price_x96", "")
    reserve0, reserve1 = (np.maximum(_floats(frame, f"reserve{i}_f", ""), 1.0) for i in (0, 1))
    return np.sqrt(reserve1 / reserve0) * 2.0**96


def _some(values: Floats) -> list[float | None]:
    return [None if number != number else number for number in values.tolist()]


def _times(us: Ints) -> list[datetime]:
    return [_EPOCH + timedelta(microseconds=at) for at in us.tolist()]


def _spans(times: Iterable[tuple[bytes, tuple[datetime, datetime]]]) -> Touched:
    """One span for each address, from its first to its last time."""
    spans: Touched = {}
    for address, (lo, hi) in times:
        first, last = spans.get(address, (lo, hi))
        spans[address] = min(first, lo), max(last, hi)
    return spans
