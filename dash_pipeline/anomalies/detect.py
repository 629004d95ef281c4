"""The detectors: events of some pools in, anomalies out. Pure: a function of the rows.

Belongs here: what is measured, and when it is an anomaly. Does not belong here: thresholds (`rules.py`), reserves and
prices (`states.py`), reading and writing (`storage/`).

The unit is a pool's transaction: the state after its last event. An anomaly is the first transaction at which a metric
reaches a severity's threshold, with none that did so within `rules.quiet_s` before. All windows end at the transaction
and are of the chain's time, so that a replay, in other batches or another order, finds the same.

What a level is held against is the level that the pool *had*, by time: the highest of the window that lasted, or the
usual one of its history, whichever is less. So liquidity and whales that come and go leave no trace, and a pool that
is pulled a minute after its birth still has something to lose.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from math import log
from typing import Any, Literal

import numpy as np
import polars as pl

from dash_pipeline.anomalies.rules import Levels, Rules
from dash_pipeline.anomalies.states import States, states
from dash_pipeline.anomalies.windows import Pairs, first_crossings, highest, median
from dash_pipeline.columns import Bools, Floats, Ints, equal, filled, ranked, taken

#: What `detect` gives.
FOUND: dict[str, Any] = {
    "pool": pl.Binary,
    "kind": pl.String,
    "severity": pl.String,
    "score": pl.Float64,
    "ts": pl.Datetime("us", "UTC"),
    "block_number": pl.Int64,
    "block_hash": pl.Binary,
    "tx_hash": pl.Binary,
    "log_indexes": pl.List(pl.Int32),
    "token": pl.Binary,
    "tokens": pl.List(pl.Binary),
    "wallets": pl.List(pl.Binary),
    "evidence": pl.String,
}
SEVERITIES = ("low", "medium", "high")
# Wallets named in an anomaly.
_WALLETS = 5


@dataclass(frozen=True)
class _Crossings:
    """Transactions of one kind of anomaly at or above a threshold, in order. `at`: their numbers in the states,
    `level`: the severity (1 to 3), `people`: who is behind each, the most involved first (None: who sold), `evidence`:
    a column per name."""

    kind: str
    at: Ints
    level: Ints
    score: Floats
    people: list[list[bytes]] | None
    evidence: dict[str, Any]


def detect(
    events: pl.DataFrame, pools: pl.DataFrame, rules: Rules, since: Mapping[bytes, datetime] | None = None
) -> pl.DataFrame:
    """The anomalies (FOUND) among these events (`storage.anomalies.EVENTS` of `pools`, POOLS), by pool, place and kind.

    Those of the first `rules.lookback_s` are not to be relied on: what was before is not known. Never raises for what a
    row holds: amounts that are no numbers are none. `since`: of some pools, from when on anomalies are asked for;
    earlier ones may then be missing.
    """
    known = states(events, pools, rules.dust, since)
    if known is None:
        return pl.DataFrame(schema=FOUND)
    kinds = (_withdrawals, _drains, _price_spikes, _volume_spikes, _bursts)
    with np.errstate(all="ignore"):
        found = [crossings for kind in kinds if (crossings := kind(known, pools, rules)) is not None]
    return pl.DataFrame(_told(known, found, pools, rules), FOUND, orient="row")


# ---------------------------------------------------------------------------------------------- what was taken out


def _withdrawals(known: States, pools: pl.DataFrame, rules: Rules) -> _Crossings | None:
    """Liquidity that providers took out: of V2, sqrt(reserve0 * reserve1), of V3, the active liquidity."""
    every = np.arange(len(known.ts))
    fell = known.liquidity_before - known.liquidity
    # Without a burn, what is gone went unseen (a token that rebases, say): small steps of that are the token's own.
    own = np.where(known.burn, 0.0, -log(1 - rules.withdrawal.low))
    best = highest(known.liquidity_before, known.since(every, rules.slow_window_s), every + 1)
    least = min(rules.withdrawal.low, rules.slow_withdrawal.low)
    at = known.asked(np.flatnonzero((fell > own) & known.alive & (_share(best, known.liquidity) >= least)))
    if not len(at):
        return None
    past = _Past.of(known, at, rules.history_s)
    levels = past.levels(known.liquidity_before)
    window = past.held(levels, rules.window_s, rules.held_s)
    usual = past.usual(levels, rules.usual_liquidity)
    slow_usual = past.usual(levels, rules.usual_liquidity_slow)
    slow = np.fmin(past.held(levels, rules.slow_window_s, rules.held_s), slow_usual)
    was, now = known.liquidity_before[at], known.liquidity[at]
    people = _People.of(known, at, rules.slow_window_s, "returned")
    recent = _People.of(known, at, rules.window_s, "returned")
    # The pool's maker takes out what others were promised to trade with: nothing excuses him.
    maker = recent.part_of([_creator(pools).get(pool) for pool in _pool_names(known, at)]) > rules.behind
    reference = np.where(maker, window, np.fmin(window, usual))
    dead = _dead(known, at, reference, known.liquidity_before, rules.crumbs_liquidity, rules)
    restless = np.where(maker, 0.0, past.restless(known, rules.window_s))
    taken, slowly = _share(reference, now), _share(slow, now)
    steps = _raised(rules.withdrawal, restless, rules.restless)
    slow_steps = _raised(rules.slow_withdrawal, restless, rules.restless)
    levels_by = np.where(dead, 0, _level(taken, steps)), np.where(dead, 0, _level(slowly, slow_steps))
    by_slow = levels_by[1] > levels_by[0]
    level = np.maximum(*levels_by)
    # Of V3 the levels are an index: what they stand for follows from the active liquidity.
    scale = np.where(np.isfinite(known.active[at]), known.active[at] - now, known.active_before[at] - was)
    evidence = {
        "withdrawn_share": taken, "withdrawn_share_slow": slowly,
        "threshold_share": np.where(by_slow, _threshold(slow_steps, level), _threshold(steps, level)),
        "window_s": rules.window_s, "slow_window_s": rules.slow_window_s,
        "liquidity_before": np.exp(np.where(by_slow, slow, reference) + scale),
        "liquidity_after": np.exp(known.active[at]), "usual_liquidity": np.exp(usual + scale),
        "quote_reserve_before": np.exp(known.reserve_before[at]), "quote_reserve_after": np.exp(known.reserve[at]),
        "lp_shares_returned": recent.total, "withdrawing_wallets": recent.count, "top_wallet_share": recent.top,
        "restlessness": restless,
    }  # fmt: skip
    return _crossed("liquidity_withdrawal", at, level, np.fmax(taken, slowly), people.names, evidence)


def _drains(known: States, pools: pl.DataFrame, rules: Rules) -> _Crossings | None:
    """Quote tokens that were taken out by selling: how far the root of the price fell, whatever providers did."""
    every = np.arange(len(known.ts))
    best = highest(known.root_before, known.since(every, rules.window_s), every + 1)
    fell = known.root_before - known.root
    at = known.asked(
        np.flatnonzero(known.swap & (fell > 0) & known.alive & (_share(best, known.root) >= rules.drain.low))
    )
    if not len(at):
        return None
    past = _Past.of(known, at, rules.history_s)
    levels = past.levels(known.root_before)
    window = past.held(levels, rules.window_s, rules.held_s)
    usual = past.usual(levels, rules.usual_price)
    # Who sells what he bought here takes back his own; what came from elsewhere was never paid for.
    people = _People.of(known, at, rules.window_s, "sold")
    brought = people.more_than(_People.of(known, at, rules.history_s, "bought"))
    reference = np.where(brought > rules.behind, window, np.fmin(window, usual))
    drained = _share(reference, known.root[at])
    # What the price's fall took, at the liquidity that is left: of a pool that was pulled before, next to nothing.
    held = reference + known.active[at]
    dead = _dead(known, at, held, known.reserve_before, rules.crumbs_reserve, rules)
    level = np.where(dead, 0, _level(drained, _levels(rules.drain, len(at))))
    sides = dict(zip(pools["pool"].to_list(), pools["quote"].to_list(), strict=True))
    unknown = np.array([sides.get(pool) is None for pool in _pool_names(known, at)], np.bool_)
    # Whose reserve it is that went is a guess without a quote token.
    level = np.where(unknown | (people.effective > rules.few_sellers), np.minimum(level, 2), level)
    evidence = {
        "drained_share": drained, "window_s": rules.window_s,
        "threshold_share": _threshold(_levels(rules.drain, len(at)), level), "quote_reserve_before": np.exp(held),
        "quote_reserve_after": np.exp(known.reserve[at]), "price_before": np.exp(2 * reference),
        "price_after": np.exp(2 * known.root[at]), "base_tokens_sold": people.total, "sellers": people.count,
        "effective_sellers": people.effective, "not_bought_here_share": brought,
        "top_wallet_share": people.top,
    }  # fmt: skip
    return _crossed("reserve_drain", at, level, drained, people.names, evidence)


# ---------------------------------------------------------------------------------------------- what is unusual


def _price_spikes(known: States, pools: pl.DataFrame, rules: Rules) -> _Crossings | None:
    """The price against that of the window's start, and against the moves of the windows before."""
    every = np.arange(len(known.ts))
    moved = 2 * (known.root - known.root_before[known.since(every, rules.window_s)])
    at = known.asked(np.flatnonzero(known.swap & known.alive & (np.abs(moved) >= rules.price.low)))
    if not len(at):
        return None
    edges, lived = _edges(known, at, rules)
    prices = 2 * known.root_before[edges]
    moves = np.where(lived[:, 1:], np.abs(prices[:, :-1] - prices[:, 1:]), np.nan)
    usual = median(moves)
    times = np.abs(moved[at]) / np.fmax(usual, 0.01)
    fit = (np.isfinite(moves).sum(axis=1) >= rules.history_windows) & (times >= rules.price_of_usual)
    dead = _dead(known, at, known.active[at], known.active, rules.crumbs_liquidity, rules)
    level = np.where(fit & ~dead, _level(np.abs(moved[at]), _levels(rules.price, len(at))), 0)
    evidence = {
        "price_factor": np.exp(moved[at]), "price_before": np.exp(2 * known.root[at] - moved[at]),
        "price_after": np.exp(2 * known.root[at]), "usual_factor": np.exp(usual), "times_usual": times,
        "window_s": rules.window_s, "quote_reserve_after": np.exp(known.reserve[at]),
    }  # fmt: skip
    return _crossed("price_spike", at, level, 1 - np.exp(-np.abs(moved[at])), None, evidence)


