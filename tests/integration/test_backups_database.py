"""Backups of the real database on the real S3: what is restored is what was there, to the row."""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import psycopg
import pytest
import zstandard
from dagster import DagsterInstance, Definitions, build_run_status_sensor_context
from pydantic import SecretStr

from assets import owners
from dash_pipeline import settings as settings_module
from dash_pipeline.backups import content, database, drill, restore, wal
from dash_pipeline.backups.content import Point
from dash_pipeline.backups.database import Backup
from dash_pipeline.backups.server import PrivateServer
from dash_pipeline.definitions import build_defs
from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.settings import Settings
from dash_pipeline.stack import Stack
from dash_pipeline.stack.servers.timescale import superuser
from dash_pipeline.storage import migrate, s3
from resources.notifier import NotifierResource

PROGRAM = str(Path(sys.executable).with_name("dash-pipeline"))
BATCH = 1000


@pytest.fixture(scope="module")
def here(stack: Stack, database: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a platform with its tables, and with a folder for backups of its own."""
    migrate.upgrade(database)
    # Not below pytest's folder, which only its owner may enter: PostgreSQL runs as another user where it can.
    return database.model_copy(update={"backup_dir": stack.layout.home / "test-backups"})


@pytest.fixture(scope="module")
def full(stack: Stack, here: Settings) -> Backup:
    """A full backup, with a batch of rows and a row of a table that is never touched again in it."""
    with connected(here) as conn:
        conn.execute("CREATE TABLE ops.witness (word text); INSERT INTO ops.witness VALUES ('the honest row')")
        conn.execute("VACUUM (FREEZE) ops.witness")  # or its first reader would write the page to the log again
        ingest(conn, 0)
    with superuser(stack.place, "dagster") as conn:
        # A name that Dagster does not use: it would take such a table for its own and not make the rest.
        conn.execute("CREATE TABLE IF NOT EXISTS witness (word text); INSERT INTO witness VALUES ('in Dagster''s too')")
        conn.execute("CHECKPOINT")
    return database.take(here, full=True)


@pytest.fixture
def bucket(settings: Settings) -> s3.Bucket:
    return s3.bucket(settings)


@pytest.fixture
def into(stack: Stack) -> Iterator[Path]:
    """A folder to restore into; the server in it is ended."""
    folder = stack.layout.home / f"restored-{secrets.token_hex(3)}"
    yield folder
    lock = folder / "data" / "postmaster.pid"
    if lock.exists():
        os.kill(int(lock.read_text().split()[0]), signal.SIGINT)
        wait_for(lambda: not lock.exists())
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def connected(settings: Settings) -> Iterator[psycopg.Connection]:
    with psycopg.connect(settings.timescale_dsn.get_secret_value(), autocommit=True) as conn:
        yield conn


def name_of(settings: Settings) -> str:
    return settings.timescale_dsn.get_secret_value().rpartition("/")[2]


def ingest(conn: psycopg.Connection, number: int, rows: int = BATCH) -> None:
    """A batch as a lane commits it: rows of a hypertable and the offset, in one transaction."""
    with conn.transaction():
        conn.execute(
            "INSERT INTO chain.token_transfers (chain, ts, block_number, block_hash, tx_hash, log_index, token_address,"
            " from_address, to_address, value, value_f)"
            " SELECT 'anvil', '2026-01-01Z'::timestamptz + %(n)s * interval '1 minute', %(n)s,"
            " sha256(%(n)s::text::bytea), sha256(i::text::bytea), i, '\\x01', '\\x02', '\\x03', i, i"
            " FROM generate_series(1, %(rows)s) i",
            {"n": number, "rows": rows},
        )
        conn.execute(
            "INSERT INTO ops.stream_offsets (topic, partition, next_offset, run_id) VALUES ('anvil.t', 0, %s, 'test')"
            " ON CONFLICT (topic, partition) DO UPDATE SET next_offset = excluded.next_offset",
            ((number + 1) * rows,),
        )


def batches(conn: psycopg.Connection) -> dict[int, int]:
    """Batch -> its rows."""
    return dict(conn.execute("SELECT block_number, count(*) FROM chain.token_transfers GROUP BY 1").fetchall())


def offset(conn: psycopg.Connection) -> int:
    row = conn.execute("SELECT next_offset FROM ops.stream_offsets WHERE topic = 'anvil.t'").fetchone()
    assert row is not None
    return int(row[0])


def clock(conn: psycopg.Connection) -> datetime:
    row = conn.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    return row[0]


def archive_now(settings: Settings) -> None:
    """Have everything that is committed archived."""
    with content.connect(database.replication_dsn(settings)) as conn:
        row = conn.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
        assert row is not None
        database.archived(settings, conn, database.timeline_of(conn), wal.lsn_number(row[0]))


def wait_for(done: Callable[[], object], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until
        time.sleep(0.05)


@contextmanager
def restored(found: restore.Restored, settings: Settings) -> Iterator[psycopg.Connection]:
    """The restored server's copy of the module's database, with the real one's user and password."""
    source = psycopg.conninfo.conninfo_to_dict(settings.timescale_dsn.get_secret_value())
    with psycopg.connect(**source | {"port": found.port}, autocommit=True) as conn:  # type: ignore[arg-type]
        yield conn


# --- restoring


def test_restored_to_between_two_batches(here: Settings, full: Backup, into: Path) -> None:
    """Also through an incremental backup, which is taken after the first."""
    with connected(here) as conn:
        ingest(conn, 1)
        incremental = database.take(here)
        ingest(conn, 2)
        between = clock(conn)
        ingest(conn, 3)
        archive_now(here)
        assert batches(conn) == {0: BATCH, 1: BATCH, 2: BATCH, 3: BATCH}
    assert incremental.parent == full.name
    assert incremental.bytes < full.bytes / 5
    found = restore.restore(here, between, into)
    assert found.backup == incremental.name
    assert found.newest_commit <= between.isoformat()
    with restored(found, here) as conn:
        assert batches(conn) == {0: BATCH, 1: BATCH, 2: BATCH}
        assert offset(conn) == 3 * BATCH
        ingest(conn, 4)  # it can be written to


def test_without_a_time_everything_is_restored(here: Settings, full: Backup, into: Path) -> None:
    with connected(here) as conn:
        ingest(conn, 7)
        expected = batches(conn)
    archive_now(here)
    found = restore.restore(here, None, into, stopped=True)
    assert (found.port, found.pid) == (0, 0)
    assert not (into / "data" / "postmaster.pid").exists()
    # Nothing of ours is in the cluster's folder, so it can be moved to where it belongs.
    assert not (into / "data" / "recovery.signal").exists()
    assert "restore_command" not in (into / "data" / "postgresql.auto.conf").read_text()
    server = PrivateServer(here, into, 1, restore.private_server(here, into).user)
    said = subprocess.run(
        [*server.user.command, database.program(here, "postgres"), "--single", "-D", server.data, "-c",
         f"config_file={into}/conf/postgresql.conf", name_of(here)],
        input="SELECT count(*) FROM chain.token_transfers", capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert f'count = "{sum(expected.values())}"' in said


def test_what_cannot_be_restored_is_one_line(here: Settings, full: Backup, into: Path, bucket: s3.Bucket) -> None:
    def said(at: datetime | None = None, settings: Settings = here) -> str:
        with pytest.raises(DashError) as error:
            restore.restore(settings, at, into)
        assert "\n" not in str(error.value)
        assert not into.exists()
        return str(error.value)

    assert "is before the oldest backup; the earliest that can be restored is" in said(full.time - timedelta(days=1))
    assert "no commit after that time is archived" in said(datetime.now(UTC) + timedelta(days=1))
    assert "there is no backup of the database" in said(settings=here.model_copy(update={"s3_bucket": empty(bucket)}))
    other = base64.b64encode(os.urandom(32)).decode()
    assert "local in DASH_ENCRYPTION_KEYS is the key it was written with" in said(
        settings=here.model_copy(update={"encryption_keys": {"local": other}})
    )
    assert "no key named local" in said(settings=here.model_copy(update={"encryption_keys": {"mine": other}}))


def empty(bucket: s3.Bucket) -> str:
    """A bucket with nothing in it."""
    name = f"b{secrets.token_hex(4)}"
    bucket.client.create_bucket(Bucket=name)
    return name


def test_a_damaged_object_is_named(here: Settings, full: Backup, into: Path, bucket: s3.Bucket) -> None:
    seal = database.keyring(here).current
    newest = database.backups(bucket)[-1]
    place = f"{database.PREFIX}{newest.name}/{database.BASE}"
    whole = bucket.get(place, seal)
    assert whole
    bucket.put(place, whole[:-100] + bytes(100), seal=seal)
    try:
        with pytest.raises(DashError, match=rf"{place} is damaged"):
            restore.restore(here, None, into)
    finally:
        bucket.put(place, whole, seal=seal)


def test_a_segment_that_is_gone_is_named(here: Settings, full: Backup, into: Path, bucket: s3.Bucket) -> None:
    """Recovery by itself would take it for the end of the log, and lose what comes after."""
    archive_now(here)
    with connected(here) as conn:
        ingest(conn, 8)
    archive_now(here)
    newest = database.backups(bucket)[-1]
    after = [name for name in wal.archive(here).segments() if len(name) == 24 and name > newest.segment]
    seal, place = database.keyring(here).current, wal.key(after[0])
    whole = bucket.get(place, seal)
    assert whole
    bucket.delete([place])
    try:
        with pytest.raises(DashError, match=f"{place} is gone"):
            restore.restore(here, None, into)
    finally:
        bucket.put(place, whole, seal=seal)


def test_a_folder_with_something_in_it_is_left_alone(here: Settings, full: Backup, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(DashError, match="is not empty"):
        restore.restore(here, None, tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"


# --- the drill


@pytest.mark.patient
def test_a_drill_while_rows_are_ingested(here: Settings, full: Backup) -> None:
    """Every table of every database is equal, though the source never stands still."""
    stop, written = threading.Event(), []

    def writer(first: int) -> None:
        with connected(here) as conn:
            number = first
            while not stop.is_set():
                ingest(conn, number, 100)
                written.append(number)
                number += 1

    threads = [threading.Thread(target=writer, args=(first,)) for first in (1000, 500_000)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: len(written) > 50)
        found = drill.drill(here)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert found.differences == ()
    names = {position.split()[0] for position in found.positions}
    assert {name_of(here), "dagster"} <= names
    assert len(found.positions) > len(names)  # at the backup's own position and at one of now
    assert found.rows > BATCH
    assert 0 < found.rto_s < found.seconds
    assert 0 <= found.rpo_s < 600
    assert list((here.backup_dir or Path()).iterdir()) == []


@pytest.mark.patient
def test_a_changed_row_is_found(here: Settings, full: Backup) -> None:
    """Changed in the file of the restored copy, behind the server's back and its checksums'."""
    with connected(here) as conn:
        row = conn.execute("SELECT pg_relation_filepath('ops.witness')").fetchone()
    assert row is not None

    def forge(server: PrivateServer) -> None:
        done = subprocess.run(
            [*server.user.command, database.program(here, "pg_checksums"), "--disable", "--no-sync", "-D", server.data],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        file = server.data / row[0]
        data = file.read_bytes()
        assert data.count(b"the honest row") == 1
        file.write_bytes(data.replace(b"the honest row", b"the forged row"))

    found = drill.drill(here, damage=forge)
    assert found.differences == (f"{name_of(here)}: ops.witness: 1 rows with another content",)
    assert not found.good
    assert list((here.backup_dir or Path()).iterdir()) == []


def test_a_drill_that_is_ended_cleans_up(stack: Stack, here: Settings, full: Backup) -> None:
    with program_running(stack, here, "drill") as process:
        wait_for_line(process, "comparing")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
    assert list((here.backup_dir or Path()).iterdir()) == []


# --- kills


@contextmanager
def program_running(stack: Stack, settings: Settings, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"DASH_STACK_DIR": str(stack.layout.home), "DASH_BACKUP_DIR": str(settings.backup_dir)}
    process = subprocess.Popen(
        [PROGRAM, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if text in line:
            return
    raise AssertionError("".join(said))


@pytest.mark.parametrize("moment", ["full", "counting rows"], ids=["while it copies", "before it is described"])
def test_a_killed_backup_is_none(stack: Stack, here: Settings, full: Backup, bucket: s3.Bucket, moment: str) -> None:
    before = database.backups(bucket)
    with program_running(stack, here, "backup", "--full") as process:
        wait_for_line(process, moment)
        process.kill()
        process.wait()
    left = {key.split("/")[2] for key in bucket.keys(database.PREFIX)} - {one.name for one in before}
    assert len(left) == (1 if moment == "counting rows" else 0)
    assert database.backups(bucket) == before
    assert restore.choose(database.backups(bucket), None) == before[-1]
    # The lock of the killed one is gone with its connection; what it left, the next one deletes.
    wait_for(lambda: taken(here))
    assert {key.split("/")[2] for key in bucket.keys(database.PREFIX)} == {one.name for one in database.backups(bucket)}
    assert list((here.backup_dir or Path()).iterdir()) == []


def taken(settings: Settings) -> bool:
    try:
        return bool(database.take(settings))
    except Unavailable:
        return False


def test_of_two_backups_at_once_one_is_taken(stack: Stack, here: Settings, full: Backup) -> None:
    with program_running(stack, here, "backup", "--full") as process:
        wait_for_line(process, "full")
        with pytest.raises(Unavailable, match="another backup of this database is being taken"):
            database.take(here)
        assert process.wait(60) == 0


# --- the log


def test_segments_wait_for_a_store_that_is_away(stack: Stack, here: Settings) -> None:
    def waiting() -> wal.Waiting:
        with content.connect(database.replication_dsn(here)) as conn:
            return wal.waiting(conn)

    def segment() -> str:
        with connected(here) as conn, superuser(stack.place) as admin:
            ingest(conn, secrets.randbelow(1 << 20))
            row = admin.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchone()
            assert row is not None
            return str(row[0])

    wait_for(lambda: waiting().segments == 0)
    stack.stop("s3")
    try:
        written = [segment() for _ in range(3)]
        wait_for(lambda: waiting().failing == written[0])
        held = waiting()
        assert held.segments >= 3
        assert held.loss_s >= held.oldest_s > 0
    finally:
        stack.start("s3")
    written.append(segment())  # which wakes the archiver
    wait_for(lambda: waiting().segments == 0, 120)
    assert waiting().failing == ""
    assert set(written) <= set(wal.archive(here).segments())


def test_a_segment_is_never_replaced(here: Settings, tmp_path: Path) -> None:
    store, name = wal.archive(here), f"{secrets.randbelow(1 << 31):08X}{secrets.token_hex(8).upper()}"
    (tmp_path / name).write_bytes(b"one" * 5000)
    store.push(tmp_path / name)
    store.push(tmp_path / name)
    (tmp_path / name).write_bytes(b"two" * 5000)
    with pytest.raises(DashError, match="is another database's segment, and is not replaced"):
        store.push(tmp_path / name)
    assert store.get(name) == b"one" * 5000
    store.bucket.delete([wal.key(name)])


def test_one_call_pushes_what_is_ready_and_one_fetches_what_follows(here: Settings, tmp_path: Path) -> None:
    timeline = secrets.randbelow(1 << 30) | 1 << 30
    names = [wal.segment_of(timeline, number << 24) for number in range(250, 260)]
    status, ahead = tmp_path / "archive_status", tmp_path / "ahead"
    status.mkdir()
    ahead.mkdir()
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(bytes([number]) * (16 << 20))
        (status / f"{name}.ready").touch()
    store = wal.archive(here)
    assert wal.push_ready(store, tmp_path / names[0]) == 10
    assert sorted(mark.name for mark in (tmp_path / "dash_pushed").iterdir()) == names[1:]
    (status / f"{names[1]}.ready").rename(status / f"{names[1]}.done")
    wal.push_ready(store, tmp_path / names[2])
    assert not (tmp_path / "dash_pushed" / names[1]).exists()
    assert wal.fetch(store, names[0], tmp_path / "got", ahead)
    assert (tmp_path / "got").read_bytes() == bytes(16 << 20)
    assert [file.name for file in sorted(ahead.iterdir())] == names[:9]
    assert not wal.fetch(store, wal.segment_of(timeline, 1 << 40), tmp_path / "none", ahead)
    assert store.segments()[-10:] == names
    store.bucket.delete([wal.key(name) for name in names])


def test_what_is_not_there_is_told_from_what_cannot_be_read(
    here: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the exit code: PostgreSQL takes 1 for the end of the log, and stops at 200."""
    monkeypatch.setattr(wal, "load_settings", lambda: here)
    absent = f"7FFFFFFF{'0' * 15}1"
    assert wal.main(["fetch", absent, str(tmp_path / "a")]) == wal.ABSENT
    away = here.model_copy(update={"s3_endpoint": "http://127.0.0.1:1"})
    monkeypatch.setattr(wal, "load_settings", lambda: away)
    assert wal.main(["fetch", absent, str(tmp_path / "a")]) == wal.FAILED
    assert "dash-pipeline: s3: " in capsys.readouterr().err


# --- what is kept


def test_what_is_no_longer_kept_is_deleted_with_its_log(here: Settings, bucket: s3.Bucket) -> None:
    """Sixty days: full on Sundays, incremental between."""
    settings = here.model_copy(update={"s3_bucket": empty(bucket)})
    own, start = s3.bucket(settings), datetime(2026, 3, 1, 2, 11, tzinfo=UTC)
    parent = ""
    for day in range(60):
        name = (start + timedelta(days=day)).strftime("%Y%m%dT%H%M%SZ")
        parent = "" if day % 7 == 0 else parent
        lsn = f"0/{day + 1:X}000028"
        described = Backup(name, parent, start.isoformat(), 1, lsn, lsn, "", 1, "", 1.0, "", (Point("a", lsn, "", {}),))
        own.put(f"{database.PREFIX}{name}/{database.BASE}", b"x")
        own.put(f"{database.PREFIX}{name}/{database.DESCRIPTION}", msgspec.json.encode(described))
        own.put(wal.key(wal.segment_of(1, (day + 1) << 24)), b"x")
        parent = name
    own.put(wal.key("00000002.history"), b"x")
    dropped, segments = database.prune(settings)
    left = [one.name[:8] for one in database.backups(own)]
    days = [(start + timedelta(days=day)).strftime("%Y%m%d") for day in range(60)]
    # The newest of four weeks (Sunday is an ISO week's last day: full ones), and of seven days with all they rest on.
    assert left == [days[42], *days[49:60]]
    for one in database.backups(own):
        assert database.ancestry(one, database.backups(own))[0].kind == "full"
    assert len(dropped) == 60 - len(left)
    oldest = min(one.segment for one in database.backups(own))
    assert wal.archive(settings).segments()[0] == oldest
    assert "00000002.history" in wal.archive(settings).segments()
    assert segments == days.index(left[0])
    assert {key.split("/")[2][:8] for key in own.keys(database.PREFIX)} == set(left)
    assert database.prune(settings) == ([], 0)


# --- roles and settings


def test_the_role_that_copies_can_write_nothing(here: Settings) -> None:
    with content.connect(database.replication_dsn(here), name_of(here)) as conn:
        for statement in ("DELETE FROM ops.dead_letters", "CREATE TABLE ops.mine (a int)", "CREATE ROLE mine"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(statement)


def test_a_role_that_may_not_replicate_is_told(here: Settings) -> None:
    with pytest.raises(DashError, match="the role of DASH_BACKUP_DSN needs REPLICATION"):
        database.take(here.model_copy(update={"backup_dsn": here.timescale_dsn}), full=True)
    with pytest.raises(DashError, match="DASH_BACKUP_DSN: not set"):
        database.take(here.model_copy(update={"backup_dsn": None}))
    with pytest.raises(DashError, match="DASH_PG_BIN: no pg_basebackup in"):
        database.take(here.model_copy(update={"pg_bin": Path("/nowhere")}), full=True)
    away = SecretStr("postgresql://backup:x@127.0.0.1:1/dash")
    with pytest.raises(Unavailable, match="database: "):
        database.take(here.model_copy(update={"backup_dsn": away}))


# --- as assets


@pytest.fixture
def location(stack: Stack, here: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Definitions]:
    """Location `lifecycle`, whose settings are the stack's."""
    monkeypatch.setenv("DASH_STACK_DIR", str(stack.layout.home))
    monkeypatch.setenv("DASH_BACKUP_DIR", str(here.backup_dir))
    settings_module.settings.cache_clear()
    yield build_defs("lifecycle")
    settings_module.settings.cache_clear()


@pytest.mark.patient
def test_backup_drill_and_check_as_jobs(location: Definitions, full: Backup) -> None:
    with DagsterInstance.ephemeral() as instance:

        def run(job: str) -> dict[str, object]:
            done = location.resolve_job_def(job).execute_in_process(instance=instance)
            (event,) = done.get_asset_materialization_events()
            return {name: value.value for name, value in event.materialization.metadata.items()}

        taken = run("backup_database")
        assert taken["kind"] == "incremental"
        assert str(taken["parent"]) >= full.name
        drilled = run("restore_drill")
        assert drilled["backup"] == taken["backup"]
        assert 0 < float(str(drilled["RTO, s"])) <= float(str(drilled["seconds"]))
        checked = location.resolve_job_def("check_backups").execute_in_process(instance=instance)
        (evaluation,) = checked.get_asset_check_evaluations()
        assert evaluation.passed, evaluation.description


def test_a_drill_that_finds_a_difference_fails_and_tells_its_owner(
    location: Definitions,
    here: Settings,
    full: Backup,
    bucket: s3.Bucket,
    received: tuple[str, list[dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The backup's own record is made to say that a table held a row more. The sensor of failed runs is another
    location's, and posts the table's name."""
    url, messages = received
    place = f"{database.PREFIX}{database.backups(bucket)[-1].name}/{database.DESCRIPTION}"
    whole = bucket.get(place)
    assert whole
    described = msgspec.json.decode(whole)
    point = next(one for one in described["points"] if one["database"] == name_of(here))
    point["tables"]["ops.witness"]["rows"] += 1
    bucket.put(place, msgspec.json.encode(described))
    try:
        with DagsterInstance.ephemeral() as instance:
            done = location.resolve_job_def("restore_drill").execute_in_process(instance=instance, raise_on_error=False)
            assert not done.success
            (failure,) = [event for event in done.all_events if event.is_step_failure]
            assert "ops.witness: 1 rows, not 2 rows" in str(failure.step_failure_data.user_failure_data)
            monkeypatch.setenv("DASH_NOTIFY_CHANNELS", json.dumps({"hook": {"kind": "webhook", "url": url}}))
            monkeypatch.setenv("DASH_OWNER_ROUTES", json.dumps({owners.OPERATIONS: ["hook"]}))
            settings_module.settings.cache_clear()
            sensor = build_defs("ingestion").resolve_sensor_def("failure_alerts")
            context = build_run_status_sensor_context(
                sensor.name, done.get_run_failure_event(), instance, done.dagster_run,
                resources={"notifier": NotifierResource()},
            )  # fmt: skip
            sensor(context.for_run_failure())
            (message,) = messages
            assert message["owner"] == owners.OPERATIONS
            assert (message["title"], message["key"]) == ("restore_drill failed", "run-failure/restore_drill")
            assert message["text"].startswith("1 differences: ")
            assert "ops.witness: 1 rows, not 2 rows" in message["text"]
    finally:
        bucket.put(place, whole)


# --- timelines


def test_a_backup_that_a_restore_has_undone_is_not_restored_from(here: Settings, bucket: s3.Bucket) -> None:
    settings = here.model_copy(update={"s3_bucket": empty(bucket)})
    own, store = s3.bucket(settings), wal.archive(settings)
    for name, timeline, end in (("20260301T020000Z", 1, "0/3000100"), ("20260302T020000Z", 1, "0/9000100"),
                                ("20260303T020000Z", 2, "0/8000100")):  # fmt: skip
        one = Backup(name, "", "2026-03-04T00:00:00+00:00", timeline, end, end, "", 1, "", 1.0, "", ())
        own.put(f"{database.PREFIX}{name}/{database.DESCRIPTION}", msgspec.json.encode(one))
    assert len(restore.restorable(settings)) == 3
    history = b"1\t0/7000000\tbefore 2026-03-01 12:00:00+00\n"
    own.put(wal.key("00000002.history"), zstandard.compress(history), seal=database.keyring(here).current)
    assert store.branch_ends() == {1: 0x7000000}
    assert [one.name[:8] for one in restore.restorable(settings)] == ["20260301", "20260303"]
