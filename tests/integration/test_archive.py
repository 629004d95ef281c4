"""Seven days hot, everything kept, on the real database and the real S3: each row is exactly once in history."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest

from dash_pipeline.archive import manifest
from dash_pipeline.archive.check import check
from dash_pipeline.archive.manifest import midnight
from dash_pipeline.archive.parquet import ARCHIVED
from dash_pipeline.archive.retain import retain
from dash_pipeline.errors import DashError
from dash_pipeline.settings import Settings
from dash_pipeline.storage import s3
from dash_pipeline.storage import timescale as db
from dash_pipeline.storage.history import collect, history
from dash_pipeline.storage.query import query
from dash_pipeline.storage.tables import BLOCKS, TABLES, TOKEN_TRANSFERS, Table
from tests.days import FIRST, assert_once, day_rows, hot, insert, set_tip

Made = Callable[..., pl.DataFrame]


def at(day: int, hours: float = 0) -> datetime:
    return midnight(FIRST + timedelta(days=day)) + timedelta(hours=hours)


def fill(conn: db.Connection, table: Table, chain: str, days: range, count: int = 50) -> list[pl.DataFrame]:
    rng = random.Random(f"{table.name} {days}")
    frames = [day_rows(rng, table, chain, day, count) for day in days]
    insert(conn, table, *frames)
    return frames


def archived_days(conn: db.Connection, chain: str) -> set[date]:
    return {entry.date for entry in manifest.entries(conn, chain=chain)}


@pytest.mark.parametrize("table", ARCHIVED.values(), ids=lambda table: table.name)
def test_days_beyond_seven_are_archived_and_each_row_is_there_once(
    conn: db.Connection, migrated: Settings, chain: str, table: Table
) -> None:
    rows = fill(conn, table, chain, range(10))
    tip = set_tip(conn, chain, at(9, 12))
    assert_once(migrated, table, [*rows, *([tip] if table is BLOCKS else [])])
    before = collect(history(migrated, table.name).filter(pl.col("chain") == chain))
    assert retain(migrated, "run", [table.name]) == 100
    assert archived_days(conn, chain) == {FIRST, FIRST + timedelta(days=1)}
    assert hot(conn, table, chain) == 400 + (len(tip) if table is BLOCKS else 0)
    assert_once(migrated, table, [*rows, *([tip] if table is BLOCKS else [])])
    after = collect(history(migrated, table.name).filter(pl.col("chain") == chain))
    assert after.sort(*table.key).equals(before.sort(*table.key), null_equal=True)
    assert check(migrated, table.name, chain).wrong == ()


def test_a_second_time_there_is_nothing_to_do(conn: db.Connection, migrated: Settings, chain: str) -> None:
    fill(conn, TOKEN_TRANSFERS, chain, range(9))
    set_tip(conn, chain, at(9, 1))
    assert retain(migrated, "run", ["token_transfers"]) == 100
    before = manifest.entries(conn)
    assert retain(migrated, "run", ["token_transfers"]) == 0
    assert manifest.entries(conn) == before


def test_chunks_are_dropped_and_rows_of_a_younger_chain_in_them_stay(
    conn: db.Connection, migrated: Settings, chain: str, unique: Callable[[str], str]
) -> None:
    """Both chains have rows of the same days; one is at day 12, the other still at day 3."""
    other = unique("o")
    rows, others = (fill(conn, TOKEN_TRANSFERS, name, range(3)) for name in (chain, other))
    set_tip(conn, chain, at(12))
    set_tip(conn, other, at(3))
    retain(migrated, "run", ["token_transfers"])
    assert (hot(conn, TOKEN_TRANSFERS, chain), hot(conn, TOKEN_TRANSFERS, other)) == (0, 150)
    assert_once(migrated, TOKEN_TRANSFERS, [*rows, *others])
    set_tip(conn, other, at(12))
    retain(migrated, "run", ["token_transfers"])
    assert hot(conn, TOKEN_TRANSFERS, other) == 0
    assert conn.execute("SELECT show_chunks('chain.token_transfers')").fetchall() == []
    assert_once(migrated, TOKEN_TRANSFERS, [*rows, *others])


def test_late_rows_become_a_further_object_and_replayed_ones_do_not(
    conn: db.Connection, migrated: Settings, chain: str
) -> None:
    (first,) = fill(conn, TOKEN_TRANSFERS, chain, range(1))
    set_tip(conn, chain, at(9))
    retain(migrated, "run", ["token_transfers"])
    late = day_rows(random.Random(11), TOKEN_TRANSFERS, chain, 0, 20)
    insert(conn, TOKEN_TRANSFERS, late, first.head(30))
    assert hot(conn, TOKEN_TRANSFERS, chain) == 50
    assert_once(migrated, TOKEN_TRANSFERS, [first, late])
    assert retain(migrated, "run", ["token_transfers"]) == 20
    assert hot(conn, TOKEN_TRANSFERS, chain) == 0
    assert sorted(entry.rows for entry in manifest.entries(conn, chain=chain)) == [20, 50]
    assert_once(migrated, TOKEN_TRANSFERS, [first, late])
    insert(conn, TOKEN_TRANSFERS, first)
    assert retain(migrated, "run", ["token_transfers"]) == 0
    assert_once(migrated, TOKEN_TRANSFERS, [first, late])


def test_objects_are_encrypted_and_the_manifest_is_true(conn: db.Connection, migrated: Settings, chain: str) -> None:
    (rows,) = fill(conn, TOKEN_TRANSFERS, chain, range(1))
    set_tip(conn, chain, at(9))
    retain(migrated, "run", ["token_transfers"])
    (entry,) = manifest.entries(conn, chain=chain)
    assert entry.encryption_key == "local"
    assert (entry.rows, entry.ts_min, entry.ts_max) == (50, rows["ts"].min(), rows["ts"].max())
    assert (entry.block_min, entry.block_max) == (rows["block_number"].min(), rows["block_number"].max())
    with pytest.raises(Exception, match="refuses"):
        s3.bucket(migrated).get(entry.object)


def test_one_block_from_the_future_archives_nothing_early(conn: db.Connection, migrated: Settings, chain: str) -> None:
    fill(conn, TOKEN_TRANSFERS, chain, range(3))
    set_tip(conn, chain, at(3))
    future = set_tip(conn, chain, datetime(2099, 1, 1, tzinfo=at(0).tzinfo), blocks=1)
    assert future["block_number"].item() > at(3).timestamp()
    assert retain(migrated, "run", ["token_transfers"]) == 0
    assert hot(conn, TOKEN_TRANSFERS, chain) == 150


@pytest.fixture
def shift_clock(conn: db.Connection) -> Iterator[Callable[[str], None]]:
    """Sets the wall clock of the test's database on or back, by an interval, for connections made afterwards."""
    (name,) = conn.execute("SELECT current_database()").fetchone() or ("",)
    conn.execute("CREATE SCHEMA wall")

    def shift(by: str) -> None:
        conn.execute(
            "CREATE OR REPLACE FUNCTION wall.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS"
            f" $$SELECT pg_catalog.clock_timestamp() + interval '{by}'$$"
        )
        conn.execute(f"ALTER DATABASE {name} SET search_path = wall, pg_catalog, public")

    yield shift
    conn.execute(f"ALTER DATABASE {name} RESET search_path")
    conn.execute("DROP SCHEMA wall CASCADE")


