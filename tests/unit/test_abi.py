"""Logs -> pool events, against encodings made by hand."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest

from dash_pipeline.events import abi
from dash_pipeline.storage.tables import LOGS, POOL_EVENTS, POOLS
from tests.keccak import keccak256

# The events as their contracts declare them.
SIGNATURES = {
    ("erc20", "transfer"): "Transfer(address,address,uint256)",
    ("uniswap_v2", "swap"): "Swap(address,uint256,uint256,uint256,uint256,address)",
    ("uniswap_v2", "sync"): "Sync(uint112,uint112)",
    ("uniswap_v2", "mint"): "Mint(address,uint256,uint256)",
    ("uniswap_v2", "burn"): "Burn(address,uint256,uint256,address)",
    ("uniswap_v2", "pair_created"): "PairCreated(address,address,address,uint256)",
    ("uniswap_v3", "swap"): "Swap(address,address,int256,int256,uint160,uint128,int24)",
    ("uniswap_v3", "mint"): "Mint(address,address,int24,int24,uint128,uint256,uint256)",
    ("uniswap_v3", "burn"): "Burn(address,int24,int24,uint128,uint256,uint256)",
    ("uniswap_v3", "initialize"): "Initialize(uint160,int24)",
    ("uniswap_v3", "pool_created"): "PoolCreated(address,address,uint24,int24,address)",
}
EMITTER = b"\xee" * 20
A, B, C = bytes(range(20)), bytes(range(20, 40)), b"\xff" * 20
MAX = 2**256 - 1


def word(value: int | bytes) -> bytes:
    return value.rjust(32, b"\0") if isinstance(value, bytes) else (value % 2**256).to_bytes(32, "big")


def topic0(protocol: str, event: str) -> bytes:
    return keccak256(SIGNATURES[protocol, event].encode())


def log(index: int, first: bytes | None, topics: list[int | bytes], data: list[int | bytes] | bytes) -> dict[str, Any]:
    extra = [word(t) for t in topics] + [None] * (3 - len(topics))
    return {
        "chain": "anvil", "ts": datetime(2024, 1, 5, tzinfo=UTC), "block_number": 7, "block_hash": b"\x07" * 32,
        "tx_hash": b"\x08" * 32, "tx_index": 0, "log_index": index, "address": EMITTER, "topic0": first,
        "topic1": extra[0], "topic2": extra[1], "topic3": extra[2],
        "data": data if isinstance(data, bytes) else b"".join(map(word, data)), "extra": None,
    }  # fmt: skip


def frame(logs: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(logs, schema=LOGS.schema(), orient="row")


def decode(logs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All events of the logs in their order, without what is null."""
    frames = abi.pool_events(frame(logs))
    for one in frames:
        assert one.schema == pl.Schema(POOL_EVENTS.schema())
        assert all(one[name].null_count() in (0, one.height) for name in one.columns)
    rows = [row for one in frames for row in one.iter_rows(named=True)]
    return [{k: v for k, v in row.items() if v is not None} for row in sorted(rows, key=lambda r: r["log_index"])]


def one(protocol: str, event: str, topics: list[int | bytes], data: list[int | bytes]) -> dict[str, Any]:
    (row,) = decode([log(3, topic0(protocol, event), topics, data)])
    carried = {"chain", "ts", "block_number", "block_hash", "tx_hash", "log_index"}
    assert carried <= row.keys()
    assert (row["protocol"], row["event"]) == (protocol, event)
    return {k: v for k, v in row.items() if k not in carried | {"protocol", "event"}}


