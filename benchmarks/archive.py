"""The archive: how fast days leave the hot table, how small they are, how fast one is asked for one token, how large
the hot table is while days pass.

Token transfers as a busy chain has them: blocks of 150, three transfers a transaction, few tokens that most of them are
of. A day comes in, the oldest leaves; then some days come in at once, and leave together while the database has nothing
else to do, which is what is timed. A query then goes to S3 through a proxy that counts bytes.
"""

from __future__ import annotations

import statistics
import time
from datetime import UTC, datetime, timedelta

import polars as pl

from benchmarks.load import fresh_database
from dash_pipeline.archive import manifest
from dash_pipeline.archive.manifest import sizes
from dash_pipeline.archive.retain import retain
from dash_pipeline.backups.wal import waiting
from dash_pipeline.settings import Settings
from dash_pipeline.stack import Stack
from dash_pipeline.stack.servers.timescale import superuser
from dash_pipeline.storage import timescale as db
from dash_pipeline.storage.history import collect, history
from tests.faults import faulty

ROWS_PER_DAY = 200_000
DAYS = 37
HOT_DAYS = 7
BACKLOG_DAYS = 8
ASKED = 15
_START = datetime(2025, 3, 1, tzinfo=UTC)
_DAY = timedelta(days=1)

_ROWS = """
INSERT INTO chain.token_transfers
SELECT %(chain)s, %(start)s::timestamptz + b * interval '1 day' / %(blocks)s::int4, %(height)s::int8 + b,
    sha256(('b' || %(height)s::int8 + b)::bytea),
    sha256(('t' || %(height)s::int8 + b || '.' || i / 3)::bytea), i,
    substr(sha256(('k' || (power(random(), 4) * 3000)::int)::bytea), 1, 20),
    substr(sha256(('w' || (power(random(), 3) * 300000)::int)::bytea), 1, 20),
    substr(sha256(('w' || (power(random(), 3) * 300000)::int)::bytea), 1, 20), v, v, NULL
FROM generate_series(0, %(blocks)s::int4 - 1) AS blocks(b), generate_series(0, 149) AS logs(i),
    LATERAL (SELECT trunc((power(10, 4 + 20 * random() + 0 * (b + i)))::numeric) AS v) r
"""
_TIP = """
WITH new AS (
    INSERT INTO chain.blocks (chain, ts, block_number, block_hash, parent_hash)
    SELECT %(chain)s, %(start)s::timestamptz + n * interval '1 second', %(height)s::int8 + n,
        sha256(('n' || %(height)s::int8 + n)::bytea), ''
    FROM generate_series(0, 19) AS newest(n) RETURNING 1
)
INSERT INTO ops.chains (chain, tip_number, tip_ts) VALUES (%(chain)s, %(height)s::int8 + 19, %(start)s)
ON CONFLICT (chain) DO UPDATE SET tip_number = excluded.tip_number, tip_ts = excluded.tip_ts
"""


def run(stack: Stack) -> dict[str, object]:
    """Rows a second out of the hot table, bytes a row, milliseconds of a query, bytes it read, hot bytes over days."""
    with fresh_database(stack) as settings, db.connect(settings) as conn:
        chain, hot = f"bench{time.time_ns()}", list[int]()
        for day in range(DAYS):
            insert_day(conn, chain, day)
            if retain(settings, "bench", ["token_transfers"]):
                hot.append(sizes(conn, "token_transfers")[0])
        for day in range(DAYS, DAYS + BACKLOG_DAYS):
            insert_day(conn, chain, day)
        _rest(stack)
        began = time.perf_counter()
        archived = retain(settings, "bench", ["token_transfers"])
        seconds = time.perf_counter() - began
        size, per_row = sizes(conn, "token_transfers"), hot[-1] / (HOT_DAYS * ROWS_PER_DAY)
        millis, read = _ask(settings, conn, chain)
    return {
        "archived_days": len(hot) + BACKLOG_DAYS,
        "archived_rows_per_s": round(archived / seconds),
        "hot_bytes_per_row": round(per_row),
        "archived_bytes_per_row": round(size[1] / size[2], 1),
        "smaller_by": round(per_row * size[2] / size[1], 1),
        "query_one_token_one_day_ms": round(millis),
        "query_bytes_of_archived": f"{read:,} of {size[1]:,}",
        "hot_bytes_first_last_most": [hot[0], hot[-1], max(hot)],
    }


def _rest(stack: Stack) -> None:
    """Until the log of what was inserted is on S3, and its pages are on the disk."""
    with superuser(stack.place) as conn:
        conn.execute("CHECKPOINT")
        while waiting(conn).segments:
            time.sleep(0.5)


def insert_day(conn: db.Connection, chain: str, day: int) -> None:
    """A day of transfers, and the chain's tip behind it."""
    blocks = ROWS_PER_DAY // 150
    start, height = _START + day * _DAY, 20_000_000 + day * blocks
    conn.execute(_ROWS, {"chain": chain, "start": start, "height": height, "blocks": blocks})
    conn.execute(_TIP, {"chain": chain, "start": start + _DAY - timedelta(seconds=30), "height": height + 2 * blocks})


def _ask(settings: Settings, conn: db.Connection, chain: str) -> tuple[float, int]:
    """Median milliseconds and bytes of one token's transfers on one archived day, another token and day each time."""
    days = sorted({entry.date for entry in manifest.entries(conn, chain=chain)})
    tokens = collect(history(settings, "token_transfers").select("token_address").unique().head(ASKED))
    times, read = [], []
    with faulty(settings) as (through, fault):
        for n, token in enumerate(tokens["token_address"]):
            day = datetime.combine(days[n * 7 % len(days)], datetime.min.time(), UTC)
            asked = (pl.col("chain") == chain) & (pl.col("ts") >= day) & (pl.col("ts") < day + _DAY)
            before, began = len(fault.requests), time.perf_counter()
            collect(history(through, "token_transfers").filter(asked & (pl.col("token_address") == token)))
            times.append((time.perf_counter() - began) * 1e3)
            read.append(sum(request.sent for request in fault.requests[before:]))
    return statistics.median(times), round(statistics.median(read))
