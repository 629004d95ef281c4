"""Restore: how long ten million rows take to come back (RTO), and what a dead disk would have cost at most (RPO).

A full backup, then half a million rows more that only the archived log has; the drill restores all of it into a second
server and compares every table.
"""

from __future__ import annotations

import time

from benchmarks.archive import ROWS_PER_DAY, insert_day
from benchmarks.load import fresh_database
from dash_pipeline.backups import database, drill
from dash_pipeline.stack import Stack
from dash_pipeline.storage import timescale as db

ROWS = 10_000_000
_LATER_DAYS = 3


def run(stack: Stack) -> dict[str, object]:
    """Seconds of backup and restore, bytes of the backup, seconds of commits lost at most, differences found."""
    with fresh_database(stack) as settings, db.connect(settings) as conn:
        chain, days = f"bench{time.time_ns()}", ROWS // ROWS_PER_DAY
        for day in range(days - _LATER_DAYS):
            insert_day(conn, chain, day)
        backup = database.take(settings, full=True)
        for day in range(days - _LATER_DAYS, days):
            insert_day(conn, chain, day)
        found = drill.drill(settings)
    return {
        "rows": ROWS,
        "backup_s": round(backup.seconds),
        "backup_bytes": backup.bytes,
        "rto_s": round(found.rto_s),
        "rpo_s": round(found.rpo_s),
        "tables_compared": found.tables,
        "rows_compared": found.rows,
        "differences": len(found.differences),
        "drill_s": round(found.seconds),
    }
