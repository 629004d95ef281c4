"""Whether the archive is what the manifest says, and whole.

Belongs here: findings, as lines a person can act on. Does not belong here: mending (`rewrite.py`, a bucket's versions).

What must be there is known from elsewhere than from where it is: `ops.block_tree` has every canonical block for ever,
`ops.archived_rows` has how many rows have left the hot tables, and `rollup.wallet_blocks` is made of transactions and
transfers when they are committed and outlives them. Each knows no more than there must be, so topics that are not
ingested, backfills with gaps and indexes that are behind are no findings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from typing import Any

import polars as pl

from dash_pipeline.archive import manifest
from dash_pipeline.archive.export import DAY, Corrupt, Day, fetch, keys
from dash_pipeline.archive.parquet import ARCHIVED, content_hash
from dash_pipeline.archive.retain import due, edges
from dash_pipeline.settings import Settings
from dash_pipeline.storage import s3
from dash_pipeline.storage.encryption import keyring
from dash_pipeline.storage.history import collect, history
from dash_pipeline.storage.hot import reader
from dash_pipeline.storage.timescale import Connection, session


@dataclass(frozen=True)
class Report:
    """`objects`, `rows`, `bytes`: what was read and is right; `wrong`: a line for each object that is not."""

    objects: int
    rows: int
    size: int
    wrong: tuple[str, ...]


def check(settings: Settings, table: str | None = None, chain: str | None = None) -> Report:
    """Read every object again and compare it with the manifest: its own hash, its rows and their hash.

    Raises Unavailable when the store does not answer, DashError when it refuses or a key is missing.
    """
    bucket, ring = s3.bucket(settings), keyring(settings)
    objects = rows = size = 0
    wrong: list[str] = []
    with session(settings) as conn:
        listed = manifest.entries(conn, table, chain)
    for entry in listed:
        described = ARCHIVED[entry.table]
        try:
            found = fetch(bucket, ring, entry, described)
        except Corrupt as error:
            wrong.append(str(error))
            continue
        if found.height != entry.rows or content_hash(found, described) != entry.content_hash:
            wrong.append(f"archive: {entry.object}: other rows than the manifest says")
            continue
        objects, rows, size = objects + 1, rows + found.height, size + entry.size
    return Report(objects, rows, size, tuple(wrong))


def chains(settings: Settings) -> list[str]:
    """The chains of which blocks are known. Raises Unavailable."""
    with session(settings) as conn:
        return [name for (name,) in conn.execute("SELECT chain FROM ops.chains ORDER BY 1")]


@dataclass(frozen=True)
class Days:
    """A chain's days from its first known block to the retention's edge. `lost`: its blocks were stored, and are in
    neither place; `never_ingested`: spans between stored blocks whose heights do not follow each other; `due`: still
    hot, to be archived by the next run."""

    lost: tuple[date, ...] = ()
    never_ingested: tuple[tuple[date, date], ...] = ()
    due: tuple[date, ...] = ()

    @property
    def wrong(self) -> tuple[str, ...]:
        """A line for each day or span that is missing."""
        return (
            *(
                f"blocks {day}: were stored, and none is hot or archived; restore them from a backup"
                for day in self.lost
            ),
            *(
                f"blocks {first} to {last}: never ingested, though heights say that there are some; feed these days"
                for first, last in self.never_ingested
            ),
        )


# Blocks up to the finalised one cannot leave the chain. One that the database refused to store is a dead letter.
_MUST_BE_THERE = """
ops.block_tree t JOIN ops.chains USING (chain) WHERE chain = %(chain)s AND status = 'canonical'
 AND block_number <= finalised_number AND NOT EXISTS (SELECT FROM ops.dead_letters d
  WHERE d.topic = t.topic AND d.partition = t.partition AND d."offset" = t."offset")
"""
_BLOCKS_BY_DAY = f"""
WITH tree AS (
 SELECT (ts AT TIME ZONE 'UTC')::date AS day, count(*) AS rows, min(block_number) AS lo, max(block_number) AS hi
 FROM {_MUST_BE_THERE} GROUP BY 1),
