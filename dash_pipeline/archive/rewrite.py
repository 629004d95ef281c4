"""The same rows in other objects: many small ones as few, and under another key.

Belongs here: replacing objects. Does not belong here: deciding when (`assets/lifecycle/`).

New objects are written and compared first; one transaction lists them instead of the old ones; the old ones are deleted
when nobody reads by the former list any more. A run that is killed leaves objects that are not listed, or that are
listed as replaced; the next run deletes both.
"""

from __future__ import annotations

from itertools import groupby

import polars as pl

from dash_pipeline.archive import manifest
from dash_pipeline.archive.export import Day, fetch, put, sweep
from dash_pipeline.archive.manifest import Entry
from dash_pipeline.archive.parquet import ARCHIVED
from dash_pipeline.errors import DashError
from dash_pipeline.settings import Settings
from dash_pipeline.storage import s3
from dash_pipeline.storage.encryption import keyring
from dash_pipeline.storage.timescale import Connection, session

# Objects with fewer rows than this part of what is written at a time are worth merging with others of their day, up to
# as many times that.
_SMALL, _MERGED = 1 / 4, 2


def compact(settings: Settings, run_id: str) -> int:
    """Merge the small objects of each day; returns how many objects there are fewer. What an exporting run is at is
    left to the next call."""
    fewer = 0
    with session(settings) as conn:
        for name, table in ARCHIVED.items():
            with manifest.exporting(conn, name) as alone:
                for _, group in groupby(
                    manifest.entries(conn, name) if alone else (), lambda one: (one.chain, one.date)
                ):
                    small = [one for one in group if one.rows < _SMALL * table.part_rows]
                    if len(small) > 1 and sum(one.rows for one in small) <= _MERGED * table.part_rows:
                        _rewrite(settings, conn, small, run_id)
                        fewer += len(small) - 1
    purge(settings)
    return fewer


def rotate(settings: Settings, run_id: str) -> int:
    """Encrypt every object anew that is not encrypted with the first key of DASH_ENCRYPTION_KEYS; returns how many.

    Raises DashError when a key is missing that an object needs."""
    current = keyring(settings).current
    if current is None:
        raise DashError("DASH_ENCRYPTION_KEYS: no key to encrypt with; `openssl rand -base64 32` makes one")
    done = 0
    with session(settings) as conn:
        for name in ARCHIVED:
            with manifest.exporting(conn, name) as alone:
                if not alone:
                    raise DashError(
                        f"archive: another run is taking rows of {name} out; run this again when it has ended"
                    )
                for entry in manifest.entries(conn, name):
                    if entry.encryption_key != current.name:
                        _rewrite(settings, conn, [entry], run_id)
                        done += 1
    purge(settings)
    return done


def purge(settings: Settings) -> int:
    """Delete the objects that others have replaced; returns how many."""
    bucket = s3.bucket(settings)
    with session(settings) as conn:
        replaced = conn.execute(
            "SELECT table_name, array_agg(object) FROM ops.archive_manifest WHERE replaced_at IS NOT NULL GROUP BY 1"
        ).fetchall()
        for name, objects in replaced:
            # Whoever reads holds this lock: after it, all readers know the new list.
            with conn.transaction():
                manifest.lock_seam(conn, name)
            bucket.delete(objects)
            conn.execute("DELETE FROM ops.archive_manifest WHERE object = ANY(%s)", (objects,))
    return sum(len(objects) for _, objects in replaced)


def _rewrite(settings: Settings, conn: Connection, old: list[Entry], run_id: str) -> None:
    """One object with the rows of these, which are of one day, instead of them."""
    bucket, ring = s3.bucket(settings), keyring(settings)
    table = ARCHIVED[old[0].table]
    day = Day(table, old[0].chain, old[0].date)
    sweep(bucket, conn, day)
    rows = pl.concat([fetch(bucket, ring, one, table) for one in old])
    new = put(bucket, ring.current, day, rows)
    with conn.transaction():
        manifest.add(conn, [new], run_id)
        manifest.replace(conn, old)
