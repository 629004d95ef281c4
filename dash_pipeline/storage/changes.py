"""Which hours of a chain changed since the marts were built: a queue, written by the search follower.

Belongs here: the queue's SQL, and what others ask of it. Does not belong here: a run that takes from it (`marts.py`).

Nothing of it is in the path of a commit. An hour is put on the queue by the transaction that strikes its micro-batch
off the outbox, and struck off when a run that took this very version of it has succeeded: one that changes meanwhile
stays.
"""

from __future__ import annotations

from datetime import date

from dash_pipeline.storage.timescale import Connection

#: SQL: put the hours of the blocks of CTE `done` (rows of the outbox) on the queue.
CHANGED_HOURS = (
    "INSERT INTO ops.changed_hours AS h (chain, hour, version)"
    " SELECT chain, hour, nextval('ops.change_version') FROM ("
    "  SELECT DISTINCT o.chain, date_trunc('hour', coalesce(t.ts, o.ts_min), 'UTC') AS hour FROM done o"
    "  CROSS JOIN unnest(o.blocks) b(block_hash)"
    "  LEFT JOIN ops.block_tree t ON t.chain = o.chain AND t.block_hash = b.block_hash ORDER BY 1, 2) c"
    " ON CONFLICT (chain, hour) DO UPDATE SET version = excluded.version"
)
#: The tables that marts are made of by the hour: none of their days leaves while it has an hour on the queue.
TABLES = ("transactions", "token_transfers", "pool_events")

_LOCK = "hashtextextended('marts:queue', 0)"


def hold_queue(conn: Connection, *, alone: bool) -> None:
    """Until the transaction's end: whoever takes from the queue does it `alone`, when no day is about to be dropped."""
    conn.execute(f"SELECT pg_advisory_xact_lock{'' if alone else '_shared'}({_LOCK})")


def waiting_days(conn: Connection, table: str) -> set[tuple[str, date]]:
    """Chain and day (UTC) with an hour on the queue; none for a table that no mart is made of by the hour."""
    if table not in TABLES:
        return set()
    return set(conn.execute("SELECT DISTINCT chain, (hour AT TIME ZONE 'UTC')::date FROM ops.changed_hours").fetchall())


def waiting(conn: Connection) -> int:
    """Hours and tokens on the queue."""
    row = conn.execute(
        "SELECT (SELECT count(*) FROM ops.changed_hours) + (SELECT count(*) FROM ops.changed_tokens)"
    ).fetchone()
    assert row
    return int(row[0])
