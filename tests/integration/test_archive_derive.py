"""Archived rows that follow from others, derived anew on the real database and the real S3: what a decoder left out
comes back, nothing is lost for want of logs, and detectors say of the past what lanes said of it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from dash_pipeline import cli
from dash_pipeline.anomalies.rules import Levels, Rules
from dash_pipeline.archive import derive as derive_module
from dash_pipeline.archive import manifest
from dash_pipeline.archive.anomalies import anomalies
from dash_pipeline.archive.check import check
from dash_pipeline.archive.derive import Derived, derive
from dash_pipeline.archive.export import Day, fetch, put
from dash_pipeline.archive.manifest import midnight
from dash_pipeline.archive.parquet import ARCHIVED, content_hash
from dash_pipeline.archive.retain import retain
from dash_pipeline.archive.rewrite import purge
from dash_pipeline.errors import DashError
from dash_pipeline.events.abi import pool_events
from dash_pipeline.feed.files import read_lines
from dash_pipeline.market import RECORDED
from dash_pipeline.microbatch.detect import Detector
from dash_pipeline.settings import Settings
from dash_pipeline.storage import s3
from dash_pipeline.storage import timescale as db
from dash_pipeline.storage.encryption import keyring
from dash_pipeline.storage.history import collect, history
from dash_pipeline.storage.tables import LOGS, POOL_EVENTS, POOLS
from dash_pipeline.topics import TYPES
from tests.chain import START, Messages, Topics, address, merge
from tests.days import hot, insert, set_tip
from tests.killed import go, start
from tests.pools import WETH, Pool, block
from tests.run import Run

FIRST = datetime.fromtimestamp(START, UTC).date()
DAYS, BLOCKS = 3, 40


def day(number: int) -> date:
    return FIRST + timedelta(days=number)


def market() -> list[tuple[str, Messages]]:
    """A pool that is opened and traded on three days, some blocks of each."""
    pool, made = Pool("x", "0x" + "d" * 40), []
    for height in range(DAYS * BLOCKS):
        did = pool.traded(address(f"trader{height % 7}")) if height else pool.opened()
        name, parent = f"A{height}", f"A{height - 1}" if height else "-"
        later = height // BLOCKS * 86_400 - height // BLOCKS * BLOCKS * 12
        made.append((name, block(name, parent, [(pool.developer, did)], later)))
    return made


def end(run: Run) -> None:
    """The run ends; the search indexes have seen all that it brought, or nothing would be archived."""
    run.conn.execute("DELETE FROM ops.search_outbox WHERE chain = %s", (run.chain,))
    run.conn.close()


def ingest(settings: Settings, chain: str) -> pl.DataFrame:
    """The market in the hot tables; returns its pool events."""
    run = Run(settings, chain)
    run.take(Topics(chain).produce(merge(messages for _, messages in market())))
    end(run)
    return events(settings, chain)


def events(settings: Settings, chain: str) -> pl.DataFrame:
    return collect(history(settings, "pool_events").filter(pl.col("chain") == chain))


def archive(settings: Settings, conn: db.Connection, chain: str, *tables: str) -> None:
    """Everything becomes old; these tables, or logs and what follows from them, are archived."""
    set_tip(conn, chain, midnight(FIRST) + timedelta(days=DAYS + 8))
    retain(settings, "run", tables or ("logs", "pool_events"), chain)


def cripple(conn: db.Connection, chain: str, where: str = "event = 'swap'") -> None:
    """As if the decoder of that time had not known these."""
    assert conn.execute(f"DELETE FROM chain.pool_events WHERE chain = %s AND {where}", (chain,)).rowcount


def spoil(settings: Settings, conn: db.Connection, chain: str, *numbers: int) -> None:
    """Take the swaps out of archived days."""
    bucket, ring = s3.bucket(settings), keyring(settings)
    for number in numbers:
        old = manifest.entries(conn, "pool_events", chain, day(number))
        rows = pl.concat([fetch(bucket, ring, one, POOL_EVENTS) for one in old]).filter(pl.col("event") != "swap")
        new = put(bucket, ring.current, Day(POOL_EVENTS, chain, day(number)), rows)
        with conn.transaction():
            manifest.add(conn, [new], "spoilt")
            manifest.replace(conn, old)
            manifest.count(conn, [new], old)
    purge(settings)


def same(found: pl.DataFrame, want: pl.DataFrame) -> bool:
    """The same rows, each once."""
    return found.height == want.height and content_hash(found, POOL_EVENTS) == content_hash(want, POOL_EVENTS)


def objects(settings: Settings, chain: str) -> set[str]:
    return {key for key in s3.bucket(settings).keys("archive/") if f"/chain={chain}/" in key}


def listed(conn: db.Connection, chain: str) -> set[str]:
    return {one.object for one in manifest.entries(conn, chain=chain)}


def test_what_today_s_decoder_made_is_left_as_it_is(conn: db.Connection, migrated: Settings, chain: str) -> None:
    rows = ingest(migrated, chain)
    archive(migrated, conn, chain)
    before = listed(conn, chain)
    told: list[Derived] = []
    found = derive(migrated, "run", chain, done=told.append)
    counts = [rows.filter(pl.col("ts").dt.date() == day(n)).height for n in range(DAYS)]
    assert found == told == [Derived(chain, day(n), counts[n], counts[n]) for n in range(DAYS)]
    assert listed(conn, chain) == objects(migrated, chain) == before
    assert same(events(migrated, chain), rows)


@pytest.mark.parametrize("part_rows", [500_000, 50], ids=["whole", "in parts"])
def test_what_a_decoder_left_out_comes_back(
    conn: db.Connection, migrated: Settings, chain: str, part_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derive_module, "LOGS", replace(LOGS, part_rows=part_rows))
    rows = ingest(migrated, chain)
    cripple(conn, chain)
    pools = conn.execute("DELETE FROM chain.pools WHERE chain = %s RETURNING *", (chain,)).fetchall()
    archive(migrated, conn, chain)
    spoilt, before = events(migrated, chain), listed(conn, chain)
    assert not same(spoilt, rows)

    asked = derive(migrated, "run", chain, day(0), day(1), dry_run=True)
    assert [(one.differs, one.pools, one.refused) for one in asked] == [(True, len(pools), ""), (True, 0, "")]
    assert [one.after - one.before for one in asked] == [BLOCKS - 1, BLOCKS]
    assert listed(conn, chain) == objects(migrated, chain) == before
    assert hot(conn, POOLS, chain) == 0

    assert derive(migrated, "run", chain, day(0), day(1)) == asked
    assert same(
        events(migrated, chain), pl.concat([rows.filter(pl.col("ts") < midnight(day(2))),
                                            spoilt.filter(pl.col("ts") >= midnight(day(2)))])
    )  # fmt: skip
    derive(migrated, "run", chain)
    assert same(events(migrated, chain), rows)
    assert conn.execute("SELECT * FROM chain.pools WHERE chain = %s", (chain,)).fetchall() == pools
    assert listed(conn, chain) == objects(migrated, chain)
    assert check(migrated, chain=chain).wrong == ()
    assert not any(one.differs or one.pools for one in derive(migrated, "run", chain))


def test_a_day_of_which_nothing_was_decoded(conn: db.Connection, migrated: Settings, chain: str) -> None:
    rows = ingest(migrated, chain)
    cripple(conn, chain, "true")
    archive(migrated, conn, chain)
    assert not events(migrated, chain).height
    assert [one.before for one in derive(migrated, "run", chain)] == [0] * DAYS
    assert same(events(migrated, chain), rows)


def test_rows_that_no_log_gives_go(
    conn: db.Connection, migrated: Settings, chain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder that knows better what is no pool's event: fewer rows, their logs being there, even none."""
    rows = ingest(migrated, chain)
    archive(migrated, conn, chain)
    monkeypatch.setattr(derive_module, "pool_events", lambda logs: [])
    assert [one.after for one in derive(migrated, "run", chain, day(1), day(1))] == [0]
    assert same(events(migrated, chain), rows.filter(pl.col("ts").dt.date() != day(1)))
    assert listed(conn, chain) == objects(migrated, chain)


