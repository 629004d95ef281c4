"""The archive's files: every value comes back, and the hash of rows is of the rows alone."""

from __future__ import annotations

import io
import random
from itertools import pairwise

import polars as pl
import pytest

from dash_pipeline.archive.parquet import ARCHIVED, arranged, content_hash, decode, encode
from dash_pipeline.storage.tables import LOGS, TOKEN_TRANSFERS, Table
from tests import rows

TABLES = list(ARCHIVED.values())


@pytest.mark.parametrize("null", [None, True, False])
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_value_comes_back(table: Table, null: bool | None) -> None:
    made = rows.frame(random.Random(5), table, 300, null=null)
    back = decode(encode(arranged(made, table)), table)
    assert back.schema == made.schema
    assert back.sort(*table.key).equals(made.sort(*table.key), null_equal=True)
    assert content_hash(back, table) == content_hash(made, table)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_the_hash_is_of_the_rows_whatever_their_order(table: Table) -> None:
    made = rows.frame(random.Random(6), table, 100)
    assert content_hash(made.sample(fraction=1, shuffle=True, seed=1), table) == content_hash(made, table)
    assert content_hash(made.rechunk().select(reversed(made.columns)), table) == content_hash(made, table)
    assert content_hash(made.head(99), table) != content_hash(made, table)


def test_the_hash_tells_any_changed_value() -> None:
    made = rows.frame(random.Random(7), TOKEN_TRANSFERS, 50)
    seen = {content_hash(made, TOKEN_TRANSFERS)}
    for name in made.columns:
        value = rows.value(random.Random(8), name, TOKEN_TRANSFERS.columns[name])
        changed = made.with_columns(
            pl.when(pl.int_range(pl.len()) == 17)
            .then(pl.lit(value, dtype=made.schema[name]))
            .otherwise(pl.col(name))
            .alias(name)
        )
        if not changed.equals(made, null_equal=True):
            seen.add(content_hash(changed, TOKEN_TRANSFERS))
    assert len(seen) >= len(made.columns) - 2


def test_null_is_not_empty() -> None:
    made = rows.frame(random.Random(9), LOGS, 10)
    null = made.with_columns(topic1=pl.lit(None, dtype=pl.Binary))
    empty = made.with_columns(topic1=pl.lit(b"", dtype=pl.Binary))
    assert content_hash(null, LOGS) != content_hash(empty, LOGS)
    assert decode(encode(arranged(empty, LOGS)), LOGS)["topic1"].null_count() == 0


def test_hashes_and_addresses_are_of_fixed_size_and_rows_lie_by_token() -> None:
    import pyarrow.parquet as pq

    made = rows.frame(random.Random(10), TOKEN_TRANSFERS, 70_000, null=True).with_columns(
        token_address=pl.Series([bytes([n % 251]) * 20 for n in range(70_000)])
    )
    file = pq.ParquetFile(io.BytesIO(encode(arranged(made, TOKEN_TRANSFERS))))
    assert [file.schema_arrow.field(name).type.byte_width for name in ("block_hash", "token_address")] == [32, 20]
    column = file.schema_arrow.get_field_index("token_address")
    spans = [file.metadata.row_group(n).column(column).statistics for n in range(file.num_row_groups)]
    assert len(spans) > 1
    assert all(one.max <= after.min for one, after in pairwise(spans))
