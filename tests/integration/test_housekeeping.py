"""What is swept on real servers, and what is not."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest
from dagster import (
    AssetCheckResult,
    AssetCheckSpec,
    AssetKey,
    DagsterInstance,
    DagsterRunStatus,
    DataVersion,
    MaterializeResult,
    StaticPartitionsDefinition,
    asset,
    materialize,
)
from dagster._core.scheduler.instigation import InstigatorType, TickData, TickStatus
from dagster._core.test_utils import create_run_for_test, instance_for_test
from opensearchpy import OpenSearch
from pydantic import SecretStr

from dash_pipeline.errors import Unavailable
from dash_pipeline.housekeeping import search as documents
from dash_pipeline.housekeeping.database import Stale, drop_stale_staging
from dash_pipeline.housekeeping.objects import abort_uploads
from dash_pipeline.settings import Settings
from dash_pipeline.stack import Stack
from dash_pipeline.stack.servers.timescale import superuser
from dash_pipeline.storage import s3, search, timescale
from dash_pipeline.storage.migrate import upgrade
from dash_pipeline.storage.search import alerts
from dash_pipeline.storage.tables import TRANSACTIONS
from resources.instance import Pruned, prune
from tests.faults import faulty

NEWEST = datetime(2024, 3, 9, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@pytest.fixture(scope="module")
def migrated(database: Settings) -> Settings:
    upgrade(database)
    return database


# ---------------------------------------------------------------------------------------------- documents


@pytest.fixture
def opensearch(migrated: Settings) -> Iterator[OpenSearch]:
    opensearch = search.client(migrated)
    alerts.delete(opensearch)
    yield opensearch
    alerts.delete(opensearch)


@pytest.fixture
def chains(migrated: Settings, opensearch: OpenSearch, unique: Callable[[str], str]) -> Iterator[tuple[str, str]]:
    """Two chains, the second's time a year behind the first's."""
    names = unique("c"), unique("c")
    search.ensure(migrated, names)
    with timescale.connect(migrated) as conn:
        for name, newest in zip(names, (NEWEST, NEWEST - timedelta(days=365)), strict=True):
            for number in range(20):
                block(conn, name, number, newest - timedelta(seconds=19 - number))
    yield names
    for name in names:
        search.delete(opensearch, name)


def block(conn: timescale.Connection, chain: str, number: int, ts: datetime) -> None:
    conn.execute(
        "INSERT INTO chain.blocks (chain, ts, block_number, block_hash, parent_hash) VALUES (%s, %s, %s, %s, %s)",
        (chain, ts, number, f"{chain}{number}".encode(), b""),
    )
    conn.execute(
        "INSERT INTO ops.chains (chain, tip_number, tip_hash, tip_ts) VALUES (%s, %s, '', %s) ON CONFLICT (chain)"
        " DO UPDATE SET tip_number = excluded.tip_number, tip_ts = excluded.tip_ts",
        (chain, number, ts),
    )


def put(opensearch: OpenSearch, name: str, **found: dict[str, Any]) -> None:
    lines = [
        line
        for id_, document in found.items()
        for line in ({"index": {"_id": id_, "version": 1, "version_type": "external"}}, document)
    ]
    body = "\n".join(json.dumps(line, default=str) for line in lines) + "\n"
    answer = opensearch.bulk(body=body, index=name, params={"require_alias": "true", "refresh": "true"})
    assert not answer["errors"], answer["items"][0]


def ids(opensearch: OpenSearch, name: str) -> set[str]:
    return {hit["_id"] for hit in opensearch.search(index=name, body={"size": 1000})["hits"]["hits"]}


def test_documents_leave_at_the_end_of_their_window(
    migrated: Settings, opensearch: OpenSearch, chains: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted for each chain from its own newest blocks; tokens and other indexes stay as they are."""
    monkeypatch.setattr(documents, "_AT_ONCE", 3)
    one, other = chains
    # Of the newest 13 blocks the oldest is 12 s old.
    edge = NEWEST - 12 * SECOND - timedelta(days=7)
    for chain in chains:
        old = {f"old{n}": {"ts": (edge - n * SECOND).isoformat()} for n in range(1, 9)}
        put(opensearch, f"transactions-{chain}", at={"ts": edge.isoformat()}, new={"ts": NEWEST.isoformat()}, **old)
        days = {"old": {"day": "2024-02-07"}, "edge": {"day": "2024-02-09"}, "new": {"day": "2024-03-09"}}
        put(opensearch, f"wallet-activity-{chain}", **days)
        put(opensearch, f"token-performance-{chain}", ancient={"as_of": "2001-01-01"})
    assert documents.roll_off(migrated) == {f"transactions-{one}": 8, f"wallet-activity-{one}": 1}
    assert ids(opensearch, f"transactions-{one}") == {"at", "new"}
    assert ids(opensearch, f"wallet-activity-{one}") == {"edge", "new"}
    assert ids(opensearch, f"token-performance-{one}") == {"ancient"}
    assert len(ids(opensearch, f"transactions-{other}")) == 10, "this chain's clock is a year behind"
    assert documents.roll_off(migrated) == {}


