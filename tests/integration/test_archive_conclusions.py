"""Anomalies, predictions and dead letters leave the database for the archive, once nobody needs them any more."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from psycopg.types.json import Jsonb

from dash_pipeline.alerts.rules import Policy
from dash_pipeline.alerts.show import alerts
from dash_pipeline.archive import export, manifest
from dash_pipeline.archive.check import check, doubled
from dash_pipeline.archive.manifest import midnight
from dash_pipeline.archive.retain import all_due, retain
from dash_pipeline.archive.rewrite import compact, rotate
from dash_pipeline.errors import Unavailable
from dash_pipeline.settings import Settings
from dash_pipeline.storage import alerts as store
from dash_pipeline.storage import timescale as db
from dash_pipeline.storage.anomalies import read_anomalies, write_anomalies
from dash_pipeline.storage.history import bounds, collect, history, possible
from dash_pipeline.storage.predictions import Prediction, write_predictions
from dash_pipeline.storage.query import query
from dash_pipeline.storage.tables import ANOMALIES, DEAD_LETTERS, HISTORIES, PREDICTIONS, Table
from tests.days import FIRST, assert_once, at, day_rows, hot, insert, set_tip

NOON = midnight(FIRST) + timedelta(hours=12)
TABLES = (ANOMALIES, PREDICTIONS, DEAD_LETTERS)
POLICY = Policy(routes={"ops": "http://127.0.0.1:9/"})


def find(conn: db.Connection, chain: str, name: str, pool: str = "pool") -> bytes:
    """An anomaly is found and published; its id. The same name is the same anomaly."""
    id_ = f"{chain} {name}".encode().ljust(32, b".")
    conn.execute(
        "INSERT INTO intel.anomalies (id, chain, ts, block_number, block_hash, tx_hash, log_indexes, pool, token,"
        " tokens, wallets, kind, severity, score, evidence, published_revision)"
        " VALUES (%s, %s, %s, 7, %s, %s, '{1,2}', %s, %s, %s, %s, 'liquidity_withdrawal', 'high', 0.97, %s, 1)",
        (id_, chain, NOON, b"block", name.encode(), pool.encode(), b"token", [b"token", b"quote"], [b"alice", b"bob"],
         Jsonb({"share": 0.97})),
    )  # fmt: skip
    return id_


def react(conn: db.Connection, chain: str, *ids: bytes, score: float | None = 0.9) -> list[bytes]:
    """What a lane or the engine does: predictions, then alerts; the new alerts."""
    with conn.transaction():
        stored = read_anomalies(conn, ids)
        said = [
            Prediction(one.id, "pool_risk", one.pool, "pool", chain, one.ts, "v1", score, None, {"a": 0.5}, {"a": 1.25})
            for one in stored
        ]
        write_predictions(conn, said, "run")
        return store.raise_alerts(conn, POLICY, stored, "run")


def tell(conn: db.Connection) -> None:
    """Every delivery arrives."""
    conn.execute("UPDATE intel.deliveries SET delivered_at = clock_timestamp() WHERE delivered_at IS NULL")


def deliveries(conn: db.Connection, *ids: bytes) -> int:
    row = conn.execute("SELECT count(*) FROM intel.deliveries WHERE alert_id = ANY(%s)", (list(ids),)).fetchone()
    assert row
    return int(row[0])


def rows_of(settings: Settings, table: Table, chain: str) -> list[dict[str, Any]]:
    found = collect(history(settings, table.name).filter(pl.col("chain") == chain))
    return found.sort(*table.key).to_dicts()


def test_an_anomaly_stays_until_all_that_follows_from_it_has_followed(
    conn: db.Connection, migrated: Settings, chain: str
) -> None:
    set_tip(conn, chain, at(9))
    one = find(conn, chain, "one")
    conn.execute("UPDATE intel.anomalies SET published_revision = 0 WHERE id = %s", (one,))

    def stays(why: str) -> None:
        assert all_due(migrated) == {}, why
        assert retain(migrated, "run") == 0, why

    stays("neither published nor reacted to")
    conn.execute("UPDATE intel.anomalies SET published_revision = 1 WHERE id = %s", (one,))
    stays("nobody has predicted or decided")
    assert react(conn, chain, one) == [one]
    stays("nobody has been told")
    tell(conn)
    assert all_due(migrated) == {chain: [FIRST]}
    conn.execute("UPDATE intel.anomalies SET evidence = '{}' WHERE id = %s", (one,))
    stays("its alert says something else")
    react(conn, chain, one)
    conn.execute("UPDATE intel.anomalies SET retracted_at = now() WHERE id = %s", (one,))
    stays("its alert is not taken back")
    with conn.transaction():
        store.retract(conn, POLICY, [one])
    stays("nobody has been told that it is taken back")
    tell(conn)
    assert retain(migrated, "run") == 2
    assert [hot(conn, table, chain) for table in TABLES] == [0, 0, 0]
    assert all_due(migrated) == {}


def test_predictions_do_not_leave_before_their_anomaly(conn: db.Connection, migrated: Settings, chain: str) -> None:
    set_tip(conn, chain, at(9))
    one = find(conn, chain, "one")
    react(conn, chain, one)
    assert retain(migrated, "run", ["predictions"]) == 0
    tell(conn)
    assert retain(migrated, "run", ["predictions"]) == 0
    assert retain(migrated, "run") == 2


def test_an_old_alert_still_shows_its_predictions(conn: db.Connection, migrated: Settings, chain: str) -> None:
    set_tip(conn, chain, at(9))
    one, other = find(conn, chain, "one"), find(conn, chain, "other", pool="elsewhere")
    react(conn, chain, one)
    react(conn, chain, other, score=None)
    tell(conn)
    before = alerts(conn, chain=chain)
    assert [len(alert["predictions"]) for alert in before] == [1, 1]
    assert retain(migrated, "run") == 4
    assert alerts(conn, chain=chain) == before
    assert store.read(conn, [one])[one]["predictions"][0]["contributions"] == [["a", 1.25]]


def test_a_replay_of_old_messages_finds_nothing_anew(conn: db.Connection, migrated: Settings, chain: str) -> None:
    """One had an alert; the other, of the same pool, raised none because of it, and would now that it is long ago. One
    was never known, and one was taken back."""
    set_tip(conn, chain, at(9))
    one, covered = find(conn, chain, "one"), find(conn, chain, "covered")
    assert react(conn, chain, one) == [one]
    assert react(conn, chain, covered) == []
    tell(conn)
    gone = find(conn, chain, "gone", pool="elsewhere")
    conn.execute("UPDATE intel.anomalies SET retracted_at = now() WHERE id = %s", (gone,))
    names = [name for name in ANOMALIES.columns if name not in ("chain", "run_id")]
    stored = conn.execute(f"SELECT {', '.join(names)} FROM intel.anomalies WHERE chain = %s", (chain,)).fetchall()
    found = [dict(zip(names, row, strict=True)) for row in stored]
    for row in found:
        row["evidence"] = Jsonb({"share": 0.5})
    before = rows_of(migrated, ANOMALIES, chain), rows_of(migrated, PREDICTIONS, chain)
    assert retain(migrated, "run") == 5
    conn.execute("UPDATE intel.alerts SET raised_at = raised_at - interval '30 days'")

    another = found[0] | {"id": b"another"}
    assert write_anomalies(conn, chain, {b"pool": (NOON, NOON)}, [*found, another], "run") == 2
    assert set(react(conn, chain, one, covered, gone, b"another")) == {gone, b"another"}
    assert deliveries(conn, one, covered) == 1
    assert hot(conn, ANOMALIES, chain) == 2
    conn.execute("UPDATE intel.anomalies SET published_revision = revision")
    tell(conn)
    assert retain(migrated, "run") == 4
    known, said = rows_of(migrated, ANOMALIES, chain), rows_of(migrated, PREDICTIONS, chain)
    assert [row["id"] for row in known] == sorted([b"another", one, covered, gone, gone])
    assert [row for row in known if row in before[0]] == before[0]
    assert [row for row in said if row in before[1]] == before[1]


def test_an_alert_whose_anomaly_is_archived_still_covers_its_pool(
    conn: db.Connection, migrated: Settings, chain: str
) -> None:
    """A backlog of many days goes by within minutes: the cool-down is of the wall clock."""
    set_tip(conn, chain, at(9))
    one = find(conn, chain, "one")
    assert react(conn, chain, one) == [one]
    tell(conn)
    assert retain(migrated, "run") == 2
    assert react(conn, chain, find(conn, chain, "next")) == []


CHANGES = {
    # Not one more: of random rows some have the highest number there is.
    "anomalies": "UPDATE intel.anomalies SET revision = 9, published_revision = 9, retracted_at = '2025-03-01'",
    "predictions": "UPDATE intel.predictions SET score = 0.25",
    "dead_letters": "UPDATE ops.dead_letters SET reason = 'another'",
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_row_that_changes_while_its_day_is_written_is_archived_as_it_is_then(
    conn: db.Connection, migrated: Settings, chain: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    table = HISTORIES[name]
    insert(conn, table, day_rows(random.Random(3), table, chain, 0, 30))
    set_tip(conn, chain, at(9))
    (first, *_) = rows_of(migrated, table, chain)
    key = {"anomalies": "id", "predictions": "anomaly_id", "dead_letters": "topic"}[name]
    real, calls = export._commit, []

    def change_first(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            with db.connect(migrated) as other:
                other.execute(f"{CHANGES[name]} WHERE {key} = %s", (first[key],))
        real(*args)

    monkeypatch.setattr(export, "_commit", change_first)
    assert retain(migrated, "run", [name]) == 30
    assert len(calls) == 2
    after = rows_of(migrated, table, chain)
    assert len(after) == 30
    assert after[0] != first
    assert len(manifest.entries(conn, chain=chain)) == 1


def test_an_alert_that_is_raised_while_the_day_is_written_keeps_it(
    conn: db.Connection, migrated: Settings, chain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The anomaly's row does not change: another's alert covered it, and was taken back."""
    set_tip(conn, chain, at(9))
    one = find(conn, chain, "one")
    conn.execute(
        "INSERT INTO intel.predictions (anomaly_id, model, subject, subject_kind, chain, as_of, version, features,"
        " contributions) VALUES (%s, 'pool_risk', 'pool', 'pool', %s, %s, 'v1', '{}', '{}')", (one, chain, NOON),
    )  # fmt: skip
    assert all_due(migrated) == {chain: [FIRST]}
    real = export._commit

    def raise_first(*args: Any) -> None:
        with db.connect(migrated) as other, other.transaction():
            store.raise_alerts(other, POLICY, read_anomalies(other, [one]))
        real(*args)

    monkeypatch.setattr(export, "_commit", raise_first)
    with pytest.raises(Unavailable, match="come and go"):
        retain(migrated, "run")
    assert manifest.entries(conn, chain=chain) == []
    tell(conn)
    assert retain(migrated, "run") == 2


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_late_and_doubled_rows_compaction_and_keys(
    conn: db.Connection, migrated: Settings, chain: str, table: Table
) -> None:
    rng = random.Random(8)
    first, late = day_rows(rng, table, chain, 0, 40), day_rows(rng, table, chain, 0, 15)
    insert(conn, table, first)
    set_tip(conn, chain, at(9))
    assert retain(migrated, "run") == 40
    insert(conn, table, late, first.head(10))
    assert_once(migrated, table, [first, late])
    assert list(doubled(migrated, chain)) == [f"{table.name} {FIRST}"]
    assert retain(migrated, "run") == 15
    assert (doubled(migrated, chain), hot(conn, table, chain)) == ({}, 0)
    assert sorted(entry.rows for entry in manifest.entries(conn, chain=chain)) == [15, 40]
    compact(migrated, "run")
    assert [entry.rows for entry in manifest.entries(conn, chain=chain)] == [55]
    new = migrated.model_copy(
        update={"encryption_keys": {"next": "VGhpcyBpcyBhIGtleSBvZiB0aGlydHktdHdvIGJ5dGU=", **migrated.encryption_keys}}
    )
    rotate(new, "run")
    assert [entry.encryption_key for entry in manifest.entries(conn, chain=chain)] == ["next"]
    assert check(new, chain=chain).wrong == ()
    assert_once(new, table, [first, late])


