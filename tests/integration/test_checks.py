"""The per-block checks on a real database: what fails, what does not, and what is not judged at all."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from dash_pipeline.settings import Settings
from dash_pipeline.storage import timescale
from dash_pipeline.storage.checks import (
    BLOCK_CHECKS,
    COUNTED,
    MATCHED,
    NEIGHBOURS,
    TRANSFER,
    WHOLE,
    BlockCheck,
    Verdict,
    indexes_behind,
    judge,
    quiet_for,
    recent_range,
    rows_behind_blocks,
    tip,
    wall_clock_gap,
)
from dash_pipeline.storage.migrate import upgrade
from dash_pipeline.storage.timescale import Connection

START = datetime(2024, 1, 5, tzinfo=UTC)
BLOOM = b"\1" + bytes(255)
NO_BLOOM = bytes(256)


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


def when(number: int) -> datetime:
    return START + timedelta(seconds=12 * number)


def block(conn: Connection, number: int, transactions: int | None = 0, bloom: bytes | None = BLOOM) -> None:
    conn.execute(
        "INSERT INTO chain.blocks (chain, ts, block_number, block_hash, parent_hash, transaction_count, logs_bloom)"
        " VALUES ('t', %s, %s, %s, %s, %s, %s)",
        (when(number), number, hash_of(number), hash_of(number - 1), transactions, bloom),
    )


def transaction(conn: Connection, number: int, *indexes: int) -> None:
    for index in indexes:
        conn.execute(
            "INSERT INTO chain.transactions (chain, ts, block_number, block_hash, tx_hash, tx_index, from_address,"
            " value, value_f) VALUES ('t', %s, %s, %s, %s, %s, 'x', 0, 0)",
            (when(number), number, hash_of(number), hash_of(number * 1000 + index), index),
        )


def log(conn: Connection, number: int, *indexes: int, topics: int = 0, words: int = 0) -> None:
    """Logs at these indexes; with `topics`, Transfer logs with so many topics and so many words of data."""
    given = [TRANSFER, *[bytes(32)] * 3][:topics] + [None] * (4 - topics)
    for index in indexes:
        conn.execute(
            "INSERT INTO chain.logs (chain, ts, block_number, block_hash, tx_hash, log_index, address, topic0, topic1,"
            " topic2, topic3, data) VALUES ('t', %s, %s, %s, 'x', %s, 'x', %s, %s, %s, %s, %s)",
            (when(number), number, hash_of(number), index, *given, bytes(32 * words)),
        )


def transfer(conn: Connection, number: int, *indexes: int) -> None:
    for index in indexes:
        conn.execute(
            "INSERT INTO chain.token_transfers (chain, ts, block_number, block_hash, tx_hash, log_index,"
            " token_address, from_address, to_address, value, value_f)"
            " VALUES ('t', %s, %s, %s, 'x', %s, 'x', 'x', 'x', 0, 0)",
            (when(number), number, hash_of(number), index),
        )


def verdict(conn: Connection, check: BlockCheck, first: int = 0, last: int = 100) -> tuple[int, list[int]]:
    """Blocks judged, and the numbers of those that are wrong."""
    found = judge(conn, check, "t", [(first, last)])
    assert found.wrong == len(found.examples)
    return found.judged, [example["block_number"] for example in found.examples]


def test_transactions_are_counted(conn: Connection) -> None:
    block(conn, 1, transactions=2)
    transaction(conn, 1, 0, 1)
    block(conn, 2, transactions=0)
    block(conn, 3, transactions=2)
    transaction(conn, 3, 0)
    block(conn, 4, transactions=1)
    assert verdict(conn, COUNTED) == (4, [3, 4])


def test_a_wrong_block_is_named_with_what_was_expected(conn: Connection) -> None:
    block(conn, 7, transactions=2)
    transaction(conn, 7, 0)
    assert judge(conn, COUNTED, "t", [(7, 7)]) == Verdict(
        1, 1, ({"block_number": 7, "block_hash": "0x" + hash_of(7).hex(), "expected": 2, "found": 1},)
    )


def test_a_producer_that_did_not_count_is_not_judged(conn: Connection) -> None:
    block(conn, 1, transactions=None)
    transaction(conn, 1, 0)
    assert verdict(conn, COUNTED) == (0, [])


def test_log_indexes_have_no_holes(conn: Connection) -> None:
    block(conn, 1)
    log(conn, 1, 0, 1, 2)
    block(conn, 2)
    log(conn, 2, 0, 2)
    block(conn, 3)
    log(conn, 3, 1, 2)
    assert verdict(conn, WHOLE) == (3, [2, 3])


def test_a_bloom_filter_with_bits_and_no_logs_is_a_hole(conn: Connection) -> None:
    block(conn, 1)
    log(conn, 1, 0)
    block(conn, 2, bloom=BLOOM)
    block(conn, 3, bloom=NO_BLOOM)
    block(conn, 4, bloom=None)
    assert verdict(conn, WHOLE) == (4, [2])


def test_transfers_are_transfer_logs_of_four_words(conn: Connection) -> None:
    """ethereum-etl's rule: ERC-20 has three topics and a word of data, ERC-721 four topics; old tokens one topic."""
    block(conn, 1)
    log(conn, 1, 0, topics=3, words=1)
    log(conn, 1, 1, topics=4, words=0)
    log(conn, 1, 2, topics=1, words=3)
    log(conn, 1, 3, topics=3, words=2)  # not a transfer
    log(conn, 1, 4, topics=0, words=4)  # not a transfer
    transfer(conn, 1, 0, 1, 2)
    block(conn, 2)
    log(conn, 2, 0, 1, topics=3, words=1)
    transfer(conn, 2, 0)
    assert verdict(conn, MATCHED) == (2, [2])


