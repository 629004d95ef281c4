"""A day of a chain's rows: out of the hot table, into objects on S3, and only then no longer hot.

Belongs here: the order of things that loses nothing. Does not belong here: the file's layout (`parquet.py`), which days
there are (`retain.py`).

    1. read the day in one snapshot, in parts; write each part as a new object; read it back; compare it, row by row
    2. in one transaction: nothing of the day has changed since the snapshot; list the objects; drop the rows

Until the second step is committed nothing lists the objects, so nobody reads them: a run that is killed leaves objects
without a meaning, which the next one deletes. A row that arrives, leaves or comes again between the steps fails the
comparison in the second, and the day is exported anew. Rows that arrive after it are hot rows of an archived day; they
become further objects of that day, without what it has already.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import polars as pl
import psycopg
from psycopg import sql

from dash_pipeline.archive import manifest
from dash_pipeline.archive.manifest import Entry, midnight
from dash_pipeline.archive.parquet import SCHEMA_VERSION, content_hash, decode, encode
from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.settings import Settings
from dash_pipeline.storage import s3
from dash_pipeline.storage.encryption import Key, Keyring, keyring
from dash_pipeline.storage.hot import reader
from dash_pipeline.storage.tables import Table
from dash_pipeline.storage.timescale import Connection

DAY = timedelta(days=1)
# Rows read, written and compared at a time: about a gigabyte of memory at the most.
PART_ROWS = 1_000_000
# The transaction that drops rows waits so long for readers, and makes nobody else wait longer.
_LOCK_TIMEOUT = "3s"
_TRIES = 3


class Corrupt(DashError):
    """An object is not what was written."""


class _ChangedError(Exception):
    """Rows of the day have come or gone since they were read."""


@dataclass(frozen=True)
class Day:
    """A chain's rows of a table on one day (UTC), and the chunk that holds them while they are hot."""

    table: Table
    chain: str
    date: date
    chunk: str = ""

    @property
    def folder(self) -> str:
        """Where its objects lie."""
        return f"archive/table={self.table.name}/chain={self.chain}/date={self.date}/"

    def bounds(self) -> tuple[str, datetime, datetime]:
        """The chain, and when the day begins and ends."""
        return self.chain, midnight(self.date), midnight(self.date) + DAY


def export(settings: Settings, conn: Connection, day: Day, run_id: str) -> list[Entry]:
    """Archive a day, or what has come late of one; returns the new objects. The caller holds `manifest.exporting`.

    Raises Unavailable when a server does not answer or rows keep changing, Corrupt when an object read back is another;
    hot rows and manifest are as before then.
    """
    bucket, ring = s3.bucket(settings), keyring(settings)
    sweep(bucket, conn, day)
    for _ in range(_TRIES):
        written: list[Entry] = []
        try:
            seen, before = _write(settings, conn, bucket, ring, day, written)
            _commit(conn, day, written, seen, before, run_id)
        except _ChangedError:
            bucket.delete([one.object for one in written])
            continue
        except psycopg.errors.LockNotAvailable:
            bucket.delete([one.object for one in written])
            raise Unavailable(f"archive: {day.folder}: somebody has read these rows for long; tried again next time") \
                from None  # fmt: skip
        return written
    raise Unavailable(f"archive: {day.folder}: rows come and go while they are read; tried again next time")


def sweep(bucket: s3.Bucket, conn: Connection, day: Day) -> list[str]:
    """Delete the day's objects that no manifest has ever listed: those of runs that were killed. Returns their keys."""
    listed = {
        key
        for (key,) in conn.execute("SELECT object FROM ops.archive_manifest WHERE object LIKE %s", (day.folder + "%",))
    }
    orphans = [key for key in bucket.keys(day.folder) if key not in listed]
    bucket.delete(orphans)
    return orphans


def fetch(bucket: s3.Bucket, ring: Keyring, entry: Entry, table: Table) -> pl.DataFrame:
    """An object's rows. Raises Corrupt with the object's name when it is gone, or not what was written."""
    data = bucket.get(entry.object, ring.named(entry.encryption_key))
    if data is None:
        raise Corrupt(f"archive: {entry.object}: gone from {bucket.where}; restore it from the bucket's versions")
    if hashlib.sha256(data).digest() != entry.sha256:
        raise Corrupt(f"archive: {entry.object}: altered since it was written; restore it from the bucket's versions")
    return decode(data, table)