def test_sql_over_conclusions(conn: db.Connection, migrated: Settings, chain: str) -> None:
    rng = random.Random(2)
    for table in TABLES:
        insert(conn, table, *(day_rows(rng, table, chain, day, 20) for day in range(4)))
    set_tip(conn, chain, at(9.5))
    assert retain(migrated, "run") == 3 * 40
    for table in TABLES:
        asked = f"FROM {table.name} WHERE chain = '{chain}' AND {table.time} >= '2025-03-02'"
        assert query(migrated, f"SELECT count(*) AS n {asked}")["n"].item() == 60
        late = pl.col(table.time) >= at(1)
        assert collect(history(migrated, table.name).filter((pl.col("chain") == chain) & late)).height == 60
        asked_for = [one for one in manifest.entries(conn, table.name, chain) if possible(one, bounds(late))]
        assert [one.date for one in asked_for] == [FIRST + timedelta(days=1)]
    one = find(conn, chain, "one")
    found = query(migrated, f"SELECT tokens, log_indexes FROM anomalies WHERE id = '0x{one.hex()}'")
    assert found.rows() == [(["0x" + b"token".hex(), "0x" + b"quote".hex()], [1, 2])]


def test_dead_letters_wait_for_the_chain_and_whole_payloads_come_back(
    conn: db.Connection, migrated: Settings, chain: str, unique: Callable[[str], str]
) -> None:
    """They are of the wall clock: on a replay of old blocks none is due, and on a topic of no chain never."""
    now, foreign = datetime.now(UTC), unique("x")
    payload = random.Random(1).randbytes(db.PAYLOAD_KEPT)
    letters = [
        db.DeadLetter(f"{name}.logs", 0, offset, 1, payload if offset == 3 else b"", "no JSON: \u2192")
        for name in (chain, foreign)
        for offset in range(4)
    ]
    db.write_dead_letters(conn, letters, "run")
    set_tip(conn, chain, at(9))
    assert retain(migrated, "run") == 0
    set_tip(conn, chain, now + timedelta(minutes=5))
    conn.execute("UPDATE ops.dead_letters SET seen_at = seen_at - interval '9 days' WHERE \"offset\" <> 0")
    before = rows_of(migrated, DEAD_LETTERS, chain)
    assert before[3]["payload"] == payload
    assert retain(migrated, "run", ["dead_letters"]) == 3
    assert (hot(conn, DEAD_LETTERS, chain), hot(conn, DEAD_LETTERS, foreign)) == (1, 4)
    assert rows_of(migrated, DEAD_LETTERS, chain) == before
    # Refused again after a replay, it is another letter.
    db.write_dead_letters(conn, letters[:4], "run")
    assert len(rows_of(migrated, DEAD_LETTERS, chain)) == 7