archived AS (
 SELECT date AS day, sum(rows)::int8 AS rows, min(block_min) AS lo, max(block_max) AS hi FROM ops.archive_manifest
 WHERE table_name = 'blocks' AND chain = %(chain)s AND replaced_at IS NULL GROUP BY 1),
hot AS (
 SELECT (ts AT TIME ZONE 'UTC')::date AS day, count(*) AS rows, min(block_number) AS lo, max(block_number) AS hi
 FROM chain.blocks WHERE chain = %(chain)s GROUP BY 1)
SELECT day, coalesce(tree.rows, 0), coalesce(archived.rows, 0), coalesce(hot.rows, 0),
 least(tree.lo, archived.lo, hot.lo), greatest(tree.hi, archived.hi, hot.hi)
FROM tree FULL JOIN archived USING (day) FULL JOIN hot USING (day) ORDER BY day
"""


def missing_days(settings: Settings, chain: str) -> Days:
    """Which days of the chain that blocks should be of are not archived. Raises Unavailable."""
    with session(settings) as conn:
        edge = edges(settings, conn).get(chain)
        if edge is None:
            return Days()
        known = _blocks_by_day(conn, chain)
        hot = {one.date for table in ARCHIVED.values() for one in due(conn, table, {chain: edge})}
    last = edge.date() - DAY
    lost = tuple(day for day, _, archived, hot_rows, _, _ in known if day <= last and not archived + hot_rows)
    gaps = tuple(
        (before[0] + DAY, min(after[0] - DAY, last))
        for before, after in pairwise(known)
        if after[0] - before[0] > DAY and before[0] < last and after[4] - before[5] > 1
    )
    return Days(lost, gaps, tuple(sorted(hot)))


def doubled(settings: Settings, chain: str) -> dict[str, int]:
    """`table date` -> rows of that day that are hot and archived: those that were sent again after it was archived.
    The next run takes them out. Raises Unavailable, Corrupt."""
    found: dict[str, int] = {}
    with session(settings) as conn:
        for name, table in ARCHIVED.items():
            days = conn.execute(
                "SELECT DISTINCT m.date FROM ops.archive_manifest m WHERE m.table_name = %(table)s"
                f" AND m.chain = %(chain)s AND m.replaced_at IS NULL AND EXISTS (SELECT FROM {table.relation} t"
                f"  WHERE t.chain = m.chain AND t.{table.time} >= m.date AND t.{table.time} < m.date + 1) ORDER BY 1",
                {"table": name, "chain": chain},
            ).fetchall()
            for (day,) in days:
                if rows := _in_both(settings, conn, Day(table, chain, day)):
                    found[f"{name} {day}"] = rows
    return found


def lost(settings: Settings, chain: str) -> tuple[str, ...]:
    """A line for each table and day of which rows are in neither place. Raises Unavailable, Corrupt."""
    with session(settings) as conn:
        # Keys are only compared where counts alone do not say that all is there.
        blocks = [row[0] for row in _blocks_by_day(conn, chain) if row[1] > row[2] + row[3] or (row[2] and row[3])]
        found = [
            f"{table} {day}: {taken - listed:,} of {taken:,} archived rows are in no object of ops.archive_manifest;"
            " restore its entries from a backup: until then the day's objects are kept, listed or not"
            for table, day, taken, listed in manifest.unlisted(conn, chain)
        ]
        edge = edges(settings, conn).get(chain)
        if edge is not None:
            for table, counted in (("transactions", "tx_sent"), ("token_transfers", "transfers_out")):
                for day, seen, stored in _unseen(
                    settings, conn, Day(ARCHIVED[table], chain, edge.date() - DAY), counted
                ):
                    found.append(
                        f"{table} {day}: {seen - stored:,} of {seen:,} rows that rollup.wallet_blocks was made of are"
                        " in neither place; send the day's messages again, or restore them from a backup"
                    )
    gone = {day: _blocks_in_neither(settings, Day(ARCHIVED["blocks"], chain, day)) for day in blocks}
    found += [
        f"blocks {day}: {len(heights):,} canonical blocks are in neither place, the first is {heights[0]:,}; send them"
        " again, or restore them from a backup"
        for day, heights in gone.items()
        if heights
    ]
    return tuple(found)


def _blocks_by_day(conn: Connection, chain: str) -> list[tuple[Any, ...]]:
    """Day, canonical blocks that must be there, archived and hot ones, the lowest and the highest block."""
    with manifest.reading(conn, "blocks"):
        return conn.execute(_BLOCKS_BY_DAY, {"chain": chain}).fetchall()


def _in_both(settings: Settings, conn: Connection, day: Day) -> int:
    bucket, ring, table = s3.bucket(settings), keyring(settings), day.table
    with manifest.reading(conn, table.name):
        row = conn.execute("SELECT pg_export_snapshot()").fetchone()
        assert row
        with reader(settings, row[0]) as source:
            mine = f"chain = $1 AND {table.time} >= $2 AND {table.time} < $3"
            hot = source.rows(table, mine, day.bounds(), table.key)
        entries = manifest.entries(conn, table.name, day.chain, day.date)
        return hot.join(keys(bucket, ring, entries, table), on=table.key, how="semi").height if entries else 0


def _unseen(settings: Settings, conn: Connection, since: Day, counted: str) -> list[tuple[Any, ...]]:
    """Day, rows that the wallets' rollup was made of, rows that are stored, where these are fewer; from a day on, whose
    rows are hot or newly archived. A day of which the rollup has blocks to do, which a fork may have moved, waits."""
    table, chain = since.table.name, since.chain
    with manifest.reading(conn, table):
        rows = conn.execute(
            f"""WITH seen AS (
 SELECT (ts AT TIME ZONE 'UTC')::date AS day, sum({counted})::int8 AS rows FROM rollup.wallet_blocks
 WHERE chain = %(chain)s AND ts >= %(since)s GROUP BY 1),
