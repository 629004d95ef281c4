"""A pool's life in ethereum-etl's messages: opened, traded, drained. For tests of anomalies, predictions and alerts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isqrt

from dash_pipeline.topics import TYPES
from tests.chain import START, TOPIC0, Messages, address, hash_of, word

UNIT = 10**18
NOBODY = "0x" + "0" * 40
# Emitter, topics, data.
Log = tuple[str, list[str], str]

WETH, FACTORY, ROUTER = address("weth"), address("factory"), address("router")


@dataclass
class Pool:
    """A Uniswap V2 pool of `name` and WETH (token1); `reserves` and `shares` move with what happens to it."""

    name: str
    developer: str
    reserves: list[int] = field(default_factory=lambda: [1_000_000 * UNIT, 100 * UNIT])
    shares: int = 0

    @property
    def address(self) -> str:
        return address(f"pool{self.name}")

    @property
    def token(self) -> str:
        return address(f"tok{self.name}")

    def opened(self) -> list[Log]:
        """Created, and filled by the developer, who gets all shares."""
        self.shares = isqrt(self.reserves[0] * self.reserves[1])
        amounts = word(self.reserves[0]) + word(self.reserves[1])
        created = [TOPIC0["uniswap_v2", "pair_created"], _topic(self.token), _topic(WETH)]
        return [
            (FACTORY, created, word(self.address) + word(1)),
            _transfer(self.token, self.developer, self.address, self.reserves[0]),
            _transfer(self.address, NOBODY, self.developer, self.shares),
            self._sync(),
            (self.address, [TOPIC0["uniswap_v2", "mint"], _topic(ROUTER)], amounts),
        ]  # fmt: skip

    def traded(self, wallet: str, share: float = 0.002) -> list[Log]:
        """Someone buys with so large a part of the WETH in it."""
        paid = int(self.reserves[1] * share)
        got = self.reserves[0] * paid * 997 // (self.reserves[1] * 1000 + paid * 997)
        self.reserves = [self.reserves[0] - got, self.reserves[1] + paid]
        swap = [TOPIC0["uniswap_v2", "swap"], _topic(ROUTER), _topic(wallet)]
        amounts = word(0) + word(paid) + word(got) + word(0)
        return [_transfer(self.token, self.address, wallet, got), self._sync(), (self.address, swap, amounts)]

    def drained(self, share: float = 0.97) -> list[Log]:
        """The developer burns so large a part of the shares."""
        burned = int(self.shares * share)
        out = [int(reserve * share) for reserve in self.reserves]
        self.shares -= burned
        self.reserves = [reserve - gone for reserve, gone in zip(self.reserves, out, strict=True)]
        burn = [TOPIC0["uniswap_v2", "burn"], _topic(ROUTER), _topic(self.developer)]
        return [
            _transfer(self.address, self.developer, self.address, burned),
            _transfer(self.address, self.address, NOBODY, burned),
            _transfer(self.token, self.address, self.developer, out[0]),
            self._sync(),
            (self.address, burn, word(out[0]) + word(out[1])),
        ]

    def _sync(self) -> Log:
        return (self.address, [TOPIC0["uniswap_v2", "sync"]], word(self.reserves[0]) + word(self.reserves[1]))


def _topic(value: str) -> str:
    return "0x" + word(value)


def _transfer(token: str, sender: str, receiver: str, amount: int) -> Log:
    return (token, [TOPIC0["erc20", "transfer"], _topic(sender), _topic(receiver)], word(amount))


def block(name: str, parent: str, transactions: Sequence[tuple[str, list[Log]]] = (), later: int = 0) -> Messages:
    """The messages of block `name` (a letter for the branch, then the height): `transactions` are (sender, logs)."""
    height = int(name[1:])
    timestamp = START + 12 * height + later
    where = {"block_number": height, "block_hash": hash_of(name), "block_timestamp": timestamp}
    messages: Messages = {type_: [] for type_ in TYPES}

    def add(type_: str, fields: dict[str, object]) -> None:
        messages[type_].append(json.dumps({"type": type_, **fields}).encode())

    add("block", {"number": height, "hash": hash_of(name), "parent_hash": hash_of(parent), "timestamp": timestamp,
                  "transaction_count": len(transactions)})  # fmt: skip
    index = 0
    for i, (sender, logs) in enumerate(transactions):
        tx = hash_of(name, f"tx{i}")
        add("transaction", {"hash": tx, "transaction_index": i, "from_address": sender, "to_address": ROUTER,
                            "value": 0, "nonce": i, "receipt_status": 1, **where})  # fmt: skip
        for emitter, topics, data in logs:
            add("log", {"log_index": index, "transaction_hash": tx, "transaction_index": i, "address": emitter,
                        "data": "0x" + data, "topics": topics, **where})  # fmt: skip
            index += 1
    return messages


def life(pool: Pool, blocks: int, branch: str = "A", traders: int = 7) -> list[tuple[str, Messages]]:
    """A pool that is opened in block 0 and traded in each that follows, with the blocks' names."""
    made = [(f"{branch}0", block(f"{branch}0", "-", [(pool.developer, pool.opened())]))]
    for n in range(1, blocks):
        wallet = address(f"trader{n % traders}")
        made.append((f"{branch}{n}", block(f"{branch}{n}", f"{branch}{n - 1}", [(wallet, pool.traded(wallet))])))
    return made
