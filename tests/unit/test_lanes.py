"""Which partitions go together. Random cases beside the examples."""

from __future__ import annotations

import random

import pytest

from dash_pipeline.microbatch.lanes import Lane, lane, plan_lanes
from dash_pipeline.topics import Partition


def test_a_lane_is_what_its_tag_says() -> None:
    one = lane("anvil", [("anvil.logs", 3), ("anvil.blocks", 0), ("anvil.logs", 1)])
    assert Lane.from_tag(one.to_tag()) == one
    assert one.all() == [("anvil.blocks", 0), ("anvil.logs", 1), ("anvil.logs", 3)]
    assert one.name == "anvil-0"
    assert lane("anvil", [("anvil.logs", 3), ("anvil.traces", 2)]).name == "anvil-2"


def test_no_lag_is_no_lane() -> None:
    assert plan_lanes("c", {("c.logs", 0): 0, ("c.logs", 1): 0}, [], 4, 100) == []
    assert plan_lanes("c", {}, [], 4, 100) == []


def test_lag_earns_lanes_up_to_the_maximum() -> None:
    lag = {("c.logs", n): 100 for n in range(4)}
    assert [len(plan_lanes("c", lag, [], 4, per_lane)) for per_lane in (1000, 400, 399, 200, 100, 1)] == [
        1, 1, 2, 2, 4, 4,
    ]  # fmt: skip
    assert len(plan_lanes("c", lag, [], 2, 1)) == 2


def test_one_partition_number_of_all_topics_is_one_lane() -> None:
    lag = {(topic, n): 1000 for topic in ("c.logs", "c.traces") for n in range(4)} | {("c.blocks", 0): 10}
    for one in plan_lanes("c", lag, [], 2, 100):
        assert one.partitions["c.logs"] == one.partitions["c.traces"]


def test_partitions_added_while_lanes_run_get_a_lane() -> None:
    live = [lane("c", [("c.logs", n)]) for n in range(2)]
    lag = {("c.logs", n): 5 for n in range(4)}
    (new,) = plan_lanes("c", lag, live, 2, 100)
    assert new.partitions == {"c.logs": (2, 3)}


@pytest.mark.parametrize("seed", range(200))
def test_lanes_are_disjoint_and_own_all_that_lags(seed: int) -> None:
    rng = random.Random(seed)
    lag: dict[Partition, int] = {
        (f"c.{topic}", n): rng.choice([0, 0, 1, 50, 10_000])
        for topic in ("blocks", "logs", "traces")
        for n in range(1 if topic == "blocks" else rng.randrange(1, 9))
    }
    live = [lane("c", [p]) for p in lag if rng.random() < 0.2]
    most = rng.randrange(1, 6)
    planned = plan_lanes("c", lag, live, most, rng.choice([1, 100, 5000]))
    owned = [p for one in [*planned, *live] for p in one.all()]
    assert len(owned) == len(set(owned)), "disjoint"
    assert {p for p, n in lag.items() if n} <= set(owned), "nothing that lags is left"
    assert len(planned) <= max(1, most - len(live))
    assert len({one.name for one in planned}) == len(planned)
    assert all(any(lag[p] for p in one.all()) for one in planned), "no lane without work"
