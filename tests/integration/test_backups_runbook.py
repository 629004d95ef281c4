"""docs/operations.md, "The database is gone": each command of the section, as it is written there, after the loss."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC

import psycopg
import pytest

from dash_pipeline.backups import database
from dash_pipeline.stack import Stack
from dash_pipeline.storage import migrate
from dash_pipeline.storage.search import indexes
from tests.commands import ROOT, blocks, run

RUNBOOK = ROOT / "docs" / "operations.md"
SECTION = "### The database is gone"


@pytest.fixture
def whole(stack: Stack) -> Iterator[Stack]:
    """The session's stack, as other tests expect it afterwards."""
    yield stack
    stack.down()
    for leftover in (stack.layout.home / "restored", stack.layout.data / "timescale.lost"):
        shutil.rmtree(leftover, ignore_errors=True)
    stack.up(only=["stores"], content=False)


@pytest.mark.patient
def test_the_runbook_brings_the_database_back(whole: Stack, unique: Callable[[str], str]) -> None:
    """The disk died; of three days the first is in the backup, the second in the log, the third is not wanted."""
    settings = whole.settings()
    migrate.upgrade(settings)
    indexes.ensure(settings, [unique("c")])
    dsn = settings.timescale_dsn.get_secret_value()
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("DROP TABLE IF EXISTS ops.days; CREATE TABLE ops.days (day int)")
        conn.execute("INSERT INTO ops.days VALUES (1)")
        database.take(settings, full=True)
        conn.execute("INSERT INTO ops.days VALUES (2)")
        row = conn.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None
        conn.execute("INSERT INTO ops.days VALUES (3)")
    whole.down()  # which archives the end of the log
    shutil.rmtree(whole.layout.data / "timescale")
    shown = "".join(block.text for block in blocks(RUNBOOK, SECTION))
    assert shown.count("\n") == 12
    done = run(whole, shown, {"TIME": row[0].astimezone(UTC).isoformat()})
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    with psycopg.connect(dsn, autocommit=True) as conn:
        assert conn.execute("SELECT day FROM ops.days ORDER BY 1").fetchall() == [(1,), (2,)]
        assert conn.execute("SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = 'dagster'").fetchone() == (True,)
    # On the timeline that the restore began, with a full backup of its own.
    assert database.backups(database.s3.bucket(settings))[-1].timeline == 2
