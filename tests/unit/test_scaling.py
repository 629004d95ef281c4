"""The autoscaling rule: each of its parts, and what holds whatever the lag does."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence

import pytest

from dash_pipeline.microbatch.lanes import Lane, lane
from dash_pipeline.topics import Partition
from sensors.scaling import Live, Memory, Policy, Scaling, scale, wanted

POLICY = Policy(max_lanes=8, lag_per_lane=100, min_lanes=1, scale_up_cooldown_s=30, scale_down_after_s=120)
NOW = 10_000.0
LONG_AGO = Memory(0.0)


def lagging(*behind: int) -> dict[Partition, int]:
    """The lag of the partitions of one topic."""
    return {("c.logs", number): messages for number, messages in enumerate(behind)}


def lanes(*shares: Sequence[int], since: float = 0.0, begun: bool = True) -> list[Live]:
    """Live lanes of these partition numbers."""
    return [Live(lane("c", [("c.logs", number) for number in share]), since, begun) for share in shares]


def numbers(scaling: Scaling) -> list[list[int]]:
    return sorted(sorted({number for _, number in one.all()}) for one in scaling.lanes)


def rule(
    lag: Mapping[Partition, int],
    live: Sequence[Live] = (),
    memory: Memory | None = LONG_AGO,
    policy: Policy = POLICY,
    now: float = NOW,
) -> Scaling:
    return scale("c", lag, live, memory, policy, now)


# --- how many


@pytest.mark.parametrize(
    ("behind", "least", "most", "count"),
    [
        ((1, 0, 0, 0), 1, 8, 1),
        ((100, 0, 0, 0), 1, 8, 1),
        ((50, 51, 0, 0), 1, 8, 2),
        ((400, 400, 400, 400), 1, 8, 4),  # no more than partition numbers
        ((400, 400, 400, 400), 1, 3, 3),  # the maximum
        ((1, 0, 0, 0), 3, 8, 3),  # the minimum
        ((1, 0, 0, 0), 9, 8, 4),
        ((900, 900, 0, 0), 1, 8, 2),  # a lane without lag would do nothing
        ((900, 900, 0, 0), 3, 8, 3),
    ],
)
def test_lag_earns_lanes(behind: tuple[int, ...], least: int, most: int, count: int) -> None:
    policy = Policy(most, 100, least)
    assert wanted(lagging(*behind), policy) == count
    assert len(rule(lagging(*behind), memory=None, policy=policy).lanes) == count


def test_nothing_live_and_no_lag_is_nothing_and_forgotten() -> None:
    assert rule(lagging(0, 0)) == Scaling()
    assert rule({}) == Scaling()


def test_the_first_lanes_wait_for_no_cool_down() -> None:
    begun = rule(lagging(400, 400), memory=Memory(NOW - 1))
    assert numbers(begun) == [[0], [1]]
    assert begun.memory == Memory(NOW)


# --- up


def test_more_lanes_are_earned_than_live() -> None:
    up = rule(lagging(100, 100, 100, 100), lanes([0, 1, 2, 3]))
    assert numbers(up) == [[0], [1], [2], [3]]
    assert up.memory == Memory(NOW)
    assert up.note == "c: from 1 to 4 lanes, 400 behind"


def test_a_change_waits_for_the_cool_down() -> None:
    early = rule(lagging(400, 400), lanes([0, 1]), Memory(NOW - 29))
    assert early == Scaling(memory=Memory(NOW - 29))
    assert len(rule(lagging(400, 400), lanes([0, 1]), Memory(NOW - 30)).lanes) == 2


def test_without_a_memory_the_cool_down_counts_from_the_newest_lane() -> None:
    for seconds, count in ((29, 0), (30, 2)):
        live = [*lanes([0], since=0), *lanes([0, 1], since=NOW - seconds)]
        assert len(rule(lagging(400, 400), live, None).lanes) == count


def test_a_plan_is_let_begin_before_the_next() -> None:
    waiting = [*lanes([0]), *lanes([1, 2, 3], begun=False)]
    assert rule(lagging(400, 400, 400, 400), waiting).lanes == ()


def test_only_lanes_that_differ_are_started() -> None:
    up = rule(lagging(1000, 100, 100, 1), lanes([0], [1, 2, 3]))
    assert numbers(up) == [[1], [2], [3]], "[0] is there"


def test_partitions_whose_offsets_are_broken_make_no_difference() -> None:
    """They are no lag; a lane that has one beside others is still the lane of the others."""
    live = [*lanes([0, 7]), *lanes([1, 2, 3])]
    assert numbers(rule(lagging(1000, 100, 100, 1), live)) == [[1], [2], [3]]


def test_keyed_topics_stay_together() -> None:
    lag = {(topic, number): 300 for topic in ("c.logs", "c.traces") for number in range(4)}
    planned = rule(lag, [Live(lane("c", lag))]).lanes
    assert [one.partitions["c.logs"] for one in planned] == [one.partitions["c.traces"] for one in planned]
    assert len(planned) == 4


def test_below_the_minimum_is_no_question_of_cool_down() -> None:
    policy = Policy(8, 100, min_lanes=2)
    assert len(rule(lagging(1, 1), lanes([0, 1]), Memory(NOW - 1), policy).lanes) == 2


# --- who owns what


def test_the_owner_is_the_newest_lane() -> None:
    """The lane before lives until it has seen that it was taken over."""
    live = [*lanes([0, 1, 2, 3], since=1), *lanes([0, 1], [2, 3], since=2)]
    assert rule(lagging(90, 0, 90, 0), live).lanes == ()
    assert numbers(rule(lagging(90, 90, 90, 90), live)) == [[0], [1], [2], [3]]


def test_partitions_that_nobody_has_get_a_lane_at_once() -> None:
    fill = rule(lagging(0, 5, 0, 0), lanes([0]), Memory(NOW - 1))
    assert numbers(fill) == [[1, 2, 3]]
    assert fill.memory == Memory(NOW - 1), "that is no change of the plan"


def test_partitions_that_nobody_has_wait_while_they_have_no_lag() -> None:
    assert rule(lagging(5, 0, 0, 0), lanes([0])).lanes == ()


def test_they_get_as_many_lanes_as_they_earn() -> None:
    assert numbers(rule(lagging(5, 200, 200, 200), lanes([0]))) == [[1], [2], [3]]
    policy = Policy(3, 100)
    assert len(rule(lagging(5, 200, 200, 200), lanes([0]), policy=policy).lanes) == 2


def test_lanes_that_ended_are_made_up_for_to_the_minimum() -> None:
    policy = Policy(8, 100, min_lanes=3)
    assert numbers(rule(lagging(5, 0, 0, 0), lanes([0]), policy=policy)) == [[1, 3], [2]]
    assert rule(lagging(0, 0, 0, 0), lanes([0]), policy=policy).lanes == (), "without lag nobody is missed"


def test_at_the_maximum_the_idlest_lane_takes_them() -> None:
    policy = Policy(2, 100)
    fill = rule(lagging(80, 10, 5, 0), lanes([0], [1]), policy=policy)
    assert numbers(fill) == [[1, 2, 3]]
    starting = [*lanes([0]), *lanes([1], begun=False)]
    assert numbers(rule(lagging(80, 10, 5, 0), starting, policy=policy)) == [[0, 2, 3]], "that one has begun"
    assert rule(lagging(80, 10, 5, 0), lanes([0], [1], begun=False), policy=policy).lanes == ()


# --- down


def test_fewer_lanes_when_the_lag_fits_for_a_while() -> None:
    live = lanes([0], [1], [2], [3])
    low = rule(lagging(10, 10, 10, 10), live)
    assert low == Scaling(memory=Memory(0.0, NOW, 1))
    assert rule(lagging(10, 10, 10, 10), live, low.memory, now=NOW + 119).lanes == ()
    down = rule(lagging(10, 10, 10, 10), live, low.memory, now=NOW + 120)
    assert numbers(down) == [[0, 2], [1, 3]], "half of them at a time"
    assert down.memory == Memory(NOW + 120)


def test_it_must_fit_well() -> None:
    """Half of what earns so many lanes."""
    live = lanes([0], [1], [2], [3])
    for behind, low in ((149, 3), (150, None), (99, 2), (49, 1)):
        memory = rule(lagging(behind, 0, 0, 0), live).memory
        assert memory == (Memory(0.0, NOW, low) if low else LONG_AGO)


def test_the_most_of_the_time_counts() -> None:
    live = lanes([0], [1], [2], [3])
    memory: Memory | None = LONG_AGO
    for seconds, behind in ((0, 0), (60, 120), (90, 0)):
        memory = rule(lagging(behind, 0, 0, 0), live, memory, now=NOW + seconds).memory
    assert memory == Memory(0.0, NOW, 3)
    assert len(rule(lagging(0, 0, 0, 0), live, memory, now=NOW + 120).lanes) >= 1
    assert numbers(rule(lagging(0, 0, 0, 0), live, memory, now=NOW + 120)) == [[0, 3]]


def test_a_moment_of_lag_begins_the_time_anew() -> None:
    live = lanes([0], [1])
    memory = rule(lagging(60, 60), live, Memory(0.0, NOW - 119, 1)).memory
    assert memory == LONG_AGO


def test_a_lost_memory_only_delays() -> None:
    lost = rule(lagging(0, 0), lanes([0], [1], since=NOW - 500), None)
    assert lost == Scaling(memory=Memory(NOW - 500, NOW, 1))


# --- whatever happens


def current(live: Sequence[Live], lag: Mapping[Partition, int]) -> dict[Partition, int]:
    """Partition -> its owner, by what the documentation says of it."""
    return {p: i for i, one in enumerate(live) for p in one.lane.all() if p in lag}


@pytest.mark.parametrize("seed", range(150))
def test_whatever_the_lag_does(seed: int) -> None:
    """Lag jumps, pods take their time to start, lanes end, die, are taken over late, and the memory gets lost."""
    dice = random.Random(seed)
    most = dice.randint(1, 8)
    policy = Policy(most, 100, dice.randint(1, most), dice.choice([0, 10, 30, 60]), dice.choice([0, 30, 120]))
    places = [("c.logs", number) for number in range(dice.randint(1, 12))]
    least = min(policy.min_lanes, len(places))
    live: list[Live] = []
    started_at: dict[int, float] = {}  # by identity of the Live: when its pod is there
    memory: Memory | None = None
    changes: list[float] = []
    level = 100.0
    for tick in range(300):
        now = NOW + 5.0 * tick
        # Lanes begin, and those that lost a partition to one that has begun end, some of them late.
        live = [
            one if one.begun or now < started_at[id(one)] else Live(one.lane, one.since, begun=True) for one in live
        ]
        begun = [one for one in live if one.begun]
        lost = {
            id(old)
            for old in begun
            for new in begun
            if new.since > old.since and set(new.lane.all()) & set(old.lane.all())
        }
        live = [one for one in live if not (id(one) in lost and dice.random() < 0.8) and dice.random() > 0.01]
        started_at = {id(one): started_at.get(id(one), 0.0) for one in live}
        level = min(5000.0, max(0.0, level * dice.choice([0, 0.5, 0.9, 1, 1, 1.1, 2]) + dice.choice([0, 0, 1, 50])))
        lag = {place: int(dice.random() * level) for place in places}
        if dice.random() < 0.02:
            memory = None
        result = scale("c", lag, live, memory, policy, now)
        memory = result.memory
        before = current(live, lag)
        there = {frozenset(live[i].lane.all()) for i in before.values()}
        assert not there & {frozenset(one.all()) for one in result.lanes}, "a lane that is the same is not started"
        new = [p for one in result.lanes for p in one.all()]
        assert len(new) == len(set(new)), "lanes of a tick are disjoint"
        if result.note:
            changes.append(now)
        settled = all(live[i].begun for i in before.values())
        for one in result.lanes:
            live.append(Live(one, now, begun=False))
            started_at[id(live[-1])] = now + dice.choice([0, 3, 3, 8, 40])
        owners = set(current(live, lag).values())
        # When a lane dies before it has begun, those it was to take over from have its partitions still.
        assert len(owners) <= max(policy.max_lanes, len(set(before.values()))), "never above the maximum"
        if sum(lag.values()) and settled:
            assert len(owners) >= least, "never below the minimum while there is lag"
            assert set(lag) - set(current(live, lag)) <= {p for p in lag if not lag[p]}, "all that lags has an owner"
    if policy.min_lanes == 1:  # getting to the minimum waits for nothing
        gaps = [after - before for before, after in itertools.pairwise(changes)]
        assert all(gap >= policy.scale_up_cooldown_s for gap in gaps), "no flapping"


def test_a_steady_lag_ends_in_lanes_that_stay() -> None:
    """Whatever level it is at: from there on nothing changes any more."""
    for behind in range(0, 1200, 37):
        lag, live, memory = lagging(*[behind // 8 + 1] * 8), lanes(range(8)), LONG_AGO
        last = NOW
        for tick in range(400):
            result = scale("c", lag, live, memory, POLICY, NOW + 5 * tick)
            memory = result.memory or memory
            if result.lanes:
                last = NOW + 5 * tick
                taken = {p for one in result.lanes for p in one.all()}
                live = [one for one in live if not taken & set(one.lane.all())]
                live += [Live(one, last) for one in result.lanes]
        assert last < NOW + 600, behind
        assert sorted(p for one in live for p in one.lane.all()) == sorted(lag)


def test_lanes_are_named_apart_within_a_plan() -> None:
    planned: Sequence[Lane] = rule(lagging(*[500] * 8), memory=None).lanes
    assert len({one.name for one in planned}) == 8
