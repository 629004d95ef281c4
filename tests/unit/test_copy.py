"""The bytes of COPY, read back by a reader that knows nothing of how they are made. PostgreSQL reads them in
`tests/integration/test_commit.py`."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from dash_pipeline.storage.copy import encode, fixed_width
from dash_pipeline.storage.tables import TABLES, Table
from tests import rows


def numeric(data: bytes) -> str:
    count, weight, sign, scale = struct.unpack(">hhHh", data[:8])
    digits = struct.unpack(f">{count}h", data[8:])
    assert scale == 0
    assert weight == count - 1
    assert all(0 <= digit <= 9999 for digit in digits)
    assert sign in (0, 0x4000)
    whole = sum(digit * 10000 ** (weight - i) for i, digit in enumerate(digits))
    return str(-whole if sign else whole)


def jsonb(data: bytes) -> str:
    assert data[0] == 1
    return data[1:].decode()


READERS: dict[str, Any] = {
    "bytea": bytes,
    "text": bytes.decode,
    "jsonb": jsonb,
    "numeric": numeric,
    "int8": lambda b: struct.unpack(">q", b)[0],
    "int4": lambda b: struct.unpack(">i", b)[0],
    "float8": lambda b: struct.unpack(">d", b)[0],
    "bool": lambda b: {b"\0": False, b"\1": True}[b],
    "timestamptz": lambda b: datetime(2000, 1, 1, tzinfo=UTC) + timedelta(microseconds=struct.unpack(">q", b)[0]),
}


def read(data: bytes, table: Table) -> Iterator[tuple[Any, ...]]:
    assert data.startswith(b"PGCOPY\n\xff\r\n\0" + bytes(8))
    at = 19
    while True:
        (count,) = struct.unpack_from(">h", data, at)
        at += 2
        if count == -1:
            assert at == len(data)
            return
        assert count == len(table.columns)
        row = []
        for column in table.columns.values():
            (size,) = struct.unpack_from(">i", data, at)
            at += 4
            row.append(None if size == -1 else READERS[column.type](data[at : at + size]))
            at += max(size, 0)
        yield tuple(row)


def sent(frame: pl.DataFrame, table: Table) -> list[tuple[Any, ...]]:
    """`-0` is 0."""
    minus = pl.col(n for n, c in table.columns.items() if c.type == "numeric") if table.columns else []
    numerics = any(c.type == "numeric" for c in table.columns.values())
    return (frame.with_columns(minus.replace("-0", "0")) if numerics else frame).rows()


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("null", [None, True, False])
def test_every_table(table: Table, null: bool | None) -> None:
    rng = random.Random(table.name)
    for count in (1, 2, 3, 100):
        frame = rows.frame(rng, table, count, null=null)
        assert list(read(encode([frame], table), table)) == sent(frame, table)


def test_several_frames_and_columns_that_are_not_the_tables() -> None:
    table = TABLES["logs"]
    frames = [rows.frame(random.Random(i), table, count) for i, count in enumerate((3, 0, 5))]
    extended = [frame.with_columns(_message=pl.lit(1)) for frame in frames]
    assert list(read(encode(extended, table), table)) == [row for frame in frames for row in frame.rows()]
    assert list(read(encode([], table), table)) == []


def test_fixed_width_is_the_bytes() -> None:
    values = pl.Series([b"ab", b"cd"], dtype=pl.Binary)
    assert fixed_width(values, 2).tolist() == [[97, 98], [99, 100]]
