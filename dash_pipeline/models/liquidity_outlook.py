"""Model liquidity_outlook: how likely a pool is to lose at least half its liquidity within the next hour.

Belongs here: the raw columns at a moment, from the pool's own past; the label, from the hour that follows; the data
set made of both. Does not belong here: reading the history (`dash_pipeline/storage/pool_history.py`).

Liquidity is what the pool holds of the token it is priced in: that is what its holders can get out. Time is the
chain's. Training and scoring call the same `outlook_raw`, and a row depends on nothing but its pool's events up to and
with its moment; the tests change everything after a cut and find every row before it as it was.

V2 pools only: the events of V3 do not say what a pool holds. Rows of pools without reserves are NaN, with a reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from dash_pipeline.models.pool_features import (
    NO_HISTORY,
    Bools,
    Ints,
    PoolHistory,
    PoolLog,
    first_receivers,
    places,
    sums,
)
from dash_pipeline.models.spec import Floats, Raw, RawColumn, Spec

#: How far the model looks ahead, and what it calls a loss: this part of the liquidity or less is left.
HORIZON = timedelta(hours=1)
LEFT = 0.5
#: A pool that holds less than this part of its highest liquidity is empty already: no row of a data set.
EMPTY = 0.01
NO_RESERVES = "no reserves: the pool's liquidity is not stored (V3), or its tokens are unknown"

#: Moments of pools, as `outlook_raw` takes them.
MOMENTS: dict[str, Any] = {"pool": pl.Binary, "as_of": pl.Datetime("us", "UTC")}

_MINUTE_US = 60_000_000
_WINDOWS_MIN = (5, 15, 60)
# Transfers of shares that are looked at together, over all moments: what memory allows.
_EXPANDED = 1_000_000
# Milliseconds fit beside the pool's number in one key: 2^41 ms reach until 2039.
_KEY_MS = 1 << 41


def _windows(name: str, about: str, source: str) -> dict[str, RawColumn]:
    return {f"{name}_{m}m": RawColumn(about.format(m), source) for m in _WINDOWS_MIN}


_SYNC, _SWAPS, _BURNS = "chain.pool_events: sync", "chain.pool_events: swap", "chain.pool_events: mint, burn"
COLUMNS: dict[str, RawColumn] = {
    "age_s": RawColumn("seconds since the pool's first event", "chain.pool_events"),
    "idle_s": RawColumn("seconds since the pool's last event", "chain.pool_events"),
    "liquidity_of_peak": RawColumn("liquidity as a part of the highest there was", _SYNC),
    "liquidity_of_first": RawColumn("liquidity as a multiple of the first there was", _SYNC),
    **_windows("liquidity_change", "natural logarithm of liquidity against {} minutes ago", _SYNC),
    "mints": RawColumn("times that liquidity was added", _BURNS),
    "burns": RawColumn("times that liquidity was taken out", _BURNS),
    "burns_60m": RawColumn("the same in the last 60 minutes", _BURNS),
    "withdrawn_share": RawColumn("of all that was ever added, the part taken out, by the quote token", _BURNS),
    **_windows("withdrawn", "taken out in the last {} minutes, as a part of that and what is left", _BURNS),
    "largest_withdrawal": RawColumn("the largest part of the pool taken out at once", _BURNS),
    "withdrawal_every_s": RawColumn("mean seconds from one withdrawal to the next; NaN before the second", _BURNS),
    "since_withdrawal_s": RawColumn("seconds since the last withdrawal; NaN before the first", _BURNS),
    "trades_per_hour": RawColumn("trades per hour of the pool's age", _SWAPS),
    **_windows("trades", "trades in the last {} minutes", _SWAPS),
    **_windows("bought", "quote token that came in by trades in the last {} minutes, per liquidity", _SWAPS),
    **_windows("sold", "quote token that went out by trades in the last {} minutes, per liquidity", _SWAPS),
    **_windows("price_change", "natural logarithm of the price against {} minutes ago", _SYNC),
    "price_change_first": RawColumn("natural logarithm of the price against the first", _SYNC),
    "volatility_60m": RawColumn("root of the summed squares of the price's changes in the last 60 minutes", _SYNC),
    "lp_holders": RawColumn("wallets that hold shares of the pool", "chain.pool_events: transfer of the pool"),
    "lp_top_share": RawColumn("part of all shares that the largest holder has", "chain.pool_events: transfer"),
    "creator_tokens": RawColumn(
        "the token's creator's tokens as a multiple of those in the pool", "chain.pool_events: transfer of the token"
    ),
}


def outlook_raw(history: PoolHistory, moments: pl.DataFrame) -> pl.DataFrame:
    """One row per row of `moments` (MOMENTS), in their order: both, the COLUMNS as Float64, `reason`.

    `reason` is null where the row can be scored; else it says why the columns are NaN.
    """
    state = _State.of(history, moments)
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = _levels(state) | _withdrawals(state) | _trades(state) | _holders(state, history)
    lost = ~(state.liquidity > 0)
    frame = {name: pl.Series(np.where(lost, np.nan, columns[name]), dtype=pl.Float64) for name in COLUMNS}
    reserveless = pl.when(pl.Series(lost)).then(pl.lit(NO_RESERVES))
    reason = pl.when(pl.Series(state.events == 0)).then(pl.lit(NO_HISTORY)).otherwise(reserveless)
    return moments.select("pool", "as_of").with_columns(**frame, reason=pl.select(reason).to_series())


def outlook_labels(history: PoolHistory, moments: pl.DataFrame, known_until: datetime) -> pl.Series:
    """For each moment whether its pool's liquidity is at LEFT of it or less at any time of the HORIZON that follows:
    Int8, null where less than the horizon is known, or the pool has no liquidity.

    Null then even if the loss is already there: or the newest rows would all be positive ones.
    """
    state = _State.of(history, moments)
    lowest = state.segments(state.at, state.place(state.ts + HORIZON // timedelta(microseconds=1)), state.sync)
    low = lowest.lowest(state.log.reserve_quote)
    known = (state.ts + HORIZON // timedelta(microseconds=1) <= _us(known_until)) & (state.liquidity > 0)
    label = pl.Series((low <= LEFT * state.liquidity).astype(np.int8))
    return pl.select(pl.when(pl.Series(known)).then(label)).to_series().alias("label")


def outlook_dataset(
    history: PoolHistory, known_until: datetime, every_s: int = 300, market: str = "", most: int = 200_000
) -> pl.DataFrame:
    """Labelled rows of all pools of a history, one every `every_s` seconds from a pool's first event to `known_until`:
    `id`, `label` Int8, `as_of`, `group` (the pool), COLUMNS.

    More than `most` moments are thinned out: `every_s` is multiplied until they are not more.
    Left out: moments with less than the HORIZON known after them, of pools without reserves, and of empty ones; and
    pools whose history was cut.
    """
    history = history.of(history.pools.filter(~pl.col("cut").fill_null(False))["pool"])
    moments = every(history, known_until - HORIZON, every_s, most)
    raw = outlook_raw(history, moments).with_columns(label=outlook_labels(history, moments, known_until))
    rows = raw.filter(
        pl.col("label").is_not_null() & pl.col("reason").is_null() & (pl.col("liquidity_of_peak") > EMPTY)
    )
    group = pl.concat_str(pl.lit(f"{market}:0x" if market else "0x"), pl.col("pool").bin.encode("hex"))
    return rows.select(
        pl.concat_str(group, pl.lit(":"), pl.col("as_of").dt.epoch("s")).alias("id"),
        "label", "as_of", group.alias("group"), *COLUMNS,
    )  # fmt: skip


def every(history: PoolHistory, until: datetime, every_s: int, most: int) -> pl.DataFrame:
    """Moments `every_s` seconds apart, at multiples of it, of each pool from its first event on: `pool`, `as_of`. Of
    more than about `most`, every second, third, ... is taken."""
    begun = history.events.group_by("pool").agg(begins=pl.col("ts").min()).sort("pool")
    first = begun["begins"].dt.epoch("us").to_numpy()
    total = np.maximum(_us(until) - first, 0).sum() / (every_s * 1e6)
    step = every_s * 1_000_000 * max(int(np.ceil(total / most)), 1)
    begins = (first // step + 1) * step
    counts = np.maximum((_us(until) - begins) // step + 1, 0)
    pool = np.repeat(np.arange(begun.height), counts)
    number = np.arange(len(pool)) - (np.cumsum(counts) - counts)[pool]
    as_of = pl.Series(begins[pool] + number * step, dtype=pl.Int64).cast(pl.Datetime("us", "UTC"))
    return pl.DataFrame({"pool": begun["pool"][pool], "as_of": as_of})


@dataclass(frozen=True)
class _State:
    """The log, and of each moment: pool, time (us), how many of all rows lie before its end (`at`), how many events of
    its own pool (`events`), the last sync's position (-1: none) and the liquidity then."""

    log: PoolLog
    sync: Bools
    pool: Ints
    ts: Ints
    at: Ints
    keys: Ints
    starts: Ints
    events: Ints
    last: Ints
    liquidity: Floats

    @staticmethod
    def of(history: PoolHistory, moments: pl.DataFrame) -> _State:
        log = PoolLog.of(history)
        pool = places(moments["pool"], history.pools["pool"])
        ts = moments["as_of"].dt.cast_time_unit("us").to_physical().to_numpy()
        keys = log.pool * _KEY_MS + log.ts // 1000
        at = np.searchsorted(keys, pool * _KEY_MS + ts // 1000, side="right")
        starts = np.searchsorted(keys, pool * _KEY_MS, side="left")
        # A reserve of nothing is no price; of unknown tokens, no liquidity.
        sync = log.sync & ~np.isnan(log.reserve_quote)
        state = _State(log, sync, pool, ts, at, keys, starts, at - starts, at, np.zeros(len(ts)))
        last = state.previous(sync, at)
        return _State(log, sync, pool, ts, at, keys, starts, at - starts, last, _taken(log.reserve_quote, last))

    def place(self, ts: Ints) -> Ints:
        """How many of all rows lie before the end of that time, of the moments' pools."""
        return np.searchsorted(self.keys, self.pool * _KEY_MS + ts // 1000, side="right")

    def previous(self, which: Bools, at: Ints) -> Ints:
        """The position of the last such event of the moment's pool before `at`, -1 where there is none."""
        positions = np.flatnonzero(which)
        if not len(positions):
            return np.full(len(at), -1)
        found = positions[np.maximum(np.searchsorted(positions, at) - 1, 0)]
        return np.where((found < at) & (found >= self.starts), found, -1)

    def first(self, which: Bools) -> Ints:
        """The position of the first such event of the moment's pool before it, -1 where there is none."""
        positions = np.append(np.flatnonzero(which), len(which))
        found = positions[np.searchsorted(positions, self.starts)]
        return np.where(found < self.at, found, -1)

    def segments(self, begin: Ints, end: Ints, which: Bools) -> _Segments:
        """The events of a kind from `begin` up to before `end`, for each moment."""
        positions = np.flatnonzero(which)
        return _Segments(positions, np.searchsorted(positions, begin), np.searchsorted(positions, end))

    def window(self, minutes: int | None, which: Bools) -> _Segments:
        """The events of a kind in the last minutes of each moment (None: ever)."""
        if minutes is None:
            return self.segments(self.starts, self.at, which)
        return self.segments(self.place(self.ts - minutes * _MINUTE_US), self.at, which)

    def ago(self, minutes: int) -> Ints:
        """The last sync of so many minutes ago; the first one of a younger pool."""
        then = self.previous(self.sync, self.place(self.ts - minutes * _MINUTE_US))
        return np.where(then >= 0, then, self.first(self.sync))


@dataclass(frozen=True)
class _Segments:
    """Runs of `positions`, one per moment, from `begin` up to before `end`.

    Each run is reduced by itself. Differences of running totals would be cheaper, and would depend in their last bits
    on the pools before.
    """

    positions: Ints
    begin: Ints
    end: Ints

    def count(self) -> Floats:
        """How many events each run has."""
        return (self.end - self.begin).astype(np.float64)

    def sum(self, values: Floats) -> Floats:
        """The sum of the run's values, 0 where it is empty."""
        return self._reduced(np.add, values, 0.0)

    def highest(self, values: Floats) -> Floats:
        """The run's highest value, 0 where it is empty."""
        return self._reduced(np.maximum, values, 0.0)

    def lowest(self, values: Floats) -> Floats:
        """The run's lowest value, infinity where it is empty."""
        return self._reduced(np.minimum, values, np.inf)

    def _reduced(self, how: np.ufunc, values: Floats, none: float) -> Floats:
        if not len(self.begin):
            return np.zeros(0)
        padded = np.append(values[self.positions], none)
        pairs = np.column_stack((self.begin, np.maximum(self.end, self.begin))).ravel()
        reduced: Floats = np.where(self.end > self.begin, how.reduceat(padded, pairs)[::2], none)
        return reduced


def _taken(values: Floats, at: Ints) -> Floats:
    """The values at these positions, NaN at -1."""
    taken: Floats = np.where(at >= 0, np.append(values, np.nan)[at], np.nan)
    return taken


def _us(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000)


def _levels(state: _State) -> dict[str, Floats]:
    log, last = state.log, state.last
    price = log.reserve_quote / log.reserve_base
    first = state.first(state.sync)
    newest = _taken(log.ts.astype(np.float64), state.at - 1)
    oldest = _taken(log.ts.astype(np.float64), np.where(state.events > 0, state.starts, -1))
    columns = {
        "age_s": (state.ts - oldest) / 1e6,
        "idle_s": (state.ts - newest) / 1e6,
        "liquidity_of_peak": state.liquidity / state.window(None, state.sync).highest(log.reserve_quote),
        "liquidity_of_first": state.liquidity / _taken(log.reserve_quote, first),
        "price_change_first": np.log(_taken(price, last) / _taken(price, first)),
    }
    for minutes in _WINDOWS_MIN:
        then = state.ago(minutes)
        columns[f"liquidity_change_{minutes}m"] = np.log(state.liquidity / _taken(log.reserve_quote, then))
        columns[f"price_change_{minutes}m"] = np.log(_taken(price, last) / _taken(price, then))
    # A sync's change is against the sync before it; the first one of a pool has none.
    syncs = np.flatnonzero(state.sync)
    change = np.zeros(len(log.pool))
    moved = np.log(price[syncs[1:]] / price[syncs[:-1]])
    counts = np.isfinite(moved) & (log.pool[syncs[1:]] == log.pool[syncs[:-1]])
    change[syncs[1:]] = np.where(counts, moved, 0.0) ** 2
    columns["volatility_60m"] = np.sqrt(state.window(60, state.sync).sum(change))
    return columns


def _withdrawals(state: _State) -> dict[str, Floats]:
    log = state.log
    mint, burn = log.mint & ~np.isnan(log.quote), log.burn & ~np.isnan(log.quote)
    ever = state.window(None, burn)
    # In V2 a burn comes behind the sync that tells what it left.
    left = np.append(np.nan, log.reserve_quote)[:-1]
    taken = np.where(burn, np.abs(log.quote), 0.0)
    part = np.where(burn & ~np.isnan(left), taken / (left + taken), 0.0)
    times = log.ts.astype(np.float64)
    at_first, at_last = _taken(times, state.first(burn)), _taken(times, state.previous(burn, state.at))
    columns = {
        "mints": state.window(None, mint).count(),
        "burns": ever.count(),
        "burns_60m": state.window(60, burn).count(),
        "withdrawn_share": ever.sum(taken) / state.window(None, mint).sum(log.quote),
        "largest_withdrawal": ever.highest(part),
        "withdrawal_every_s": np.where(ever.count() > 1, (at_last - at_first) / 1e6 / (ever.count() - 1), np.nan),
        "since_withdrawal_s": (state.ts - at_last) / 1e6,
    }
    for minutes in _WINDOWS_MIN:
        out = state.window(minutes, burn).sum(taken)
        columns[f"withdrawn_{minutes}m"] = out / (out + state.liquidity)
    return columns


def _trades(state: _State) -> dict[str, Floats]:
    log = state.log
    swap = log.swap & ~np.isnan(log.quote)
    oldest = _taken(log.ts.astype(np.float64), np.where(state.events > 0, state.starts, -1))
    hours = np.maximum(state.ts - oldest, _MINUTE_US) / (60 * _MINUTE_US)
    columns = {"trades_per_hour": state.window(None, swap).count() / hours}
    for minutes in _WINDOWS_MIN:
        columns[f"trades_{minutes}m"] = state.window(minutes, swap).count()
        for name, sign in (("bought", 1.0), ("sold", -1.0)):
            moved = state.window(minutes, swap).sum(np.maximum(sign * log.quote, 0.0))
            columns[f"{name}_{minutes}m"] = moved / state.liquidity
    return columns


def _holders(state: _State, history: PoolHistory) -> dict[str, Floats]:
    share = state.segments(state.starts, state.at, state.log.transfer)
    # Who holds what changes only with a transfer: moments between two of them share the answer.
    there = share.end > share.begin
    ends, first, which = np.unique(np.where(there, share.end, 0), return_index=True, return_inverse=True)
    runs = _Segments(share.positions, np.where(there, share.begin, 0)[first], ends)
    top, holders = np.full(len(ends), np.nan), np.full(len(ends), np.nan)
    parts = np.cumsum(runs.count()) // _EXPANDED
    for part in np.unique(parts):
        some = parts == part
        top[some], holders[some] = _holdings(state.log, _Segments(runs.positions, runs.begin[some], runs.end[some]))
    return {
        "lp_holders": holders[which],
        "lp_top_share": top[which],
        "creator_tokens": _creators_tokens(state, history) / _taken(state.log.reserve_base, state.last),
    }


def _holdings(log: PoolLog, runs: _Segments) -> tuple[Floats, Floats]:
    """After each run of transfers of a pool's shares: the largest holder's part, and how many there are; NaN where
    nobody holds any."""
    counts = runs.end - runs.begin
    run = np.repeat(np.arange(len(counts)), counts)
    row = runs.positions[np.arange(len(run)) - (np.cumsum(counts) - counts)[run] + runs.begin[run]]
    wallet = np.concatenate((log.target[row], log.source[row]))
    amount = np.concatenate((log.amount[row], -log.amount[row]))
    # The pool itself holds shares for a moment while they are burned; the zero address is nobody.
    holds = (wallet != log.zero) & (wallet != np.concatenate((log.itself[row], log.itself[row])))
    width = int(wallet.max(initial=0)) + 1
    held, group = np.unique((np.concatenate((run, run)) * width + wallet)[holds], return_inverse=True)
    shares = np.maximum(sums(group, amount[holds], len(held)), 0.0)
    owner = held // width
    # In the order of size, which is nobody else's business than theirs: wallets' numbers are not the same alone.
    order = np.lexsort((shares, owner))
    owner, shares = owner[order], shares[order]
    total = sums(owner, shares, len(counts))
    top = np.zeros(len(counts))
    np.maximum.at(top, owner, shares)
    # A millionth of all shares is what rounding leaves to those who took out everything.
    holders = np.bincount(owner[shares > 1e-6 * total[owner]], minlength=len(counts)).astype(np.float64)
    return np.where(total > 0, top / total, np.nan), np.where(total > 0, holders, np.nan)


def _creators_tokens(state: _State, history: PoolHistory) -> Floats:
    """What the token's creator holds of it at each moment: who received the first supply, else who made the pool."""
    pools = history.pools.select("base", "creator", number=pl.int_range(pl.len()))
    received = first_receivers(history)
    known = pools.join(received, left_on="base", right_on="token", how="left", maintain_order="left")
    since = known["ts"].dt.cast_time_unit("us").to_physical().fill_null(np.iinfo(np.int64).max).to_numpy()
    receivers = _ledger(state, history, pools.select("base", "number", wallet=known["recipient"]))
    makers = _ledger(state, history, pools.select("base", "number", wallet="creator"))
    # A moment of a pool that is not there (-1) takes the last one's; its row is blank anyway.
    nobody, since = np.append(pools["creator"].is_null().to_numpy(), True), np.append(since, 0)
    tokens: Floats = np.where(since[state.pool] <= state.ts, receivers, np.where(nobody[state.pool], np.nan, makers))
    return tokens


def _ledger(state: _State, history: PoolHistory, owners: pl.DataFrame) -> Floats:
    """At each moment, what the pool's `wallet` received of token `base` less what he sent."""
    his = owners.join(history.transfers, left_on="base", right_on="token").filter(
        (pl.col("sender") == pl.col("wallet")) != (pl.col("recipient") == pl.col("wallet"))
    )
    his = his.sort("number", "block_number", "log_index")
    came = (his["recipient"] == his["wallet"]).to_numpy()
    keys = his["number"].to_numpy() * _KEY_MS + his["ts"].to_physical().to_numpy() // 1000
    begin = np.searchsorted(keys, state.pool * _KEY_MS, side="left")
    end = np.searchsorted(keys, state.pool * _KEY_MS + state.ts // 1000, side="right")
    return _Segments(np.arange(len(keys)), begin, end).sum(his["amount_f"].to_numpy() * np.where(came, 1.0, -1.0))


# ------------------------------------------------------------------------------------------------------- the model


def derive(raw: Raw) -> dict[str, Floats]:
    """The features: the raw columns as they are, and what is left to lose set against how fast it goes."""
    features = {name: np.asarray(raw[name], np.float64) for name in COLUMNS}
    with np.errstate(all="ignore"):
        every, last = features["withdrawal_every_s"], features["since_withdrawal_s"]
        features["withdrawals_an_hour"] = 3600.0 / every
        features["withdrawal_overdue"] = last / every
        features["dump_share"] = features["creator_tokens"] / (1.0 + features["creator_tokens"])
    return {name: np.where(np.isfinite(values), values, np.nan) for name, values in features.items()}


SPEC = Spec(
    name="liquidity_outlook",
    title="Probability that a pool loses at least half its liquidity within the next hour",
    subject="pool",
    id_column="id",
    label_column="label",
    columns=COLUMNS,
    derive=derive,
    split="time",
    horizon_s=HORIZON.total_seconds(),
    params={
        "objective": "binary",
        "learning_rate": 0.03,
        "num_leaves": 8,
        "min_data_in_leaf": 40,
        "feature_fraction": 0.7,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "lambda_l2": 5.0,
    },
    rounds=250,
    bags=3,
)
