"""Logs -> pool events, decoded by the column.

Belongs here: the events' signatures and where each field lies. Does not belong here: 256-bit arithmetic (`amounts.py`).
Sources: Uniswap v2-core (UniswapV2Pair.sol, UniswapV2Factory.sol), v3-core (IUniswapV3PoolEvents.sol,
IUniswapV3Factory.sol), ERC-20. A log with a known signature but another shape is another contract's event: not decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import numpy.typing as npt
import polars as pl

from dash_pipeline.columns import constant, filled
from dash_pipeline.events import amounts
from dash_pipeline.storage.copy import fixed_width
from dash_pipeline.storage.tables import POOL_EVENTS, POOLS

Words = npt.NDArray[np.uint8]

# A field is a column, or an amount that becomes its exact column and, where the table has one, its `_f` column.
Fields = dict[str, pl.Series | amounts.Limbs]

_CARRIED = ("chain", "ts", "block_number", "block_hash", "tx_hash", "log_index")


class Log:
    """The logs of one event, by words of 32 bytes: `topic(1)`, `data(0)` ...; each reader returns a column."""

    def __init__(self, logs: dict[str, pl.Series], words: int) -> None:
        self._logs = logs
        self._data = fixed_width(logs["data"], 32 * words) if words else None

    def topic(self, i: int) -> Words:
        """Topic `i` of each log, 1 to 3: (logs, 32) bytes."""
        return fixed_width(self._logs[f"topic{i}"], 32)

    def data(self, i: int) -> Words:
        """Word `i` of each log's data, from 0: (logs, 32) bytes."""
        assert self._data is not None
        return self._data[:, 32 * i : 32 * i + 32]

    def emitter(self) -> pl.Series:
        """The contract that emitted each log: Binary, 20 bytes."""
        return self._logs["address"]


def _address(word: Words) -> pl.Series:
    return pl.Series(np.ascontiguousarray(word[:, 12:]).view("V20").ravel().tolist(), dtype=pl.Binary)


def _int32(word: Words) -> pl.Series:
    """int24 and uint24 arguments: the word's last four bytes, sign included."""
    return pl.Series(np.ascontiguousarray(word[:, 28:]).view(">i4").ravel().astype(np.int32))


def _transfer(log: Log) -> Fields:
    return {
        "pool": log.emitter(),
        "sender": _address(log.topic(1)),
        "recipient": _address(log.topic(2)),
        "amount0": amounts.unsigned(log.data(0)),
    }


def _v2_swap(log: Log) -> Fields:
    in0, in1, out0, out1 = (amounts.unsigned(log.data(i)) for i in range(4))
    return {
        "pool": log.emitter(),
        "sender": _address(log.topic(1)),
        "recipient": _address(log.topic(2)),
        "amount0": in0 - out0,
        "amount1": in1 - out1,
        "amount0_out": out0,
        "amount1_out": out1,
    }


def _v2_sync(log: Log) -> Fields:
    return {
        "pool": log.emitter(),
        "reserve0": amounts.unsigned(log.data(0)),
        "reserve1": amounts.unsigned(log.data(1)),
    }


def _v2_mint(log: Log) -> Fields:
    return {
        "pool": log.emitter(),
        "sender": _address(log.topic(1)),
        "amount0": amounts.unsigned(log.data(0)),
        "amount1": amounts.unsigned(log.data(1)),
    }


def _v2_burn(log: Log) -> Fields:
    return {
        "pool": log.emitter(),
        "sender": _address(log.topic(1)),
        "recipient": _address(log.topic(2)),
        "amount0": -amounts.unsigned(log.data(0)),
        "amount1": -amounts.unsigned(log.data(1)),
    }


def _v2_pair_created(log: Log) -> Fields:
    return {
        "pool": _address(log.data(0)),
        "sender": log.emitter(),
        "token0": _address(log.topic(1)),
        "token1": _address(log.topic(2)),
    }


def _v3_swap(log: Log) -> Fields:
    return {
        "pool": log.emitter(),
        "sender": _address(log.topic(1)),
        "recipient": _address(log.topic(2)),
        "amount0": amounts.signed(log.data(0)),
        "amount1": amounts.signed(log.data(1)),
        "sqrt_price_x96": amounts.unsigned(log.data(2)),
        "liquidity": amounts.unsigned(log.data(3)),
        "tick": _int32(log.data(4)),
    }


def _v3_mint(log: Log) -> Fields:
    return {
        "pool": log.emitter(),
        "sender": _address(log.data(0)),
        "recipient": _address(log.topic(1)),
        "tick_lower": _int32(log.topic(2)),
        "tick_upper": _int32(log.topic(3)),
        "liquidity": amounts.unsigned(log.data(1)),
        "amount0": amounts.unsigned(log.data(2)),
        "amount1": amounts.unsigned(log.data(3)),
    }


def _v3_burn(log: Log) -> Fields:
    return {
        "pool": log.emitter(),
        "recipient": _address(log.topic(1)),
        "tick_lower": _int32(log.topic(2)),
        "tick_upper": _int32(log.topic(3)),
        "liquidity": -amounts.unsigned(log.data(0)),
        "amount0": -amounts.unsigned(log.data(1)),
        "amount1": -amounts.unsigned(log.data(2)),
    }


def _v3_initialize(log: Log) -> Fields:
    return {
        "pool": log.emitter(),
        "sqrt_price_x96": amounts.unsigned(log.data(0)),
        "tick": _int32(log.data(1)),
    }


def _v3_pool_created(log: Log) -> Fields:
    return {
        "pool": _address(log.data(1)),
        "sender": log.emitter(),
        "token0": _address(log.topic(1)),
        "token1": _address(log.topic(2)),
        "fee": _int32(log.topic(3)),
        "tick_spacing": _int32(log.data(0)),
    }