hot AS (
 SELECT (ts AT TIME ZONE 'UTC')::date AS day, count(*) AS rows FROM chain.{table}
 WHERE chain = %(chain)s AND ts >= %(since)s GROUP BY 1),
archived AS (
 SELECT date AS day, sum(rows)::int8 AS rows FROM ops.archive_manifest
 WHERE table_name = %(table)s AND chain = %(chain)s AND replaced_at IS NULL GROUP BY 1)
SELECT day, seen.rows, coalesce(hot.rows, 0), coalesce(archived.rows, 0)
FROM seen LEFT JOIN hot USING (day) LEFT JOIN archived USING (day)
WHERE (seen.rows > coalesce(hot.rows, 0) + coalesce(archived.rows, 0) OR (hot.rows > 0 AND archived.rows > 0))
 AND NOT EXISTS (SELECT FROM ops.search_outbox o
  WHERE o.chain = %(chain)s AND o.ts_min < day + 1 AND o.ts_max >= day) ORDER BY day""",
            {"table": table, "chain": chain, "since": since.date},
        ).fetchall()
    found = []
    for day, seen, hot, archived in rows:
        twice = _in_both(settings, conn, Day(since.table, chain, day)) if hot and archived else 0
        if seen > hot + archived - twice:
            found.append((day, seen, hot + archived - twice))
    return found


def _blocks_in_neither(settings: Settings, day: Day) -> Sequence[int]:
    """The heights of the day's canonical blocks that no history holds. They are read first: what is canonical and
    finalised stays so."""
    chain, start, end = day.bounds()
    with session(settings) as conn:
        known = conn.execute(
            'SELECT block_hash, block_number, t.topic, t.partition, t."offset"'
            f" FROM {_MUST_BE_THERE} AND ts >= %(start)s AND ts < %(end)s ORDER BY 2",
            {"chain": chain, "start": start, "end": end},
            binary=True,
        ).fetchall()
    here = (pl.col("chain") == chain) & (pl.col("ts") >= start) & (pl.col("ts") < end)
    stored = set(collect(history(settings, "blocks").filter(here).select("block_hash"))["block_hash"])
    lost = [place for block_hash, *place in known if block_hash not in stored]
    if not lost:
        return []
    # Dead letters are archived, too.
    letters = history(settings, "dead_letters").filter(pl.col("chain") == chain).select("topic", "partition", "offset")
    refused = set(collect(letters).iter_rows())
    return [number for number, *message in lost if tuple(message) not in refused]
