"""Staging tables whose connection is gone leave the database.

Belongs here: finding and dropping them. Does not belong here: making them (`storage/timescale.py`, `Writer`).

They are temporary: PostgreSQL drops them with their connection, whether its client ended or was killed. What is left
over is left over by a crash of the server itself. Only a superuser may drop another connection's temporary table; where
the platform is none, autovacuum does it within a minute or two, and what is told here is what it has yet to do.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import psycopg
from psycopg import sql

from dash_pipeline.settings import Settings
from dash_pipeline.storage.timescale import connect

# A temporary schema is named after the slot of its connection. A slot that another connection has by now is left alone,
# unless it is this one, which made no temporary table.
_STALE = """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 't' AND c.relname LIKE 'stage\\_%'
  AND NOT EXISTS (SELECT FROM pg_stat_get_backend_idset() slot WHERE n.nspname = 'pg_temp_' || slot
                  AND pg_stat_get_backend_pid(slot) <> pg_backend_pid())
ORDER BY 1, 2
"""


@dataclass(frozen=True)
class Stale:
    """Staging tables that no connection has any more: those that were dropped, and those left to autovacuum."""

    dropped: tuple[str, ...]
    left: tuple[str, ...]


def drop_stale_staging(settings: Settings) -> Stale:
    """Drop the staging tables that no connection has any more. Raises Unavailable when the database does not answer."""
    dropped, left = [], []
    with closing(connect(settings)) as conn:
        for schema, name in conn.execute(_STALE).fetchall():
            try:
                # A connection that takes the slot at this moment clears it itself; nobody waits for the other.
                with conn.transaction():
                    conn.execute("SET LOCAL lock_timeout = '1s'")
                    conn.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(schema, name)))
                dropped.append(f"{schema}.{name}")
            except (psycopg.errors.LockNotAvailable, psycopg.errors.InsufficientPrivilege):
                left.append(f"{schema}.{name}")
    return Stale(tuple(dropped), tuple(left))
