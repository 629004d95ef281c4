"""The archive's checks on the real database and the real S3: each finds what it is for, and else nothing."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pytest

from dash_pipeline.archive import manifest
from dash_pipeline.archive.check import Days, check, doubled, lost, missing_days
from dash_pipeline.archive.manifest import midnight
from dash_pipeline.archive.retain import retain
from dash_pipeline.archive.rewrite import compact, rotate
from dash_pipeline.settings import Settings
from dash_pipeline.stack import Stack
from dash_pipeline.storage import timescale as db
from dash_pipeline.storage.migrate import upgrade
from dash_pipeline.storage.tables import BLOCKS, LOGS, TOKEN_TRANSFERS, TRANSACTIONS, Table
from tests.days import FIRST, day_rows, insert, set_tip

# Days 0 to 3 are due, with two that stay hot.
DAYS, HOT = 6, 2


@pytest.fixture(scope="module")
def migrated(database: Settings) -> Settings:
    upgrade(database)
    return database.model_copy(update={"retention_days": HOT})


def day(number: int) -> date:
    return FIRST + timedelta(days=number)


def store(
    conn: db.Connection, chain: str, days: range | tuple[int, ...] = range(DAYS)
) -> dict[str, list[pl.DataFrame]]:
    """Days of a chain as lanes and the follower leave them: rows, the tree, the wallets' rollup. The tip is at the
    last day's noon."""
    rng = random.Random(1)
    tables: tuple[Table, ...] = (BLOCKS, TRANSACTIONS, LOGS, TOKEN_TRANSFERS)
    made = {table.name: [day_rows(rng, table, chain, number, 30) for number in days] for table in tables}
    for table in tables:
        insert(conn, table, *made[table.name])
    set_tip(conn, chain, midnight(day(max(days))) + timedelta(days=1.1))
    conn.execute(
        "INSERT INTO ops.block_tree (chain, block_hash, block_number, parent_hash, ts, status)"
        " SELECT chain, block_hash, block_number, parent_hash, ts, 'canonical' FROM chain.blocks WHERE chain = %s",
        (chain,),
    )
    conn.execute("UPDATE ops.chains SET finalised_number = tip_number - 5 WHERE chain = %s", (chain,))
    conn.execute(
        "INSERT INTO rollup.wallet_blocks SELECT chain, ts, block_hash, wallet, sent, 0, 0, 0, 0, moved, 0, 0, 0, '{}'"
        " FROM (SELECT chain, ts, block_hash, from_address AS wallet, 1 AS sent, 0 AS moved FROM chain.transactions"
        "  UNION ALL SELECT chain, ts, block_hash, from_address, 0, 1 FROM chain.token_transfers) r"
    )
    return made


def test_a_whole_archive_has_no_findings(conn: db.Connection, migrated: Settings, chain: str) -> None:
    """Before, while and after it is archived, rows sent again or late, and objects rewritten."""
    made = store(conn, chain)
    due = tuple(day(number) for number in range(4))
    for step in range(4):
        if step == 1:
            retain(migrated, "run", chain=chain, days={day(0), day(2)})
            due = (day(1), day(3))
        if step == 2:
            retain(migrated, "run")
            due = ()
        if step == 3:
            insert(conn, LOGS, made["logs"][0], day_rows(random.Random(2), LOGS, chain, 0, 7))
            retain(migrated, "run")
            compact(migrated, "run")
            keys = {"new": "bmV3IGtleSBuZXcga2V5IG5ldyBrZXkgbmV3IGtleTE="} | migrated.encryption_keys
            migrated = migrated.model_copy(update={"encryption_keys": keys})
            assert rotate(migrated, "run") > 0
        assert missing_days(migrated, chain) == Days(due=due)
        assert doubled(migrated, chain) == {}
        assert lost(migrated, chain) == ()


def test_a_chain_of_which_nothing_is_known(conn: db.Connection, migrated: Settings, chain: str) -> None:
    assert missing_days(migrated, chain) == Days()
    assert lost(migrated, chain) == ()