def _volume_spikes(known: States, pools: pl.DataFrame, rules: Rules) -> _Crossings | None:
    """A window's volume, in multiples of the reserve, against the windows before."""
    every = np.arange(len(known.ts))
    total = np.concatenate([[0.0], np.cumsum(known.volume)])
    now = total[every + 1] - total[known.since(every, rules.window_s)]
    at = known.asked(np.flatnonzero(known.swap & known.alive & (now >= rules.volume_of_reserve)))
    if not len(at):
        return None
    edges, lived = _edges(known, at, rules)
    before = np.where(lived[:, 1:], total[edges[:, :-1]] - total[edges[:, 1:]], np.nan)
    usual = median(before)
    spread = np.fmax(1.4826 * median(np.abs(before - usual[:, None])), np.fmax(usual / 4, 0.05))
    deviations = (now[at] - usual) / spread
    fit = np.isfinite(before).sum(axis=1) >= rules.history_windows
    dead = _dead(known, at, known.active[at], known.active, rules.crumbs_liquidity, rules)
    level = np.where(fit & ~dead, _level(deviations, _levels(rules.volume, len(at))), 0)
    evidence = {
        "volume_of_reserve": now[at], "usual_volume_of_reserve": usual, "deviations": deviations,
        "quote_volume": now[at] * np.exp(known.reserve[at]), "window_s": rules.window_s,
        "history_windows": np.isfinite(before).sum(axis=1),
    }  # fmt: skip
    return _crossed("volume_spike", at, level, deviations / (deviations + rules.volume.medium), None, evidence)