@dataclass(frozen=True)
class Event:
    """An event: keccak-256 of its signature, how many topics and data words its logs have, how to read them."""

    protocol: str
    name: str
    topic0: str
    topics: int
    words: int
    read: Callable[[Log], Fields]


EVENTS = (
    Event(
        "erc20",
        "transfer",
        "ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef",
        3,
        1,
        _transfer,
    ),
    Event(
        "uniswap_v2",
        "swap",
        "d78ad95fa46c994b6551d0da85fc275fe613ce37657fb8d5e3d130840159d822",
        3,
        4,
        _v2_swap,
    ),
    Event(
        "uniswap_v2",
        "sync",
        "1c411e9a96e071241c2f21f7726b17ae89e3cab4c78be50e062b03a9fffbbad1",
        1,
        2,
        _v2_sync,
    ),
    Event(
        "uniswap_v2",
        "mint",
        "4c209b5fc8ad50758f13e2e1088ba56a560dff690a1c6fef26394f4c03821c4f",
        2,
        2,
        _v2_mint,
    ),
    Event(
        "uniswap_v2",
        "burn",
        "dccd412f0b1252819cb1fd330b93224ca42612892bb3f4f789976e6d81936496",
        3,
        2,
        _v2_burn,
    ),
    Event(
        "uniswap_v2",
        "pair_created",
        "0d3648bd0f6ba80134a33ba9275ac585d9d315f0ad8355cddefde31afa28d0e9",
        3,
        2,
        _v2_pair_created,
    ),
    Event(
        "uniswap_v3",
        "swap",
        "c42079f94a6350d7e6235f29174924f928cc2ac818eb64fed8004e115fbcca67",
        3,
        5,
        _v3_swap,
    ),
    Event(
        "uniswap_v3",
        "mint",
        "7a53080ba414158be7ec69b987b5fb7d07dee101fe85488f0853ae16239d0bde",
        4,
        4,
        _v3_mint,
    ),
    Event(
        "uniswap_v3",
        "burn",
        "0c396cd989a39f4459b5fa1aed6a9a8dcdbc45908acfd67e028cd568da98982c",
        4,
        3,
        _v3_burn,
    ),
    Event(
        "uniswap_v3",
        "initialize",
        "98636036cb66a9c19a37435efc1e90142190214e8abeb821bdba3f2990dd4c95",
        1,
        2,
        _v3_initialize,
    ),
    Event(
        "uniswap_v3",
        "pool_created",
        "783cca1c0412dd0d695e784568c96da2e9c22ff989357a2e8b1d9b2b4e6b7118",
        4,
        2,
        _v3_pool_created,
    ),
)
_BY_TOPIC = {bytes.fromhex(event.topic0): event for event in EVENTS}
_NUMBER = {topic0: number for number, topic0 in enumerate(_BY_TOPIC)}


def pool_events(logs: pl.DataFrame) -> list[pl.DataFrame]:
    """The pool events among `logs` (columns of table logs), one frame per kind of event with the columns of table
    pool_events: a column is null in all rows of a frame or in none."""
    # Column by column, without expressions: each of polars' queries costs more than all rows of a small batch.
    numbers = np.fromiter(map(_NUMBER.get, logs["topic0"].to_list(), repeat(-1)), np.int64, logs.height)
    columns = {column.name: column for column in logs.get_columns()}
    sizes = np.fromiter(map(len, columns["data"].to_list()), np.int64, logs.height)
    topics = np.sum([filled(columns[f"topic{i}"]) for i in range(4)], axis=0)
    frames = []
    for number in np.unique(numbers).tolist():
        if number < 0:
            continue
        event = EVENTS[number]
        # The topics of a log are the first ones, so their count says which there are.
        shaped = (numbers == number) & (sizes == 32 * event.words) & (topics == event.topics)
        if shaped.any():
            mask = pl.Series(shaped)
            frames.append(_read({name: column.filter(mask) for name, column in columns.items()}, event))
    return frames


def _read(logs: dict[str, pl.Series], event: Event) -> pl.DataFrame:
    rows = len(logs["topic0"])
    columns = {name: logs[name] for name in _CARRIED} | _converted(event.read(Log(logs, event.words)), rows)
    for name, value in (("protocol", event.protocol), ("event", event.name)):
        columns[name] = constant(value, pl.String, rows)
    return pl.DataFrame(
        [
            (columns[name] if name in columns else constant(None, dtype, rows)).alias(name)
            for name, dtype in POOL_EVENTS.schema().items()
        ]
    )


def _converted(fields: Fields, rows: int) -> dict[str, pl.Series]:
    """The fields as columns; all amounts of an event are converted in one go."""
    columns = {name: value for name, value in fields.items() if isinstance(value, pl.Series)}
    limbs = {name: value for name, value in fields.items() if not isinstance(value, pl.Series)}
    if limbs:
        exact, floats = amounts.to_columns(np.concatenate(list(limbs.values())))
        for i, name in enumerate(limbs):
            columns[name] = exact.slice(i * rows, rows)
            if f"{name}_f" in POOL_EVENTS.columns:
                columns[f"{name}_f"] = floats.slice(i * rows, rows)
    return columns


def pools(events: list[pl.DataFrame]) -> pl.DataFrame:
    """The pools that `events` (from `pool_events`) saw being created, with the columns of table pools."""
    created = [
        frame.rename({"pool": "address", "sender": "factory"}).select(*POOLS.columns)
        for frame in events
        if frame["event"][0] in ("pair_created", "pool_created")
    ]
    return pl.concat(created) if created else pl.DataFrame(schema=POOLS.schema())