def test_days_that_were_never_ingested_are_spans(conn: db.Connection, migrated: Settings, chain: str) -> None:
    """A gap in a backfill; the days right before the edge; no gap where heights follow each other."""
    store(conn, chain, (0, 1, 4, 7))
    for _ in range(2):
        found = missing_days(migrated, chain)
        assert found.never_ingested == ((day(2), day(3)), (day(5), day(5)))
        assert found.lost == ()
        assert found.wrong == tuple(
            f"blocks {first} to {last}: never ingested, though heights say that there are some; feed these days"
            for first, last in found.never_ingested
        )
        assert lost(migrated, chain) == ()
        retain(migrated, "run")


def test_a_chain_that_stood_still_misses_nothing(conn: db.Connection, migrated: Settings, chain: str) -> None:
    made = day_rows(random.Random(1), BLOCKS, chain, 0, 2).with_columns(block_number=pl.Series([7, 8]))
    later = day_rows(random.Random(2), BLOCKS, chain, 5, 1).with_columns(block_number=pl.lit(9, pl.Int64))
    insert(conn, BLOCKS, made, later)
    set_tip(conn, chain, midnight(day(8)))
    retain(migrated, "run")
    assert missing_days(migrated, chain).never_ingested == ()


def test_blocks_whose_chunk_is_gone_are_lost(conn: db.Connection, migrated: Settings, chain: str) -> None:
    """A hot day beyond the edge, and one that is not due yet."""
    store(conn, chain)
    for number in (2, 5):
        conn.execute("DELETE FROM chain.blocks WHERE ts >= %s AND ts < %s", (day(number), day(number + 1)))
    found = missing_days(migrated, chain)
    assert found.lost == (day(2),)
    assert found.wrong == (f"blocks {day(2)}: were stored, and none is hot or archived; restore them from a backup",)
    assert [line.split(" canonical")[0] for line in lost(migrated, chain)] == [
        f"blocks {day(2)}: 30",
        f"blocks {day(5)}: 30",
    ]


def test_a_block_that_was_refused_by_the_database_is_not_lost(
    conn: db.Connection, migrated: Settings, chain: str
) -> None:
    store(conn, chain)
    conn.execute(
        "WITH gone AS (DELETE FROM chain.blocks"
        " WHERE block_hash = (SELECT block_hash FROM chain.blocks ORDER BY ts LIMIT 1) RETURNING block_hash)"
        " UPDATE ops.block_tree t SET topic = 'b', partition = 0, \"offset\" = 5"
        " FROM gone WHERE gone.block_hash = t.block_hash"
    )
    (line,) = lost(migrated, chain)
    assert line.startswith(f"blocks {day(0)}: 1 canonical blocks")
    letter = db.DeadLetter("b", 0, 5, 0, b"", "not storable")
    db.write_dead_letters(conn, [letter], "run")
    assert lost(migrated, chain) == ()


def test_one_block_lost_of_a_day_in_both_places(conn: db.Connection, migrated: Settings, chain: str) -> None:
    """As many rows as there should be: one is twice there, one not at all."""
    made = store(conn, chain)
    conn.execute("DELETE FROM chain.blocks WHERE block_hash = %s", (made["blocks"][1]["block_hash"][0],))
    retain(migrated, "run")
    insert(conn, BLOCKS, made["blocks"][1][1:2])
    (line,) = lost(migrated, chain)
    height = made["blocks"][1]["block_number"][0]
    assert line.startswith(f"blocks {day(1)}: 1 canonical blocks are in neither place, the first is {height:,};")


@pytest.mark.parametrize("table", [LOGS, TRANSACTIONS], ids=lambda table: table.name)
def test_an_object_that_the_manifest_has_forgotten(
    conn: db.Connection, migrated: Settings, chain: str, table: Table
) -> None:
    made = store(conn, chain)
    retain(migrated, "run")
    insert(conn, table, day_rows(random.Random(2), table, chain, 1, 7))
    retain(migrated, "run")
    small = min(manifest.entries(conn, table.name, chain, day(1)), key=lambda one: one.rows)
    conn.execute("CREATE TEMP TABLE kept AS SELECT * FROM ops.archive_manifest WHERE object = %s", (small.object,))
    conn.execute("DELETE FROM ops.archive_manifest WHERE object = %s", (small.object,))
    (line,) = lost(migrated, chain)
    assert line.startswith(f"{table.name} {day(1)}: 7 of 37 archived rows are in no object of ops.archive_manifest;")
    insert(conn, table, day_rows(random.Random(3), table, chain, 1, 1))
    retain(migrated, "run")  # a run that would delete objects that are not listed
    conn.execute("INSERT INTO ops.archive_manifest SELECT * FROM kept")
    assert lost(migrated, chain) == ()
    assert check(migrated, chain=chain).wrong == ()
    conn.execute("DELETE FROM ops.archive_manifest WHERE table_name = %s AND date = %s", (table.name, day(1)))
    (line,) = lost(migrated, chain)
    assert line.startswith(f"{table.name} {day(1)}: 38 of 38 archived rows")
    assert len(made[table.name]) == DAYS