def test_without_its_logs_a_day_is_refused(conn: db.Connection, migrated: Settings, chain: str) -> None:
    rows = ingest(migrated, chain)
    archive(migrated, conn, chain, "pool_events")  # the logs are still hot
    before = listed(conn, chain)
    found = derive(migrated, "run", chain)
    count = found[0].before
    assert found[0].refused == (
        f"archive: {chain} {day(0)}: the logs of {count} of its {count} pool events are not archived; nothing is"
        " replaced. `dash-pipeline archive run` archives logs that are hot"
    )
    assert all("\n" not in one.refused and one.refused for one in found)
    assert listed(conn, chain) == objects(migrated, chain) == before
    # Of the second day a part of the logs is lost, of the third an object is altered: neither stops the first.
    conn.execute("DELETE FROM chain.logs WHERE chain = %s AND ts >= %s AND ts < %s AND block_number > %s",
                 (chain, midnight(day(1)), midnight(day(2)), BLOCKS * 2 - 2))  # fmt: skip
    archive(migrated, conn, chain)
    spoil(migrated, conn, chain, 0)
    (altered,) = manifest.entries(conn, "logs", chain, day(2))
    s3.bucket(migrated).put(altered.object, b"other", seal=keyring(migrated).current)
    found = derive(migrated, "run", chain)
    assert [bool(one.refused) for one in found] == [False, True, True]
    assert found[0].differs
    assert "the logs of 3 of its" in found[1].refused
    assert found[2].refused.startswith(f"archive: {altered.object}: altered")
    assert same(events(migrated, chain), rows)


