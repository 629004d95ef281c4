"""Random rows for any table of the hot store, extremes among them. For unit and integration tests."""

from __future__ import annotations

import json
import random
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from dash_pipeline.storage.tables import Column, Table

_DAY = datetime(2024, 1, 5, tzinfo=UTC)
_WIDTHS = {"block_hash": 32, "parent_hash": 32, "tx_hash": 32, "address": 20, "logs_bloom": 256, "nonce": 8}
_WORDS = {"severity": ["low", "medium", "high"], "subject_kind": ["pool", "wallet"]}


def value(rng: random.Random, name: str, column: Column) -> Any:
    """A value the column may hold, as a frame carries it."""
    if column.null and rng.random() < 0.3:
        return None
    match column.type:
        case "bytea":
            return rng.randbytes(_WIDTHS.get(name, rng.choice([0, 1, 20, 32, 1000])))
        case "text" if name in _WORDS:
            return rng.choice(_WORDS[name])
        case "text":
            return rng.choice(["", "a", "ü€𝄞", 'quote"\\', "tab\tline\n", "x" * 3000])
        case "jsonb":
            return json.dumps(rng.choice([{}, [], {"a": [1, None, "ü"]}, 2**256 - 1, "text", [{"n": 0.5}]]))
        case "numeric":
            digits = rng.choice([0, 1, 9999, 10_000, 2**255, 2**256 - 1, rng.getrandbits(rng.randrange(1, 257))])
            return str(digits * rng.choice([1, -1]))
        case "int8":
            return rng.choice([0, 1, -1, 2**63 - 1, -(2**63), rng.getrandbits(40)])
        case "int4":
            return rng.choice([0, 1, -1, 2**31 - 1, -(2**31), rng.getrandbits(20)])
        case "float8":
            return rng.choice([0.0, 1.5, -1e300, 5e-324, float(2**256), rng.random()])
        case "bool":
            return rng.random() < 0.5
        case "timestamptz":
            return _DAY + timedelta(seconds=rng.randrange(86_400), microseconds=rng.randrange(10**6))
        case "bytea[]":
            return rng.choice([[], [b""], [rng.randbytes(20), None, rng.randbytes(20)], [rng.randbytes(32)]])
        case "int4[]":
            return rng.choice([[], [0], [1, None, 2**31 - 1], [-(2**31)]])
    raise AssertionError(column.type)


def frame(rng: random.Random, table: Table, rows: int, *, null: bool | None = None) -> pl.DataFrame:
    """Rows with keys that no other row has. `null`: all nullable columns null in all rows, or in none."""
    data: dict[str, list[Any]] = {}
    for name, column in table.columns.items():
        if null and column.null:
            data[name] = [None] * rows
            continue
        shape = Column(column.type, column.about) if null is False else column
        data[name] = [value(rng, name, shape) for _ in range(rows)]
    distinct = {"block_hash", "id", "anomaly_id"} & table.columns.keys()
    data |= {name: [secrets.token_bytes(32) for _ in range(rows)] for name in distinct}
    if "offset" in data:
        data["offset"] = [secrets.randbits(63) for _ in range(rows)]
    data["chain"] = ["anvil"] * rows
    return pl.DataFrame(data, schema=table.schema())
