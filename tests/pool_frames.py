"""Pools simulated without a chain: frames of events as detectors take them. For unit tests of the detectors.

Belongs here: one Uniswap V2 pair and one V3 pool of a single range, and what people do to them. Does not belong here:
messages (`tests/pools.py`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from dash_pipeline.storage.anomalies import EVENTS, POOLS, STATS

START = datetime(2024, 1, 5, tzinfo=UTC)
BLOCK_S = 12
NOBODY = bytes(20)
FEE = 0.997


def wallet(name: str) -> bytes:
    """An address that a person can tell apart in a failure."""
    return name.encode().ljust(20, b".")


ROUTER, WETH = wallet("router"), wallet("weth")


class Pool:
    """What every pool has: a clock, rows, tokens. Subclasses keep its state."""

    protocol = ""

    def __init__(self, name: str = "pool", *, quote: int = 1) -> None:
        self.address, self.token, self.quote = wallet(name), wallet(f"tok {name}"), quote
        self.t = 0
        self.rows: list[dict[str, Any]] = []
        self._logs = self._transactions = 0

    def at(self, t: int) -> None:
        """A new transaction, `t` seconds after the start."""
        self.t = t
        self._transactions += 1

    def later(self, seconds: int) -> None:
        """A new transaction, so many seconds after the last one."""
        self.at(self.t + seconds)

    def row(self, event: str, **fields: Any) -> None:
        number = self.t // BLOCK_S
        self._logs += 1
        self.rows.append(
            dict.fromkeys(EVENTS)
            | {
                "pool": self.address, "ts": START + timedelta(seconds=self.t), "block_number": number,
                "block_hash": number.to_bytes(32), "log_index": self._logs, "event": event,
                "tx_hash": self.address[:12] + self._transactions.to_bytes(20),
                "protocol": "erc20" if event == "transfer" else self.protocol,
            }
            | fields
        )  # fmt: skip

    def frame(self) -> pl.DataFrame:
        """The events so far."""
        return pl.DataFrame(self.rows, EVENTS, orient="row")

    def pools(self, *, creator: str | None = None, known: bool = True) -> pl.DataFrame:
        """The pool; `known`: which of its tokens is the quote."""
        tokens = (self.token, WETH) if self.quote == 1 else (WETH, self.token)
        quote = self.quote if known else None
        row = (self.address, self.protocol, *tokens, quote, wallet(creator) if creator else None)
        return pl.DataFrame([row], POOLS, orient="row")


class Pair(Pool):
    """A V2 pair. `dev` opens it at second 0 with a million tokens and 100 ether."""

    protocol = "uniswap_v2"

    def __init__(self, name: str = "pool", *, quote: int = 1, size: float = 1.0) -> None:
        super().__init__(name, quote=quote)
        self.reserves, self.shares = [0.0, 0.0], 0.0
        amounts = [1e24 * size, 1e20 * size]
        self.at(0)
        self.mint("dev", amounts if quote == 1 else amounts[::-1])

    def sync(self) -> None:
        self.row("sync", reserve0_f=self.reserves[0], reserve1_f=self.reserves[1])

    def mint(self, who: str, amounts: Sequence[float]) -> None:
        before = (self.reserves[0] * self.reserves[1]) ** 0.5
        self.reserves = [reserve + amount for reserve, amount in zip(self.reserves, amounts, strict=True)]
        after = (self.reserves[0] * self.reserves[1]) ** 0.5
        shares = self.shares * (after - before) / before if self.shares else after
        self.shares += shares
        self.row("transfer", sender=NOBODY, recipient=wallet(who), amount0_f=shares)
        self.sync()
        self.row("mint", sender=ROUTER, amount0_f=amounts[0], amount1_f=amounts[1])

    def add(self, who: str, part: float) -> None:
        """`who` adds so many times what is there."""
        self.mint(who, [reserve * part for reserve in self.reserves])

    def burn(self, who: str, part: float) -> None:
        """`who` takes out this part of what is there."""
        out, shares = [reserve * part for reserve in self.reserves], self.shares * part
        self.shares -= shares
        self.reserves = [reserve - gone for reserve, gone in zip(self.reserves, out, strict=True)]
        self.row("transfer", sender=wallet(who), recipient=self.address, amount0_f=shares)
        self.row("transfer", sender=self.address, recipient=NOBODY, amount0_f=shares)
        self._moved(self.address, wallet(who), out[1 - self.quote])
        self.sync()
        self.row("burn", sender=ROUTER, recipient=wallet(who), amount0_f=-out[0], amount1_f=-out[1])

    def swap(self, who: str, side: int, amount: float) -> float:
        """`who` pays so much of token `side`; what he gets of the other."""
        other = 1 - side
        out = self.reserves[other] * amount * FEE / (self.reserves[side] + amount * FEE)
        self.reserves[side] += amount
        self.reserves[other] -= out
        buys = side == self.quote
        if buys:
            self._moved(self.address, wallet(who), out)
        else:
            self._moved(wallet(who), self.address, amount)
        self.sync()
        moved = {f"amount{side}_f": amount, f"amount{other}_f": -out}
        self.row("swap", sender=ROUTER, recipient=wallet(who) if buys else ROUTER, **moved)
        return out

    def buy(self, who: str, part: float) -> float:
        """`who` buys for this part of the quote reserve; the tokens he gets."""
        return self.swap(who, self.quote, self.reserves[self.quote] * part)

    def sell(self, who: str, part: float) -> float:
        """`who` sells so many times the tokens that are in the pool."""
        return self.swap(who, 1 - self.quote, self.reserves[1 - self.quote] * part)

    def trade(self, seconds: int, *, seed: int = 0, every: int = 40, size: float = 0.02, traders: int = 20) -> None:
        """Small trades of many for so long."""
        dice, end = random.Random(seed + self.t), self.t + seconds
        while self.t < end:
            self.later(max(BLOCK_S, int(dice.expovariate(1 / every)) // BLOCK_S * BLOCK_S))
            act = self.buy if dice.random() < 0.5 else self.sell
            act(f"trader {dice.randrange(traders)}", dice.uniform(0.001, size))

    def _moved(self, sender: bytes, recipient: bytes, amount: float) -> None:
        self.row("transfer", sender=sender, recipient=recipient, amount0_f=amount, token=self.token)


class Range(Pool):
    """A V3 pool in which every position has the same range, around a price of 1. `dev` opens it at second 0."""

    protocol = "uniswap_v3"

    def __init__(self, name: str = "range", *, quote: int = 1) -> None:
        super().__init__(name, quote=quote)
        self.root, self.liquidity = 1.0, 0.0
        self.at(0)
        self.row("initialize", sqrt_price_f=self.root * 2.0**96, tick=0)
        self.mint("dev", 1e20)

    def mint(self, who: str, liquidity: float) -> None:
        self.liquidity += liquidity
        self._position("mint", who, liquidity)

    def burn(self, who: str, part: float) -> None:
        """`who` takes out this part of what is there."""
        gone = self.liquidity * part
        self.liquidity -= gone
        self._position("burn", who, -gone)

    def swap(self, who: str, factor: float) -> None:
        """`who` moves the root of the price to so many times what it was."""
        before, self.root = self.root, self.root * factor
        moved = {
            "amount0_f": self.liquidity * (1 / self.root - 1 / before),
            "amount1_f": self.liquidity * (self.root - before),
        }
        state = {"liquidity_f": self.liquidity, "sqrt_price_f": self.root * 2.0**96, "tick": 0}
        self.row("swap", sender=ROUTER, recipient=wallet(who), **moved, **state)

    def trade(self, seconds: int, *, seed: int = 0, every: int = 40, size: float = 0.01) -> None:
        dice, end = random.Random(seed + self.t), self.t + seconds
        while self.t < end:
            self.later(max(BLOCK_S, int(dice.expovariate(1 / every)) // BLOCK_S * BLOCK_S))
            self.swap(f"trader {dice.randrange(20)}", 1 + dice.uniform(-size, size))

    def _position(self, event: str, who: str, liquidity: float) -> None:
        amounts = {"amount0_f": liquidity / self.root, "amount1_f": liquidity * self.root}
        ticks = {"tick_lower": -60, "tick_upper": 60}
        self.row(event, recipient=wallet(who), liquidity_f=liquidity, **amounts, **ticks)


def stats(events: pl.DataFrame, window_s: float) -> pl.DataFrame:
    """What `storage.anomalies.window_stats` reads, of the newest moment of each pool in `events`: the minutes of its
    last window, the state before them, and of reserves and burns that moment and the state before it."""
    events = events.filter(pl.col("event") != "transfer").sort("pool", "block_number", "log_index")
    now = pl.col("ts").max().over("pool")
    began = (now - timedelta(seconds=window_s)).dt.truncate("1m")
    swap = pl.col("event") == "swap"
    reserves = [pl.max_horizontal(pl.col(f"reserve{i}_f"), 1.0) for i in (0, 1)]
    virtual = pl.when(pl.col("reserve0_f").is_not_null()).then((reserves[1] / reserves[0]).sqrt() * 2.0**96)
    events = events.with_columns(root=pl.coalesce("sqrt_price_f", virtual))
    inside, before = events.filter(pl.col("ts") >= began), events.filter(pl.col("ts") < began)
    named = {"reserve0": "reserve0_f", "reserve1": "reserve1_f", "root": "root"}
    tells = pl.col("reserve0_f").is_not_null() | (swap & pl.col("liquidity_f").is_not_null())
    minutes = inside.group_by("pool", pl.col("ts").dt.truncate("1m"), maintain_order=True).agg(
        swaps=swap.sum(), burns=(pl.col("event") == "burn").sum(),
        liquidity=pl.col("liquidity_f").filter(swap).min(),
        **{f"{n}_max": pl.col(c).max() for n, c in named.items()},
        **{f"{n}_min": pl.col(c).min() for n, c in named.items()},
        **{f"volume{i}": pl.col(f"amount{i}_f").filter(swap).abs().sum() for i in (0, 1)},
    )  # fmt: skip
    held = [
        pl.coalesce("reserve0_min", pl.col("liquidity") / pl.col("root_max") * 2.0**96),
        pl.coalesce("reserve1_min", pl.col("liquidity") * pl.col("root_min") / 2.0**96),
    ]
    turned = [
        pl.when(pl.col("swaps") > 0).then((pl.col(f"volume{i}") / held[i]).fill_null(float("inf"))).otherwise(0.0).sum()
        for i in (0, 1)
    ]
    window = minutes.group_by("pool", maintain_order=True).agg(
        pl.col("swaps", "burns").sum(), *(pl.col(f"{n}_max").max() for n in named),
        *(pl.col(f"{n}_min").min() for n in named), turned0=turned[0], turned1=turned[1],
    )  # fmt: skip
    last = before.filter(tells).group_by("pool", maintain_order=True).agg(
        pl.col(c).last().alias(f"{n}_b") for n, c in named.items()
    )  # fmt: skip
    direct = inside.filter(swap & (pl.col("recipient") != pl.col("sender")))
    busiest = direct.group_by("pool", "recipient").len("busiest").group_by("pool").agg(pl.col("busiest").max())
    new, old = events.filter(pl.col("ts") == now), events.filter((pl.col("ts") < now) & tells)
    near = pl.concat([new, old.group_by("pool", maintain_order=True).last().select(new.columns)]).group_by("pool").agg(
        near_burns=(pl.col("event") == "burn").sum(),
        **{f"near{i}_max": pl.col(f"reserve{i}_f").max() for i in (0, 1)},
        **{f"near{i}_min": pl.col(f"reserve{i}_f").min() for i in (0, 1)},
    )  # fmt: skip
    joined = (
        window.join(last, on="pool", how="left")
        .join(busiest, on="pool", how="left")
        .join(near, on="pool")
        .with_columns(
            pl.col("busiest").fill_null(0),
            *(pl.max_horizontal(f"{n}_max", f"{n}_b").alias(f"{n}_max") for n in named),
            *(pl.min_horizontal(f"{n}_min", f"{n}_b").alias(f"{n}_min") for n in named),
            burns=pl.col("near_burns"),
            found_before=pl.lit(False),
        )
    )
    return joined.select(*STATS).cast(STATS)