def _bursts(known: States, pools: pl.DataFrame, rules: Rules) -> _Crossings | None:
    """Trades that pay one wallet within a window, and their part of all that pay wallets. A router that is paid by the
    pool works for somebody else."""
    rows = known.rows
    by_another = filled(rows["recipient"]) & filled(rows["sender"]) & ~equal(rows["recipient"], rows["sender"])
    row = np.flatnonzero(equal(rows["event"], "swap") & by_another)
    every, first = np.unique(np.searchsorted(known.first, row, side="right") - 1, return_index=True)
    row = row[first]
    direct = np.zeros(len(known.ts), np.bool_)
    direct[every] = True
    total = np.concatenate([[0], np.cumsum(direct)])
    trades = total[every + 1] - total[known.since(every, rules.window_s)]
    busy = np.unique(known.pool[every[trades >= rules.burst_trades.low]])
    chosen = np.isin(known.pool[every], busy)
    at, trades = every[chosen], trades[chosen]
    if not len(known.asked(at)):
        return None
    names = taken(rows["recipient"], row[chosen]).to_list()
    _, wallet = ranked(names)
    order = np.lexsort((at, wallet, known.pool[at]))
    sorted_at, place = at[order], np.arange(len(at))
    group = np.cumsum((np.diff(wallet[order], prepend=-1) != 0) | (np.diff(known.pool[sorted_at], prepend=-1) != 0))
    width = int(np.ptp(known.ts)) + int(rules.window_s * 1e6) + 2
    clock = group * width + known.ts[sorted_at] - known.ts.min() + int(rules.window_s * 1e6) + 1
    own = np.empty(len(at), np.int64)
    own[order] = place + 1 - np.searchsorted(clock, clock - int(rules.window_s * 1e6), side="right")
    part = own / np.maximum(trades, 1)
    level = np.where(part >= rules.burst_share, _level(own.astype(np.float64), _levels(rules.burst_trades, len(at))), 0)
    evidence = {"wallet_trades": own, "pool_trades": trades, "wallet_share": part, "window_s": rules.window_s}
    return _crossed("wallet_burst", at, level, np.minimum(part, 1.0), [[name] for name in names], evidence)


