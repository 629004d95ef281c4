"""What must hold whenever one looks, on a real database: each finding, and that there is none without a reason."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from dash_pipeline.archive import manifest
from dash_pipeline.settings import Settings
from dash_pipeline.storage import invariants, timescale
from dash_pipeline.storage.invariants import Late, OffChain
from dash_pipeline.storage.migrate import upgrade
from dash_pipeline.storage.tables import TABLES
from dash_pipeline.storage.timescale import Connection

START = datetime(2024, 1, 5, tzinfo=UTC)


@pytest.fixture(scope="module")
def migrated(database: Settings) -> Settings:
    upgrade(database)
    return database


@pytest.fixture
def conn(migrated: Settings) -> Iterator[Connection]:
    """A connection whose writes are undone."""
    with timescale.connect(migrated) as conn, conn.transaction(force_rollback=True):
        yield conn


def hash_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


def known(conn: Connection, number: int, status: str) -> None:
    """A block of the tree, the tip so far."""
    conn.execute(
        "INSERT INTO ops.block_tree (chain, block_hash, block_number, ts, status) VALUES ('t', %s, %s, %s, %s)",
        (hash_of(number), number, START, status),
    )
    conn.execute(
        "INSERT INTO ops.chains (chain, tip_number, tip_ts) VALUES ('t', %s, %s)"
        " ON CONFLICT (chain) DO UPDATE SET tip_number = excluded.tip_number",
        (number, START),
    )


def row(conn: Connection, table: str, number: int) -> None:
    """A row of the table in that block, null or empty where it may be."""
    plain = {"bytea": b"x", "text": "x", "numeric": "0", "int8": 0, "int4": 0, "float8": 0.0, "bool": False}
    values = {name: plain.get(column.type) for name, column in TABLES[table].columns.items() if not column.null}
    values |= {"chain": "t", "ts": START, "block_number": number, "block_hash": hash_of(number)}
    columns, places = ", ".join(f'"{name}"' for name in values), ", ".join(["%s"] * len(values))
    conn.execute(f"INSERT INTO chain.{table} ({columns}) VALUES ({places})", list(values.values()))


@pytest.mark.parametrize("table", list(TABLES))
def test_rows_of_blocks_that_a_fork_took_away_are_found(conn: Connection, table: str) -> None:
    known(conn, 1, "canonical")
    known(conn, 2, "provisional")
    row(conn, table, 1)
    row(conn, table, 2)
    assert invariants.off_chain(conn, table, "t") == OffChain(0, ())
    known(conn, 3, "orphaned")
    row(conn, table, 3)
    assert invariants.off_chain(conn, table, "t") == OffChain(1, ("0x" + hash_of(3).hex(),))
    assert invariants.off_chain(conn, table, "another") == OffChain(0, ())
    known(conn, 3 + invariants.HEIGHTS, "canonical")
    assert invariants.off_chain(conn, table, "t").rows == 0, "too far below the tip to be looked at"


def anomaly(conn: Connection, number: int, ago_s: float, retracted: bool = False) -> None:
    conn.execute(
        "INSERT INTO intel.anomalies (id, chain, ts, block_number, block_hash, tx_hash, log_indexes, pool, token,"
        " tokens, wallets, kind, severity, score, evidence, detected_at, retracted_at)"
        " VALUES (%s, 't', %s, %s, %s, 'x', '{}', 'x', 'x', '{}', '{}', 'drain', 'high', 1, '{}', %s, %s)",
        (
            hash_of(number), START, number, hash_of(number), datetime.now(UTC) - timedelta(seconds=ago_s),
            START if retracted else None,
        ),
    )  # fmt: skip


def alert(conn: Connection, number: int, ago_s: float, indexed: int) -> None:
    conn.execute(
        "INSERT INTO intel.alerts (id, chain, pool, token, kind, severity, ts, block_number, wallets, evidence,"
        " raised_at, indexed_revision) VALUES (%s, 't', 'x', 'x', 'drain', 'high', %s, %s, '{}', '{}', %s, %s)",
        (hash_of(number), START, number, datetime.now(UTC) - timedelta(seconds=ago_s), indexed),
    )


def test_an_anomaly_off_the_chain_counts_until_it_is_retracted(conn: Connection) -> None:
    known(conn, 5, "orphaned")
    anomaly(conn, 5, 0, retracted=True)
    assert invariants.off_chain(conn, "anomalies", "t").rows == 0
    conn.execute("UPDATE intel.anomalies SET retracted_at = NULL")
    assert invariants.off_chain(conn, "anomalies", "t").rows == 1


def test_what_nobody_has_reacted_to_is_late_after_a_while(conn: Connection) -> None:
    long_ago = invariants.LATE_S + 5
    anomaly(conn, 1, long_ago)
    anomaly(conn, 2, long_ago, retracted=True)
    anomaly(conn, 3, 0)
    assert invariants.late(conn) == Late(1, 0, 0)
    alert(conn, 1, long_ago, indexed=0)
    alert(conn, 2, long_ago, indexed=1)
    assert invariants.late(conn) == Late(0, 0, 1)
    deliveries = [(1, long_ago, None), (2, long_ago, START), (3, 0, None)]
    for number, ago_s, delivered in deliveries:
        conn.execute(
            "INSERT INTO intel.deliveries (alert_id, route, event, next_try_at, delivered_at)"
            " VALUES (%s, 'ops', 'raised', %s, %s)",
            (hash_of(number), datetime.now(UTC) - timedelta(seconds=ago_s), delivered),
        )
    assert invariants.late(conn) == Late(0, 1, 1)


def test_refused_messages_are_counted_by_topic_as_far_back_as_asked(conn: Connection) -> None:
    for offset, hours in enumerate((1, 2, 30)):
        conn.execute(
            'INSERT INTO ops.dead_letters (topic, partition, "offset", reason, payload_bytes, seen_at)'
            " VALUES ('t.logs', 0, %s, 'no', 0, now() - %s * interval '1 hour')",
            (offset, hours),
        )
    assert invariants.refused_lately(conn, 24) == {"t.logs": 2}
    assert invariants.refused_lately(conn, 1.5) == {"t.logs": 1}


def test_a_day_with_fewer_archived_logs_than_pool_events_cannot_be_derived(conn: Connection) -> None:
    def listed(table: str, day: int, rows: int) -> None:
        conn.execute(
            "INSERT INTO ops.archive_manifest (object, table_name, chain, date, rows, bytes, sha256, content_hash,"
            " schema_version, encryption_key, ts_min, ts_max) VALUES (%s, %s, 't', %s, %s, 1, '', '', 1, '', %s, %s)",
            (f"{table}-{day}", table, START.date() + timedelta(days=day), rows, START, START),
        )

    listed("logs", 0, 10)
    listed("pool_events", 0, 10)
    listed("logs", 1, 3)
    listed("pool_events", 1, 4)
    listed("pool_events", 2, 5)
    first = START.date()
    expected = [(first + timedelta(days=1), 4, 3), (first + timedelta(days=2), 5, 0)]
    assert manifest.underivable(conn, "t") == expected
