"""Days of chain rows in the real hot tables, for tests of what becomes of old ones."""

from __future__ import annotations

import random
from collections.abc import Iterable
from datetime import date, datetime, timedelta

import polars as pl

from dash_pipeline.archive.manifest import midnight
from dash_pipeline.settings import Settings
from dash_pipeline.storage import timescale as db
from dash_pipeline.storage.history import collect, history
from dash_pipeline.storage.tables import BLOCKS, DEAD_LETTERS, Table
from tests import rows

FIRST = date(2025, 3, 1)


def at(day: float) -> datetime:
    """A moment by days after the first one begins."""
    return midnight(FIRST) + timedelta(days=day)


def day_rows(rng: random.Random, table: Table, chain: str, day: int, count: int) -> pl.DataFrame:
    """Random rows, extremes among them, of the chain's day with this number; their keys are nobody else's, and nobody
    needs them."""
    made = rows.frame(rng, table, count)
    start = midnight(FIRST + timedelta(days=day))
    times = [start + timedelta(microseconds=rng.randrange(86_400_000_000)) for _ in range(count)]
    moment = pl.Series(times, dtype=pl.Datetime("us", "UTC"))
    values: dict[str, pl.Series | pl.Expr] = {
        "chain": pl.lit(chain),
        "block_number": moment.dt.epoch("s"),
        "topic": pl.lit(f"{chain}.logs"),
        "retracted_at": moment,
        "published_revision": pl.col("revision"),
        table.time: moment,
    }
    return made.with_columns(**{name: given for name, given in values.items() if name in table.columns})


def insert(conn: db.Connection, table: Table, *frames: pl.DataFrame) -> None:
    """Put rows into the hot table as a lane does; those that are there do nothing."""
    if table.namespace == "chain":
        db.Writer(conn).insert(table, list(frames))
        return
    made = pl.concat(frames).drop("chain" if table is DEAD_LETTERS else [])  # which the database makes of the topic
    names = ", ".join(f'"{name}"' for name in made.columns)
    values = ", ".join(f"%s::{table.columns[name].type}" for name in made.columns)
    conn.cursor().executemany(
        f"INSERT INTO {table.relation} ({names}) VALUES ({values}) ON CONFLICT DO NOTHING", made.rows()
    )


def set_tip(conn: db.Connection, chain: str, at: datetime, blocks: int = 20) -> pl.DataFrame:
    """Make the chain's newest blocks end at this time, a second apart; returns them."""
    height = int(at.timestamp())
    made = rows.frame(random.Random(height), BLOCKS, blocks).with_columns(
        chain=pl.lit(chain),
        block_number=pl.int_range(height - blocks + 1, height + 1, dtype=pl.Int64),
        ts=pl.Series([at - timedelta(seconds=n) for n in reversed(range(blocks))], dtype=pl.Datetime("us", "UTC")),
    )
    insert(conn, BLOCKS, made)
    conn.execute(
        "INSERT INTO ops.chains (chain, tip_number, tip_ts) VALUES (%s, %s, %s)"
        " ON CONFLICT (chain) DO UPDATE SET tip_number = excluded.tip_number, tip_ts = excluded.tip_ts",
        (chain, height, at),
    )
    return made


def hot(conn: db.Connection, table: Table, chain: str) -> int:
    """How many hot rows the chain has."""
    row = conn.execute(f"SELECT count(*) FROM {table.relation} WHERE chain = %s", (chain,)).fetchone()
    assert row
    return int(row[0])


def assert_once(settings: Settings, table: Table, expected: Iterable[pl.DataFrame]) -> None:
    """History has exactly these rows of their chains, each once, with every value as it was."""
    want = pl.concat(expected).sort(*table.key)
    chains = want["chain"].unique().to_list()
    found = collect(history(settings, table.name).filter(pl.col("chain").is_in(chains))).sort(*table.key)
    assert found.height == want.height
    # PostgreSQL writes JSON in its own way.
    plain = [name for name, column in table.columns.items() if column.type != "jsonb"]
    assert found.select(plain).equals(want.select(plain), null_equal=True)
