"""Events of some pools -> the state of each pool before and after each of its transactions, as arrays.

Belongs here: order, what a reserve and a price are in Uniswap V2 and V3. Does not belong here: what is unusual
(`detect.py`).

Logarithms throughout: a share is a difference, products of reserves do not overflow, and amounts of any size can stand
side by side. Liquidity is sqrt(reserve0 * reserve1) of a V2 pool, which trades leave as it is; of a V3 pool it is an
index that moves as providers change the active liquidity, and stays when the price does. The root is the square root of
the other token's price in quote tokens: at the same liquidity the quote reserve goes with it, in V2 and V3 alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import polars as pl

from dash_pipeline.columns import Bools, Floats, Ints, equal, ranked, taken

# What an event must have to be one.
_KEY = ["pool", "ts", "block_number", "log_index"]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US_MIN = np.iinfo(np.int64).min
_LN_Q96 = 96 * np.log(2.0)
# The least that an amount of tokens in a pool can be told from nothing, in the smallest unit.
_ONE = 1.0
# What is left of liquidity that is all gone, as a part: a logarithm needs one.
_NOTHING = 1e-9


@dataclass(frozen=True)
class States:
    """A row per pool and transaction with pool events, by pool and place. Times in microseconds since the epoch.

    `rows`: the events, in order; `first` and `last` are a transaction's first and last row there. `low`: from when on
    it is asked what happened to the pool. `liquidity`, `root`,
    `reserve` (of the quote token) and `active` (liquidity as it is, where `liquidity` is an index): natural logarithms,
    NaN where unknown. `volume`: of the quote token, in multiples of its reserve. `born`: there was nothing before,
    `alive`: more than dust was in it before or after.
    """

    rows: pl.DataFrame
    row_ts: Ints
    row_pool: Ints
    pool: Ints
    ts: Ints
    low: Ints
    first: Ints
    last: Ints
    swap: Bools
    burn: Bools
    provided: Bools
    born: Bools
    alive: Bools
    liquidity: Floats
    liquidity_before: Floats
    root: Floats
    root_before: Floats
    reserve: Floats
    reserve_before: Floats
    active: Floats
    active_before: Floats
    volume: Floats

    def asked(self, at: Ints) -> Ints:
        """Those of pools that have one among them from `low` on: to other pools nothing happened that is asked for."""
        some = np.unique(self.pool[at[self.ts[at] >= self.low[at]]])
        return at[np.isin(self.pool[at], some)]

    def since(self, of: Ints, seconds: float) -> Ints:
        """The first transaction of the pool of each of `of` that is less than so many seconds older."""
        return _first_since(self.pool, self.ts, self.pool[of], self.ts[of], seconds)

    def rows_since(self, of: Ints, seconds: float) -> Ints:
        """The same of rows."""
        return _first_since(self.row_pool, self.row_ts, self.pool[of], self.ts[of], seconds)


def _first_since(pools: Ints, times: Ints, pool: Ints, ts: Ints, seconds: float) -> Ints:
    low, back = int(times.min()), int(seconds * 1e6)
    width = int(times.max()) - low + back + 2
    return np.searchsorted(
        pools * width + (times - low + back + 1), pool * width + np.maximum(ts - low + 1, 0), side="right"
    )


def states(
    events: pl.DataFrame, pools: pl.DataFrame, dust: float, since: Mapping[bytes, datetime] | None = None
) -> States | None:
    """The states of the pools; None where no row is a pool's event. `dust`: less liquidity is none. `since`: of some
    pools, from when on it is asked what happened."""
    rows, changed = _in_order(events)
    core = ~equal(rows["event"], "transfer")
    if not core.any():
        return None
    pool = np.cumsum(changed["pool"]) - 1
    sides = dict(zip(pools["pool"].to_list(), pools["quote"].to_list(), strict=True))
    names = taken(rows["pool"], np.flatnonzero(changed["pool"])).to_list()
    quote = np.array([1 if (side := sides.get(name)) is None else side for name in names], np.int64)
    first = np.flatnonzero(changed["pool"] | changed["tx_hash"] | changed["block_hash"])
    counts = np.add.reduceat(core, first)
    kept = counts > 0
    last = np.append(first[1:], len(core))[kept] - 1
    first = first[kept]
    # Rows of transactions without pool events lie between; sums over `first` must end where the transaction does.
    state = _Reader(rows, pool, quote[pool] == 1, first, last)
    low = np.array([_US_MIN if (lo := (since or {}).get(name)) is None else _us(lo) for name in names], np.int64)
    ts = rows["ts"].to_physical().to_numpy().astype(np.int64)
    liquidity, liquidity_before, root, root_before, reserve, active, born = state.read(dust)
    with np.errstate(over="ignore", invalid="ignore"):
        volume = np.minimum(np.exp(state.volume - reserve), 1e3)
    return States(
        rows=rows, row_ts=ts, row_pool=pool,
        pool=pool[first], ts=ts[first], low=low[pool[first]], first=first, last=last,
        swap=state.any("swap"), burn=state.any("burn"),
        provided=state.any("mint") | state.any("burn"), born=born,
        alive=state.v3[first] | (np.fmax(liquidity, liquidity_before) > np.log(dust)),
        liquidity=liquidity, liquidity_before=liquidity_before, root=root, root_before=root_before, reserve=reserve,
        reserve_before=state.previous(reserve), active=active, active_before=state.previous(active),
        volume=np.nan_to_num(volume, nan=0.0),
    )  # fmt: skip


def _in_order(events: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, Bools]]:
    """The events by pool and place, each once; and where a column's value is another than in the row before."""
    if any(events[name].null_count() for name in _KEY):
        events = events.drop_nulls(_KEY)
    # Without expressions: each of polars' queries costs more than comparing a batch's values.
    ranks = {name: _ranks(events[name]) for name in ("tx_hash", *_KEY, "block_hash", "event")}
    order = np.lexsort([ranks[name] for name in ("event", "log_index", "block_hash", "block_number", "ts", "pool")])
    changed = _changed(ranks, order)
    new = changed["pool"] | changed["log_index"] | changed["block_hash"] | changed["event"]
    if not new.all():
        order = order[new]
        changed = _changed(ranks, order)
    return events[pl.Series(order, dtype=pl.UInt32)], changed


