"""A small made-up chain in ethereum-etl's messages: each block fills all nine tables. For integration tests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dash_pipeline.events.abi import EVENTS
from dash_pipeline.microbatch.consume import Batch, TopicBatch
from dash_pipeline.topics import TYPES, Partition

START = 1_704_412_800
MAX = 2**256 - 1
TOPIC0 = {(e.protocol, e.name): "0x" + e.topic0 for e in EVENTS}
# Rows of one block in each table.
ROWS = {
    "blocks": 1, "transactions": 2, "logs": 4, "token_transfers": 1, "pool_events": 3, "traces": 2, "contracts": 1,
    "tokens": 1, "pools": 1,
}  # fmt: skip

Messages = dict[str, list[bytes]]


def hash_of(name: str, what: str = "block") -> str:
    """A hash that a person can tell apart in a failure."""
    return "0x" + f"{what}:{name}".encode().hex().ljust(64, "0")


def address(name: str) -> str:
    return "0x" + name.encode().hex().rjust(40, "0")[-40:]


def word(value: int | str) -> str:
    return value.removeprefix("0x").rjust(64, "0") if isinstance(value, str) else f"{value % 2**256:064x}"


def block(name: str, parent: str, *, number: int | None = None, later: int = 0, **fields: Any) -> Messages:
    """The messages of block `name` (a letter for the branch, then the height), by type; `later`: seconds that the
    branch began after the others."""
    height = int(name[1:]) if number is None else number
    timestamp = START + 12 * height + later
    where = {"block_number": height, "block_hash": hash_of(name), "block_timestamp": timestamp}
    transactions = [hash_of(name, f"tx{i}") for i in range(2)]
    pool, token, wallet = address(f"pool{name}"), address("token"), address("wallet")

    def log(index: int, emitter: str, topics: list[str], data: str) -> dict[str, Any]:
        return {
            "type": "log", "log_index": index, "transaction_hash": transactions[0], "transaction_index": 0,
            "address": emitter, "data": "0x" + data, "topics": topics, **where,
        }  # fmt: skip

    rows: list[dict[str, Any]] = [
        {
            "type": "block", "number": height, "hash": hash_of(name), "parent_hash": hash_of(parent),
            "timestamp": timestamp, "transaction_count": 2, "gas_used": 1, "difficulty": MAX, **fields,
        },
        *(
            {
                "type": "transaction", "hash": hash_, "transaction_index": i, "from_address": wallet,
                "to_address": token, "value": MAX, "nonce": i, "receipt_status": 1, **where,
            }
            for i, hash_ in enumerate(transactions)
        ),
        log(0, token, [TOPIC0["erc20", "transfer"], "0x" + word(wallet), "0x" + word(pool)], word(MAX)),
        log(1, pool, [TOPIC0["uniswap_v2", "sync"]], word(5) + word(2**112 - 1)),
        log(2, address("factory"), [TOPIC0["uniswap_v2", "pair_created"], "0x" + word(token), "0x" + word(wallet)],
            word(pool) + word(1)),
        log(3, token, ["0x" + "11" * 32], ""),
        {
            "type": "token_transfer", "token_address": token, "from_address": wallet, "to_address": pool, "value": MAX,
            "transaction_hash": transactions[0], "log_index": 0, **where,
        },
        *(
            {
                "type": "trace", "trace_id": f"call_{hash_}_", "transaction_hash": hash_, "from_address": wallet,
                "to_address": token, "value": 5, "trace_type": "call", "trace_address": [], "status": 1, **where,
            }
            for hash_ in transactions
        ),
        {"type": "contract", "address": pool, "bytecode": "0x60", "is_erc20": True, "is_erc721": False, **where},
        {"type": "token", "address": pool, "symbol": name, "name": "n", "decimals": 18, "total_supply": 1, **where},
    ]  # fmt: skip
    messages: Messages = {type_: [] for type_ in TYPES}
    for row in rows:
        messages[row["type"]].append(json.dumps(row).encode())
    return messages


def branch(letter: str, first: int, last: int, parent: str, later: int = 0) -> list[tuple[str, Messages]]:
    """Blocks `first` to `last` of a branch, each with its name."""
    names = [f"{letter}{n}" for n in range(first, last + 1)]
    return [(name, block(name, below, later=later)) for name, below in zip(names, [parent, *names], strict=False)]


def merge(many: Iterable[Messages]) -> Messages:
    """The messages of several blocks, by type."""
    merged: Messages = {type_: [] for type_ in TYPES}
    for one in many:
        for type_, messages in one.items():
            merged[type_] += messages
    return merged


class Topics:
    """The topics of a chain without a broker: hands out offsets and record times as a broker would."""

    def __init__(self, chain: str) -> None:
        self.chain = chain
        self.ends: dict[Partition, int] = {}
        self.clock = 1_700_000_000_000

    def produce(self, messages: Mapping[str, list[bytes]], partition: int = 0) -> Batch:
        """Append; what a consumer that reads exactly these gets."""
        topics, next_offsets, first = [], {}, {}
        for type_, values in messages.items():
            if not values:
                continue
            place = (f"{self.chain}.{TYPES[type_]}", partition)
            start, count = self.ends.get(place, 0), len(values)
            first[place], next_offsets[place] = start, start + count
            self.ends[place] = start + count
            times = np.arange(self.clock, self.clock + count, dtype=np.int64)
            self.clock += count
            topics.append(
                TopicBatch(
                    place[0],
                    values,
                    times,
                    np.full(count, partition, np.int64),
                    np.arange(start, start + count, dtype=np.int64),
                )
            )
        total = sum(len(t.values) for t in topics)
        size = sum(len(v) for t in topics for v in t.values)
        return Batch(topics, next_offsets, float(self.clock), total, size, first)
