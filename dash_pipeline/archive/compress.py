"""TimescaleDB's compression of days that are still hot, where the server's licence has it. Never required.

Belongs here: which chunks are compressed, and making a chunk plain again. Does not belong here: days that are no longer
hot (`export.py`).

Rows of a compressed chunk are read, inserted and deleted as before, but have no transaction number of their own, by
which `export.py` sees what has changed: a day's chunk is decompressed before it is exported. Whoever compresses holds
the table's `manifest.exporting` as an export does, so that no chunk is compressed under one.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import psycopg
from psycopg import sql

from dash_pipeline.archive import manifest
from dash_pipeline.archive.parquet import ARCHIVED
from dash_pipeline.settings import Settings
from dash_pipeline.storage.tables import Table
from dash_pipeline.storage.timescale import Connection, chunks, newest_times, session

# All chains of the chunk have left it behind, as far as they have rows in it.
_COMPRESSIBLE = """
SELECT NOT is_compressed AND NOT EXISTS (
 SELECT FROM (SELECT DISTINCT chain FROM {chunk}) c LEFT JOIN unnest(%(chains)s::text[], %(until)s::timestamptz[])
  AS e(chain, until) USING (chain) WHERE e.until IS NULL OR e.until < range_end)
FROM timescaledb_information.chunks WHERE format('%%I.%%I', chunk_schema, chunk_name) = %(name)s
"""


def compress(settings: Settings, say: Callable[[str], None] = lambda line: None) -> int:
    """Compress the chunks that end `compress_after_days` before the newest blocks of each of their chains; how many.

    Nothing, and one line to `say`, where the setting is off or the server has no compression. Raises Unavailable.
    """
    if settings.compress_after_days is None:
        say("compression: off; DASH_COMPRESS_AFTER_DAYS turns it on")
        return 0
    after = timedelta(days=settings.compress_after_days)
    done = 0
    with session(settings) as conn:
        row = conn.execute("SHOW timescaledb.license").fetchone()
        assert row
        if row[0] != "timescale":
            say(f"compression: none, because the server's licence is {row[0]!r}; only `timescale` has it")
            return 0
        until = {chain: newest - after for chain, newest in newest_times(conn, settings).items()}
        for name, table in ARCHIVED.items() if until else ():
            with manifest.exporting(conn, name) as alone:
                for chunk in chunks(conn, table.relation, max(until.values())) if alone else ():
                    query = sql.SQL(_COMPRESSIBLE).format(chunk=sql.SQL(chunk))
                    values = {"chains": list(until), "until": list(until.values()), "name": chunk}
                    if conn.execute(query, values).fetchone() == (True,):
                        try:
                            _enable(conn, table)
                            conn.execute("SELECT compress_chunk(%s::regclass)", (chunk,))
                        except psycopg.errors.FeatureNotSupported:
                            say("compression: none, because the server was built without it")
                            return done
                        done += 1
    return done


def decompress(conn: Connection, chunk: str) -> None:
    """Make a chunk plain again, if it is compressed. The caller holds `manifest.exporting`."""
    conn.execute(
        "SELECT decompress_chunk(%(chunk)s::text::regclass) FROM timescaledb_information.chunks"
        " WHERE format('%%I.%%I', chunk_schema, chunk_name) = %(chunk)s::text AND is_compressed",
        {"chunk": chunk},
    )


def _enable(conn: Connection, table: Table) -> None:
    """Let the table's chunks be compressed: a chain's rows together, by time, in an order that the key is found by."""
    order = ", ".join(["ts", *(name for name in table.key if name not in ("chain", "ts"))])
    conn.execute(
        sql.SQL("ALTER TABLE {} SET (timescaledb.compress, timescaledb.compress_segmentby = 'chain',"
                " timescaledb.compress_orderby = {})").format(sql.Identifier("chain", table.name), order)
    )  # fmt: skip