# ---------------------------------------------------------------------------------------------- a pool's past


@dataclass(frozen=True)
class _Past:
    """The history of each of some transactions: with every transaction in it, what was until then, and for how long."""

    pairs: Pairs
    until: Floats
    seconds: Floats

    @staticmethod
    def of(known: States, at: Ints, history_s: float) -> _Past:
        """The pasts of transactions `at`; `until`: seconds before the transaction that a time ended, `seconds`: how
        long it lasted."""
        pairs = Pairs.of(known.since(at, history_s), at + 1)
        until = (known.ts[at][pairs.owner] - known.ts[pairs.item]) / 1e6
        began = np.concatenate([[0.0], until[:-1]])
        began[pairs.starts] = history_s
        # What was before a birth was nothing.
        seconds = np.where(known.born[pairs.item] | ~_some(known, pairs.item), 0.0, began - until)
        return _Past(pairs, until, seconds)

    def levels(self, before: Floats) -> Floats:
        """What was until each transaction of the past, of a column with what was before each transaction."""
        return before[self.pairs.item]

    def held(self, levels: Floats, window_s: float, held_s: float) -> Floats:
        """The highest level of the window that lasted."""
        seconds = np.clip(np.minimum(self.until + self.seconds, window_s) - self.until, 0.0, None)
        seconds = np.where(np.isfinite(levels), seconds, 0.0)
        return self.pairs.held(levels, seconds, np.minimum(held_s, self.pairs.sum(seconds) / 2))

    def usual(self, levels: Floats, part: float) -> Floats:
        """The level that the pool was at or above for this part of its past."""
        seconds = np.where(np.isfinite(levels), self.seconds, 0.0)
        return self.pairs.held(levels, seconds, part * self.pairs.sum(seconds))

    def restless(self, known: States, window_s: float) -> Floats:
        """How much liquidity came and went before the window: the lesser of both, in natural logarithms."""
        item = self.pairs.item
        other = known.provided[item] & ~known.born[item] & (self.until >= window_s)
        step = np.where(other, np.clip(known.liquidity[item] - known.liquidity_before[item], -1.0, 1.0), 0.0)
        step = np.nan_to_num(step, nan=0.0)
        return np.minimum(self.pairs.sum(np.maximum(step, 0.0)), self.pairs.sum(np.maximum(-step, 0.0)))


def _dead(known: States, at: Ints, levels: Floats, before: Floats, part: float, rules: Rules) -> Bools:
    """Whether `levels` of transactions `at` are less than this part of the best of their past, of a column with what
    was before each transaction."""
    return levels < highest(before, known.since(at, rules.history_s), at + 1) + log(part)