def test_a_backfill_of_blocks_and_transactions_only_is_not_wrong(conn: Connection) -> None:
    """Another range of the same chain has logs and transfers; a gap lies between them."""
    for number in range(1, 5):
        block(conn, number, transactions=1)
        transaction(conn, number, 0)
        log(conn, number, 0, topics=3, words=1)
        transfer(conn, number, 0)
    for number in range(10, 15):
        block(conn, number, transactions=1)
        transaction(conn, number, 0)
    assert [verdict(conn, check) for check in BLOCK_CHECKS] == [(9, []), (4, []), (4, [])]


def test_logs_without_their_blocks_are_not_judged(conn: Connection) -> None:
    log(conn, 1, 3, 17)
    assert verdict(conn, WHOLE) == (0, [])


def test_neighbours_outside_the_range_say_what_the_feed_carries(conn: Connection) -> None:
    block(conn, 1)
    log(conn, 1, 0)
    for number in range(2, NEIGHBOURS + 1):
        block(conn, number, bloom=NO_BLOOM)
    block(conn, NEIGHBOURS + 1, bloom=BLOOM)
    block(conn, NEIGHBOURS + 2, bloom=BLOOM)
    assert verdict(conn, WHOLE, NEIGHBOURS + 1, NEIGHBOURS + 1) == (1, [NEIGHBOURS + 1])
    assert verdict(conn, WHOLE, NEIGHBOURS + 2, NEIGHBOURS + 2) == (0, []), "too far away"


def test_other_chains_rows_do_not_count(conn: Connection) -> None:
    block(conn, 1, transactions=1)
    transaction(conn, 1, 0)
    assert judge(conn, COUNTED, "u", [(0, 100)]) == Verdict()


def test_a_range_over_millions_of_absent_heights_is_no_work(conn: Connection) -> None:
    block(conn, 100, transactions=1)
    transaction(conn, 100, 0)
    block(conn, 17_000_000, transactions=1)
    transaction(conn, 17_000_000, 0)
    assert verdict(conn, COUNTED, 100, 17_000_000) == (2, [])


def test_rows_that_stop_coming_are_behind_by_the_chains_time(conn: Connection) -> None:
    for number in range(1, 11):
        block(conn, number, transactions=1)
    transaction(conn, 1, 0)
    transaction(conn, 4, 0)
    assert rows_behind_blocks(conn, COUNTED, "t", upto=10) == 6 * 12
    assert rows_behind_blocks(conn, COUNTED, "t", upto=5) == 12
    assert rows_behind_blocks(conn, COUNTED, "t", upto=4) == 0


def test_blocks_that_need_no_rows_do_not_make_them_late(conn: Connection) -> None:
    block(conn, 1, transactions=1)
    transaction(conn, 1, 0)
    for number in range(2, 50):
        block(conn, number, transactions=0)
    assert rows_behind_blocks(conn, COUNTED, "t", upto=100) == 0


def test_a_newest_range_that_carries_none_is_not_behind(conn: Connection) -> None:
    block(conn, 1)
    log(conn, 1, 0)
    block(conn, 1000, transactions=1)
    transaction(conn, 1000, 0)
    assert rows_behind_blocks(conn, WHOLE, "t", upto=2000) is None
    assert rows_behind_blocks(conn, WHOLE, "nobody", upto=2000) is None


def test_the_chains_clock(conn: Connection) -> None:
    assert tip(conn, "t") is None
    assert wall_clock_gap(conn, "t") is None
    for number in (1, 50, 100):
        block(conn, number)
    conn.execute(
        "INSERT INTO ops.chains (chain, tip_number, tip_hash, tip_ts) VALUES ('t', 100, %s, %s)",
        (hash_of(100), when(100)),
    )
    assert tip(conn, "t") == 100
    gap = wall_clock_gap(conn, "t")
    assert gap is not None
    assert abs(gap - (datetime.now(UTC) - when(100)).total_seconds()) < 60
    assert recent_range(conn, "t", window_s=12 * 60) == [(50, 100)]
    assert recent_range(conn, "nobody", window_s=60) == []


def test_what_the_indexes_do_not_show_yet_counts_by_the_chains_time(conn: Connection) -> None:
    for chain in ("t", "u"):
        conn.execute(
            "INSERT INTO ops.chains (chain, tip_number, tip_hash, tip_ts) VALUES (%s, 100, 'x', %s)",
            (chain, when(100)),
        )
    timescale.write_outbox(conn, "t", {hash_of(90): when(90), hash_of(91): when(91)}, {("t.blocks", 0): 5})
    assert indexes_behind(conn) == {"t": 120.0, "u": 0.0}


def test_a_chain_is_quiet_since_its_last_commit(conn: Connection) -> None:
    assert quiet_for(conn, "t") == 0
    conn.execute(
        "INSERT INTO ops.stream_offsets (topic, partition, next_offset, updated_at) VALUES"
        " ('t.blocks', 0, 1, now() - interval '1 hour'), ('t.logs', 0, 1, now() - interval '30 seconds'),"
        " ('u.logs', 0, 1, now())"
    )
    assert 30 <= quiet_for(conn, "t") < 60
