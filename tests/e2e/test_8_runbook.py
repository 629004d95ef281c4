"""docs/operations.md, "The database is gone": each command of the section, as it is written there, after the loss."""

from __future__ import annotations

import shutil
from datetime import UTC

import psycopg

from dash_pipeline.backups import database
from dash_pipeline.demo import Outcome
from dash_pipeline.stack import Stack
from tests.commands import ROOT, blocks, run

RUNBOOK = ROOT / "docs" / "operations.md"
SECTION = "### The database is gone"
TRANSFERS = "SELECT count(*) FROM chain.token_transfers"


def test_the_runbook_brings_the_database_back(platform: Stack, outcome: Outcome) -> None:
    """The disk died; of three days the first is in the backup, the second in the log, the third is not wanted."""
    assert outcome.agrees
    settings = platform.settings()
    dsn = settings.timescale_dsn.get_secret_value()
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE ops.days (day int)")
        conn.execute("INSERT INTO ops.days VALUES (1)")
        database.take(settings, full=True)
        conn.execute("INSERT INTO ops.days VALUES (2)")
        row = conn.execute(f"SELECT clock_timestamp(), ({TRANSFERS})").fetchone()
        assert row is not None
        conn.execute("INSERT INTO ops.days VALUES (3)")
    platform.down()  # which archives the end of the log
    shutil.rmtree(platform.layout.data / "timescale")
    shown = "".join(block.text for block in blocks(RUNBOOK, SECTION))
    assert shown.count("\n") == 12
    done = run(platform, shown, {"TIME": row[0].astimezone(UTC).isoformat()})
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    with psycopg.connect(dsn, autocommit=True) as conn:
        assert conn.execute("SELECT day FROM ops.days ORDER BY 1").fetchall() == [(1,), (2,)]
        assert conn.execute(TRANSFERS).fetchone() == (row[1],)
        assert conn.execute("SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = 'dagster'").fetchone() == (True,)
    # On the timeline that the restore began, with a full backup of its own.
    assert database.backups(database.s3.bucket(settings))[-1].timeline == 2