def test_a_hot_day_is_refused_and_late_rows_are_left_alone(conn: db.Connection, migrated: Settings, chain: str) -> None:
    rows = ingest(migrated, chain)
    logs = collect(history(migrated, "logs").filter(pl.col("chain") == chain))
    set_tip(conn, chain, midnight(FIRST) + timedelta(days=9.1))  # the first two days are old
    retain(migrated, "run", ["logs", "pool_events"], chain)
    found = derive(migrated, "run", chain, day(1), day(2))
    assert [one.refused.split(":")[:2] for one in found] == [[""], ["archive", f" {chain} {day(2)} is still hot"]]
    assert [one.date for one in derive(migrated, "run", chain)] == [day(0), day(1)]

    # Rows that come late, and rows that come again, by a decoder that is wrong about them.
    late = logs.filter(pl.col("ts") < midnight(day(1))).head(1).with_columns(log_index=pl.lit(999, pl.Int32))
    again = rows.filter(pl.col("event") == "swap", pl.col("ts") < midnight(day(1))).with_columns(
        tick=pl.lit(7, pl.Int32)
    )
    late_events = pl.concat(pool_events(late))
    insert(conn, LOGS, late)
    insert(conn, POOL_EVENTS, late_events, again)
    spoil(migrated, conn, chain, 0)
    (done,) = derive(migrated, "run", chain, day(0), day(0))
    assert done.differs
    assert (
        hot(conn, POOL_EVENTS, chain)
        == again.height + late_events.height + rows.filter(pl.col("ts") >= midnight(day(2))).height
    )
    assert same(events(migrated, chain), pl.concat([rows, late_events]))
    retain(migrated, "run", ["logs", "pool_events"], chain)
    assert not derive(migrated, "run", chain, day(0), day(0))[0].differs
    assert same(events(migrated, chain), pl.concat([rows, late_events]))


STEPS = [
    ("dash_pipeline.storage.s3", "Bucket.put", 0),  # before an object is written
    ("dash_pipeline.archive.export", "fetch", 1),  # the second is written, not read back
    ("dash_pipeline.archive.derive", "lock_chain", 0),  # compared, not listed
    ("dash_pipeline.archive.manifest", "add", 0),  # in the transaction, pools inserted
    ("dash_pipeline.archive.manifest", "replace", 1),  # one day done, of the next the objects listed
    ("dash_pipeline.archive.derive", "purge", 0),  # replaced, not deleted
    ("dash_pipeline.archive.rewrite", "manifest.lock_seam", 0),  # about to delete them
]


