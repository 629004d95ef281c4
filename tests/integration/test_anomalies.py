"""Anomalies in the database: written with the rows, the same whatever the order, taken back when a fork takes the rows
back. Against a real TimescaleDB; batches without a broker."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from dash_pipeline.microbatch.consume import Batch
from dash_pipeline.microbatch.detect import Detector
from dash_pipeline.settings import Settings
from dash_pipeline.storage import anomalies as store
from dash_pipeline.storage.migrate import upgrade
from tests.chain import TOPIC0, Messages, Topics, address, hash_of, merge, word
from tests.pools import WETH, Pool, block, life
from tests.run import Run

DEVELOPER = "0x" + "d" * 40
BLOCKS = 60


@pytest.fixture(scope="module")
def migrated(database: Settings) -> Settings:
    upgrade(database)
    return database


class Lane(Run):
    """A run that detects."""

    def __init__(self, settings: Settings, chain: str, name: str = "run") -> None:
        super().__init__(settings, chain, name)
        self.detector = Detector(chain, [bytes.fromhex(WETH[2:])])

    def found(self, active: bool = True) -> list[tuple[Any, ...]]:
        """The anomalies, without what says when and by whom they were found."""
        return self.conn.execute(
            "SELECT id, kind, severity, pool, token, wallets, block_number, block_hash, tx_hash, log_indexes, score,"
            " evidence FROM intel.anomalies WHERE chain = %s AND (retracted_at IS NULL) = %s"
            " ORDER BY ts, kind, severity",
            (self.chain, active),
        ).fetchall()

    def high(self) -> list[tuple[Any, ...]]:
        return [row for row in self.found() if row[2] == "high"]


@pytest.fixture
def lane(migrated: Settings, unique: Callable[[str], str]) -> Lane:
    return Lane(migrated, unique("c"))


def rug(developer: str = DEVELOPER) -> tuple[Pool, list[tuple[str, Messages]]]:
    """A pool that trades for an hour and is drained in the last block."""
    pool = Pool("x", developer)
    blocks = life(pool, BLOCKS)
    last = f"A{BLOCKS}"
    blocks.append((last, block(last, f"A{BLOCKS - 1}", [(developer, pool.drained())])))
    return pool, blocks


def messages(blocks: list[tuple[str, Messages]]) -> Messages:
    return merge(one for _, one in blocks)


def test_a_drained_pool_is_an_anomaly_of_the_transaction_that_drained_it(lane: Lane) -> None:
    pool, blocks = rug()
    topics = Topics(lane.chain)
    lane.take(topics.produce(messages(blocks[:-1])))
    assert lane.high() == []
    done = lane.take(topics.produce(messages(blocks[-1:])))
    assert done.anomalies > 0
    ((id_, kind, _, address, token, wallets, number, hash_, tx, logs, score, evidence),) = lane.high()
    assert kind == "liquidity_withdrawal"
    assert address == bytes.fromhex(pool.address[2:])
    assert token == bytes.fromhex(pool.token[2:])
    assert wallets == [bytes.fromhex(DEVELOPER[2:])]
    assert (number, hash_) == (BLOCKS, bytes.fromhex(hash_of(f"A{BLOCKS}")[2:]))
    assert tx == bytes.fromhex(hash_of(f"A{BLOCKS}", "tx0")[2:])
    assert logs
    assert 0.9 < score <= 1
    assert evidence
    assert len(id_) == 16


def test_a_trade_is_none(lane: Lane) -> None:
    _, blocks = rug()
    lane.take(Topics(lane.chain).produce(messages(blocks[:-1])))
    assert lane.found() == []


def test_a_replay_finds_the_same_and_changes_nothing(lane: Lane) -> None:
    _, blocks = rug()
    lane.take(Topics(lane.chain).produce(messages(blocks)))
    before = lane.found()
    again = Topics(lane.chain)
    again.ends = dict(lane.expected or {})
    assert lane.take(again.produce(messages(blocks))).anomalies == 0
    assert lane.found() == before
    assert lane.one("SELECT max(revision) FROM intel.anomalies WHERE chain = %s", lane.chain) == 1


@pytest.mark.parametrize("seed", range(6))
def test_arrival_order_and_batches_do_not_matter(migrated: Settings, unique: Callable[[str], str], seed: int) -> None:
    """Logs in any order, in batches of any size, with the block after or before them, give the anomalies of one whole
    batch in order."""
    dice = random.Random(seed)
    _, blocks = rug()
    whole = Lane(migrated, unique("c"))
    whole.take(Topics(whole.chain).produce(messages(blocks)))
    pieces = Lane(migrated, unique("c"))
    topics = Topics(pieces.chain)
    rest = [(type_, message) for type_, some in messages(blocks).items() for message in some]
    dice.shuffle(rest)
    while rest:
        count = dice.randrange(1, 60)
        batch: Messages = {}
        for type_, message in rest[:count]:
            batch.setdefault(type_, []).append(message)
        rest = rest[count:]
        pieces.take(topics.produce(batch))
    assert [row[1:] for row in pieces.found()] == [row[1:] for row in whole.found()]
    assert whole.high()


def test_a_reorg_takes_the_anomaly_back_and_brings_it_again(lane: Lane) -> None:
    _, blocks = rug()
    topics = Topics(lane.chain)
    lane.take(topics.produce(messages(blocks)))
    (before,) = lane.high()
    # Another branch from before the drain, on which nobody drains anything.
    other = [(f"B{n}", block(f"B{n}", f"A{n - 1}" if n == BLOCKS else f"B{n - 1}")) for n in (BLOCKS, BLOCKS + 1)]
    lane.take(topics.produce(messages(other)))
    assert lane.high() == []
    assert before[0] in {row[0] for row in lane.found(active=False)}
    # The first branch comes back, longer.
    back = [(f"A{n}", block(f"A{n}", f"A{n - 1}")) for n in (BLOCKS + 1, BLOCKS + 2)]
    lane.take(topics.produce(messages(back)))
    assert lane.high() == [before]
    assert lane.one("SELECT revision FROM intel.anomalies WHERE id = %s", before[0]) == 3


def minutes(lane: Lane, *, recounted: bool = False) -> list[tuple[Any, ...]]:
    """What is known of the pools' minutes, or what their rows say of them."""
    with lane.conn.transaction(force_rollback=True):
        if recounted:
            times = "SELECT pool, min(ts), max(ts) FROM chain.pool_events WHERE chain = %s GROUP BY pool"
            rows = lane.conn.execute(times, (lane.chain,)).fetchall()
            lane.conn.execute("DELETE FROM rollup.pool_minutes WHERE chain = %s", (lane.chain,))
            store.recount_minutes(lane.conn, lane.chain, {pool: (lo, hi) for pool, lo, hi in rows})
        volumes = [f"round({name}::numeric, 6)" for name in ("volume0", "volume1")]
        columns = [name for name in store.MINUTES if not name.startswith("volume")] + volumes
        return lane.conn.execute(
            f"SELECT {', '.join(columns)} FROM rollup.pool_minutes WHERE chain = %s ORDER BY pool, ts", (lane.chain,)
        ).fetchall()


