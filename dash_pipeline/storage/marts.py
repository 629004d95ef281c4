"""A run of the marts, as the database sees it: what it takes, and that it is done.

Belongs here: the batch (`ops.mart_batch`), which the models in `dbt/` read; archived rows that a batch needs; which of
a pool's tokens is priced in which. Does not belong here: the queue (`changes.py`), SQL of models, running dbt.

A batch is the queue as it is when a run begins. It is struck off the queue when the run has succeeded, so a run that
fails or is killed is repeated whole; models compute keys anew, whoever computed them before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import polars as pl
from psycopg import sql

from dash_pipeline.archive import manifest
from dash_pipeline.chains import Chain, load_chains
from dash_pipeline.errors import DashError
from dash_pipeline.settings import Settings
from dash_pipeline.storage.changes import TABLES, hold_queue
from dash_pipeline.storage.copy import encode
from dash_pipeline.storage.history import archived
from dash_pipeline.storage.search.documents import preferred_quotes
from dash_pipeline.storage.search.rollups import QUOTE_SIDE
from dash_pipeline.storage.tables import TABLES as DESCRIBED
from dash_pipeline.storage.timescale import Connection, of_chain, session

# Everything that has hot rows, for a project that is new or has changed.
_EVERYTHING = (
    "INSERT INTO ops.changed_hours AS h (chain, hour, version) SELECT chain, hour, nextval('ops.change_version') FROM ("
    + " UNION ".join(f"SELECT DISTINCT chain, date_trunc('hour', ts, 'UTC') AS hour FROM chain.{t}" for t in TABLES)
    + ") c ON CONFLICT (chain, hour) DO UPDATE SET version = excluded.version"
)

_POOL = "'0x' || encode(p.address, 'hex') AS pool"
_TOKENS = "'0x' || encode(p.token0, 'hex') AS token0, '0x' || encode(p.token1, 'hex') AS token1"

# Pools whose quote token is to be found (again): new ones, those that left or were made anew, and those without a token
# of the registry that share one with them, because the number of pools decides there. All, once the registry changed.
_CANDIDATES = f"""
CREATE TEMP TABLE candidates ON COMMIT DROP AS
WITH p AS MATERIALIZED (SELECT {_POOL}, {_TOKENS} FROM chain.pools p WHERE {of_chain("p")}),
fresh AS MATERIALIZED (
 SELECT p.pool, p.token0, p.token1 FROM p WHERE NOT EXISTS (SELECT FROM ops.pool_quotes q
  WHERE {of_chain("q")} AND q.pool = p.pool AND q.token0 = p.token0 AND q.token1 = p.token1)
 UNION ALL
 SELECT q.pool, q.token0, q.token1 FROM ops.pool_quotes q WHERE {of_chain("q")} AND (%(all)s OR NOT EXISTS (
  SELECT FROM p WHERE p.pool = q.pool AND p.token0 = q.token0 AND p.token1 = q.token1))),
seeds AS MATERIALIZED (SELECT token0 AS token FROM fresh UNION SELECT token1 FROM fresh)
SELECT pool, decode(substr(pool, 3), 'hex') AS address FROM (
 SELECT pool FROM fresh
 UNION SELECT q.pool FROM ops.pool_quotes q JOIN seeds s ON s.token = q.token0 WHERE {of_chain("q")} AND NOT registered
 UNION SELECT q.pool FROM ops.pool_quotes q JOIN seeds s ON s.token = q.token1 WHERE {of_chain("q")} AND NOT registered
) c
"""

# Events of a pool that was not known when their hours were computed.
_EARLIER_HOURS = f"""
INSERT INTO ops.changed_hours AS h (chain, hour, version)
SELECT %(chain)s, hour, nextval('ops.change_version') FROM (
 SELECT DISTINCT e.hour FROM candidates c CROSS JOIN LATERAL (
  SELECT date_trunc('hour', e.ts, 'UTC') AS hour FROM chain.pool_events e
  WHERE e.pool = c.address AND {of_chain("e")} OFFSET 0) e
 WHERE NOT EXISTS (SELECT FROM ops.pool_quotes q WHERE {of_chain("q")} AND q.pool = c.pool)) n
