"""The archive when things go wrong: kills at any moment, faults of S3, two runs at once. No row is lost or doubled."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import polars as pl
import pytest

from dash_pipeline.archive import manifest
from dash_pipeline.archive.check import check
from dash_pipeline.archive.retain import retain
from dash_pipeline.archive.rewrite import compact, rotate
from dash_pipeline.errors import DashError
from dash_pipeline.settings import Settings
from dash_pipeline.storage import s3
from dash_pipeline.storage import timescale as db
from dash_pipeline.storage.encryption import keyring
from dash_pipeline.storage.history import collect, history
from dash_pipeline.storage.tables import ANOMALIES, LOGS, TOKEN_TRANSFERS, Table
from tests.days import assert_once, at, day_rows, hot, insert, set_tip
from tests.killed import go, start

# What a killed process is at.
WORK = """
print(retain(settings, "run"), flush=True)
print(compact(settings, "run"), flush=True)
"""


def orphans(settings: Settings, conn: db.Connection, chain: str) -> set[str]:
    """Objects of the chain that no manifest lists."""
    listed = {entry.object for entry in manifest.entries(conn, chain=chain)}
    return {key for key in s3.bucket(settings).keys("archive/") if f"/chain={chain}/" in key} - listed


STEPS = [
    ("dash_pipeline.storage.s3", "Bucket.put", 1),  # before an object is written
    ("dash_pipeline.archive.export", "fetch", 0),  # written, not read back
    ("dash_pipeline.archive.export", "_commit", 0),  # compared, not listed
    ("dash_pipeline.archive.manifest", "lock_seam", 1),  # in the transaction, the day before is done
    ("dash_pipeline.archive.manifest", "add", 0),  # before it is listed
    ("dash_pipeline.archive.export", "sweep", 2),  # after two days
    ("dash_pipeline.archive.manifest", "replace", 0),  # merged, listed as well, in one transaction
    ("dash_pipeline.archive.rewrite", "purge", 0),  # replaced, not deleted
]


@pytest.mark.parametrize(
    "table", [pytest.param(TOKEN_TRANSFERS, marks=pytest.mark.patient), ANOMALIES], ids=lambda table: table.name
)
@pytest.mark.parametrize(("module", "name", "after"), STEPS, ids=[f"{name}-{after}" for _, name, after in STEPS])
def test_killed_at_a_step_nothing_is_lost_and_the_next_run_does_the_rest(
    conn: db.Connection, migrated: Settings, chain: str, table: Table, module: str, name: str, after: int
) -> None:
    rng = random.Random(name)
    rows = [day_rows(rng, table, chain, day, 40) for day in range(3)]
    insert(conn, table, *rows)
    set_tip(conn, chain, at(8.1))
    retain(migrated, "before", [table.name])  # the first day, which gets late rows
    rows.append(day_rows(rng, table, chain, 0, 10))
    insert(conn, table, rows[-1])
    set_tip(conn, chain, at(10.1))
    run = start(migrated, WORK, module, name, after)
    go(run)
    assert run.wait(60) == -signal.SIGKILL
    assert_once(migrated, table, rows)
    retain(migrated, "next", [table.name])
    compact(migrated, "next")
    assert_once(migrated, table, rows)
    assert hot(conn, table, chain) == 0
    assert len(manifest.entries(conn, chain=chain)) == 3
    assert orphans(migrated, conn, chain) == set()


@pytest.mark.patient
def test_twenty_kills_lose_and_double_nothing(conn: db.Connection, migrated: Settings, chain: str) -> None:
    rng = random.Random(20)
    rows: dict[str, list[pl.DataFrame]] = {"logs": [], "token_transfers": []}
    tables = {"logs": LOGS, "token_transfers": TOKEN_TRANSFERS}
    for name, table in tables.items():
        rows[name] = [day_rows(rng, table, chain, day, 500) for day in range(25)]
        insert(conn, table, *rows[name])
    set_tip(conn, chain, at(32.1))
    killed = 0
    while killed < 20:
        run = start(migrated, WORK)
        go(run)
        time.sleep(rng.uniform(0.05, 0.6))
        run.kill()
        if run.wait(30) == -signal.SIGKILL:
            killed += 1
        for name, table in tables.items():
            assert_once(migrated, table, rows[name])
        if not hot(conn, LOGS, chain) + hot(conn, TOKEN_TRANSFERS, chain):
            late = day_rows(rng, LOGS, chain, rng.randrange(25), 200)
            rows["logs"].append(late)
            insert(conn, LOGS, late)
    retain(migrated, "last")
    compact(migrated, "last")
    for name, table in tables.items():
        assert_once(migrated, table, rows[name])
        assert hot(conn, table, chain) == 0
    assert orphans(migrated, conn, chain) == set()
    assert check(migrated, chain=chain).wrong == ()


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.patient) for seed in (1, 2))])
def test_whatever_happens_each_row_is_there_once(
    conn: db.Connection, migrated: Settings, unique: Callable[[str], str], seed: int
) -> None:
    """Days pass on two chains; rows arrive, late ones too, and arrive again; retention runs, is killed, compacts."""
    rng = random.Random(seed)
    chains = {unique("a"): 0.0, unique("b"): 0.0}
    rows: list[pl.DataFrame] = []

    def arrive() -> None:
        name = rng.choice(list(chains))
        day = max(0, int(chains[name]) - rng.choice([0, 0, 0, 1, 3, 9, 12]))
        rows.append(day_rows(rng, TOKEN_TRANSFERS, name, day, rng.randrange(1, 60)))
        insert(conn, TOKEN_TRANSFERS, rows[-1])

    def arrive_again() -> None:
        insert(conn, TOKEN_TRANSFERS, *rng.sample(rows, min(2, len(rows))))

    def pass_days() -> None:
        for name in chains:
            chains[name] += rng.choice([0, 1, 1, 3])
            set_tip(conn, name, at(chains[name] + 0.5))

    def run() -> None:
        retain(migrated, "run", ["token_transfers"])

    def killed() -> None:
        process = start(migrated, WORK)
        go(process)
        time.sleep(rng.uniform(0.0, 0.4))
        process.kill()
        process.wait(30)

    steps = [arrive, arrive, arrive, arrive_again, pass_days, pass_days, run, lambda: compact(migrated, "run"), killed]
    arrive()
    pass_days()
    for _ in range(40):
        rng.choice(steps)()
        assert_once(migrated, TOKEN_TRANSFERS, rows)
    pass_days()
    for name in chains:
        set_tip(conn, name, at(60))
    run()
    assert_once(migrated, TOKEN_TRANSFERS, rows)
    assert conn.execute("SELECT count(*) FROM chain.token_transfers").fetchone() == (0,)


def test_who_reads_while_rows_are_taken_out_sees_each_once(conn: db.Connection, migrated: Settings, chain: str) -> None:
    rng = random.Random(4)
    insert(conn, TOKEN_TRANSFERS, *(day_rows(rng, TOKEN_TRANSFERS, chain, day, 300) for day in range(12)))
    set_tip(conn, chain, at(19.1))
    over, seen = threading.Event(), []

    def read() -> None:
        while not over.is_set():
            seen.append(history(migrated, "token_transfers").select(pl.len()).collect().item())

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            retain(migrated, "run", ["token_transfers"])
        finally:
            over.set()
        for reader in readers:
            reader.result()
    assert len(seen) > 3
    assert set(seen) == {3600}


def test_of_two_runs_at_once_one_leaves_it_to_the_other(conn: db.Connection, migrated: Settings, chain: str) -> None:
    rng = random.Random(4)
    rows = [day_rows(rng, TOKEN_TRANSFERS, chain, day, 100) for day in range(10)]
    insert(conn, TOKEN_TRANSFERS, *rows)
    set_tip(conn, chain, at(17.1))
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda name: retain(migrated, name, ["token_transfers"]), ["one", "two"]))
    assert sorted(done) == [0, 1000] or sum(done) == 1000
    assert_once(migrated, TOKEN_TRANSFERS, rows)
    assert len(manifest.entries(conn, chain=chain)) == 10


def test_a_row_that_arrives_while_its_day_is_written_is_not_dropped(
    conn: db.Connection, migrated: Settings, chain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dash_pipeline.archive import export

    rng = random.Random(4)
    rows = [day_rows(rng, TOKEN_TRANSFERS, chain, 0, 100)]
    insert(conn, TOKEN_TRANSFERS, *rows)
    set_tip(conn, chain, at(8.1))
    real = export._commit

    def arrive_first(*args: object) -> None:
        if len(rows) == 1:
            rows.append(day_rows(rng, TOKEN_TRANSFERS, chain, 0, 1))
            with db.connect(migrated) as other:
                insert(other, TOKEN_TRANSFERS, rows[-1])
                other.execute("DELETE FROM chain.token_transfers WHERE block_hash = %s", (rows[0]["block_hash"][0],))
            rows[0] = rows[0].slice(1)
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(export, "_commit", arrive_first)
    assert retain(migrated, "run", ["token_transfers"]) == 100
    assert_once(migrated, TOKEN_TRANSFERS, rows)
    assert orphans(migrated, conn, chain) == set()


def test_an_object_that_is_altered_or_gone_is_named(conn: db.Connection, migrated: Settings, chain: str) -> None:
    rng = random.Random(4)
    insert(conn, TOKEN_TRANSFERS, *(day_rows(rng, TOKEN_TRANSFERS, chain, day, 30) for day in range(3)))
    set_tip(conn, chain, at(10.1))
    retain(migrated, "run", ["token_transfers"])
    bucket, (first, second, third) = s3.bucket(migrated), manifest.entries(conn, chain=chain)
    assert check(migrated, chain=chain).wrong == ()
    seal = keyring(migrated).current
    data = bytearray(bucket.get(first.object, seal) or b"")
    data[len(data) // 2] ^= 1
    bucket.put(first.object, bytes(data), seal=seal)
    bucket.delete([second.object])
    found = check(migrated, chain=chain)
    assert [line.split(": ")[1:3] for line in found.wrong] == [
        [first.object, "altered since it was written; restore it from the bucket's versions"],
        [second.object, f"gone from {bucket.where}; restore it from the bucket's versions"],
    ]
    assert found.objects == 1
    with pytest.raises(DashError, match="objects cannot be read"):
        collect(history(migrated, "token_transfers").filter(pl.col("ts") < at(2)))
    assert history(migrated, "token_transfers").filter(pl.col("ts") >= at(2)).collect().height == third.rows


def test_small_objects_of_a_day_are_merged(conn: db.Connection, migrated: Settings, chain: str) -> None:
    rng = random.Random(4)
    rows = []
    set_tip(conn, chain, at(8.1))
    for _ in range(4):
        rows.append(day_rows(rng, TOKEN_TRANSFERS, chain, 0, 30))
        insert(conn, TOKEN_TRANSFERS, rows[-1])
        retain(migrated, "run", ["token_transfers"])
    assert len(manifest.entries(conn, chain=chain)) == 4
    assert compact(migrated, "run") == 3
    assert [entry.rows for entry in manifest.entries(conn, chain=chain)] == [120]
    assert_once(migrated, TOKEN_TRANSFERS, rows)
    assert orphans(migrated, conn, chain) == set()
    assert compact(migrated, "run") == 0


def test_keys_are_rotated_and_the_old_one_can_go(conn: db.Connection, migrated: Settings, chain: str) -> None:
    rng = random.Random(4)
    rows = [day_rows(rng, TOKEN_TRANSFERS, chain, day, 30) for day in range(3)]
    insert(conn, TOKEN_TRANSFERS, *rows)
    set_tip(conn, chain, at(9.1))
    retain(migrated, "run", ["token_transfers"])
    new = {"new": "bmV3IGtleSBuZXcga2V5IG5ldyBrZXkgbmV3IGtleTE="}
    both = migrated.model_copy(update={"encryption_keys": new | migrated.encryption_keys})
    alone = migrated.model_copy(update={"encryption_keys": new})
    with pytest.raises(DashError, match="no key named local"):
        rotate(alone, "run")
    set_tip(conn, chain, at(10.1))
    retain(both, "run", ["token_transfers"])  # now objects of both keys
    assert_once(both, TOKEN_TRANSFERS, rows)
    with pytest.raises(DashError, match="DASH_ENCRYPTION_KEYS: no key named new"):
        assert_once(migrated, TOKEN_TRANSFERS, rows)
    assert rotate(both, "run") == 2
    assert_once(alone, TOKEN_TRANSFERS, rows)
    assert {entry.encryption_key for entry in manifest.entries(conn, chain=chain)} == {"new"}
    assert rotate(both, "run") == 0
    wrong = migrated.model_copy(update={"encryption_keys": {"new": next(iter(migrated.encryption_keys.values()))}})
    with pytest.raises(DashError, match="new in DASH_ENCRYPTION_KEYS is the key it was written with"):
        check(wrong, chain=chain)


def test_the_database_killed_while_a_day_is_written_is_one_line(
    conn: db.Connection, migrated: Settings, chain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session that holds the locks is ended, as it is when the server goes away."""
    from dash_pipeline.archive import export

    rows = [day_rows(random.Random(4), TOKEN_TRANSFERS, chain, 0, 100)]
    insert(conn, TOKEN_TRANSFERS, *rows)
    set_tip(conn, chain, at(8.1))
    real = export._commit

    def end_first(mine: db.Connection, *args: object) -> None:
        conn.execute("SELECT pg_terminate_backend(%s, 5000)", (mine.info.backend_pid,))
        real(mine, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(export, "_commit", end_first)
        with pytest.raises(DashError, match=r"^database: ") as error:
            retain(migrated, "run", ["token_transfers"])
    assert "\n" not in str(error.value)
    assert_once(migrated, TOKEN_TRANSFERS, rows)
    assert retain(migrated, "run", ["token_transfers"]) == 100
    assert_once(migrated, TOKEN_TRANSFERS, rows)
    assert orphans(migrated, conn, chain) == set()
