"""Frames of the hot tables <-> Parquet objects.

Belongs here: the file's layout, its schema version, and the hash of rows. Does not belong here: where objects lie and
which rows they hold (`export.py`).

Layout, version 1: zstd; sorted by what is asked for (the token, the pool, the contract) and then by time, so that the
statistics of a row group rule most of them out; hashes and addresses as fixed-size binary; exact amounts as decimal
digits, because 2^256-1 has more of them than Parquet's decimals; times in microseconds UTC; JSON as PostgreSQL writes
it, which is canonical and keeps every digit; arrays as lists, so that any reader finds an element by its bytes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from dash_pipeline.storage.tables import HISTORIES, Table

SCHEMA_VERSION = 1

_SORTED_BY = {
    "blocks": ("block_number",),
    "transactions": ("from_address", "ts"),
    "logs": ("address", "ts"),
    "token_transfers": ("token_address", "ts"),
    "pool_events": ("pool", "ts"),
    "traces": ("to_address", "ts"),
    # Anomalies before predictions: while one is hot, so is what was said of it.
    "anomalies": ("pool", "ts"),
    "predictions": ("subject", "as_of"),
    "dead_letters": ("topic", "seen_at"),
}
#: The tables whose rows are archived.
ARCHIVED: dict[str, Table] = {name: HISTORIES[name] for name in _SORTED_BY}

# A query for one token reads one row group of an object: large enough to compress, small enough to fetch at once.
_ROW_GROUP = 32_768


def arranged(frame: pl.DataFrame, table: Table) -> pl.DataFrame:
    """The rows (the table's schema) in the order in which a file has them."""
    return frame.select(*table.columns).sort(*_SORTED_BY[table.name], *table.key, nulls_last=True)


def encode(rows: pl.DataFrame) -> bytes:
    """Arranged rows as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = rows.to_arrow()
    schema = pa.schema(
        [pa.field(name, _arrow_type(rows[name], arrow.schema.field(name).type)) for name in rows.columns]
    )
    out = io.BytesIO()
    pq.write_table(
        arrow.cast(schema),
        out,
        compression="zstd",
        row_group_size=_ROW_GROUP,
        use_dictionary=_repeating(rows),
        write_page_index=True,
        store_schema=False,
    )
    return out.getvalue()


def _repeating(rows: pl.DataFrame) -> list[str]:
    """The columns that a dictionary makes smaller; of the others one would be made, and thrown away."""
    sample = rows.head(_ROW_GROUP)
    plain = [name for name, dtype in sample.schema.items() if not dtype.is_nested()]
    return [name for name in plain if 2 * sample[name].n_unique() <= sample.height]


def _arrow_type(values: pl.Series, plain: Any) -> Any:
    """Fixed-size binary where all values have one size."""
    import pyarrow as pa

    if values.dtype != pl.Binary:
        return plain
    sizes = values.bin.size().drop_nulls().unique()
    return pa.binary(sizes.item()) if len(sizes) == 1 and sizes.item() else pa.binary()


def decode(data: bytes, table: Table) -> pl.DataFrame:
    """The rows of a Parquet file, with the table's schema."""
    return pl.read_parquet(io.BytesIO(data)).select(pl.col(name).cast(dtype) for name, dtype in table.schema().items())


def content_hash(frame: pl.DataFrame, table: Table) -> bytes:
    """SHA-256 of the rows in the order of their key, by column: which are null, how long the others are, their bytes.
    The same rows have the same hash whatever order, file or version of a library they come from."""
    rows = frame.select(*table.columns).sort(*table.key)
    digest = hashlib.sha256(f"{table.name} {rows.height}".encode())
    for name, column in table.columns.items():
        digest.update(f" {name} {column.type} ".encode())
        for part in _parts(rows[name]):
            digest.update(part)
    return digest.digest()


def _parts(values: pl.Series) -> Iterator[bytes | memoryview]:
    yield np.packbits(values.is_null().to_numpy()).tobytes()
    present = values.drop_nulls()
    if isinstance(present.dtype, pl.List):
        yield _numbers(present.list.len().cast(pl.UInt32))
        yield from _parts(present.explode(empty_as_null=False))
    elif present.dtype in (pl.String, pl.Binary):
        # Arrow's layout of texts is what is hashed: how long each is, and all of them behind one another.
        arrow = present.cast(pl.Binary).rechunk().to_arrow()
        ends = np.frombuffer(arrow.buffers()[1], np.int64)[arrow.offset : arrow.offset + len(arrow) + 1]
        yield np.diff(ends).astype("<u4").tobytes()
        yield memoryview(arrow.buffers()[2] or b"")[ends[0] : ends[-1]]
    else:
        yield _numbers(present.to_physical())


def _numbers(values: pl.Series) -> bytes:
    numbers = values.to_numpy()
    return numbers.astype(numbers.dtype.newbyteorder("<")).tobytes()