@pytest.mark.patient
@pytest.mark.parametrize(("module", "name", "after"), STEPS, ids=[f"{name}-{after}" for _, name, after in STEPS])
def test_killed_at_a_step_the_next_run_does_the_rest(
    conn: db.Connection, migrated: Settings, chain: str, module: str, name: str, after: int
) -> None:
    rows = ingest(migrated, chain)
    conn.execute("DELETE FROM chain.pools WHERE chain = %s", (chain,))
    archive(migrated, conn, chain)
    spoil(migrated, conn, chain, 0, 1)
    spoilt = events(migrated, chain)
    run = start(migrated, f"derive(settings, 'run', {chain!r})", module, name, after)
    go(run)
    assert run.wait(60) == -signal.SIGKILL
    between = events(migrated, chain)
    for number in range(DAYS):  # a day is what it was, or what it should be
        of_day = pl.col("ts").dt.date() == day(number)
        assert any(same(between.filter(of_day), one.filter(of_day)) for one in (spoilt, rows))
    derive(migrated, "next", chain)
    assert same(events(migrated, chain), rows)
    assert hot(conn, POOLS, chain) == 1
    assert listed(conn, chain) == objects(migrated, chain)
    assert conn.execute("SELECT count(*) FROM ops.archive_manifest WHERE replaced_at IS NOT NULL").fetchone() == (0,)


def test_two_runs_at_once_do_not_meet(conn: db.Connection, migrated: Settings, chain: str) -> None:
    with manifest.exporting(conn, "logs"), pytest.raises(DashError, match="another run is at the objects of logs"):
        derive(migrated, "run", chain)


# ---------------------------------------------------------------------------------------------- anomalies


