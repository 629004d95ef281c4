"""Thresholds of the detectors, with their reasons.

Belongs here: numbers. Does not belong here: what is done with them (`detect.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple


class Levels(NamedTuple):
    """From which value on a metric is of a severity; infinity: never of this one."""

    low: float
    medium: float
    high: float = inf


@dataclass(frozen=True)
class Rules:
    """When a metric is an anomaly. Times in seconds of the chain's time, shares from 0 to 1, reserves in multiples."""

    # A rug pull takes one transaction, or a few within minutes.
    window_s: float = 600
    # What is taken out bit by bit; never more than medium, because owners do leave.
    slow_window_s: float = 3600
    # The pool's own history. Twelve windows: enough for a median, and short enough to read for a suspect.
    history_s: float = 7200
    # After a crossing the same is not said again for so long: a pool is pulled once.
    quiet_s: float = 3600

    # Owners take out a third and stay; who takes more than half has left.
    withdrawal: Levels = field(default=Levels(0.15, 0.3, 0.5))
    slow_withdrawal: Levels = field(default=Levels(0.35, 0.5))
    # A level counts as the window's when it held so long in sum, or half of a younger pool's time: less is liquidity
    # that was only passing (just-in-time).
    held_s: float = 60
    # A level is the pool's usual one when it held for so much of the history. Providers who stay for less than the rest
    # leave a pool as they found it. Of the price a whale may stay longer: a dump goes far below what ever was.
    usual_liquidity: float = 0.75
    usual_liquidity_slow: float = 0.5
    usual_price: float = 0.9
    # Of a pool whose providers come and go, more is asked: at most so much of the way to everything.
    restless: float = 0.3
    # Who takes out more than this part of what is taken out is behind it.
    behind: float = 0.5

    # Trades move a reserve by tens of percent in ten minutes; six tenths gone is a price at a sixth.
    drain: Levels = field(default=Levels(0.35, 0.5, 0.6))
    # More sellers than this (the inverse of the sum of their squared shares) are a panic, not a plan: medium at most.
    few_sellers: float = 8
    # A pool with less than this part of its best is dead: what happens to the rest is no event.
    crumbs_liquidity: float = 0.05
    crumbs_reserve: float = 0.1
    # sqrt(reserve0 * reserve1) in the smallest units: Uniswap keeps 1,000 for ever, and a dollar of any token is more.
    dust: float = 1e6

    # Natural logarithm of the price's change: doubled or halved, times four.
    price: Levels = field(default=Levels(0.693, 1.386))
    # How often the median change of the windows before.
    price_of_usual: float = 6
    # Volume above the median window, in robust standard deviations, and at least the pool's whole reserve.
    volume: Levels = field(default=Levels(8, 20))
    volume_of_reserve: float = 1.0
    # Windows that a pool must have lived through before its price or volume can be unusual.
    history_windows: int = 6

    # Trades that pay one wallet in a window (one in thirty seconds), and their part of all that pay wallets.
    burst_trades: Levels = field(default=Levels(20, 40))
    burst_share: float = 0.5

    @property
    def lookback_s(self) -> float:
        """How far back events are needed: the history, and before it the crossings that keep one quiet."""
        return self.history_s + self.quiet_s
