"""The archive as a person reads it in a terminal, and as a program reads it.

Belongs here: sums over the manifest, and rich. Does not belong here: what the manifest is (`manifest.py`).
"""

from __future__ import annotations

from typing import Any

import polars as pl
from rich.table import Column, Table

from dash_pipeline.archive import manifest
from dash_pipeline.storage.timescale import Connection


def days(conn: Connection, chain: str | None = None) -> list[dict[str, Any]]:
    """For each chain and table: first and last archived day, days, objects, rows, bytes; ready for JSON."""
    entries = manifest.entries(conn, chain=chain)
    if not entries:
        return []
    return (
        pl.DataFrame(
            [{name: getattr(one, name) for name in ("chain", "table", "date", "rows", "size")} for one in entries]
        )
        .group_by("chain", "table")
        .agg(
            first=pl.col("date").min().cast(pl.String),
            last=pl.col("date").max().cast(pl.String),
            days=pl.col("date").n_unique(),
            objects=pl.len(),
            rows=pl.col("rows").sum(),
            bytes=pl.col("size").sum(),
        )
        .sort("chain", "table")
        .to_dicts()
    )


def days_table(found: list[dict[str, Any]]) -> Table:
    """A line for each chain and table."""
    right = [Column(name, justify="right") for name in ("days", "objects", "rows", "MB")]
    table = Table("chain", "table", "first", "last", *right, box=None, pad_edge=False)
    for one in found:
        table.add_row(
            one["chain"], one["table"], one["first"], one["last"], f"{one['days']:,}", f"{one['objects']:,}",
            f"{one['rows']:,}", f"{one['bytes'] / 1e6:,.1f}",
        )  # fmt: skip
    return table
