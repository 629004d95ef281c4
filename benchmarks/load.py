"""Messages for the benchmarks: the real shapes, as many as one likes.

Belongs here: making and producing load, and an empty database for it. Does not belong here: measuring it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import isqrt
from multiprocessing.connection import Connection

from confluent_kafka import Producer
from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from dash_pipeline.kafka import confluent_options, kafka_python_options
from dash_pipeline.settings import Settings
from dash_pipeline.stack import Stack
from dash_pipeline.storage import migrate

START = 1_717_200_000
EVENTS_PER_BLOCK = 200
BLOCK_TIME_S = 12

_random = random.Random(20_261_124)


def _hex(bytes_: int) -> str:
    return "0x" + _random.randbytes(bytes_).hex()


_TOKENS = [_hex(20) for _ in range(400)]
_WALLETS = [_hex(20) for _ in range(20_000)]
_POOLS = [_hex(20) for _ in range(400)]
# Both tokens of each pool, smallest units; trades move them along the curve, so that nothing looks like a crash.
_RESERVES = {pool: [_random.randrange(10**20, 10**22), _random.randrange(10**20, 10**22)] for pool in _POOLS}

_SYNC = "1c411e9a96e071241c2f21f7726b17ae89e3cab4c78be50e062b03a9fffbbad1"
_SWAP = "d78ad95fa46c994b6551d0da85fc275fe613ce37657fb8d5e3d130840159d822"
_BURN = "dccd412f0b1252819cb1fd330b93224ca42612892bb3f4f789976e6d81936496"
_PAIR_CREATED = "0d3648bd0f6ba80134a33ba9275ac585d9d315f0ad8355cddefde31afa28d0e9"
_TRANSFER = "ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"


@contextmanager
def fresh_database(stack: Stack) -> Iterator[Settings]:
    """A database that holds nothing of the runs before: they use the same tokens and wallets at the same times."""
    with stack.scratch_database() as settings:
        migrate.upgrade(settings)
        yield settings


def make_topics(settings: Settings, topics: list[str], partitions: int) -> None:
    """Create the topics."""
    with KafkaAdminClient(**kafka_python_options(settings)) as admin:
        admin.create_topics([NewTopic(name, partitions, 1) for name in topics])


def producer(settings: Settings, linger_ms: float) -> Producer:
    """A producer that sends as the exporter's would, only faster."""
    return Producer(
        confluent_options(settings)
        | {"linger.ms": linger_ms, "batch.num.messages": 10_000, "queue.buffering.max.messages": 2_000_000}
    )


class Chain:
    """Blocks one after the other, each with its hash and timestamp."""

    def __init__(self, spacing_s: int = BLOCK_TIME_S) -> None:
        self.number, self.hash, self.spacing_s = 0, _hex(32), spacing_s
        self.timestamp = START
        self.drained: set[str] = set()

    def advance(self) -> None:
        self.number += 1
        self.parent, self.hash = self.hash, _hex(32)
        self.timestamp += self.spacing_s
        self.drained.clear()

    def block_message(self, transactions: int) -> bytes:
        return (
            f'{{"type": "block", "number": {self.number}, "hash": "{self.hash}", "parent_hash": "{self.parent}",'
            f' "timestamp": {self.timestamp}, "transaction_count": {transactions}, "gas_used": 12000000,'
            f' "gas_limit": 30000000, "difficulty": 0, "total_difficulty": 58750003716598352816469,'
            f' "miner": "{_WALLETS[0]}", "base_fee_per_gas": 20000000000,'
            f' "item_id": "block_{self.hash}", "item_timestamp": "2024-06-01T00:00:00Z"}}'
        ).encode()


def transfers(count: int) -> Iterator[bytes]:
    """Token transfers as ethereum-etl publishes them, about 630 bytes each."""
    chain = Chain()
    for i in range(count):
        index = i % EVENTS_PER_BLOCK
        if index == 0:
            chain.advance()
        yield transfer(chain, index, _hex(32))


def transfer(chain: Chain, log_index: int, tx: str) -> bytes:
    """One transfer of a block."""
    return (
        f'{{"type": "token_transfer", "token_address": "{_random.choice(_TOKENS)}",'
        f' "from_address": "{_random.choice(_WALLETS)}", "to_address": "{_random.choice(_WALLETS)}",'
        f' "value": {_random.getrandbits(90)}, "transaction_hash": "{tx}", "log_index": {log_index},'
        f' "block_number": {chain.number}, "block_timestamp": {chain.timestamp}, "block_hash": "{chain.hash}",'
        f' "item_id": "token_transfer_{tx}_{log_index}", "item_timestamp": "2024-06-01T00:00:00Z"}}'
    ).encode()


def pairs(chain: Chain) -> Iterator[tuple[str, bytes]]:
    """The creation of every pool, as (type, message)."""
    chain.advance()
    yield "block", chain.block_message(len(_POOLS))
    for i, pool in enumerate(_POOLS):
        topics = _topics(_PAIR_CREATED, *(_TOKENS[j % len(_TOKENS)] for j in (i, i + 1)))
        yield "log", _log(chain, i, i, _hex(32), _WALLETS[0], "0" * 24 + pool[2:] + f"{i:064x}", topics)


def block(chain: Chain, transactions: int) -> Iterator[tuple[str, bytes]]:
    """A block of V2 swaps as (type, message): each transaction with its logs and transfer, four events in all."""
    chain.advance()
    yield "block", chain.block_message(transactions)
    for index in range(transactions):
        tx, pool, wallet = _hex(32), _random.choice(_POOLS), _random.choice(_WALLETS)
        while pool in chain.drained:
            pool = _random.choice(_POOLS)
        yield "transaction", _transaction(chain, index, tx, wallet, pool)
        amounts = _trade(pool)
        yield "log", _log(chain, index, 3 * index, tx, pool, _words(*_RESERVES[pool]), _topics(_SYNC))
        topics = _topics(_SWAP, wallet, wallet)
        yield "log", _log(chain, index, 3 * index + 1, tx, pool, _words(*amounts), topics)
        yield "token_transfer", transfer(chain, 3 * index + 2, tx)