@pytest.mark.parametrize("by", ["50 years", "-50 years"])
def test_the_wall_clock_set_on_or_back_archives_nothing_early(
    conn: db.Connection, migrated: Settings, chain: str, shift_clock: Callable[[str], None], by: str
) -> None:
    """Set on, it is as if it were right: days are the chain's. Set back, the chain is all in the future, and waits."""
    rows = fill(conn, TOKEN_TRANSFERS, chain, range(10))
    set_tip(conn, chain, at(9, 12))
    shift_clock(by)
    with db.connect(migrated) as other:
        assert other.execute("SELECT abs(extract(epoch FROM clock_timestamp() - now())) > 1e9").fetchone() == (True,)
    assert retain(migrated, "run", ["token_transfers"]) == (100 if by == "50 years" else 0)
    assert_once(migrated, TOKEN_TRANSFERS, rows)
    shift_clock("0")
    assert retain(migrated, "run", ["token_transfers"]) == (0 if by == "50 years" else 100)
    assert_once(migrated, TOKEN_TRANSFERS, rows)


def test_a_chain_all_in_the_future_is_archived_by_the_wall_clock(
    conn: db.Connection, migrated: Settings, chain: str
) -> None:
    """A producer's clock is years ahead, for more than the few blocks that are looked at."""
    now = datetime.now(UTC)
    ahead = (now.date() - FIRST).days + 700
    day = (now.date() - FIRST).days
    rows = [day_rows(random.Random(n), TOKEN_TRANSFERS, chain, n, 20) for n in (day - 9, day - 3, ahead, ahead + 20)]
    insert(conn, TOKEN_TRANSFERS, *rows)
    set_tip(conn, chain, at(ahead + 21), blocks=100)
    assert retain(migrated, "run", ["token_transfers"]) == 20
    assert archived_days(conn, chain) == {FIRST + timedelta(days=day - 9)}
    assert_once(migrated, TOKEN_TRANSFERS, rows)