def _ranks(values: pl.Series) -> Ints:
    """Numbers in the order of the values; nulls come first."""
    if values.dtype not in (pl.Binary, pl.String):
        return values.cast(pl.Int64).to_numpy()
    return ranked(values.to_list())[1]


def _changed(ranks: Mapping[str, Ints], order: Ints) -> dict[str, Bools]:
    return {name: np.diff(values[order], prepend=_US_MIN) != 0 for name, values in ranks.items()}


class _Reader:
    """The columns of the rows as arrays, and what they add up to by transaction."""

    def __init__(self, rows: pl.DataFrame, pool: Ints, second: Bools, first: Ints, last: Ints) -> None:
        """`second`: of each row whether the pool's second token is the quote."""
        self.rows, self.pool, self.second, self.first, self.last = rows, pool, second, first, last
        self.events = {kind: equal(rows["event"], kind) for kind in ("swap", "sync", "mint", "burn", "initialize")}
        # A V2 pool's transfers are of protocol erc20: what its other rows are, it is.
        self.v3 = _of_pool(equal(rows["protocol"], "uniswap_v3"), pool)
        self.place = np.arange(len(pool))
        self.begin = np.flatnonzero(np.diff(pool, prepend=-1))[pool]
        moved = self.events["swap"] | self.events["mint"] | self.events["burn"]
        self.amounts = [np.where(moved, self._number(f"amount{i}_f", 0.0), 0.0) for i in (0, 1)]
        traded = [self._sum(np.where(self.events["swap"], np.abs(amounts), 0.0)) for amounts in self.amounts]
        with np.errstate(divide="ignore"):
            self.volume = np.log(np.where(self.second[first], traded[1], traded[0]))

    def any(self, event: str) -> Bools:
        """Whether a transaction has such an event."""
        return self._sum(self.events[event]) > 0

    def read(self, dust: float) -> tuple[Floats, Floats, Floats, Floats, Floats, Floats, Bools]:
        """By transaction: liquidity, before; root, before; the quote reserve; active liquidity; whether it was born."""
        v3 = self.v3[self.first]
        if not v3.any():
            return self._v2(dust)
        if v3.all():
            return self._v3()
        two, three = self._v2(dust), self._v3()
        return tuple(np.where(v3, b, a) for a, b in zip(two, three, strict=True))  # type: ignore[return-value]

    def _v2(self, dust: float) -> tuple[Floats, Floats, Floats, Floats, Floats, Floats, Bools]:
        reserves = [self._number(f"reserve{i}_f", np.nan) for i in (0, 1)]
        known = self.events["sync"] & (reserves[0] >= 0) & (reserves[1] >= 0)
        at = self._newest(known)
        after = [np.where(at >= 0, reserve[at], np.nan) for reserve in reserves]
        moved = [self._sum(amounts) for amounts in self.amounts]
        logs = [_log(reserve) for reserve in after]
        quote = self.second[self.first]
        liquidity = (logs[0] + logs[1]) / 2
        root = np.where(quote, 1, -1) * (logs[1] - logs[0]) / 2
        # Of the first transaction that is known, what was before follows from what it moved: trades take no liquidity
        # away. The price before is left open, because a gate that sees no row of it could not let it pass.
        own = [_log(reserve - amount) for reserve, amount in zip(after, moved, strict=True)]
        own_liquidity = (own[0] + own[1]) / 2
        own_liquidity = np.where(self.any("burn"), own_liquidity, np.minimum(own_liquidity, liquidity))
        before = self._before(liquidity, own_liquidity)
        born = self.any("mint") & ~(before > np.log(dust))
        reserve = np.where(quote, logs[1], logs[0])
        return liquidity, before, root, self.previous(root), reserve, liquidity, born

    def _v3(self) -> tuple[Floats, Floats, Floats, Floats, Floats, Floats, Bools]:
        amount = self._number("liquidity_f", np.nan)
        swapped = self.events["swap"] & (amount >= 0)
        # A position that holds both tokens is in range.
        provided = self.events["mint"] | self.events["burn"]
        inside = provided & (self.amounts[0] != 0) & (self.amounts[1] != 0)
        moved = np.where(inside, np.nan_to_num(amount, nan=0.0), 0.0)
        # Within a pool: sums over many would lose one pool's amounts in another's.
        total = pl.DataFrame({"p": self.pool, "m": moved}).select(pl.col("m").cum_sum().over("p"))["m"].to_numpy()
        at = self._newest_row(swapped)
        active = np.where(at >= 0, amount[at] + total - total[at], np.nan)
        active = np.maximum(active, 0.0)
        was = np.maximum(active - moved, 0.0)
        floor = _NOTHING * np.maximum(active, was)
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.where(inside, np.log(np.maximum(active, floor)) - np.log(np.maximum(was, floor)), 0.0)
        step = np.nan_to_num(step, nan=0.0, posinf=0.0, neginf=0.0)
        index = np.cumsum(step)
        liquidity = index[self.last] - np.where(self.begin[self.first] > 0, index[self.begin[self.first] - 1], 0.0)
        before = liquidity - self._sum(step)

        price = self._number("sqrt_price_f", np.nan)
        priced = (self.events["swap"] | self.events["initialize"]) & (price > 0)
        at = self._newest(priced)
        with np.errstate(divide="ignore", invalid="ignore"):
            root = np.where(at >= 0, np.log(price[at]) - _LN_Q96, np.nan)
            now = np.log(active[self.last])
        sign = np.where(self.second[self.first], 1, -1)
        root = sign * root
        return liquidity, before, root, self.previous(root), now + root, now, self.any("initialize")

    def _number(self, column: str, missing: float) -> Floats:
        values = self.rows[column].to_numpy().astype(np.float64)
        return np.where(np.isfinite(values), values, missing)

    def _sum(self, values: npt.NDArray[np.generic]) -> Floats:
        """Sums by transaction. Rows behind a transaction's last belong to none."""
        edges = np.stack([self.first, self.last + 1], axis=1).ravel()
        padded = np.append(values.astype(np.float64), 0.0)
        return np.add.reduceat(padded, edges)[::2]

    def _newest_row(self, known: Bools) -> Ints:
        """The newest row of the pool, up to each row, where something is known; -1 for none."""
        at = np.maximum.accumulate(np.where(known, self.place, -1))
        return np.where(at >= self.begin, at, -1)

    def _newest(self, known: Bools) -> Ints:
        return self._newest_row(known)[self.last]

    def previous(self, after: Floats) -> Floats:
        """What was after the pool's transaction before; NaN for its first one."""
        first = np.diff(self.pool[self.first], prepend=-1) != 0
        return np.where(first, np.nan, np.concatenate([[np.nan], after[:-1]]))

    def _before(self, after: Floats, own: Floats) -> Floats:
        """What was before each transaction; `own` where the one before does not tell."""
        before = self.previous(after)
        return np.where(np.isnan(before), own, before)


def _of_pool(flags: Bools, pool: Ints) -> Bools:
    starts = np.flatnonzero(np.diff(pool, prepend=-1))
    return np.logical_or.reduceat(flags, starts)[pool]


def _us(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _log(amount: Floats) -> Floats:
    return np.log(np.maximum(amount, _ONE))