ON CONFLICT (chain, hour) DO UPDATE SET version = excluded.version
"""

_COLUMNS = ("protocol", "fee", "token0", "token1", "base", "quote", "registered")
_QUOTED = f"""
WITH found AS MATERIALIZED (
 SELECT c.pool, p.protocol, p.fee, {_TOKENS},
  '0x' || encode(CASE WHEN q.zero THEN p.token1 ELSE p.token0 END, 'hex') AS base,
  '0x' || encode(CASE WHEN q.zero THEN p.token0 ELSE p.token1 END, 'hex') AS quote,
  coalesce(r0, r1) IS NOT NULL AS registered
 FROM candidates c CROSS JOIN LATERAL (SELECT protocol, fee, token0, token1 FROM chain.pools p
  WHERE {of_chain("p")} AND p.address = c.address ORDER BY p.ts DESC LIMIT 1) p
 {QUOTE_SIDE}),
gone AS (
 DELETE FROM ops.pool_quotes q USING candidates c WHERE {of_chain("q")} AND q.pool = c.pool
 AND NOT EXISTS (SELECT FROM found f WHERE f.pool = c.pool) RETURNING q.token0, q.token1),
before AS (SELECT q.token0, q.token1 FROM ops.pool_quotes q JOIN found f USING (pool) WHERE {of_chain("q")}
 AND (q.base, q.quote) IS DISTINCT FROM (f.base, f.quote)),
written AS (
 INSERT INTO ops.pool_quotes AS q (chain, pool, {", ".join(_COLUMNS)})
 SELECT %(chain)s, pool, {", ".join(_COLUMNS)} FROM found
 ON CONFLICT (chain, pool) DO UPDATE SET {", ".join(f"{c} = excluded.{c}" for c in _COLUMNS)}
 WHERE ({", ".join(f"q.{c}" for c in _COLUMNS)}) IS DISTINCT FROM ({", ".join(f"excluded.{c}" for c in _COLUMNS)})
 RETURNING q.token0, q.token1),
changed AS (SELECT * FROM gone UNION SELECT * FROM before UNION SELECT * FROM written)
INSERT INTO ops.changed_tokens AS t (chain, token, version)
SELECT %(chain)s, token, nextval('ops.change_version') FROM (
 SELECT token0 AS token FROM changed UNION SELECT token1 FROM changed) c
ON CONFLICT (chain, token) DO UPDATE SET version = excluded.version
"""

# Tokens that described themselves, or do not any more, in a changed hour: whole tokens are others then.
_DESCRIBED_ANEW = """
INSERT INTO ops.changed_tokens AS c (chain, token, version)
SELECT chain, token, nextval('ops.change_version') FROM (
 SELECT DISTINCT t.chain, '0x' || encode(t.address, 'hex') AS token
 FROM (SELECT chain, address, ts FROM chain.tokens UNION ALL SELECT chain, address, ts FROM side.tokens) t
 JOIN ops.changed_hours h ON h.chain = t.chain AND h.hour = date_trunc('hour', t.ts, 'UTC')) d
