"""Frames -> PostgreSQL's binary COPY format, encoded by column.

Belongs here: the wire format. Does not belong here: which rows go where (`timescale.py`).
Format: https://www.postgresql.org/docs/17/sql-copy.html (Binary Format), numeric: src/backend/utils/adt/numeric.c.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from itertools import chain, repeat

import numpy as np
import numpy.typing as npt
import polars as pl

from dash_pipeline.columns import filled
from dash_pipeline.storage.tables import Table

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"

_NULL = b"\xff\xff\xff\xff"
_POSTGRES_EPOCH_US = 946_684_800_000_000
_MINUS = ord("-") - ord("0") + 256
_FIXED = {"int8": ">i8", "int4": ">i4", "float8": ">f8"}

Bytes = npt.NDArray[np.uint8]


def encode(frames: Iterable[pl.DataFrame], table: Table) -> bytes:
    """The rows of `frames` as one COPY stream for `table`; columns that are not the table's are ignored."""
    return b"".join([HEADER, *(_rows(frame, table) for frame in frames if frame.height), TRAILER])


def _rows(frame: pl.DataFrame, table: Table) -> bytes:
    """Tuples without header and trailer: neighbouring fields of fixed width become one matrix, others go in between."""
    values = {column.name: column for column in frame.get_columns()}
    count = np.empty((frame.height, 2), np.uint8)
    count[:] = divmod(len(table.columns), 256)
    pending: list[Bytes] = [count]
    parts: list[list[bytes]] = []
    for name, column in table.columns.items():
        field = _field(values[name], column.type)
        if isinstance(field, list):
            if pending:
                parts.append(_slices(pending))
            parts.append(field)
            pending = []
        else:
            pending.append(field)
    if not parts:
        return np.concatenate(pending, axis=1).tobytes()
    if pending:
        parts.append(_slices(pending))
    return b"".join(chain.from_iterable(zip(*parts, strict=True)))


def _slices(matrices: list[Bytes]) -> list[bytes]:
    """The rows of matrices laid side by side, each as bytes."""
    joined = np.ascontiguousarray(np.concatenate(matrices, axis=1))
    rows: list[bytes] = joined.view(f"V{joined.shape[1]}").ravel().tolist()
    return rows


def _field(values: pl.Series, type_: str) -> Bytes | list[bytes]:
    """A column's fields with their length words: a matrix where all have one width, else a list."""
    nulls = values.null_count()
    if nulls == len(values):
        return np.full((len(values), 4), 0xFF, np.uint8)
    if nulls:
        there = filled(values)
        present = _field(values.filter(pl.Series(there)), type_)
        spread = np.full(len(values), _NULL, object)
        spread[there] = _slices([present]) if isinstance(present, np.ndarray) else present
        return spread.tolist()
    if type_ in _FIXED:
        return _with_length(values.to_numpy().astype(_FIXED[type_]).view(np.uint8).reshape(len(values), -1))
    match type_:
        case "timestamptz":
            micros = values.cast(pl.Int64).to_numpy() - _POSTGRES_EPOCH_US
            return _with_length(micros.astype(">i8").view(np.uint8).reshape(-1, 8))
        case "bool":
            return _with_length(values.to_numpy().astype(np.uint8).reshape(-1, 1))
        case "numeric":
            return _with_length(_numeric(values))
        case "jsonb":
            return _variable([b"\x01" + text.encode() for text in values.to_list()])
        case "text":
            return _variable(list(map(str.encode, values.to_list())))
        case _:
            return _variable(values.to_list())


def _with_length(data: Bytes) -> Bytes:
    field = np.empty((len(data), 4 + data.shape[1]), np.uint8)
    field[:, :4] = tuple(data.shape[1].to_bytes(4, "big"))
    field[:, 4:] = data
    return field


def _variable(values: list[bytes]) -> Bytes | list[bytes]:
    """Bytes behind their length words."""
    sizes = np.fromiter(map(len, values), ">i4", len(values))
    if sizes[0] and (sizes == sizes[0]).all():
        return _with_length(_matrix(b"".join(values), int(sizes[0])))
    return list(map(operator.add, sizes.view("V4").tolist(), values))


def fixed_width(values: pl.Series, width: int) -> Bytes:
    """Binary values of `width` bytes each, none null, as a matrix (rows, width) of uint8."""
    return _matrix(b"".join(values.to_list()), width)


def _matrix(joined: bytes, width: int) -> Bytes:
    return np.frombuffer(joined, np.uint8).reshape(-1, width)


def _numeric(values: pl.Series) -> Bytes:
    """Decimal digits as base-10000 numerics. Leading zero digits are sent as they are: the server normalises them."""
    texts: list[str] = values.to_list()
    # zfill puts zeros behind a sign, so that a sign is always first; it is a digit like the others once it is noted.
    width = -(-max(map(len, texts)) // 4) * 4
    text = _matrix("".join(map(str.zfill, texts, repeat(width))).encode(), width) - ord("0")
    negative = text[:, 0] == _MINUS
    if negative.any():
        text[negative, 0] = 0
    groups = text.reshape(len(values), -1, 4).astype(np.int16) @ np.array([1000, 100, 10, 1], np.int16)
    out = np.empty((len(values), 4 + groups.shape[1]), ">i2")
    out[:, 0] = groups.shape[1]
    out[:, 1] = groups.shape[1] - 1
    out[:, 2] = negative * 0x4000
    out[:, 3] = 0
    out[:, 4:] = groups
    return out.view(np.uint8).reshape(len(values), -1)
