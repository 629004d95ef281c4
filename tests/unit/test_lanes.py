"""Which partitions go together. Random cases beside the examples."""

from __future__ import annotations

import random

import pytest

from dash_pipeline.microbatch.lanes import Lane, lane, split
from dash_pipeline.topics import Partition


def test_a_lane_is_what_its_tag_says() -> None:
    one = lane("anvil", [("anvil.logs", 3), ("anvil.blocks", 0), ("anvil.logs", 1)])
    assert Lane.from_tag(one.to_tag()) == one
    assert one.all() == [("anvil.blocks", 0), ("anvil.logs", 1), ("anvil.logs", 3)]
    assert one.name == "anvil-0"
    assert lane("anvil", [("anvil.logs", 3), ("anvil.traces", 2)]).name == "anvil-2"


def test_no_partitions_are_no_lane() -> None:
    assert split("c", {}, 4) == []


def test_one_partition_number_of_all_topics_is_one_lane() -> None:
    lag = {(topic, n): 1000 for topic in ("c.logs", "c.traces") for n in range(4)} | {("c.blocks", 0): 10}
    for one in split("c", lag, 2):
        assert one.partitions["c.logs"] == one.partitions["c.traces"]


def test_a_partition_that_is_far_behind_is_alone() -> None:
    lag = {("c.logs", n): 1_000_000 if n == 3 else 0 for n in range(8)}
    assert sorted(one.partitions["c.logs"] for one in split("c", lag, 2)) == [(0, 1, 2, 4, 5, 6, 7), (3,)]


def test_partitions_without_lag_are_split_by_their_number() -> None:
    lag = {("c.logs", n): 0 for n in range(8)}
    assert [len(one.all()) for one in split("c", lag, 3)] == [3, 3, 2]


@pytest.mark.parametrize("seed", range(200))
def test_lanes_are_disjoint_even_and_own_everything(seed: int) -> None:
    rng = random.Random(seed)
    lag: dict[Partition, int] = {
        (f"c.{topic}", n): rng.choice([0, 0, 1, 50, 10_000])
        for topic in ("blocks", "logs", "traces")
        for n in range(1 if topic == "blocks" else rng.randrange(1, 9))
    }
    count = rng.randrange(1, 10)
    lanes = split("c", lag, count)
    numbers = {n for _, n in lag}
    assert len(lanes) == min(count, len(numbers))
    assert sorted(p for one in lanes for p in one.all()) == sorted(lag)
    assert len({one.name for one in lanes}) == len(lanes)
    behind = {n: sum(lag[p] for p in lag if p[1] == n) for n in numbers}
    lagging = sum(b > 0 for b in behind.values())
    assert sum(any(lag[p] for p in one.all()) for one in lanes) == min(len(lanes), lagging), "work for each"
    fair = sum(behind.values()) / len(lanes)
    for one in lanes:
        mine = [behind[n] for n in {n for _, n in one.all()}]
        assert sum(mine) <= 2 * fair + max(mine), "no lane has much more than its share"