def test_keccak_is_keccak() -> None:
    assert keccak256(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    assert keccak256(b"abc").hex() == "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45"
    assert keccak256(b"a" * 200).hex() == "96ea54061def936c4be90b518992fdc6f12f535068a256229aca54267b4d084d"


def test_every_signature_has_its_hash() -> None:
    assert {(e.protocol, e.name): e.topic0 for e in abi.EVENTS} == {
        key: keccak256(text.encode()).hex() for key, text in SIGNATURES.items()
    }


def test_transfer() -> None:
    assert one("erc20", "transfer", [A, B], [MAX]) == {
        "pool": EMITTER, "sender": A, "recipient": B, "amount0": str(MAX), "amount0_f": pytest.approx(float(MAX)),
    }  # fmt: skip


def test_v2_swap_is_the_change_of_the_pool() -> None:
    assert one("uniswap_v2", "swap", [A, B], [1000, 5, 0, 2**112 - 1]) == {
        "pool": EMITTER, "sender": A, "recipient": B, "amount0": "1000", "amount0_f": 1000.0,
        "amount1": str(5 - 2**112 + 1), "amount1_f": pytest.approx(float(5 - 2**112 + 1)),
        "amount0_out": "0", "amount1_out": str(2**112 - 1),
    }  # fmt: skip


def test_v2_sync() -> None:
    assert one("uniswap_v2", "sync", [], [0, 2**112 - 1]) == {
        "pool": EMITTER, "reserve0": "0", "reserve0_f": 0.0, "reserve1": str(2**112 - 1),
        "reserve1_f": pytest.approx(2.0**112),
    }  # fmt: skip


def test_v2_mint_comes_in_and_burn_goes_out() -> None:
    assert one("uniswap_v2", "mint", [A], [7, 8]) == {
        "pool": EMITTER, "sender": A, "amount0": "7", "amount0_f": 7.0, "amount1": "8", "amount1_f": 8.0,
    }  # fmt: skip
    assert one("uniswap_v2", "burn", [A, B], [7, 8]) == {
        "pool": EMITTER, "sender": A, "recipient": B, "amount0": "-7", "amount0_f": -7.0, "amount1": "-8",
        "amount1_f": -8.0,
    }  # fmt: skip


def test_v3_swap_with_negative_ticks_and_amounts() -> None:
    assert one("uniswap_v3", "swap", [A, B], [-(2**255), 2**255 - 1, 2**160 - 1, 2**128 - 1, -887272]) == {
        "pool": EMITTER, "sender": A, "recipient": B, "amount0": str(-(2**255)), "amount0_f": -(2.0**255),
        "amount1": str(2**255 - 1), "amount1_f": pytest.approx(2.0**255), "sqrt_price_x96": str(2**160 - 1),
        "liquidity": str(2**128 - 1), "tick": -887272,
    }  # fmt: skip


def test_v3_mint_and_burn() -> None:
    assert one("uniswap_v3", "mint", [B, -887220, 887220], [A, 10, 20, 30]) == {
        "pool": EMITTER, "sender": A, "recipient": B, "tick_lower": -887220, "tick_upper": 887220, "liquidity": "10",
        "amount0": "20", "amount0_f": 20.0, "amount1": "30", "amount1_f": 30.0,
    }  # fmt: skip
    assert one("uniswap_v3", "burn", [B, -60, 60], [10, 20, 0]) == {
        "pool": EMITTER, "recipient": B, "tick_lower": -60, "tick_upper": 60, "liquidity": "-10",
        "amount0": "-20", "amount0_f": -20.0, "amount1": "0", "amount1_f": 0.0,
    }  # fmt: skip


def test_v3_initialize() -> None:
    assert one("uniswap_v3", "initialize", [], [2**96, -1]) == {
        "pool": EMITTER, "sqrt_price_x96": str(2**96), "tick": -1,
    }  # fmt: skip


def test_created_pools() -> None:
    logs = [
        log(1, topic0("uniswap_v2", "pair_created"), [A, B], [C, 1]),
        log(2, topic0("uniswap_v3", "pool_created"), [A, B, 3000], [60, EMITTER]),
        log(3, topic0("uniswap_v2", "sync"), [], [1, 1]),
    ]
    events = abi.pool_events(frame(logs))
    pools = {row["protocol"]: row for row in abi.pools(events).iter_rows(named=True)}
    assert pools["uniswap_v2"]["address"] == C
    assert pools["uniswap_v3"]["address"] == EMITTER
    assert {p: (row["token0"], row["token1"], row["factory"], row["fee"]) for p, row in pools.items()} == {
        "uniswap_v2": (A, B, EMITTER, None),
        "uniswap_v3": (A, B, EMITTER, 3000),
    }
    (created,) = (row for row in decode(logs) if row["event"] == "pool_created")
    assert (created["pool"], created["tick_spacing"], created["fee"]) == (EMITTER, 60, 3000)


def test_no_pool_created_is_an_empty_frame() -> None:
    assert abi.pools([]).schema == pl.Schema(POOLS.schema())
    assert abi.pool_events(frame([])) == []


TRANSFER = topic0("erc20", "transfer")


@pytest.mark.parametrize(
    ("first", "topics", "data"),
    [
        (TRANSFER, [A, B, 5], []),  # ERC-721: the id is indexed
        (TRANSFER, [], [A, B, 5]),  # nothing is indexed
        (TRANSFER, [A, B], b"\x05"),
        (TRANSFER, [A, B], [5, 6]),
        (TRANSFER, [A, B], b""),
        (topic0("uniswap_v2", "sync"), [], [1]),
        (topic0("uniswap_v3", "swap"), [A], [1, 2, 3, 4, 5]),
        (b"\x01" * 32, [A, B], [5]),
        (None, [], b""),  # an anonymous event
    ],
)
def test_another_shape_is_another_contracts_event(
    first: bytes | None, topics: list[int | bytes], data: list[int | bytes] | bytes
) -> None:
    assert decode([log(0, first, topics, data), log(1, TRANSFER, [A, B], [5])])[0]["log_index"] == 1


@pytest.mark.parametrize("seed", range(10))
def test_many_logs_of_all_kinds_in_one_frame(seed: int) -> None:
    rng = random.Random(seed)
    made, want = [], []
    for index in range(400):
        event = rng.choice(abi.EVENTS)
        topics: list[int | bytes] = [rng.getrandbits(256) for _ in range(event.topics - 1)]
        data: list[int | bytes] = [rng.getrandbits(rng.randrange(257)) for _ in range(event.words)]
        if rng.random() < 0.2:
            made.append(log(index, bytes.fromhex(event.topic0), topics, [*data, 1]))
            continue
        made.append(log(index, bytes.fromhex(event.topic0), topics, data))
        first = data[0] if data else 0
        assert isinstance(first, int)
        exact = {
            "transfer": ("amount0", first), "mint": ("amount0", first), "sync": ("reserve0", first),
            "initialize": ("sqrt_price_x96", first), "burn": ("amount0", -first),
        }  # fmt: skip
        if event.protocol != "uniswap_v3" or event.name == "initialize":
            name, value = exact.get(event.name, ("log_index", index))
        elif event.name == "burn":
            name, value = "liquidity", -first
        elif event.name == "swap":
            name, value = "amount0", first - 2**256 * (first >= 2**255)
        else:
            name, value = "log_index", index
        want.append((index, event.protocol, event.name, name, str(value)))
    got = decode(made)
    assert [(r["log_index"], r["protocol"], r["event"]) for r in got] == [w[:3] for w in want]
    assert [str(row[name]) for row, (*_, name, _) in zip(got, want, strict=True)] == [w[-1] for w in want]