def test_minutes_say_what_the_rows_say_in_any_order_and_after_a_reorg(lane: Lane) -> None:
    """What decides whether a pool is looked at is counted up, batch by batch."""
    dice = random.Random(7)
    _, blocks = rug()
    topics = Topics(lane.chain)
    rest = [(type_, message) for type_, some in messages(blocks).items() for message in some]
    dice.shuffle(rest)
    while rest:
        batch: Messages = {}
        for type_, message in rest[:40]:
            batch.setdefault(type_, []).append(message)
        rest = rest[40:]
        lane.take(topics.produce(batch))
    before = minutes(lane)
    assert len(before) > 10
    assert before == minutes(lane, recounted=True)

    other = [(f"B{n}", block(f"B{n}", f"A{n - 1}" if n == BLOCKS else f"B{n - 1}")) for n in (BLOCKS, BLOCKS + 1)]
    lane.take(topics.produce(messages(other)))
    after = minutes(lane)
    assert after != before
    assert after == minutes(lane, recounted=True)


def test_a_lane_counts_what_a_version_without_minutes_wrote(lane: Lane) -> None:
    """During an upgrade the old version's lanes go on for a while."""
    _, blocks = rug()
    topics = Topics(lane.chain)
    detector, lane.detector = lane.detector, None
    lane.take(topics.produce(messages(blocks[:-1])))
    lane.detector = detector
    assert minutes(lane) == []
    detector.begin(lane.conn)
    tip = lane.one("SELECT tip_ts FROM ops.chains WHERE chain = %s", lane.chain)
    window = tip - timedelta(seconds=detector.rules.window_s)
    expected = [row for row in minutes(lane, recounted=True) if row[1] >= window]
    assert len(expected) > 1
    assert [row for row in minutes(lane) if row[1] >= window] == expected
    lane.take(topics.produce(messages(blocks[-1:])))
    assert lane.high()


