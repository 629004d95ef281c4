"""The archive as a person reads it in a terminal, and as a program reads it.

Belongs here: sums over the manifest, and rich. Does not belong here: what the manifest is (`manifest.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import polars as pl
from rich.table import Column, Table

from dash_pipeline.archive import manifest
from dash_pipeline.archive.derive import Derived
from dash_pipeline.storage.anomalies import plain
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


def derived_text(day: Derived, *, dry_run: bool = False) -> str:
    """A line for a day."""
    where = f"{day.chain} {day.date}"
    if day.refused:
        return f"{where}: refused"
    done = ("to be replaced" if dry_run else "replaced") if day.differs else "the same"
    return f"{where}: pool_events {day.before:,} -> {day.after:,}, {done}; pools that were missing: {day.pools:,}"


def anomalies_json(found: pl.DataFrame) -> list[dict[str, Any]]:
    """The anomalies of `anomalies.anomalies`, ready for JSON: bytes as 0x and hex, times ISO 8601 in UTC."""
    return [
        {name: plain(value) for name, value in row.items()} | {"evidence": json.loads(row["evidence"])}
        for row in found.iter_rows(named=True)
    ]


def anomalies_table(found: Sequence[dict[str, Any]]) -> Table:
    """Of each anomaly what, when, the pool, and whether a lane has found it, too. Fits into 80 columns."""
    table = Table("anomaly", Column("pool", no_wrap=True), "stored", box=None, pad_edge=False)
    for one in found:
        when = f"{one['ts'][:16].replace('T', ' ')}, block {one['block_number']}"
        what = f"{one['severity']} {one['kind'].replace('_', ' ')}"
        table.add_row(f"{what}\n{when}", one["pool"], "yes" if one["stored"] else "no")
    return table
