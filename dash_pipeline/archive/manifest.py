"""What the manifest says: objects, and the days that are archived.

Belongs here: rows of ops.archive_manifest, in and out. Does not belong here: objects (`export.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from dash_pipeline.storage.tables import HISTORIES
from dash_pipeline.storage.timescale import Connection

# Advisory locks: (class, table's oid). Readers of history hold theirs while they read; a run that takes rows out of the
# hot table waits for them, because dropping a chunk is seen by transactions that began before.
_EXPORTS, _SEAM = 0x41524348, 0x5345414D

_COLUMNS = (
    "object, table_name, chain, date, rows, bytes, sha256, content_hash, schema_version, encryption_key,"
    " ts_min, ts_max, block_min, block_max"
)


@dataclass(frozen=True)
class Entry:
    """An object of archived rows; times are the rows' own, heights those of blocks, None where rows have none."""

    object: str
    table: str
    chain: str
    date: date
    rows: int
    size: int
    sha256: bytes
    content_hash: bytes
    schema_version: int
    encryption_key: str
    ts_min: datetime
    ts_max: datetime
    block_min: int | None
    block_max: int | None


def entries(
    conn: Connection, table: str | None = None, chain: str | None = None, day: date | None = None
) -> list[Entry]:
    """The objects that hold rows now, by table, chain and day; all, or those of one of them."""
    rows = conn.execute(
        f"SELECT {_COLUMNS} FROM ops.archive_manifest WHERE replaced_at IS NULL"
        " AND (%(table)s::text IS NULL OR table_name = %(table)s) AND (%(chain)s::text IS NULL OR chain = %(chain)s)"
        " AND (%(day)s::date IS NULL OR date = %(day)s) ORDER BY table_name, chain, date, object",
        {"table": table, "chain": chain, "day": day},
    ).fetchall()
    return [Entry(*row) for row in rows]


def sizes(conn: Connection, table: str) -> tuple[int, int, int]:
    """Bytes of the hot table with its indexes; bytes and rows that are archived. All chains."""
    size = "hypertable_size" if HISTORIES[table].hyper else "pg_total_relation_size"
    row = conn.execute(
        f"SELECT {size}(%s), coalesce(sum(bytes), 0)::int8, coalesce(sum(rows), 0)::int8"
        " FROM ops.archive_manifest WHERE table_name = %s AND replaced_at IS NULL",
        (HISTORIES[table].relation, table),
    ).fetchone()
    assert row
    return row[0], row[1], row[2]


def add(conn: Connection, found: Iterable[Entry], run_id: str) -> None:
    """List objects."""
    conn.cursor().executemany(
        f"INSERT INTO ops.archive_manifest ({_COLUMNS}, run_id) VALUES ({', '.join(['%s'] * 15)})",
        [(*vars(one).values(), run_id) for one in found],
    )


def count(conn: Connection, found: Iterable[Entry], instead: Iterable[Entry] = ()) -> None:
    """Remember how many rows have left the hot table with these objects, whatever becomes of the objects; or that they
    hold what is now to be there instead of what those others held."""
    conn.cursor().executemany(
        "INSERT INTO ops.archived_rows AS a VALUES (%s, %s, %s, %s)"
        " ON CONFLICT (table_name, chain, date) DO UPDATE SET rows = a.rows + excluded.rows",
        [(one.table, one.chain, one.date, one.rows) for one in found]
        + [(one.table, one.chain, one.date, -one.rows) for one in instead],
    )


def unlisted(
    conn: Connection, chain: str, table: str | None = None, day: date | None = None
) -> list[tuple[str, date, int, int]]:
    """Table, day, rows that have left the hot table, rows that listed objects hold: where these are fewer, of the
    chain's days, or of one of them."""
    return conn.execute(
        "SELECT a.table_name, a.date, a.rows, coalesce(m.rows, 0) FROM ops.archived_rows a LEFT JOIN"
        " (SELECT table_name, date, sum(rows)::int8 AS rows FROM ops.archive_manifest"
        "  WHERE chain = %(chain)s AND replaced_at IS NULL GROUP BY 1, 2) m USING (table_name, date)"
        " WHERE a.chain = %(chain)s AND a.rows > coalesce(m.rows, 0)"
        " AND (%(table)s::text IS NULL OR a.table_name = %(table)s) AND (%(day)s::date IS NULL OR a.date = %(day)s)"
        " ORDER BY 1, 2",
        {"chain": chain, "table": table, "day": day},
    ).fetchall()


