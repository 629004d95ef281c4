"""Raw columns of model pool_risk, computed from the platform's own rows: what the labelled file says of a pair, live.

Belongs here: frames in, one row per pool out; pure. Does not belong here: reading the frames
(`dash_pipeline/storage/pool_history.py`), features made of the raw columns (`pool_risk.py`).

Definitions follow the published data set "Uniswap V2 rug pulls" (kangmyoungseok/RugPull-Prediction-AI), where a pair's
history is looked at up to just before the moment in question. `docs/models.md` says what each column means and where
the platform's value may differ from the original's.

A pool's row does not depend on which other pools are computed with it, to the last bit: training, where all pools are
computed at once, and scoring, where one is, see the same numbers. Sums are therefore made in the order of the chain,
row by row within a pool (`np.bincount`), never by a parallel group-by whose partial sums depend on what else is there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import chain as chain_of
from itertools import repeat

import numpy as np
import numpy.typing as npt
import polars as pl

from dash_pipeline.models.spec import Floats

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_Dtypes = dict[str, pl.DataType | type[pl.DataType]]

COLUMNS = (
    "mint_count_per_week", "burn_count_per_week", "mint_ratio", "swap_ratio", "burn_ratio", "mint_mean_period",
    "swap_mean_period", "burn_mean_period", "swap_in_per_week", "swap_out_per_week", "swap_rate", "lp_avg", "lp_std",
    "lp_creator_holding_ratio", "lp_lock_ratio", "token_burn_ratio", "token_creator_holding_ratio",
    "number_of_token_creation_of_creator",
)  # fmt: skip

ZERO = bytes(20)
#: Where tokens go that nobody will ever move: the zero address, 0x...01 and 0x...dead, as in the data set.
BURNED_TO = (ZERO, bytes(19) + b"\x01", bytes(18) + b"\xde\xad")
# What remains of a holder's shares by rounding, or as dust, makes no holder: smallest units, and a part of what he had.
_DUST, _DUST_SHARE = 10.0, 1e-9
_WEEK_US = 7 * 24 * 3600 * 1e6

NO_HISTORY = "no history: neither liquidity nor trades of this pool are stored"
NO_TOKENS = "the pool's creation is not stored: which of its tokens is the priced one is unknown"

_TS = pl.Datetime("us", "UTC")
_PLACE: _Dtypes = {"ts": _TS, "block_number": pl.Int64, "log_index": pl.Int32}
SCHEMAS: dict[str, _Dtypes] = {
    "pools": {
        "pool": pl.Binary,
        "protocol": pl.String,
        "base": pl.Binary,
        "quote": pl.Binary,
        "base_first": pl.Boolean,
        "creator": pl.Binary,
        "supply": pl.Float64,
        "cut": pl.Boolean,
    },
    "events": {
        "pool": pl.Binary,
        **_PLACE,
        "event": pl.String,
        "sender": pl.Binary,
        "recipient": pl.Binary,
        "amount0_f": pl.Float64,
        "amount1_f": pl.Float64,
        "reserve0_f": pl.Float64,
        "reserve1_f": pl.Float64,
    },
    "transfers": {"token": pl.Binary, **_PLACE, "sender": pl.Binary, "recipient": pl.Binary, "amount_f": pl.Float64},
    "creations": {"wallet": pl.Binary, "token": pl.Binary, "ts": _TS, "block_number": pl.Int64},
}


@dataclass(frozen=True)
class PoolHistory:
    """What is known of some pools; frames with the columns of SCHEMAS, rows in any order.

    `pools`: one row per pool asked for. `base` is the token, `quote` what it is priced in, `base_first` whether base is
    token0 (all null when the pool's creation is not stored); `creator`: sender of the creating transaction; `supply`:
    the token's supply as its contract said it, if it was read; `cut`: the history is longer than what was read.
    `events`: mint, burn, swap, sync of the pools, and transfers of their shares (`pool` is the share's contract too).
    `transfers`: of the base tokens. `creations`: tokens that have a pool, by the wallet that deployed them.
    `unread`: pools that are in no frame because part of their history is archived, and the archive was not to be read.
    `busy`: creators of whose archived and hot transactions only the newest were read.
    """

    pools: pl.DataFrame
    events: pl.DataFrame
    transfers: pl.DataFrame
    creations: pl.DataFrame
    unread: frozenset[bytes] = frozenset()
    busy: frozenset[bytes] = frozenset()

    def until(self, as_of: datetime) -> PoolHistory:
        """The history up to and with everything at `as_of`."""
        events, transfers, creations = (
            frame.filter(pl.col("ts") <= as_of) for frame in (self.events, self.transfers, self.creations)
        )
        return PoolHistory(self.pools, events, transfers, creations)

    def before(self, block_number: int, log_index: int) -> PoolHistory:
        """The history before a log: with its block's earlier logs, without itself."""
        earlier = (pl.col("block_number") < block_number) | (
            (pl.col("block_number") == block_number) & (pl.col("log_index") < log_index)
        )
        deployed = pl.col("block_number") <= block_number
        return PoolHistory(
            self.pools, self.events.filter(earlier), self.transfers.filter(earlier), self.creations.filter(deployed)
        )

    def of(self, pools: Iterable[bytes]) -> PoolHistory:
        """The history of some of the pools."""
        some = self.pools.filter(pl.col("pool").is_in(list(pools)))
        events = self.events.filter(pl.col("pool").is_in(some["pool"].to_list()))
        tokens = some["base"].drop_nulls().unique().to_list()
        return PoolHistory(some, events, self.transfers.filter(pl.col("token").is_in(tokens)), self.creations)


def empty(frame: str) -> pl.DataFrame:
    """A frame of PoolHistory without rows."""
    return pl.DataFrame(schema=SCHEMAS[frame])


def pool_raw(history: PoolHistory, as_of: datetime | None = None) -> pl.DataFrame:
    """One row per pool of `history.pools`, in their order: `pool`, COLUMNS as Float64 (NaN where unknown), `reason`.

    Only rows up to and with `as_of` count (None: all). `reason` says why columns are NaN and is null where they can be
    computed: NO_HISTORY leaves all columns NaN, NO_TOKENS those that tell the token from what it is priced in.
    """
    history = history if as_of is None else history.until(as_of)
    pools = history.pools
    log = PoolLog.of(history)
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = _activity(log) | _shares(log) | _token(history)
    lost = log.count(log.mint | log.burn | log.swap) == 0
    frame: dict[str, pl.Series] = {"pool": pools["pool"]}
    for name in COLUMNS:
        frame[name] = pl.Series(np.where(lost, np.nan, columns[name]), dtype=pl.Float64)
    nameless = pl.when(pools["base"].is_null()).then(pl.lit(NO_TOKENS))
    reason = pl.when(pl.Series(lost)).then(pl.lit(NO_HISTORY)).otherwise(nameless)
    return pl.DataFrame(frame | {"reason": pl.select(reason).to_series()})


def codes(*columns: pl.Series) -> list[Ints]:
    """Each value's number, the same in all columns; null has one too."""
    values = [column.to_list() for column in columns]
    known = dict.fromkeys(chain_of(*values))
    numbers = dict(zip(known, range(len(known)), strict=True))
    return [np.fromiter(map(numbers.__getitem__, some), np.int64, len(some)) for some in values]


def places(keys: pl.Series, among: pl.Series) -> Ints:
    """Where each of `keys` is in `among` (distinct values), -1 where it is not."""
    place = dict(zip(among.to_list(), range(len(among)), strict=True))
    return np.fromiter(map(place.get, keys.to_list(), repeat(-1)), np.int64, len(keys))


def sums(groups: Ints, values: Floats, count: int) -> Floats:
    """The sum of each group's values, added up in their order; 0 for a group without. `groups` and `values`: as long as
    each other; the result has `count` elements."""
    return np.bincount(groups, values, count).astype(np.float64, copy=False)


@dataclass(frozen=True)
class PoolLog:
    """The events as arrays, one element per event, in the order of pool (its position in `pools`), block and log.

    `ts` in microseconds. `base`, `quote`: change of the pool's reserves; `reserve_base`, `reserve_quote`: after a sync;
    NaN where the event has none, or the tokens are unknown. `amount`: what a transfer of shares moved. `source`,
    `target`: numbers of the wallets it went from and to; `zero`: the zero address's number.
    """

    pools: int
    pool: Ints
    ts: Ints
    mint: Bools
    burn: Bools
    swap: Bools
    sync: Bools
    transfer: Bools
    base: Floats
    quote: Floats
    reserve_base: Floats
    reserve_quote: Floats
    amount: Floats
    source: Ints
    target: Ints
    itself: Ints
    zero: int

    @staticmethod
    def of(history: PoolHistory) -> PoolLog:
        """The events of the history's pools."""
        pools, events = history.pools, history.events
        pool = places(events["pool"], pools["pool"])
        order = np.lexsort((events["log_index"].to_numpy(), events["block_number"].to_numpy(), pool))
        order = order[pool[order] >= 0]
        pool = pool[order]
        events = events[order]
        source, target, itself, zero = codes(
            events["sender"], events["recipient"], events["pool"], pl.Series([ZERO], dtype=pl.Binary)
        )
        (kinds, names) = codes(events["event"], pl.Series(["mint", "burn", "swap", "sync", "transfer"]))
        mint, burn, swap, sync, transfer = (kinds == name for name in names)
        first = pools["base_first"].cast(pl.Float64).to_numpy()[pool]
        amount0, amount1, reserve0, reserve1 = (
            events[name].to_numpy() for name in ("amount0_f", "amount1_f", "reserve0_f", "reserve1_f")
        )
        return PoolLog(
            pools.height, pool, events["ts"].to_physical().to_numpy(), mint, burn, swap, sync, transfer,
            _either(first, amount0, amount1), _either(first, amount1, amount0),
            _either(first, reserve0, reserve1), _either(first, reserve1, reserve0),
            amount0, source, target, itself, int(zero[0]),
        )  # fmt: skip

    def count(self, which: Bools) -> Floats:
        """How many of these events each pool has: `which` by event, the result float64 by pool."""
        return np.bincount(self.pool[which], minlength=self.pools).astype(np.float64)

    def sum(self, which: Bools, values: Floats) -> Floats:
        """The sum of `values` over these events of each pool."""
        return sums(self.pool[which], values[which], self.pools)

    def first(self, which: Bools) -> Ints:
        """The position of each pool's first such event, -1 where it has none."""
        found, at = np.unique(self.pool[which], return_index=True)
        positions = np.full(self.pools, -1, np.int64)
        positions[found] = np.flatnonzero(which)[at]
        return positions


def _either(first: Floats, if_first: Floats, if_second: Floats) -> Floats:
    either: Floats = np.where(first == 1, if_first, np.where(first == 0, if_second, np.nan))
    return either


def _activity(log: PoolLog) -> dict[str, Floats]:
    """How often, when and which way: the columns made of mints, burns and swaps."""
    happened = log.mint | log.burn | log.swap
    # From the first mint, as in the data set; from the first event where the mint is not stored.
    begins = log.first(log.mint)
    begins = np.where(begins >= 0, begins, log.first(happened))
    start = log.ts[begins] if len(log.ts) else np.zeros(log.pools, np.int64)
    since = np.maximum(log.ts - start[log.pool], 0).astype(np.float64)
    active = np.zeros(log.pools)
    np.maximum.at(active, log.pool[happened], since[happened])
    weeks = active / _WEEK_US + 1
    total = log.count(happened)
    columns: dict[str, Floats] = {}
    for name, which in (("mint", log.mint), ("swap", log.swap), ("burn", log.burn)):
        count = log.count(which)
        mean_s = np.floor(log.sum(which, since) / count / 1e6)
        # A kind that never happened has 0, as in the data set; so has a pool whose events are all of one moment.
        columns[f"{name}_mean_period"] = np.where((count > 0) & (active > 0), mean_s * 1e6 / active, 0.0)
        columns[f"{name}_ratio"] = count / total
        columns[f"{name}_count_per_week"] = count / weeks
    bought = log.count(log.swap & (log.quote > 0))
    sold = log.count(log.swap & (log.quote <= 0))
    unknown = log.count(log.swap & np.isnan(log.quote)) > 0
    columns["swap_in_per_week"] = np.where(unknown, np.nan, bought / weeks)
    columns["swap_out_per_week"] = np.where(unknown, np.nan, sold / weeks)
    columns["swap_rate"] = np.where(unknown, np.nan, bought / (sold + 1))
    return columns


def _shares(log: PoolLog) -> dict[str, Floats]:
    """Who holds the pool's shares, in percent of all: the columns made of share transfers.

    As in the data set, holders are those who minted and did not burn; what the first of them passed on to others (a
    locker, mostly) still counts as his there, and is the difference to what he really holds: the lock ratio. Known
    lockers need no list. NaN where nobody holds shares.
    """
    # The first mint sends 1000 units from zero to zero: nobody's. A burn is first a transfer to the pool itself.
    minted = log.transfer & (log.source == log.zero) & (log.target != log.zero)
    returned = log.transfer & (log.target == log.itself) & (log.source != log.zero)
    rows = np.flatnonzero(minted | returned)
    wallet = np.where(minted, log.target, log.source)[rows]
    holder, owner_pool = _groups(log.pool[rows], wallet)
    gained = sums(holder, np.where(minted[rows], log.amount[rows], 0.0), len(owner_pool))
    held = gained - sums(holder, np.where(minted[rows], 0.0, log.amount[rows]), len(owner_pool))
    held = np.where(held > np.maximum(_DUST, _DUST_SHARE * gained), held, 0.0)

    holders = np.bincount(owner_pool[held > 0], minlength=log.pools).astype(np.float64)
    total = sums(owner_pool, held, log.pools)
    total[holders == 0] = np.nan
    average = 100.0 / np.where(holders > 0, holders, np.nan)
    spread = np.where(held > 0, 100.0 * (held / total[owner_pool]) - average[owner_pool], 0.0)

    began = log.first(minted)
    creator = np.where(began >= 0, log.target[began], -1) if len(log.pool) else began
    his = creator[log.pool]
    really = log.sum(log.transfer & (log.target == his), log.amount) - log.sum(
        log.transfer & (log.source == his), log.amount
    )
    is_creator = np.zeros(len(owner_pool), np.bool_)
    is_creator[holder] = wallet == creator[log.pool[rows]]
    as_minted = sums(owner_pool[is_creator], held[is_creator], log.pools)
    return {
        "lp_avg": average,
        "lp_std": np.sqrt(sums(owner_pool, spread**2, log.pools) / holders),
        "lp_creator_holding_ratio": really / total,
        "lp_lock_ratio": (as_minted - really) / total,
    }


def _groups(pool: Ints, wallet: Ints) -> tuple[Ints, Ints]:
    """Each row's group, one per pool and wallet, numbered by first appearance; and each group's pool.

    By appearance, because numbers of wallets depend on what else is in the frame, and sums on their order.
    """
    width = int(wallet.max(initial=0)) + 1
    keys, first, group = np.unique(pool * width + wallet, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank[group], keys[order] // width


def token_creators(history: PoolHistory) -> pl.Series:
    """The wallet behind each pool's base token: who received its first supply; else who created the pool (null where
    neither is stored)."""
    pools, firsts = history.pools, first_receivers(history)
    received = dict(zip(firsts["token"].to_list(), firsts["recipient"].to_list(), strict=True))
    wallets = map(received.get, pools["base"].to_list(), pools["creator"].to_list())
    return pl.Series("creator", list(wallets), dtype=pl.Binary)


def first_receivers(history: PoolHistory) -> pl.DataFrame:
    """Who received each token's first supply, and when: `token`, `recipient`, `ts`."""
    issued = history.transfers.filter((pl.col("sender") == ZERO) & (pl.col("recipient") != ZERO))
    ordered = issued.sort("block_number", "log_index")
    return ordered.unique("token", keep="first", maintain_order=True).select("token", "recipient", "ts")


def _token(history: PoolHistory) -> dict[str, Floats]:
    """What became of the token's supply: the columns made of its transfers, and what else its creator made."""
    pools = history.pools
    balances = TokenBalances.of(history)
    creator = token_creators(history)
    unknown = creator.is_null().to_numpy()
    made = history.creations.unique(["wallet", "token"])["wallet"].to_list()
    (of_pool, of_wallet) = codes(creator, pl.Series(made, dtype=pl.Binary))
    tokens = np.bincount(of_wallet, minlength=int(of_pool.max(initial=0)) + 1)[of_pool].astype(np.float64)
    known = ~pools["base"].is_null().to_numpy()
    return {
        "token_burn_ratio": np.where(known, balances.burned / balances.supply, np.nan),
        "token_creator_holding_ratio": np.where(known & ~unknown, balances.creators / balances.supply, np.nan),
        "number_of_token_creation_of_creator": np.where(unknown, np.nan, np.maximum(tokens, 1.0)),
    }


@dataclass(frozen=True)
class TokenBalances:
    """Of each pool's base token, in its smallest units: `supply` (NaN where unknown), `burned`, `creators`: what the
    token's creator holds."""

    supply: Floats
    burned: Floats
    creators: Floats

    @staticmethod
    def of(history: PoolHistory) -> TokenBalances:
        """From the transfers that the history holds."""
        pools = history.pools
        tokens = pools["base"].unique(maintain_order=True)
        token = places(history.transfers["token"], tokens)
        transfers = history.transfers
        order = np.lexsort((transfers["log_index"].to_numpy(), transfers["block_number"].to_numpy(), token))
        order = order[token[order] >= 0]
        token, transfers = token[order], transfers[order]
        amount = transfers["amount_f"].to_numpy()

        def total(which: Bools) -> Floats:
            return sums(token[which], amount[which], len(tokens))

        source, target, burnt, creator = codes(
            transfers["sender"],
            transfers["recipient"],
            pl.Series(BURNED_TO, dtype=pl.Binary),
            token_creators(history),
        )
        zero = burnt[0]
        issued = total((source == zero) & (target != zero))
        at = places(pools["base"], tokens)
        # A contract that announces no first supply can still say how much there is.
        known = issued - total((target == zero) & (source != zero))
        supply: Floats = np.where(issued[at] > 0, known[at], pools["supply"].to_numpy())
        supply[~(supply > 0)] = np.nan
        width = int(max(source.max(initial=0), target.max(initial=0), creator.max(initial=0))) + 1
        his = at * width + creator
        held = _sums_at(his, token * width + target, amount) - _sums_at(his, token * width + source, amount)
        burned = total(np.isin(target, burnt) & (source != zero))
        return TokenBalances(supply, burned[at], held)


def _sums_at(wanted: Ints, keys: Ints, values: Floats) -> Floats:
    """For each wanted key, the sum of the values with that key, in their order."""
    found, group = np.unique(keys, return_inverse=True)
    if not len(found):
        return np.zeros(len(wanted))
    totals = sums(group, values, len(found))
    at = np.minimum(np.searchsorted(found, wanted), len(found) - 1)
    there: Floats = np.where(found[at] == wanted, totals[at], 0.0)
    return there