def put(bucket: s3.Bucket, seal: Key | None, day: Day, rows: pl.DataFrame) -> Entry:
    """Write rows as a new object, read it back, and compare. Raises Corrupt when it is not the same."""
    table, data = day.table, encode(rows, day.table)
    key = f"{day.folder}{uuid.uuid4().hex}.parquet"
    times, heights = rows["ts"], rows["block_number"]
    entry = Entry(
        key, table.name, day.chain, day.date, rows.height, len(data), hashlib.sha256(data).digest(),
        content_hash(rows, table), SCHEMA_VERSION, seal.name if seal else "",
        times.min(), times.max(), heights.min(), heights.max(),  # type: ignore[arg-type]
    )  # fmt: skip
    bucket.put(key, data, new=True, seal=seal)
    found = fetch(bucket, Keyring({seal.name: seal} if seal else {}), entry, table)
    if found.height != entry.rows or content_hash(found, table) != entry.content_hash:
        bucket.delete([key])
        raise Corrupt(f"archive: {key}: read back other rows than were written")
    return entry


def _write(
    settings: Settings, conn: Connection, bucket: s3.Bucket, ring: Keyring, day: Day, written: list[Entry]
) -> tuple[int, int]:
    """Write the day's rows as objects, noting each; returns how many rows were seen and a transaction number below
    which everything was seen."""
    with _snapshot(conn) as (snapshot, before), reader(settings, snapshot) as hot:
        archived = manifest.entries(conn, day.table.name, day.chain, day.date)
        seen = 0
        for lo, hi in _parts(conn, day):
            rows = hot.rows(day.table, "chain = $1 AND ts >= $2 AND ts < $3", (day.chain, lo, hi))
            seen += rows.height
            if archived:
                rows = rows.join(_keys(bucket, ring, archived, day.table), on=list(day.table.key), how="anti")
            if rows.height:
                written.append(put(bucket, ring.current, day, rows))
    return seen, before


def _keys(bucket: s3.Bucket, ring: Keyring, archived: list[Entry], table: Table) -> pl.DataFrame:
    return pl.concat([fetch(bucket, ring, one, table).select(table.key) for one in archived])


@contextmanager
def _snapshot(conn: Connection) -> Iterator[tuple[str, int]]:
    """A snapshot that other connections can see by, and the oldest transaction that it may not see."""
    with conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        row = conn.execute("SELECT pg_export_snapshot(), pg_snapshot_xmin(pg_current_snapshot())::text").fetchone()
        assert row
        yield row[0], int(row[1])


def _parts(conn: Connection, day: Day) -> list[tuple[datetime, datetime]]:
    """Spans of the day with about PART_ROWS rows each; a minute with more stays whole."""
    rows = conn.execute(
        f"SELECT date_trunc('minute', ts), count(*) FROM chain.{day.table.name}"
        " WHERE chain = %s AND ts >= %s AND ts < %s GROUP BY 1 ORDER BY 1", day.bounds(),
    ).fetchall()  # fmt: skip
    _, start, end = day.bounds()
    starts, held = [start], 0
    for minute, count in rows:
        if held and held + count > PART_ROWS:
            starts.append(minute)
            held = 0
        held += count
    return list(zip(starts, [*starts[1:], end], strict=True))


def _commit(conn: Connection, day: Day, written: list[Entry], seen: int, before: int, run_id: str) -> None:
    """List the objects and drop the day's rows, if nothing of the day has changed. Raises _ChangedError."""
    chunk = sql.SQL(day.chunk)
    with conn.transaction():
        conn.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(_LOCK_TIMEOUT))
        manifest.lock_seam(conn, day.table.name)
        conn.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(chunk))
        # Rows are never changed in place. What was added after the snapshot has a transaction number from `before` on;
        # some that was seen may have one, too, and then the day is merely exported once more.
        row = conn.execute(
            sql.SQL(
                "SELECT count(*) FILTER (WHERE mine), count(*) FILTER (WHERE mine AND added <= age(%(before)s::xid)),"
                " count(*) FILTER (WHERE NOT mine) FROM (SELECT age(xmin) AS added,"
                " chain = %(chain)s AND ts >= %(lo)s AND ts < %(hi)s AS mine FROM {} OFFSET 0) r"
            ).format(chunk),
            {"before": str(before % 2**32), **dict(zip(("chain", "lo", "hi"), day.bounds(), strict=True))},
        ).fetchone()
        assert row
        mine, new, others = row
        if mine != seen or new:
            raise _ChangedError
        manifest.add(conn, written, run_id)
        if others:
            conn.execute(
                sql.SQL("DELETE FROM {} WHERE chain = %s AND ts >= %s AND ts < %s").format(chunk), day.bounds()
            )
        else:
            # A span that is this chunk's own: no other chunk lies in it.
            conn.execute(
                "SELECT drop_chunks(%s, older_than => range_end, newer_than => range_start)"
                " FROM timescaledb_information.chunks WHERE format('%%I.%%I', chunk_schema, chunk_name) = %s",
                (f"chain.{day.table.name}", day.chunk),
            )