def underivable(conn: Connection, chain: str) -> list[tuple[date, int, int]]:
    """Day, pool_events and logs that listed objects hold: where these are fewer, of the chain's days."""
    return conn.execute(
        "SELECT date, events, logs FROM (SELECT date,"
        " coalesce(sum(rows) FILTER (WHERE table_name = 'pool_events'), 0)::int8 AS events,"
        " coalesce(sum(rows) FILTER (WHERE table_name = 'logs'), 0)::int8 AS logs FROM ops.archive_manifest"
        " WHERE chain = %s AND replaced_at IS NULL GROUP BY 1) day WHERE logs < events ORDER BY 1",
        (chain,),
    ).fetchall()


def replace(conn: Connection, old: Iterable[Entry]) -> None:
    """These objects hold no rows any more; others do."""
    conn.execute(
        "UPDATE ops.archive_manifest SET replaced_at = clock_timestamp() WHERE object = ANY(%s)",
        ([one.object for one in old],),
    )


def midnight(day: date) -> datetime:
    """When a day begins, UTC."""
    return datetime.combine(day, time(), UTC)


@contextmanager
def exporting(conn: Connection, table: str) -> Iterator[bool]:
    """Whether this connection alone takes rows of the table out, until the end of the block."""
    key = (_EXPORTS, HISTORIES[table].relation)
    (alone,) = conn.execute("SELECT pg_try_advisory_lock(%s, %s::regclass::oid::int4)", key).fetchone() or (False,)
    try:
        yield bool(alone)
    finally:
        if alone and not conn.closed:
            conn.execute("SELECT pg_advisory_unlock(%s, %s::regclass::oid::int4)", key)


@contextmanager
def reading(conn: Connection, table: str) -> Iterator[None]:
    """One state of hot rows and manifest: a transaction in whose snapshot each row is in one of them."""
    key = (_SEAM, HISTORIES[table].relation)
    # Before the transaction, whose snapshot must not be older than the lock.
    conn.execute("SELECT pg_advisory_lock_shared(%s, %s::regclass::oid::int4)", key)
    try:
        with conn.transaction():
            conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            yield
    finally:
        if not conn.closed:
            conn.execute("SELECT pg_advisory_unlock_shared(%s, %s::regclass::oid::int4)", key)


def share_seam(conn: Connection, tables: Iterable[str], *, wait: bool) -> bool:
    """Until the transaction's end no row of these tables stops being hot: each statement that begins now sees each row
    in one place. Whether that holds; without `wait` it does not while somebody takes rows out, or is about to."""
    call = "pg_advisory_xact_lock_shared" if wait else "pg_try_advisory_xact_lock_shared"
    held = conn.execute(
        f"SELECT {call}(%s, name::regclass::oid::int4) FROM unnest(%s::text[]) AS t(name)",
        (_SEAM, [HISTORIES[table].relation for table in tables]),
        prepare=True,
    ).fetchall()
    return wait or all(got for (got,) in held)


def edge(conn: Connection, chain: str, tables: Iterable[str]) -> datetime | None:
    """When the newest archived day of these tables ends: what is archived is earlier. None where nothing is."""
    row = conn.execute(
        "SELECT max(m.date) FROM unnest(%s::text[]) AS t(name) CROSS JOIN LATERAL (SELECT date FROM"
        " ops.archive_manifest WHERE table_name = t.name AND chain = %s AND replaced_at IS NULL"
        " ORDER BY date DESC LIMIT 1) m",
        (list(tables), chain),
        prepare=True,
    ).fetchone()
    return midnight(row[0]) + timedelta(days=1) if row and row[0] else None


def lock_seam(conn: Connection, table: str) -> None:
    """Wait until nobody reads the table's history; until the transaction's end nobody begins to."""
    conn.execute("SELECT pg_advisory_xact_lock(%s, %s::regclass::oid::int4)", (_SEAM, HISTORIES[table].relation))
