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
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import polars as pl
import psycopg
from psycopg import sql

from dash_pipeline.archive import manifest
from dash_pipeline.archive.compress import decompress
from dash_pipeline.archive.manifest import Entry, midnight
from dash_pipeline.archive.needed import BEFORE, NEEDED
from dash_pipeline.archive.parquet import SCHEMA_VERSION, arranged, content_hash, decode, encode
from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.settings import Settings
from dash_pipeline.storage import s3
from dash_pipeline.storage.changes import hold_queue, waiting_days
from dash_pipeline.storage.encryption import Key, Keyring, keyring
from dash_pipeline.storage.hot import reader
from dash_pipeline.storage.tables import Table
from dash_pipeline.storage.timescale import Connection, drop_chunk, session

DAY = timedelta(days=1)
# The transaction that drops rows waits so long for readers, and makes nobody else wait longer.
_LOCK_TIMEOUT = "3s"
_TRIES = 3
# Days that are read and written at a time: one would leave a processor to wait for the store.
_AHEAD = 2


class Corrupt(DashError):
    """An object is not what was written."""


class _ChangedError(Exception):
    """Rows of the day have come or gone since they were read."""


@dataclass(frozen=True)
class _Written:
    """A day's objects that nothing lists yet. `seen`: its rows when it was read; `before`: a transaction number below
    which everything was seen."""

    entries: list[Entry]
    seen: int
    before: int


@dataclass(frozen=True)
class Day:
    """A chain's rows of a table on one day (UTC), and the chunk that holds them while they are hot, if the table has
    chunks."""

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


def export(settings: Settings, conn: Connection, days: Iterable[Day], run_id: str) -> Iterator[tuple[Day, list[Entry]]]:
    """Archive days of a table, or what has come late of them, one after the other; of each its new objects, once its
    rows are no longer hot. The caller holds `manifest.exporting` on `conn`. While a day is listed and dropped the next
    ones are already read and written, by sessions of their own.

    Raises Unavailable when a server does not answer or rows keep changing, Corrupt when an object read back is another;
    hot rows and manifest of that day are as before then.
    """
    bucket, ring, rest = s3.bucket(settings), keyring(settings), iter(days)
    ahead: deque[tuple[Day, Future[_Written]]] = deque()
    following = next(rest, None)
    with ThreadPoolExecutor(_AHEAD) as pool:
        while following or ahead:
            # Not two days of a chunk: who reads the second would keep the first from being dropped.
            while following and len(ahead) < _AHEAD and following.chunk not in {day.chunk for day, _ in ahead}:
                # On the connection that holds the lock: nobody else is at these objects.
                sweep(bucket, conn, following)
                decompress(conn, following.chunk)
                ahead.append((following, pool.submit(_write, settings, bucket, ring, following)))
                following = next(rest, None)
            day, written = ahead.popleft()
            yield day, _list_and_drop(settings, conn, bucket, ring, day, written.result(), run_id)


def _list_and_drop(
    settings: Settings, conn: Connection, bucket: s3.Bucket, ring: Keyring, day: Day, written: _Written, run_id: str
) -> list[Entry]:
    for attempt in range(_TRIES):
        if attempt:
            written = _write(settings, bucket, ring, day)
        try:
            _commit(conn, day, written.entries, written.seen, written.before, run_id)
        except _ChangedError:
            bucket.delete([one.object for one in written.entries])
            continue
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            bucket.delete([one.object for one in written.entries])
            raise Unavailable(f"archive: {day.folder}: somebody has held these rows for long; tried again next time") \
                from None  # fmt: skip
        return written.entries
    raise Unavailable(f"archive: {day.folder}: rows come and go while they are read; tried again next time")


def sweep(bucket: s3.Bucket, conn: Connection, day: Day) -> list[str]:
    """Delete the day's objects that no manifest has ever listed: those of runs that were killed. Returns their keys.

    None while the manifest lists fewer rows than have been archived: it has lost entries, and these are their objects.
    """
    if manifest.unlisted(conn, day.chain, day.table.name, day.date):
        return []
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
    table, rows = day.table, arranged(rows, day.table)
    data = encode(rows)
    key = f"{day.folder}{uuid.uuid4().hex}.parquet"
    times = rows[table.time]
    heights = rows["block_number"] if "block_number" in rows.columns else pl.Series([None])
    entry = Entry(
        key, table.name, day.chain, day.date, rows.height, len(data), hashlib.sha256(data).digest(),
        content_hash(rows, table), SCHEMA_VERSION, seal.name if seal else "",
        times.min(), times.max(), heights.min(), heights.max(),  # type: ignore[arg-type]
    )  # fmt: skip
    bucket.put(key, data, new=True, seal=seal)
    found = fetch(bucket, Keyring({seal.name: seal} if seal else {}), entry, table)
    # As strict as comparing hashes, and a third of the work.
    if not found.equals(rows):
        bucket.delete([key])
        raise Corrupt(f"archive: {key}: read back other rows than were written")
    return entry