def withdrawal(chain: Chain, number: int, share: float = 0.95) -> tuple[str, list[tuple[str, bytes]]]:
    """A provider takes so much out of pool `number`, in the chain's present block: the transaction's hash, its
    messages as (type, message). Its logs come behind those of the block's swaps, so the block trades the pool no more:
    a later swap would be the first to show what is gone, and be named for it."""
    tx, pool, wallet, first = _hex(32), _POOLS[number % len(_POOLS)], _random.choice(_WALLETS), 1_000_000 + 3 * number
    reserves = _RESERVES[pool]
    chain.drained.add(pool)
    out = [int(reserve * share) for reserve in reserves]
    _RESERVES[pool] = [reserve - gone for reserve, gone in zip(reserves, out, strict=True)]
    shares = _topics(_TRANSFER, wallet, pool)
    logs = (
        (_words(isqrt(out[0] * out[1])), shares),
        (_words(*_RESERVES[pool]), _topics(_SYNC)),
        (_words(*out), _topics(_BURN, wallet, wallet)),
    )
    messages = [("log", _log(chain, 0, first + i, tx, pool, data, topics)) for i, (data, topics) in enumerate(logs)]
    return tx, [("transaction", _transaction(chain, 0, tx, wallet, pool)), *messages]


def _trade(pool: str) -> tuple[int, int, int, int]:
    """A trade of up to 0.3 % of a pool: what came in of both tokens, what went out; moves the reserves."""
    into, reserves = _random.randrange(2), _RESERVES[pool]
    paid = int(reserves[into] * _random.uniform(0.0005, 0.003))
    got = reserves[1 - into] * paid * 997 // (reserves[into] * 1000 + paid * 997)
    reserves[into] += paid
    reserves[1 - into] -= got
    return (paid, 0, 0, got) if into == 0 else (0, paid, got, 0)


def _words(*values: int) -> str:
    return "".join(f"{value:064x}" for value in values)


def _topics(signature: str, *addresses: str) -> str:
    return "[" + ", ".join([f'"0x{signature}"', *(f'"0x{"0" * 24}{one[2:]}"' for one in addresses)]) + "]"


def _log(chain: Chain, tx_index: int, log_index: int, tx: str, address: str, data: str, topics: str) -> bytes:
    return (
        f'{{"type": "log", "log_index": {log_index}, "transaction_hash": "{tx}", "transaction_index": {tx_index},'
        f' "address": "{address}", "data": "0x{data}", "topics": {topics}, "block_number": {chain.number},'
        f' "block_timestamp": {chain.timestamp}, "block_hash": "{chain.hash}", "item_id": "log_{tx}",'
        f' "item_timestamp": "2024-06-01T00:00:00Z"}}'
    ).encode()


def _transaction(chain: Chain, index: int, tx: str, wallet: str, pool: str) -> bytes:
    return (
        f'{{"type": "transaction", "hash": "{tx}", "nonce": {index}, "transaction_index": {index},'
        f' "from_address": "{wallet}", "to_address": "{pool}", "value": {_random.getrandbits(60)}, "gas": 450000,'
        f' "gas_price": 20000000000, "input": "0x7ff36ab5{"0" * 512}", "block_timestamp": {chain.timestamp},'
        f' "block_number": {chain.number}, "block_hash": "{chain.hash}", "transaction_type": 2,'
        f' "receipt_gas_used": 121000, "receipt_status": 1, "item_id": "transaction_{tx}",'
        f' "item_timestamp": "2024-06-01T00:00:00Z"}}'
    ).encode()


def send_blocks(
    settings: Settings,
    chain: str,
    rate: float,
    seconds: float,
    linger_ms: float,
    per_block: int,
    withdrawals: Connection | None = None,
    withdrawals_after_s: float = 0,
) -> int:
    """Publish blocks of about `per_block` events at `rate` events/s for `seconds`, evenly, after one that creates all
    pools; how many were sent. With `withdrawals`, one of the pools is drained twice a second from `withdrawals_after_s`
    on, and what was sent goes there at the end: transaction -> when its last message was handed to the client (epoch
    seconds)."""
    out, blocks, sent = producer(settings, linger_ms), Chain(spacing_s=max(1, round(per_block / rate))), 0
    names = {"block": "blocks", "transaction": "transactions", "log": "logs", "token_transfer": "token_transfers"}
    drained: dict[str, float] = {}
    tick, started, messages = 0.002, time.perf_counter(), pairs(blocks)
    while time.perf_counter() - started < seconds:
        for type_, message in messages:
            due = started + sent / rate
            if (ahead := due - time.perf_counter()) > tick:
                out.poll(0)
                time.sleep(ahead)
            out.produce(f"{chain}.{names[type_]}", message)
            sent += 1
            passed = time.perf_counter() - started - withdrawals_after_s
            if withdrawals is not None and passed * 2 > len(drained):
                tx, logs = withdrawal(blocks, len(drained))
                for kind, log in logs:
                    out.produce(f"{chain}.{names[kind]}", log)
                drained[tx] = time.time()
                sent += len(logs)
        out.poll(0)
        messages = block(blocks, per_block // 4)
    out.flush(30)
    if withdrawals is not None:
        withdrawals.send(drained)
    return sent
