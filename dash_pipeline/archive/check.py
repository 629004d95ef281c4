"""Whether the archive is what the manifest says, and whole.

Belongs here: findings, as lines a person can act on. Does not belong here: mending (`compact.py`, a bucket's versions).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dash_pipeline.archive import manifest
from dash_pipeline.archive.export import Corrupt, fetch
from dash_pipeline.archive.manifest import Entry
from dash_pipeline.archive.parquet import ARCHIVED, content_hash
from dash_pipeline.settings import Settings
from dash_pipeline.storage import s3
from dash_pipeline.storage.encryption import keyring
from dash_pipeline.storage.timescale import Connection, session

Checked = Callable[[Entry], None]


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


def missing_days(conn: Connection, chain: str) -> list[str]:
    """The days between the chain's first and last archived one that have blocks in neither place."""
    rows = conn.execute(
        "WITH days AS (SELECT chain, min(date) AS first, max(date) AS last FROM ops.archive_manifest"
        "  WHERE table_name = 'blocks' AND replaced_at IS NULL AND chain = %s GROUP BY chain)"
        " SELECT d.chain, day::date FROM days d, generate_series(d.first, d.last, interval '1 day') day"
        " WHERE NOT EXISTS (SELECT FROM ops.archive_manifest m WHERE m.chain = d.chain AND m.date = day::date"
        "  AND m.table_name = 'blocks' AND m.replaced_at IS NULL)"
        " AND NOT EXISTS (SELECT FROM chain.blocks b WHERE b.chain = d.chain AND b.ts >= day"
        "  AND b.ts < day + interval '1 day') ORDER BY 2",
        (chain,),
    ).fetchall()
    return [str(day) for _, day in rows]


def doubled(conn: Connection, chain: str) -> list[str]:
    """`table date` for each of the chain's days that is archived and has hot rows: late or replayed ones, until the
    next run takes them out."""
    found: list[str] = []
    for table in ARCHIVED.values():
        rows = conn.execute(
            "SELECT DISTINCT m.date FROM ops.archive_manifest m WHERE m.table_name = %(table)s"
            f" AND m.chain = %(chain)s AND m.replaced_at IS NULL AND EXISTS (SELECT FROM {table.relation} t"
            f"  WHERE t.chain = m.chain AND t.{table.time} >= m.date AND t.{table.time} < m.date + 1) ORDER BY 1",
            {"table": table.name, "chain": chain},
        ).fetchall()
        found += [f"{table.name} {day}" for (day,) in rows]
    return found