def _write(settings: Settings, bucket: s3.Bucket, ring: Keyring, day: Day) -> _Written:
    """Write the day's rows as objects."""
    written, seen, time = [], 0, day.table.time
    with session(settings) as conn, _snapshot(conn) as (snapshot, before), reader(settings, snapshot) as hot:
        archived = manifest.entries(conn, day.table.name, day.chain, day.date)
        for lo, hi in _parts(conn, day):
            rows = hot.rows(day.table, f"chain = $1 AND {time} >= $2 AND {time} < $3", (day.chain, lo, hi))
            seen += rows.height
            if archived:
                rows = rows.join(keys(bucket, ring, archived, day.table), on=list(day.table.key), how="anti")
            if rows.height:
                written.append(put(bucket, ring.current, day, rows))
    return _Written(written, seen, before)


def keys(bucket: s3.Bucket, ring: Keyring, archived: list[Entry], table: Table) -> pl.DataFrame:
    """The keys of the rows of these objects. Raises Corrupt."""
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
    """Spans of the day with at most the table's `part_rows` rows each; a moment with more stays whole."""
    rows = conn.execute(
        f"SELECT {day.table.time}, count(*) FROM {day.table.relation} WHERE {_mine(day)} GROUP BY 1 ORDER BY 1",
        day.bounds(),
    ).fetchall()
    _, start, end = day.bounds()
    starts, held = [start], 0
    for moment, count in rows:
        if held and held + count > day.table.part_rows:
            starts.append(moment)
            held = 0
        held += count
    return list(zip(starts, [*starts[1:], end], strict=True))


def _mine(day: Day) -> str:
    """SQL that is true of the day's rows, with `Day.bounds()`."""
    return f"chain = %s AND {day.table.time} >= %s AND {day.table.time} < %s"


def _commit(conn: Connection, day: Day, written: list[Entry], seen: int, before: int, run_id: str) -> None:
    """List the objects and drop the day's rows, if nothing of the day has changed. Raises _ChangedError."""
    with conn.transaction():
        conn.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(_LOCK_TIMEOUT))
        # A run of the marts that begins after this finds these rows archived; of one that began before, its hours are
        # still on the queue.
        hold_queue(conn, alone=False)
        if (day.chain, day.date) in waiting_days(conn, day.table.name):
            raise _ChangedError
        manifest.lock_seam(conn, day.table.name)
        manifest.add(conn, written, run_id)
        manifest.count(conn, written)
        if day.chunk:
            _drop(conn, day, seen, before)
        else:
            _delete(conn, day, seen, before)


def _drop(conn: Connection, day: Day, seen: int, before: int) -> None:
    """Drop the chunk, or delete the day's rows where it holds others."""
    chunk = sql.SQL(day.chunk)
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
    if others:
        conn.execute(sql.SQL("DELETE FROM {} WHERE chain = %s AND ts >= %s AND ts < %s").format(chunk), day.bounds())
    else:
        drop_chunk(conn, day.table.relation, day.chunk)


def _delete(conn: Connection, day: Day, seen: int, before: int) -> None:
    """Delete the day's rows of a table without chunks. Nobody waits for it but those that change the same rows, and of
    a row that was changed since the snapshot it finds the new version, with a new transaction number. One that is
    added meanwhile stays: it is late."""
    if prepare := BEFORE.get(day.table.name):
        prepare(conn, *day.bounds())
    row = conn.execute(
        f"WITH gone AS (DELETE FROM {day.table.relation} t WHERE {_mine(day)}"
        f" RETURNING age(t.xmin) AS added, {NEEDED.get(day.table.name, 'false')} AS needed)"
        " SELECT count(*), count(*) FILTER (WHERE needed OR added <= age(%s::xid)) FROM gone",
        (*day.bounds(), str(before % 2**32)),
    ).fetchone()
    assert row
    if row != (seen, 0):
        raise _ChangedError