def test_a_block_from_years_ahead_takes_nothing_away(
    migrated: Settings, opensearch: OpenSearch, chains: tuple[str, str]
) -> None:
    chain, _ = chains
    put(opensearch, f"transactions-{chain}", new={"ts": NEWEST.isoformat()})
    with timescale.connect(migrated) as conn:
        block(conn, chain, 20, NEWEST + timedelta(days=3650))
    assert documents.roll_off(migrated) == {}
    assert ids(opensearch, f"transactions-{chain}") == {"new"}


def test_alerts_leave_a_year_after_the_newest(migrated: Settings, opensearch: OpenSearch) -> None:
    assert documents.roll_off(migrated) == {}, "no index of alerts yet"
    alerts.ensure(opensearch)
    newest = datetime(2020, 5, 1, tzinfo=UTC)
    ages = {"old": 366, "edge": 365, "new": 0}
    put(opensearch, "alerts", **{n: {"raised_at": (newest - timedelta(days=d)).isoformat()} for n, d in ages.items()})
    assert documents.roll_off(migrated) == {"alerts": 1}
    assert ids(opensearch, "alerts") == {"edge", "new"}


# ---------------------------------------------------------------------------------------------- uploads


def test_uploads_that_nobody_finished(settings: Settings, unique: Callable[[str], str]) -> None:
    """Old ones only: those under way and finished objects stay."""
    mine = settings.model_copy(update={"s3_bucket": unique("uploads")})
    bucket = s3.bucket(mine)
    client, name = bucket.client, bucket.name
    client.create_bucket(Bucket=name)

    def begin(key: str) -> dict[str, str]:
        upload = client.create_multipart_upload(Bucket=name, Key=key)["UploadId"]
        place = {"Bucket": name, "Key": key, "UploadId": upload}
        part = client.upload_part(**place, PartNumber=1, Body=b"x" * (5 << 20))
        return place | {"etag": part["ETag"]}

    def finish(upload: dict[str, Any]) -> None:
        parts = {"Parts": [{"PartNumber": 1, "ETag": upload.pop("etag")}]}
        client.complete_multipart_upload(**upload, MultipartUpload=parts)

    old, done = begin("a/old"), begin("a/done")
    finish(done)
    assert abort_uploads(mine) == [], "none is a day old"
    wait_for(lambda: age(bucket, "a/old") > timedelta(seconds=4))
    young = begin("a/young")
    assert bucket.abort_uploads(timedelta(seconds=3)) == ["a/old"]
    finish(young)
    assert bucket.keys("") == ["a/done", "a/young"]
    with pytest.raises(client.exceptions.ClientError, match="NoSuchUpload"):
        finish(old)
    bucket.delete(bucket.keys(""))
    client.delete_bucket(Bucket=name)


def age(bucket: s3.Bucket, key: str) -> timedelta:
    (upload,) = bucket.client.list_multipart_uploads(Bucket=bucket.name, Prefix=key)["Uploads"]
    return datetime.now(UTC) - upload["Initiated"]