def test_letters_are_read_in_parts_that_fit_into_memory(conn: db.Connection, migrated: Settings, chain: str) -> None:
    conn.execute(
        'INSERT INTO ops.dead_letters (topic, partition, "offset", reason, payload_bytes, seen_at)'
        " SELECT %s, 0, n, 'refused', 0, %s + n * interval '1 millisecond' FROM generate_series(1, 12000) n",
        (f"{chain}.logs", NOON),
    )
    set_tip(conn, chain, at(9))
    assert retain(migrated, "run") == 12_000
    assert sorted(entry.rows for entry in manifest.entries(conn, chain=chain)) == [2_000, 5_000, 5_000]


def test_lanes_go_on_while_a_day_is_taken_out(conn: db.Connection, migrated: Settings, chain: str) -> None:
    """A lane's open transaction with anomalies of today holds up nobody; one that holds the day's rows is waited for,
    and after that the day waits."""
    insert(conn, ANOMALIES, day_rows(random.Random(3), ANOMALIES, chain, 0, 10))
    set_tip(conn, chain, at(9))
    with db.connect(migrated) as lane, lane.transaction(force_rollback=True):
        insert(lane, ANOMALIES, day_rows(random.Random(4), ANOMALIES, chain, 9, 10))
        lane.execute("SELECT FROM intel.anomalies WHERE chain = %s AND ts < %s FOR UPDATE", (chain, at(1)))
        with pytest.raises(Unavailable, match="tried again next time"):
            retain(migrated, "run", ["anomalies"])
    assert manifest.entries(conn, chain=chain) == []
    with db.connect(migrated) as lane, lane.transaction():
        insert(lane, ANOMALIES, day_rows(random.Random(4), ANOMALIES, chain, 9, 10))
        assert retain(migrated, "run", ["anomalies"]) == 10
    assert hot(conn, ANOMALIES, chain) == 10


def test_who_reads_meanwhile_sees_each_once(conn: db.Connection, migrated: Settings, chain: str) -> None:
    insert(conn, ANOMALIES, *(day_rows(random.Random(day), ANOMALIES, chain, day, 50) for day in range(8)))
    set_tip(conn, chain, at(15.1))
    over, seen = threading.Event(), set[int]()

    def read() -> None:
        while not over.is_set():
            seen.add(history(migrated, "anomalies").filter(pl.col("chain") == chain).select(pl.len()).collect().item())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert retain(migrated, "run", ["anomalies"]) == 400
    finally:
        over.set()
        reader.join()
    assert seen == {400}