def recorded() -> Iterator[Messages]:
    """The recorded market, some blocks at a time, as a lane gets it."""
    by_height: dict[int, Messages] = {}
    for type_ in TYPES:
        for file in RECORDED.glob(f"{type_}.jsonl.*"):
            for _, line in read_lines(file):
                row = json.loads(line)
                height = row["number"] if type_ == "block" else row["block_number"]
                by_height.setdefault(height // 25, {}).setdefault(type_, []).append(line)
    for _, messages in sorted(by_height.items()):
        yield messages


_COLUMNS = ("kind", "severity", "pool", "token", "wallets", "score", "log_indexes", "evidence")


def told(row: dict[str, Any]) -> tuple[Any, ...]:
    """An anomaly without its id; PostgreSQL writes the evidence's large numbers out."""
    evidence = row["evidence"] if isinstance(row["evidence"], dict) else json.loads(row["evidence"])
    return *(row[name] for name in _COLUMNS[:-1]), {name: float(value) for name, value in evidence.items()}


def live(conn: db.Connection, chain: str) -> dict[bytes, tuple[Any, ...]]:
    """What lanes found, and what holds."""
    rows = conn.execute(
        f"SELECT id, {', '.join(_COLUMNS)} FROM intel.anomalies WHERE chain = %s AND retracted_at IS NULL", (chain,)
    ).fetchall()
    return {row[0]: told(dict(zip(_COLUMNS, row[1:], strict=True))) for row in rows}


def test_detectors_say_of_the_archive_what_lanes_said_when_it_was_live(
    conn: db.Connection, migrated: Settings, chain: str
) -> None:
    quotes = [bytes.fromhex(json.loads((RECORDED / "labels.json").read_text())["weth"][2:])]
    run, topics = Run(migrated, chain), Topics(chain)
    run.detector = Detector(chain, quotes)
    for messages in recorded():
        run.take(topics.produce(messages))
    end(run)
    was = live(conn, chain)
    kinds = {(kind, severity) for kind, severity, *_ in was.values()}
    assert {("liquidity_withdrawal", "high"), ("reserve_drain", "high")} <= kinds
    ((newest,),) = conn.execute("SELECT max(ts) FROM chain.blocks").fetchall()
    set_tip(conn, chain, newest + timedelta(days=10))
    retain(migrated, "run", ARCHIVED, chain)
    assert hot(conn, POOL_EVENTS, chain) == 0

    found = anomalies(migrated, chain, quotes, newest.date(), newest.date())
    assert {row["id"]: told(row) for row in found.iter_rows(named=True)} == was
    assert found["stored"].all()

    # A detector that asks for less finds more; what it finds is told, not stored.
    keen = Rules(withdrawal=Levels(0.05, 0.3, 0.5))
    more = anomalies(migrated, chain, quotes, newest.date(), newest.date(), keen)
    assert more.filter(~pl.col("stored")).height
    assert live(conn, chain) == was
    before = newest.date() - timedelta(days=1)
    assert not anomalies(migrated, chain, quotes, before, before).height
    assert all(not one.differs for one in derive(migrated, "run", chain))


def test_what_happened_before_the_range_counts(conn: db.Connection, migrated: Settings, chain: str) -> None:
    """A pool that is opened on one day, rests, and is drained on the third: the level it had is archived, too."""
    pool = Pool("x", "0x" + "d" * 40)
    quotes = [bytes.fromhex(WETH[2:])]
    run, topics = Run(migrated, chain), Topics(chain)
    run.detector = Detector(chain, quotes)
    names = [("A0", pool.opened(), 0), ("A1", pool.traded(address("t")), 0), ("A2", pool.drained(), 2 * 86_400)]
    for name, did, later in names:
        parent = f"A{int(name[1:]) - 1}" if name != "A0" else "-"
        run.take(topics.produce(block(name, parent, [(pool.developer, did)], later)))
    end(run)
    was = live(conn, chain)
    assert was
    archive(migrated, conn, chain)
    found = anomalies(migrated, chain, quotes, day(2), day(2))
    assert {row["id"]: told(row) for row in found.iter_rows(named=True)} == was


# ---------------------------------------------------------------------------------------------- by hand, and in the UI


def test_the_commands(conn: db.Connection, migrated: Settings, chain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dash_pipeline.settings.load_settings", lambda: migrated)

    def call(*arguments: str) -> Any:
        return CliRunner().invoke(cli.app, ["archive", *arguments])

    ingest(migrated, chain)
    cripple(conn, chain)
    archive(migrated, conn, chain)
    asked = call("derive", "--chain", chain, "--from", str(day(1)), "--to", str(day(1)), "--dry-run", "--json")
    (one,) = json.loads(asked.stdout)
    assert (one["date"], one["differs"], one["after"] - one["before"]) == (str(day(1)), True, BLOCKS)
    assert call("derive", "--chain", chain).exit_code == 0
    conn.execute("DELETE FROM ops.archive_manifest WHERE table_name = 'logs' AND date = %s", (day(1),))
    refused = call("derive", "--chain", chain)
    assert isinstance(refused.exception, DashError)
    assert "are not archived; nothing is replaced" in str(refused.exception)
    span = ["--from", str(day(0)), "--to", str(day(2))]
    said = call("anomalies", "--chain", chain, *span, "--json")
    assert json.loads(said.stdout) == []
    assert isinstance(call("anomalies", "--from", str(day(2)), "--to", str(day(0))).exception, DashError)


@pytest.mark.usefixtures("in_environment")
def test_the_asset_derives_a_range_of_days_and_shows_each(conn: db.Connection, migrated: Settings) -> None:
    """Chain anvil, because assets are made for the registry's chains."""
    from dagster import AssetRecordsFilter, DagsterInstance
    from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

    from assets.keys import derived_key
    from dash_pipeline.definitions import build_defs

    rows = ingest(migrated, "anvil")
    cripple(conn, "anvil")
    archive(migrated, conn, "anvil")
    job = build_defs("lifecycle").resolve_job_def("derive_anvil")
    tags = {ASSET_PARTITION_RANGE_START_TAG: str(day(0)), ASSET_PARTITION_RANGE_END_TAG: str(day(DAYS - 1))}
    with DagsterInstance.ephemeral() as instance:
        assert job.execute_in_process(instance=instance, tags=tags).success
        records = instance.fetch_materializations(AssetRecordsFilter(derived_key("anvil")), limit=10).records
        shown = {
            record.partition_key: record.asset_materialization.metadata["replaced"].value
            for record in records
            if "rows before" in record.asset_materialization.metadata
        }
        assert shown == {str(day(n)): True for n in range(DAYS)}
        assert same(events(migrated, "anvil"), rows)
        conn.execute("DELETE FROM ops.archive_manifest WHERE table_name = 'logs'")
        failed = job.execute_in_process(instance=instance, tags=tags, raise_on_error=False)
        assert not failed.success
    assert same(events(migrated, "anvil"), rows)