def test_events_that_say_nothing_or_too_much_hold_no_lane_up(lane: Lane) -> None:
    """Anyone may emit a pool's events, with any numbers in them."""
    most, parties = 2**256 - 1, [f"0x{word(address(name))}" for name in ("router", "someone")]
    amounts = list(itertools.product((0, 1, most), repeat=2))
    logs = []
    for price, liquidity in amounts:
        data = "".join(map(word, (most >> 1, most >> 1, price, liquidity, 0)))
        logs.append((address("three"), [TOPIC0["uniswap_v3", "swap"], *parties], data))
    for reserves in amounts:
        logs.append((address("two"), [TOPIC0["uniswap_v2", "sync"]], "".join(map(word, reserves))))
        logs.append(
            (address("two"), [TOPIC0["uniswap_v2", "swap"], *parties], "".join(map(word, (*reserves, *reserves))))
        )
        logs.append((address("two"), [TOPIC0["uniswap_v2", "burn"], *parties], "".join(map(word, reserves))))
    topics = Topics(lane.chain)
    for number, log in enumerate(logs):
        done = lane.take(topics.produce(block(f"A{number}", f"A{number - 1}", [(DEVELOPER, [log])])))
        assert done.rows["pool_events"] == 1
    assert lane.one("SELECT count(*) FROM chain.pool_events WHERE chain = %s", lane.chain) == len(logs)


def test_two_lanes_that_bring_a_life_and_its_end_at_once_find_it(
    migrated: Settings, unique: Callable[[str], str]
) -> None:
    """Neither has seen the other's rows when it reads its windows, unless one waits for the other's commit."""
    for attempt in range(5):
        _, blocks = rug()
        one = Lane(migrated, unique("c"), "one")
        two = Lane(migrated, one.chain, "two")
        topics = Topics(one.chain)
        one.take(topics.produce({"block": messages(blocks)["block"]}))
        logs = [message for _, some in blocks for message in some["log"]]
        halves = [topics.produce({"log": logs[:-5]}, 0), topics.produce({"log": logs[-5:]}, 1)]
        start = threading.Barrier(2)

        def work(run: Lane, batch: Batch, start: threading.Barrier = start) -> None:
            start.wait()
            run.take(batch)

        threads = [threading.Thread(target=work, args=pair) for pair in zip((one, two), halves, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(one.high()) == 1, attempt


def test_only_what_is_not_on_the_topic_waits_to_be_published(lane: Lane) -> None:
    _, blocks = rug()
    lane.take(Topics(lane.chain).produce(messages(blocks)))
    assert lane.chain in store.unpublished(lane.conn)
    with lane.conn.transaction():
        waiting = store.lock_unpublished(lane.conn, lane.chain, 100)
        assert {one.id for one in waiting} == {row[0] for row in lane.found()}
        store.mark_published(lane.conn, waiting)
    assert lane.chain not in store.unpublished(lane.conn)
    assert {one.id for one in store.read_anomalies(lane.conn, [one.id for one in waiting])} == {
        one.id for one in waiting
    }