ON CONFLICT (chain, token) DO UPDATE SET version = excluded.version
"""

_QUEUES = {"ops.changed_hours": "ops.mart_batch", "ops.changed_tokens": "ops.mart_batch_tokens"}


@dataclass(frozen=True)
class Batch:
    """What a run of the marts took: so many hours, of so many chains, and tokens; archived rows that it needs."""

    hours: int
    tokens: int
    recalled: int


@contextmanager
def alone(settings: Settings) -> Iterator[Connection]:
    """A connection under which no other run of the marts takes a batch. Raises DashError when there is one."""
    with session(settings) as conn:
        row = conn.execute("SELECT pg_try_advisory_lock(hashtextextended('marts:run', 0))").fetchone()
        if not (row and row[0]):
            raise DashError("marts: another run is building them; this one would compute the same")
        yield conn


def built(conn: Connection) -> str | None:
    """The state of the dbt project that the marts were last built with."""
    row = conn.execute("SELECT version FROM ops.mart_project").fetchone()
    return row[0] if row else None


def lacks(conn: Connection, relations: Iterable[str]) -> bool:
    """Whether one of these relations (`schema.name`) is not there."""
    row = conn.execute(
        "SELECT bool_or(to_regclass(name) IS NULL) FROM unnest(%s::text[]) r(name)", (list(relations),)
    ).fetchone()
    return bool(row and row[0])


def take(settings: Settings, conn: Connection, *, everything: bool) -> Batch:
    """Make the queue this run's batch; `everything`: with every hour that has hot rows. The caller is `alone`.

    Raises Unavailable or DashError when an archived day that the batch is of cannot be read.
    """
    with conn.transaction():
        hold_queue(conn, alone=True)
        others = [_find_quotes(conn, name, chain) for name, chain in load_chains(settings.chains_file).items()]
        if everything or any(others):
            conn.execute(_EVERYTHING)
        conn.execute(_DESCRIBED_ANEW)
        counts = []
        for queue, batch in _QUEUES.items():
            conn.execute(f"TRUNCATE {batch}")
            counts.append(conn.execute(f"INSERT INTO {batch} SELECT * FROM {queue}").rowcount)
    hours, tokens = counts
    return Batch(hours, tokens, _recall(settings, conn))


def done(conn: Connection, project: str) -> None:
    """The batch is in the marts, as this state of the project makes them: strike what has not changed since off the
    queue."""
    with conn.transaction():
        hold_queue(conn, alone=True)
        conn.execute(
            "DELETE FROM ops.changed_hours q USING ops.mart_batch b"
            " WHERE q.chain = b.chain AND q.hour = b.hour AND q.version = b.version"
        )
        conn.execute(
            "DELETE FROM ops.changed_tokens q USING ops.mart_batch_tokens b"
            " WHERE q.chain = b.chain AND q.token = b.token AND q.version = b.version"
        )
        conn.execute("DELETE FROM ops.mart_project")
        conn.execute("INSERT INTO ops.mart_project VALUES (%s)", (project,))


def _find_quotes(conn: Connection, name: str, chain: Chain) -> bool:
    """Bring `ops.quote_tokens` and `ops.pool_quotes` up to date, and put tokens that this changes on the queue.
    Whether the registry has other quote tokens than it had."""
    quotes = preferred_quotes(chain.quote_tokens)
    rows = [(name, rank, q.address, q.symbol, q.decimals, q.stable) for rank, q in enumerate(quotes, 1)]
    columns = "chain, rank, token, symbol, decimals, stable"
    known = conn.execute(f"SELECT {columns} FROM ops.quote_tokens WHERE chain = %s ORDER BY rank", (name,)).fetchall()
    if known != rows:
        conn.execute("DELETE FROM ops.quote_tokens WHERE chain = %s", (name,))
        conn.cursor().executemany(f"INSERT INTO ops.quote_tokens ({columns}) VALUES (%s, %s, %s, %s, %s, %s)", rows)
    params = {"chain": name, "all": known != rows, "quotes": [quote.contract for quote in quotes]}
    conn.execute(_CANDIDATES, params)
    conn.execute(_EARLIER_HOURS, params)
    conn.execute(_QUOTED, params)
    conn.execute("DROP TABLE candidates")
    return known != rows


def _recall(settings: Settings, conn: Connection) -> int:
    """Read the archived rows of the days that the batch is of: with the hot ones they are the whole day. How many."""
    conn.execute(f"TRUNCATE {', '.join(f'recalled.{table}' for table in TABLES)}")
    days: Mapping[str, list[date]] = dict(
        conn.execute(
            "SELECT chain, array_agg(DISTINCT (hour AT TIME ZONE 'UTC')::date) FROM ops.mart_batch GROUP BY chain"
        ).fetchall()
    )
    rows = 0
    for table in TABLES:
        for chain, dates in days.items():
            objects = [one for one in manifest.entries(conn, table, chain) if one.date in dates]
            if objects:
                rows += _recall_days(settings, conn, table, chain, objects)
    return rows


def _recall_days(settings: Settings, conn: Connection, table: str, chain: str, objects: list[manifest.Entry]) -> int:
    described = DESCRIBED[table]
    days = sorted({one.date for one in objects})
    first = datetime.combine(days[0], datetime.min.time(), UTC)
    last = datetime.combine(days[-1], datetime.min.time(), UTC) + timedelta(days=1)
    of = (pl.col("chain") == chain) & (pl.col("ts") >= first) & (pl.col("ts") < last)
    frame = archived(settings, table, objects, list(described.columns), of)
    names = sql.SQL(", ").join(map(sql.Identifier, described.columns))
    statement = sql.SQL("COPY recalled.{} ({}) FROM STDIN (FORMAT binary)").format(sql.Identifier(table), names)
    with conn.transaction(), conn.cursor() as cursor:
        with cursor.copy(statement) as copy:
            copy.write(encode([frame], described))
        # A row that was sent again after its day had been archived is a hot one, too.
        same = " AND ".join(f"r.{column} = h.{column}" for column in described.key)
        cursor.execute(
            f"DELETE FROM recalled.{table} r USING chain.{table} h WHERE {same}"
            " AND h.chain = %s AND h.ts >= %s AND h.ts < %s",
            (chain, first, last),
        )
    return frame.height