@pytest.mark.parametrize("table", [TRANSACTIONS, TOKEN_TRANSFERS], ids=lambda table: table.name)
def test_rows_that_only_the_rollup_remembers(conn: db.Connection, migrated: Settings, chain: str, table: Table) -> None:
    """A chunk that somebody dropped while it was hot."""
    made = store(conn, chain)
    conn.execute("SELECT drop_chunks(%s, older_than => %s, newer_than => %s)", (f"chain.{table.name}", day(5), day(4)))
    gone = f"{table.name} {day(4)}: 30 of 30 rows that rollup.wallet_blocks was made of are in neither place"
    (line,) = lost(migrated, chain)
    assert line.startswith(gone)
    # A fork may have moved rows of blocks that the rollup has still to do.
    first = made[table.name][4].row(0, named=True)
    db.write_outbox(conn, chain, {first["block_hash"]: first["ts"]}, {("t", 0): 1})
    assert lost(migrated, chain) == ()


def test_a_row_lost_among_doubled_ones(conn: db.Connection, migrated: Settings, chain: str) -> None:
    """The day is newly archived; as many of its rows were sent again as are lost."""
    made = store(conn, chain)
    conn.execute(
        "DELETE FROM chain.transactions WHERE tx_hash = ANY(%s)", (made["transactions"][3]["tx_hash"][:3].to_list(),)
    )
    retain(migrated, "run")
    insert(conn, TRANSACTIONS, made["transactions"][3][3:6])
    assert doubled(migrated, chain) == {f"transactions {day(3)}": 3}
    (line,) = lost(migrated, chain)
    assert line.startswith(f"transactions {day(3)}: 3 of 30 rows")


def test_doubled_rows_are_counted_by_key_and_late_ones_are_none(
    conn: db.Connection, migrated: Settings, chain: str
) -> None:
    made = store(conn, chain)
    retain(migrated, "run")
    insert(conn, LOGS, day_rows(random.Random(2), LOGS, chain, 0, 9))
    insert(conn, LOGS, day_rows(random.Random(3), LOGS, chain, 1, 9), made["logs"][1][:4])
    insert(conn, BLOCKS, made["blocks"][3])
    assert doubled(migrated, chain) == {f"blocks {day(3)}": 30, f"logs {day(1)}": 4}
    assert lost(migrated, chain) == ()
    retain(migrated, "run")
    assert doubled(migrated, chain) == {}


def test_the_command_names_what_is_missing(conn: db.Connection, migrated: Settings, stack: Stack, chain: str) -> None:
    store(conn, chain, (0, 3, 4, 7))
    environment = os.environ | {
        "DASH_STACK_DIR": str(stack.layout.home),
        "DASH_TIMESCALE_DSN": migrated.timescale_dsn.get_secret_value(),
        "DASH_RETENTION_DAYS": str(HOT),
    }

    def said() -> tuple[int, str]:
        command = [str(Path(sys.executable).with_name("dash-pipeline")), "archive", "check"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    conn.execute("DELETE FROM chain.blocks WHERE ts >= %s AND ts < %s", (day(4), day(5)))
    code, text = said()
    assert code == 2
    assert f"{chain}: blocks {day(4)}: 30 canonical blocks are in neither place" in " ".join(text.split())
    assert f"{chain}: blocks {day(1)} to {day(2)}: never ingested" in " ".join(text.split())
    conn.execute("TRUNCATE ops.chains")
    assert said()[0] == 0
