"""Thresholds of the detectors, with their reasons.

Belongs here: numbers. Does not belong here: what is done with them (`detect.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: Severity -> from which value on.
Steps = Mapping[str, float]


@dataclass(frozen=True)
class Rules:
    """When a metric is an anomaly. Times in seconds of the chain's time, shares from 0 to 1.

    window_s: a rug pull takes one transaction, or a few within minutes. slow_window_s: what is taken out bit by bit.
    lookback_s: how far back events are needed: the slow window, the hour of history a volume is held against, and a
    window before for crossings that began earlier.
    """

    window_s: float = 600
    slow_window_s: float = 3600
    lookback_s: float = 7800
    # Owners take out a third and stay; who takes more than half has left.
    withdrawal: Steps = field(default_factory=lambda: {"low": 0.15, "medium": 0.3, "high": 0.5})
    slow_withdrawal: Steps = field(default_factory=lambda: {"medium": 0.5})
    # Trades move a reserve by tens of percent in ten minutes; three quarters gone is somebody's whole supply.
    drain: Steps = field(default_factory=lambda: {"low": 0.35, "medium": 0.5, "high": 0.75})
    # A reserve below this part of what the pool had in two hours is crumbs: losing them is no event. Below the second,
    # the pool is on its way out already, and what holders sell into it is no rug pull.
    crumbs: float = 0.1
    high_of_peak: float = 0.45
    # A provider who did not make the pool may leave with his own; unless hardly anything stays.
    stranger: float = 0.8
    # Of providers that come and go every window (concentrated liquidity), a move must be so many times the usual one.
    restless: float = 3.0
    most_restless: float = 0.85
    # Natural logarithm of the price's change: doubled or halved, times four.
    price: Steps = field(default_factory=lambda: {"low": 0.7, "medium": 1.4})
    # A window's volume against the median of the hour before, and at least the pool's whole reserve.
    volume: Steps = field(default_factory=lambda: {"low": 5.0, "medium": 15.0})
    volume_of_reserve: float = 1.0
    volume_history: int = 4
    # Trades of one wallet in a window, and their part of all.
    burst_trades: int = 30
    burst_share: float = 0.5
    wallets: int = 5