def _edges(known: States, at: Ints, rules: Rules) -> tuple[Ints, Bools]:
    """The past of transactions cut in windows: the first transaction after each edge, from the window's start
    backwards, and whether the pool lived then."""
    back = rules.window_s * np.arange(1, int(rules.history_s / rules.window_s) + 1)
    edges = np.stack([known.since(at, seconds) for seconds in back], axis=1)
    births = np.maximum.accumulate(np.where(known.born, np.arange(len(known.ts)), -1))[at]
    born = births >= known.since(at, rules.history_s)
    age_s = np.where(born, (known.ts[at] - known.ts[births]) / 1e6, rules.history_s)
    return edges, back[None, :] <= age_s[:, None]


def _some(known: States, item: Ints) -> Bools:
    """Whether there was something in the pool before these transactions."""
    before = known.liquidity_before[item]
    return known.alive[item] & (np.isfinite(before) | np.isfinite(known.root_before[item]))


# ---------------------------------------------------------------------------------------------- who


@dataclass(frozen=True)
class _People:
    """Who gave something to the pool, or got it, in the window of each of some transactions. `total`: how much,
    `count`: how many, `top`: the largest one's part, `effective`: the inverse of the sum of squared parts. NaN where
    nobody is known."""

    names: list[list[bytes]]
    amounts: list[dict[bytes, float]]
    total: Floats
    count: Ints
    top: Floats
    effective: Floats

    @staticmethod
    def of(known: States, at: Ints, window_s: float, what: Literal["returned", "sold", "bought"]) -> _People:
        """Who returned shares of a V2 pool, sold base tokens into the pool, or bought them from it."""
        pairs = Pairs.of(known.rows_since(at, window_s), known.last[at] + 1)
        rows = known.rows
        who, pool = ("recipient", "sender") if what == "bought" else ("sender", "recipient")
        mine = equal(rows["event"], "transfer") & equal(rows[pool], rows["pool"]) & ~equal(rows[who], rows["pool"])
        mine &= filled(rows["token"]) == (what != "returned")
        # A V3 pool has no shares: a burn names the position's owner.
        owned = equal(rows["event"], "burn") & equal(rows["protocol"], "uniswap_v3") & (what == "returned")
        much = np.abs(np.where(owned, rows["liquidity_f"].to_numpy(), rows["amount0_f"].to_numpy()))
        named = np.where(owned, filled(rows["recipient"]), filled(rows[who]))
        wanted = (mine | owned) & named & np.isfinite(much) & (much > 0)
        kept = wanted[pairs.item]
        owner, item = pairs.owner[kept], pairs.item[kept]
        names = np.where(owned, *(np.array(rows[name].to_list(), object) for name in ("recipient", who)))[item].tolist()
        people, person = ranked(names)
        # The smallest first: a sum must not hang on the order of rows.
        order = np.lexsort((much[item], person, owner))
        owner, person = owner[order], person[order]
        first = np.flatnonzero((np.diff(owner, prepend=-1) != 0) | (np.diff(person, prepend=-1) != 0))
        sums = np.add.reduceat(much[item][order], first) if len(first) else np.empty(0)
        owner, person = owner[first], person[first]
        amounts: list[dict[bytes, float]] = [{} for _ in range(len(at))]
        for i in np.lexsort((person, -sums, owner)).tolist():
            amounts[owner[i]][people[person[i]]] = float(sums[i])
        total = np.array([sum(one.values()) for one in amounts])
        parts = [[much / all_ for much in one.values()] for one, all_ in zip(amounts, total, strict=True)]
        return _People(
            [list(one)[:_WALLETS] for one in amounts],
            amounts,
            np.where(total > 0, total, np.nan),
            np.array([len(one) for one in amounts]),
            np.array([max(one, default=np.nan) for one in parts]),
            np.array([1 / sum(x * x for x in one) if one else np.nan for one in parts]),
        )

    def more_than(self, others: _People) -> Floats:
        """The part of all that each wallet gave beyond what it got; 0 where nothing is known."""
        more = [
            sum(max(much - got.get(name, 0.0), 0.0) for name, much in gave.items())
            for gave, got in zip(self.amounts, others.amounts, strict=True)
        ]
        return np.nan_to_num(np.array(more) / self.total, nan=0.0)

    def part_of(self, names: list[bytes | None]) -> Floats:
        """The part of one wallet in each; 0 where it is not known."""
        given = [one.get(name, 0.0) if name else 0.0 for one, name in zip(self.amounts, names, strict=True)]
        return np.nan_to_num(np.array(given) / self.total, nan=0.0)


