"""Rows that nobody can need any more leave the database: those of branches that have lost for good, and old sums.

Belongs here: which rows, and why nobody needs them. Does not belong here: history, which is archived (`archive/`).

All windows are of the chain's time. A row that is deleted here and comes again, by a replay, does no harm where it is,
and goes again.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import psycopg
from psycopg import sql

from dash_pipeline.archive.retain import edges
from dash_pipeline.settings import Settings
from dash_pipeline.storage.search.indexes import WINDOWS
from dash_pipeline.storage.search.rollups import HORIZON
from dash_pipeline.storage.tables import TABLES
from dash_pipeline.storage.timescale import Connection, chunks, drop_chunk, newest_times, session

# A block at or below the finalised height, which a canonical block holds, stays what it is (`events/reorgs.py`): the
# holder cannot leave the chain, because no fork is taken whose first block is not above the finalised one, whatever
# DASH_MAX_REORG_DEPTH is by then: that height never sinks. Where nothing holds the height, a gap may still be this
# block's, and its rows stay. What the search indexes have still to look at waits for them.
_LOST = """
DELETE FROM side.{table} r USING ops.block_tree b JOIN ops.chains c USING (chain)
WHERE r.chain = %(chain)s AND b.chain = r.chain AND b.block_hash = r.block_hash
 AND b.status NOT IN ('canonical', 'provisional') AND b.block_number <= c.finalised_number AND b.ts < %(edge)s
 AND EXISTS (SELECT FROM ops.block_tree h
  WHERE h.chain = b.chain AND h.block_number = b.block_number AND h.status = 'canonical')
 AND b.block_hash NOT IN (SELECT unnest(blocks) FROM ops.search_outbox WHERE chain = %(chain)s)
"""

# A pool's longest window, what it was like before that, and a day for the hours that a window begins in.
_CANDLES_UNTIL = f"""
SELECT chain, newest - interval '{WINDOWS["7d"]}' - interval '{HORIZON}' - interval '1 day'
FROM unnest(%s::text[], %s::timestamptz[]) n(chain, newest)
"""
_LOCK_TIMEOUT = "3s"


def drop_lost_branches(settings: Settings) -> dict[str, int]:
    """Delete the rows of schema `side` that are older than the retention and can never be canonical again; table ->
    how many. Raises Unavailable."""
    gone = dict.fromkeys(TABLES, 0)
    with session(settings) as conn:
        for chain, edge in edges(settings, conn).items():
            for table in TABLES:
                statement = sql.SQL(_LOST).format(table=sql.Identifier(table))
                gone[table] += conn.execute(statement, {"chain": chain, "edge": edge}).rowcount
    return gone


def drop_old_rollups(settings: Settings) -> dict[str, int]:
    """Delete the sums that nobody reads any more; table -> how many rows. Raises Unavailable.

    Candles that no pool's window reaches back to; minutes of events that are no longer hot; sums of a busy wallet's day
    that is no longer hot, which only spare reading `rollup.wallet_blocks` while rows arrive. That table stays: a
    wallet's archived rows are found by it.
    """
    with session(settings) as conn:
        prefixes, hot_from = 0, edges(settings, conn)
        for chain, edge in hot_from.items():
            prefixes += conn.execute(
                "DELETE FROM rollup.wallet_prefixes WHERE chain = %s AND day < %s", (chain, edge.date())
            ).rowcount
        newest = newest_times(conn, settings)
        seen_from = dict(conn.execute(_CANDLES_UNTIL, (list(newest), list(newest.values()))).fetchall())
        return {
            "wallet_prefixes": prefixes,
            "pool_candles": _drop(conn, "rollup.pool_candles", seen_from),
            "pool_minutes": _drop(conn, "rollup.pool_minutes", hot_from),
        }


def _drop(conn: Connection, table: str, until: Mapping[str, datetime]) -> int:
    """Drop the rows of a hypertable that are older than their chain's time; how many."""
    gone = 0
    for chunk in chunks(conn, table, max(until.values())) if until else ():
        try:
            with conn.transaction():
                conn.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(_LOCK_TIMEOUT))
                conn.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.SQL(chunk)))
                gone += conn.execute(
                    sql.SQL(
                        "DELETE FROM {} c USING unnest(%s::text[], %s::timestamptz[]) e(chain, until)"
                        " WHERE c.chain = e.chain AND c.ts < e.until"
                    ).format(sql.SQL(chunk)),
                    (list(until), list(until.values())),
                ).rowcount
                # Another chain's rows may be in it.
                if conn.execute(sql.SQL("SELECT FROM {} LIMIT 1").format(sql.SQL(chunk))).fetchone() is None:
                    drop_chunk(conn, table, chunk)
        except psycopg.errors.LockNotAvailable:
            continue  # somebody has it for long: tomorrow
    return gone