def test_a_chain_nobody_has_seen_a_block_of_is_left_alone(conn: db.Connection, migrated: Settings, chain: str) -> None:
    fill(conn, TOKEN_TRANSFERS, chain, range(3))
    assert retain(migrated, "run", ["token_transfers"]) == 0


def test_a_filter_reads_only_what_it_needs(conn: db.Connection, migrated: Settings, chain: str) -> None:
    rows = pl.concat(fill(conn, TOKEN_TRANSFERS, chain, range(10)))
    set_tip(conn, chain, at(9, 12))
    retain(migrated, "run", ["token_transfers"])
    frame = history(migrated, "token_transfers").filter(pl.col("chain") == chain)
    token = rows["token_address"][70]
    for predicate in (
        pl.col("ts") >= at(8),
        (pl.col("ts") >= at(1)) & (pl.col("ts") < at(3)),
        pl.col("token_address") == token,
        (pl.col("token_address") == token) & (pl.lit(at(1)) <= pl.col("ts")),
        pl.col("value_f") > 1e20,
        pl.col("value_f").is_in([0.0, 1.5]) | (pl.col("block_number") < 0),
    ):
        want = rows.filter(predicate).sort(*TOKEN_TRANSFERS.key)
        found = frame.filter(predicate).collect().sort(*TOKEN_TRANSFERS.key)
        assert found["tx_hash"].to_list() == want["tx_hash"].to_list(), predicate
    assert frame.select("value_f").head(7).collect().shape == (7, 1)
    assert frame.select(pl.len()).collect().item() == rows.height
    assert pl.SQLContext(t=frame).execute("SELECT count(*) FROM t").collect().item() == rows.height
    sums = frame.group_by("token_address").agg(pl.len()).collect()
    assert sums["len"].sum() == rows.height


def test_tables_that_are_never_archived_have_a_history_too(conn: db.Connection, migrated: Settings, chain: str) -> None:
    made = day_rows(random.Random(1), TABLES["pools"], chain, 0, 5)
    insert(conn, TABLES["pools"], made)
    assert_once(migrated, TABLES["pools"], [made])