def test_the_store_down_is_one_line(settings: Settings) -> None:
    with faulty(settings) as (through, fault):
        fault.down()
        with pytest.raises(Exception, match="no connection to") as error:
            abort_uploads(through)
        assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------- staging tables


def staging(settings: Settings) -> timescale.Connection:
    """A connection that has staged rows, as the commit path does."""
    conn = timescale.connect(settings)
    writer = timescale.Writer(conn)
    writer._staged(timescale.encode([pl.DataFrame(schema=TRANSACTIONS.schema())], TRANSACTIONS), "chain", TRANSACTIONS)
    return conn


def staged(settings: Settings) -> set[str]:
    """The staging tables of the catalogue, whoever's they are."""
    with psycopg.connect(settings.timescale_dsn.get_secret_value()) as conn:
        rows = conn.execute(
            "SELECT relnamespace::regnamespace || '.' || relname FROM pg_class WHERE relname LIKE 'stage\\_%'"
            " AND relkind = 'r'"
        ).fetchall()
    return {name for (name,) in rows}


@contextlib.contextmanager
def autovacuum_every(superuser: Settings, time: str) -> Iterator[None]:
    """Its turn comes sooner than once a minute."""
    with psycopg.connect(superuser.timescale_dsn.get_secret_value(), autocommit=True) as conn:
        conn.execute(f"ALTER SYSTEM SET autovacuum_naptime = '{time}'")
        conn.execute("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            conn.execute("ALTER SYSTEM RESET autovacuum_naptime")
            conn.execute("SELECT pg_reload_conf()")


@pytest.mark.parametrize("role", ["the platform's", "superuser"])
def test_staging_tables_of_connections_that_are_gone(migrated: Settings, stack: Stack, role: str) -> None:
    """Left behind by a crash of the server. Those of connections that are there stay, and so does all that is not
    staging. A killed client leaves none."""
    lost = [staging(migrated) for _ in range(8)]
    assert len(staged(migrated)) == 8
    assert drop_stale_staging(migrated) == Stale((), ())
    os.kill(lost[0].info.backend_pid, signal.SIGKILL)  # the server starts again, without cleaning up
    for conn in lost:
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT pg_sleep(60)")
    wait_for(lambda: is_back(migrated))
    sweeper = migrated if role == "the platform's" else as_superuser(migrated, stack)
    with psycopg.connect(migrated.timescale_dsn.get_secret_value()) as conn:
        conn.execute("CREATE TEMP TABLE stage_live (x int)")
        conn.execute("CREATE TABLE stage_of_somebody (x int)")
        conn.commit()
        left = {name for name in staged(migrated) if name.startswith("pg_temp_")}
        found = drop_stale_staging(sweeper)
        after = staged(migrated)
        if role == "superuser":
            assert found.dropped, "at least those of slots that no connection has taken again"
            assert set(found.dropped) == left - after
        else:
            assert found.dropped == ()
            assert found.left
            assert set(found.left) < left
            with autovacuum_every(as_superuser(migrated, stack), "2s"):
                wait_for(lambda: staged(migrated).isdisjoint(found.left), 150)
        conn.execute("INSERT INTO stage_live VALUES (1)")
        assert any(name.endswith(".stage_live") for name in staged(migrated))
        assert "public.stage_of_somebody" in after
        conn.execute("DROP TABLE stage_of_somebody")


def as_superuser(settings: Settings, stack: Stack) -> Settings:
    """The same database, seen by who may do everything."""
    with psycopg.connect(settings.timescale_dsn.get_secret_value()) as conn:
        name = conn.info.dbname
    with superuser(stack.place) as conn:
        info = conn.info
        dsn = f"postgresql://postgres:{info.password}@/{name}?host={info.host}&port={info.port}"
    return settings.model_copy(update={"timescale_dsn": SecretStr(dsn)})


def is_back(settings: Settings) -> bool:
    """Whether the server has come up again after the crash that is under way."""
    try:
        timescale.connect(settings).close()
    except (Unavailable, psycopg.OperationalError):
        return False
    return True


# ---------------------------------------------------------------------------------------------- Dagster


DAYS = StaticPartitionsDefinition(["a", "b", "c"])


@asset(partitions_def=DAYS, check_specs=[AssetCheckSpec("good", asset="daily")])
def daily():
    print("said by daily")
    check = AssetCheckResult(check_name="good", passed=True)
    return MaterializeResult(metadata={"n": 1}, data_version=DataVersion("1"), check_results=[check])


@asset
def plain() -> None:
    """Without partitions."""


@pytest.fixture
def instance(stack: Stack, tmp_path: Path) -> Iterator[DagsterInstance]:
    """Dagster with a database of the test's own, as the stack has it."""
    with stack.scratch_database() as settings:
        dsn = settings.timescale_dsn.get_secret_value()
        with instance_for_test(overrides={"storage": {"postgres": {"postgres_url": dsn}}}) as instance:
            instance.__dict__["dsn"] = dsn
            yield instance


def run(instance: DagsterInstance, partition: str | None = None) -> str:
    """Materialise one asset; the run's id."""
    done = materialize([daily if partition else plain], instance=instance, partition_key=partition)
    assert done.success
    return done.run_id


def query(instance: DagsterInstance, text: str, *values: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(instance.__dict__["dsn"], autocommit=True) as conn:
        cursor = conn.execute(text, values)
        return cursor.fetchall() if cursor.description else []


def grow_old(instance: DagsterInstance, days: int = 40) -> None:
    """Everything that Dagster remembers happened so many days earlier."""
    for table, columns in {
        "event_logs": ("timestamp",),
        "asset_check_executions": ("create_timestamp", "evaluation_event_timestamp"),
        "runs": ("create_timestamp", "update_timestamp"),
        "job_ticks": ("timestamp",),
    }.items():
        query(instance, f"UPDATE {table} SET " + ", ".join(f"{c} = {c} - interval '{days} days'" for c in columns))
    query(instance, f"UPDATE runs SET start_time = start_time - {days * 86400}, end_time = end_time - {days * 86400}")
    query(instance, "UPDATE asset_keys SET cached_status_data = NULL")


def materialised(instance: DagsterInstance) -> dict[str, str]:
    """Partition -> status, as the UI shows it."""
    found = instance.get_status_by_partition(AssetKey("daily"), DAYS.get_partition_keys(), DAYS) or {}
    return {name: status.value for name, status in found.items() if status}


def runs(instance: DagsterInstance) -> set[str]:
    return {one.run_id for one in instance.get_runs()}


KEEP = timedelta(days=30)


def test_old_runs_go_and_what_is_materialised_stays(instance: DagsterInstance) -> None:
    for partition in ("a", "a", "b"):
        run(instance, partition)
    run(instance)
    waiting = create_run_for_test(instance, job_name="j", status=DagsterRunStatus.STARTED).run_id
    cancelled = create_run_for_test(instance, job_name="j", status=DagsterRunStatus.CANCELED).run_id
    grow_old(instance)
    young = run(instance, "a")
    young_events = query(instance, "SELECT id FROM event_logs WHERE run_id = %s ORDER BY id", young)
    newest_b = instance.get_latest_materialization_event(AssetKey("daily"))
    before = materialised(instance)
    assert before == {"a": "MATERIALIZED", "b": "MATERIALIZED"}
    logs = Path(instance.compute_log_manager._base_dir)  # type: ignore[attr-defined]
    assert len(list(logs.iterdir())) == 5

    done = prune(instance, KEEP)
    assert (done.runs, done.ticks) == (5, 0)
    assert runs(instance) == {young, waiting}
    assert query(instance, "SELECT DISTINCT run_id FROM run_tags WHERE run_id NOT IN (SELECT run_id FROM runs)") == []
    assert cancelled not in runs(instance)
    query(instance, "UPDATE asset_keys SET cached_status_data = NULL")
    assert materialised(instance) == before
    assert instance.get_materialized_partitions(AssetKey("daily")) == {"a", "b"}
    assert instance.get_latest_materialization_event(AssetKey("daily")) == newest_b
    assert instance.get_latest_materialization_event(AssetKey("plain")) is not None
    assert query(instance, "SELECT id FROM event_logs WHERE run_id = %s ORDER BY id", young) == young_events
    others = query(
        instance,
        "SELECT dagster_event_type, asset_key, partition FROM event_logs WHERE run_id NOT IN (%s, %s) ORDER BY 2, 3",
        young,
        waiting,
    )
    assert others == [
        ("ASSET_MATERIALIZATION", '["daily"]', "b"),
        ("ASSET_MATERIALIZATION", '["plain"]', None),
    ]
    lost = "SELECT event_id FROM asset_event_tags WHERE event_id NOT IN (SELECT id FROM event_logs)"
    assert query(instance, lost) == []
    versions = "SELECT asset_key FROM asset_event_tags WHERE key = 'dagster/data_version' ORDER BY 1"
    assert query(instance, versions) == [('["daily"]',), ('["daily"]',), ('["plain"]',)]
    assert {path.name for path in logs.iterdir()} == {young}
    assert prune(instance, KEEP) == Pruned(0, 0, 0, 0)


def test_what_is_superseded_goes_without_its_run(instance: DagsterInstance) -> None:
    run(instance, "b")
    grow_old(instance)
    prune(instance, KEEP)
    young = run(instance, "b")
    done = prune(instance, KEEP)
    assert done.events == 1, "b has a newer materialisation"
    assert query(instance, "SELECT DISTINCT run_id FROM event_logs") == [(young,)]
    assert materialised(instance) == {"b": "MATERIALIZED"}


def test_of_checks_the_newest_result_stays(instance: DagsterInstance) -> None:
    for partition in ("a", "a", "a"):
        run(instance, partition)
    grow_old(instance)
    assert prune(instance, KEEP).checks == 2
    (key,) = daily.check_keys
    found = instance.event_log_storage.get_latest_asset_check_execution_by_key([key])
    assert found[key].status.value == "SUCCEEDED"


def test_runs_of_a_backfill_that_goes_on_stay(instance: DagsterInstance) -> None:
    from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill

    for name, status in (("on", BulkActionStatus.REQUESTED), ("over", BulkActionStatus.COMPLETED_SUCCESS)):
        instance.add_backfill(
            PartitionBackfill(name, status=status, from_failure=False, tags={}, backfill_timestamp=0.0)
        )
        tags = {"dagster/backfill": name}
        create_run_for_test(instance, job_name=name, status=DagsterRunStatus.SUCCESS, tags=tags)
    grow_old(instance)
    assert prune(instance, KEEP).runs == 1
    assert {one.job_name for one in instance.get_runs()} == {"on"}


def test_ticks(instance: DagsterInstance) -> None:
    """The newest of each sensor stays, however old."""

    def tick(name: str) -> None:
        now = time.time()
        instance.create_tick(
            TickData(f"{name} origin", name, InstigatorType.SENSOR, TickStatus.SKIPPED, now, selector_id=name)
        )

    for name in ("gone", "gone", "runs"):
        tick(name)
    grow_old(instance)
    tick("runs")
    assert prune(instance, KEEP).ticks == 2
    assert query(instance, "SELECT selector_id FROM job_ticks ORDER BY 1") == [("gone",), ("runs",)]


def test_killed_in_the_midst_the_next_one_goes_on(instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    for partition in ("a", "b", "b"):
        run(instance, partition)
    grow_old(instance)
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(type(instance.compute_log_manager), "delete_logs", raise_interrupt)
        prune(instance, KEEP)
    assert len(runs(instance)) == 3
    assert prune(instance, KEEP).runs == 3
    assert runs(instance) == set()
    query(instance, "UPDATE asset_keys SET cached_status_data = NULL")
    assert materialised(instance) == {"a": "MATERIALIZED", "b": "MATERIALIZED"}


def raise_interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def wait_for(what: Callable[[], bool], seconds: float = 60) -> None:
    """Until it is so."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)