def _creator(pools: pl.DataFrame) -> dict[bytes, bytes | None]:
    if "creator" not in pools.columns:
        return {}
    return dict(zip(pools["pool"].to_list(), pools["creator"].to_list(), strict=True))


def _pool_names(known: States, at: Ints) -> list[bytes]:
    return taken(known.rows["pool"], known.first[at]).to_list()


# ---------------------------------------------------------------------------------------------- what is told


def _share(before: Floats, after: Floats) -> Floats:
    """The share that is gone, of logarithms; 0 where one is not known."""
    gone: Floats = 1 - np.exp(np.minimum(after - before, 0.0))
    return np.nan_to_num(gone, nan=0.0)


def _levels(levels: Levels, count: int) -> Floats:
    return np.tile(np.array(levels, np.float64), (count, 1))


def _raised(levels: Levels, restless: Floats, most: float) -> Floats:
    """The thresholds of each transaction: nearer to everything for restless pools."""
    plain = _levels(levels, len(restless))
    return plain + np.where(np.isfinite(plain), (1 - plain) * most * (1 - np.exp(-restless))[:, None], 0.0)


def _level(values: Floats, thresholds: Floats) -> Ints:
    """The severity, 0 for none."""
    level: Ints = (values[:, None] >= thresholds).sum(axis=1)
    return level


def _threshold(thresholds: Floats, level: Ints) -> Floats:
    of: Floats = thresholds[np.arange(len(level)), np.maximum(level - 1, 0)]
    return of


def _crossed(
    kind: str, at: Ints, level: Ints, score: Floats, people: list[list[bytes]] | None, evidence: dict[str, Any]
) -> _Crossings | None:
    there = np.flatnonzero(level > 0)
    if not len(there):
        return None
    columns = {name: np.broadcast_to(values, len(at))[there] for name, values in evidence.items()}
    who = None if people is None else [people[i] for i in there]
    return _Crossings(kind, at[there], level[there], score[there], who, columns)


def _told(known: States, found: list[_Crossings], pools: pl.DataFrame, rules: Rules) -> list[dict[str, Any]]:
    """The first crossings as rows of FOUND."""
    tokens = {row["pool"]: row for row in pools.iter_rows(named=True)}
    told = []
    for crossings in found:
        at = crossings.at
        first = first_crossings(known.pool[at], known.ts[at], crossings.level, rules.quiet_s)
        new = np.flatnonzero(first)
        people = crossings.people
        who = _People.of(known, at[new], rules.window_s, "sold").names if people is None else [people[i] for i in new]
        for i, wallets in zip(new.tolist(), who, strict=True):
            rows = known.rows.slice(int(known.first[at[i]]), int(known.last[at[i]] - known.first[at[i]]) + 1)
            own = np.flatnonzero(~equal(rows["event"], "transfer"))
            row = rows.row(int(own[0]), named=True)
            pool = tokens.get(row["pool"], {})
            both = [token for token in (pool.get("token0"), pool.get("token1")) if token is not None]
            evidence = {name: _plain(values[i]) for name, values in crossings.evidence.items()}
            told.append(
                {name: row[name] for name in ("pool", "ts", "block_number", "block_hash", "tx_hash")}
                | {
                    "kind": crossings.kind,
                    "severity": SEVERITIES[int(first[i]) - 1],
                    "score": float(f"{crossings.score[i]:.6g}"),
                    "log_indexes": taken(rows["log_index"], own).to_list(),
                    "token": (pool.get("token1") if pool.get("quote") == 0 else pool.get("token0")) or row["pool"],
                    "tokens": both,
                    "wallets": wallets,
                    "evidence": json.dumps({name: value for name, value in evidence.items() if value is not None}),
                }
            )
    order = {name: place for place, name in enumerate(FOUND)}
    told.sort(key=lambda x: (x["pool"], x["ts"], x["block_number"], x["log_indexes"], x["kind"]))
    return [dict(sorted(row.items(), key=lambda item: order[item[0]])) for row in told]


def _plain(value: Any) -> float | int | None:
    """A number for JSON, of six digits: what it is decided on does not hang on a sum's last ones; None for none."""
    if not np.isfinite(value):
        return None
    number = float(f"{value:.6g}")
    return int(number) if number.is_integer() and abs(number) < 1e15 else number