def test_sql_over_hot_and_archived_rows(conn: db.Connection, migrated: Settings, chain: str) -> None:
    rows = pl.concat(fill(conn, TOKEN_TRANSFERS, chain, range(10)))
    set_tip(conn, chain, at(9, 12))
    retain(migrated, "run", ["token_transfers"])
    (count,) = query(migrated, f"SELECT count(*) AS n FROM token_transfers WHERE chain = '{chain}'")["n"]
    assert count == rows.height
    token = rows["token_address"][3].hex()
    found = query(
        migrated,
        "SELECT tx_hash, token_address FROM token_transfers"
        f" WHERE token_address = '0x{token}' AND ts >= '2025-03-01' AND ts < '2025-03-02' AND chain = '{chain}'",
    )
    assert found.rows() == [(f"0x{rows['tx_hash'][3].hex()}", f"0x{token}")]


@pytest.mark.parametrize(
    "sql", ["SELECT nothing FROM token_transfers", "SELECT 1 FROM nowhere", "SELEC 1", "SELECT 1 FROM logs WHERE"]
)
def test_what_is_no_query_is_one_line(migrated: Settings, sql: str) -> None:
    with pytest.raises(DashError, match=r"^query: ") as error:
        query(migrated, sql)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("in_environment")
def test_the_asset_shows_each_day_and_the_sensor_starts_what_is_due(conn: db.Connection, migrated: Settings) -> None:
    """Chain anvil, because assets are made for the registry's chains."""
    from dagster import AssetRecordsFilter, DagsterInstance, build_sensor_context

    from assets.keys import archive_key
    from dash_pipeline.definitions import build_defs
    from resources.archive import ArchiveResource

    rows = fill(conn, TOKEN_TRANSFERS, "anvil", range(10))
    set_tip(conn, "anvil", at(9, 12))
    defs = build_defs("lifecycle")
    with DagsterInstance.ephemeral() as instance:
        with build_sensor_context(instance=instance, resources={"archive": ArchiveResource()}) as context:
            (request,) = defs.resolve_sensor_def("retention_sensor").evaluate_tick(context).run_requests
        assert request.job_name == "archive_anvil"
        result = defs.resolve_job_def(request.job_name).execute_in_process(instance=instance, tags=request.tags)
        assert result.success
        key = archive_key("anvil", "token_transfers")
        records = instance.fetch_materializations(AssetRecordsFilter(key), limit=10).records
        shown = {
            record.partition_key: record.asset_materialization.metadata["rows"].value
            for record in records
            if "rows" in record.asset_materialization.metadata
        }
        assert shown == {str(FIRST): 50, str(FIRST + timedelta(days=1)): 50}
        with build_sensor_context(instance=instance, resources={"archive": ArchiveResource()}) as context:
            tick = defs.resolve_sensor_def("retention_sensor").evaluate_tick(context)
        assert tick.skip_message == "no day is older than the retention"
        (newest,) = [one.asset_materialization.metadata for one in records if one.partition_key == str(FIRST)]
        assert {label: value.value for label, value in newest.items() if label in ("rows", "objects")} == {
            "rows": 50, "objects": 1,
        }  # fmt: skip
        assert all(newest[label].value > 0 for label in ("bytes", "hot bytes", "archived bytes", "archived rows"))
        measured = defs.resolve_job_def("compact_archive").execute_in_process(instance=instance)
        (event,) = measured.asset_materializations_for_node("archive__sizes")
        sizes = {label: value.value for label, value in event.metadata.items()}
        assert sizes["archived rows"] == 100
        hot_sizes = [sizes[f"{table}: hot bytes"] for table in ARCHIVED]
        assert min(hot_sizes) > 0
        assert sizes["hot bytes"] == sum(hot_sizes)
        assert all(sizes[f"{name}: bytes"] > 0 for name in ("rollup.wallet_blocks", "ops.block_tree", "schema side"))
        checked = defs.resolve_job_def("check_archive").execute_in_process(instance=instance)
        assert checked.success
        assert all(check.passed for check in checked.get_asset_check_evaluations())
    assert_once(migrated, TOKEN_TRANSFERS, rows)
