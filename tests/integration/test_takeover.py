"""Partitions go from lane to lane while messages flow: whoever claimed last has them, and each row is there once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from dash_pipeline.microbatch.drain import Limits
from dash_pipeline.settings import Settings
from dash_pipeline.storage import timescale as db
from tests.chain import branch
from tests.lane import PATIENCE_S, SMALL, Background, Market, Process, new_market, wait_for, whole

NUMBERS = range(4)
BLOCKS = 600
LONG = Limits(idle_timeout_s=PATIENCE_S, batch_rows=40, checkpoint_s=1)


@pytest.fixture
def market(migrated: Settings, unique: Callable[[str], str]) -> Market:
    return new_market(migrated, unique("c"), len(NUMBERS))


def start(market: Market, run: str, *numbers: int, limits: Limits = LONG) -> Background:
    of = market.lane(*numbers)
    return Background(lambda: market.drain(limits, run, of))


def begun(market: Market, *runs: str) -> None:
    """Wait until each of these runs has committed something and more is to come."""
    query = "SELECT DISTINCT run_id FROM ops.search_outbox o JOIN ops.stream_offsets s ON s.topic = ANY(o.topics)"
    wait_for(lambda: set(runs) <= {run for (run,) in market.query(f"{query} WHERE chain = %s", market.chain)}, "begun")
    assert market.lag() > 0


def ended_for(run: Background, successors: set[str]) -> None:
    """It ended in good order, because one of these took over."""
    run.join()
    assert run.error is None
    assert run.result is not None
    assert run.result.ended_early in {f"handed over to run {one}" for one in successors}


def finish(market: Market, *runs: Background) -> None:
    """Wait until all is committed, and see that the newest runs are at it still; then one takes over from all."""
    wait_for(lambda: market.lag() == 0, "all is committed")
    assert all(run.running for run in runs)
    market.drain(SMALL, "last")
    for run in runs:
        ended_for(run, {"last"})


def test_a_lane_is_split_under_load(market: Market) -> None:
    market.produce(whole(branch("A", 0, BLOCKS - 1, "-")))
    old = start(market, "old")
    begun(market, "old")
    new = [start(market, "new 0", 0, 1), start(market, "new 1", 2, 3)]
    ended_for(old, {"new 0", "new 1"})
    market.produce(whole(branch("A", BLOCKS, BLOCKS + 20, f"A{BLOCKS - 1}")))
    finish(market, *new)
    market.check(BLOCKS + 21)
    assert all(run.result is not None and run.result.messages > 100 for run in (old, *new)), "each had its share"


def test_two_lanes_are_merged_under_load(market: Market) -> None:
    market.produce(whole(branch("A", 0, BLOCKS - 1, "-")))
    old = [start(market, "old 0", 0, 1), start(market, "old 1", 2, 3)]
    begun(market, "old 0", "old 1")
    new = start(market, "new")
    for one in old:
        ended_for(one, {"new"})
    finish(market, new)
    market.check(BLOCKS)


def test_what_nobody_took_over_waits_for_the_next_lane(market: Market) -> None:
    market.produce(whole(branch("A", 0, BLOCKS - 1, "-")))
    old = start(market, "old")
    begun(market, "old")
    new = start(market, "new", 0)
    ended_for(old, {"new"})
    rest = start(market, "rest", 1, 2, 3)
    finish(market, new, rest)
    market.check(BLOCKS)


def test_an_idle_lane_notices_that_it_was_taken_over(market: Market) -> None:
    market.produce(whole(branch("A", 0, 4, "-")))
    old = start(market, "old")
    wait_for(lambda: market.lag() == 0, "all is read")
    time.sleep(1)
    began = time.monotonic()
    new = start(market, "new", 1)
    ended_for(old, {"new"})
    assert time.monotonic() - began < 15
    market.produce(whole(branch("A", 5, 9, "A4")))
    finish(market, new, start(market, "other", 0, 2, 3))
    market.check(10)


def test_of_lanes_that_start_at_once_one_goes_on(market: Market) -> None:
    market.produce(whole(branch("A", 0, BLOCKS - 1, "-")))
    runs = {name: start(market, name) for name in ("one", "two", "three")}
    wait_for(lambda: market.lag() == 0, "one goes on")
    wait_for(lambda: sum(run.running for run in runs.values()) == 1, "and only one")
    ((winner, run),) = [(name, run) for name, run in runs.items() if run.running]
    for name, other in runs.items():
        if name != winner:
            ended_for(other, set(runs) - {name})
    finish(market, run)
    market.check(BLOCKS)


def test_a_lane_that_reconnects_does_not_take_back_what_was_taken_over(market: Market) -> None:
    market.produce(whole(branch("A", 0, BLOCKS - 1, "-")))
    old = start(market, "old")
    owned = "SELECT count(*) FROM ops.stream_offsets WHERE run_id = 'old' AND topic LIKE %s"
    wait_for(lambda: market.query(owned, f"{market.chain}.%")[0][0] > 0, "its claim")
    with db.connect(market.settings) as conn:
        with conn.transaction():
            db.claim(conn, dict.fromkeys(market.ends(), 0), "new")
            # The old lane has something to commit, waits for its offsets, and loses its connection there.
            market.produce(whole(branch("A", BLOCKS, BLOCKS + 9, f"A{BLOCKS - 1}")))
            waits = (
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE wait_event_type = 'Lock' AND query LIKE %s"
            )
            wait_for(lambda: conn.execute(waits, ("%FROM ops.stream_offsets%FOR UPDATE%",)).fetchone() != (0,), "waits")
        ended_for(old, {"new"})
        owners = conn.execute("SELECT DISTINCT run_id FROM ops.stream_offsets WHERE topic LIKE %s",
                              (f"{market.chain}.%",)).fetchall()  # fmt: skip
    assert owners == [("new",)]
    market.drain(SMALL, "last")
    market.check(BLOCKS + 10)


def test_what_the_owner_commits_after_the_look_at_kafka_is_no_topic_made_anew(market: Market) -> None:
    """A lane reads where partitions end, and then waits for the batch that their owner has in hand."""
    market.produce(whole(branch("A", 0, 20, "-")))
    market.drain(SMALL, "first")
    topic = market.topic("log")
    with db.connect(market.settings) as owner, owner.transaction():
        owner.execute("SELECT FROM ops.stream_offsets WHERE topic = %s FOR UPDATE", (topic,))
        new = start(market, "new", limits=SMALL)
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s"
        wait_for(lambda: market.query(waiting, "INSERT INTO ops.stream_offsets%")[0][0] > 0, "the claim")
        market.produce(whole(branch("A", 21, 40, "A20")))
        ends = {number: end for (name, number), end in market.ends().items() if name == topic}
        for number, end in ends.items():
            update = "UPDATE ops.stream_offsets SET next_offset = %s WHERE topic = %s AND partition = %s"
            owner.execute(update, (end, topic, number))

    new.join()

    assert new.error is None
    assert market.lag() == 0


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.patient) for seed in (1, 2))])
def test_lanes_are_planned_anew_and_killed_at_any_moment(market: Market, seed: int) -> None:
    dice = random.Random(seed)
    plans: list[list[Process]] = []
    for number in range(4):
        lanes = dice.randint(1, 3)
        slots = [dice.randrange(lanes) for _ in NUMBERS]
        shares = [[n for n in NUMBERS if slots[n] == slot] for slot in set(slots)]
        plans.append(
            [
                Process(market.settings, market.lane(*share), LONG, f"{number}: {'-'.join(map(str, share))}")
                for share in shares
            ]
        )
    made, begun = 0, []
    try:
        for plan in plans:
            market.produce(whole(branch("A", made, made + 39, f"A{made - 1}" if made else "-")))
            made += 40
            for process in plan:
                process.go()
                begun.append(process)
                time.sleep(dice.uniform(0, 0.4))
            time.sleep(dice.uniform(0, 1))
            for process in dice.sample(begun, min(len(begun), dice.randint(0, 2))):
                process.kill()
        market.drain(SMALL, "last")
        market.check(made)
    finally:
        for process in (process for plan in plans for process in plan):
            process.kill()
