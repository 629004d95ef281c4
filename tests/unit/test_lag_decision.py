"""What the lag sensor decides, without servers."""

from __future__ import annotations

import pytest

from dash_pipeline.lag import Extent
from dash_pipeline.microbatch.lanes import lane
from dash_pipeline.topics import chain_topics
from sensors.lag_decision import Decision, Seen, decide, to_observe
from sensors.runs import LONGEST_REST_S, rest_after
from sensors.scaling import Live, Memory, Policy

POLICY = Policy(max_lanes=2, lag_per_lane=100)
LOGS = "anvil.logs"
PARTITIONS = [(LOGS, 0), (LOGS, 1)]


def extent(end: dict[int, int], begin: int = 0, missing: tuple[str, ...] = ()) -> Extent:
    """Kafka with one topic, `anvil.logs`, that ends at these offsets."""
    places = {(LOGS, number): offset for number, offset in end.items()}
    others = missing or tuple(topic for topic in chain_topics("anvil") if topic != LOGS)
    return Extent(dict.fromkeys(places, begin), places, others)


def answer(seen: Seen, chains: tuple[str, ...] = ("anvil",), policy: Policy = POLICY) -> Decision:
    return decide(chains, seen, policy)


def test_lag_starts_a_lane_with_every_free_partition() -> None:
    decision = answer(Seen(extent({0: 10, 1: 0}), {}))
    assert [one.all() for one in decision.lanes] == [PARTITIONS]
    assert decision.skip_reason is None


def test_more_lag_starts_more_lanes_up_to_the_policy() -> None:
    decision = answer(Seen(extent({0: 500, 1: 500, 2: 500}), {}))
    assert len(decision.lanes) == 2
    assert sorted(place for one in decision.lanes for place in one.all()) == [(LOGS, n) for n in range(3)]


def test_no_lag_starts_nothing_and_says_so() -> None:
    decision = answer(Seen(extent({0: 10, 1: 0}), {(LOGS, 0): 10}))
    assert decision.lanes == ()
    assert "no lag: anvil" in (decision.skip_reason or "")


def test_a_live_lane_is_not_started_again() -> None:
    live = Live(lane("anvil", PARTITIONS))
    decision = answer(Seen(extent({0: 10, 1: 5}), {}, [live]))
    assert decision.lanes == ()
    assert "anvil: 1 live lane, 15 behind" in (decision.skip_reason or "")


def test_an_index_that_was_left_behind_starts_a_lane() -> None:
    behind = Seen(extent({0: 10, 1: 5}), {(LOGS, 0): 10, (LOGS, 1): 5}, unfinished=frozenset({"anvil"}))
    assert [one.all() for one in answer(behind).lanes] == [PARTITIONS]


def test_a_live_lane_is_left_to_close_the_gap_of_the_index() -> None:
    live = [Live(lane("anvil", PARTITIONS))]
    assert answer(Seen(extent({0: 0, 1: 0}), {}, live, unfinished=frozenset({"anvil"}))).lanes == ()


def test_another_chains_live_lane_does_not_count() -> None:
    decision = answer(Seen(extent({0: 10}), {}, [Live(lane("bsc", [("bsc.logs", 0)]))]))
    assert [one.chain for one in decision.lanes] == ["anvil"]


def test_partitions_added_while_a_lane_runs_get_a_lane() -> None:
    decision = answer(Seen(extent({0: 10, 1: 10}), {}, [Live(lane("anvil", [(LOGS, 0)]))]))
    assert [one.all() for one in decision.lanes] == [[(LOGS, 1)]]


def test_missing_topics_are_named_and_do_not_stop_the_others() -> None:
    decision = answer(Seen(extent({0: 10}, missing=("anvil.blocks",)), {}))
    assert len(decision.lanes) == 1
    assert decision.notes == ("missing topics: anvil.blocks",)


def test_many_missing_topics_are_counted() -> None:
    decision = answer(Seen(extent({0: 0}), {}))
    assert "and 1 more" in (decision.skip_reason or "")


def test_a_chain_without_any_topic_is_not_fed() -> None:
    decision = answer(Seen(Extent(missing=tuple(chain_topics("bsc"))), {}), chains=("bsc",))
    assert decision.skip_reason == "no topics: bsc"


def test_an_offset_beyond_the_end_is_explained_and_its_partition_left_alone() -> None:
    decision = answer(Seen(extent({0: 5, 1: 10}), {(LOGS, 0): 500, (LOGS, 1): 0}))
    assert [one.all() for one in decision.lanes] == [[(LOGS, 1)]]
    (note,) = [note for note in decision.notes if "made anew" in note]
    assert note.startswith("anvil.logs/0: the next offset to ingest is 500 but the topic ends at 5")


def test_messages_that_retention_removed_are_not_lag_but_the_rest_is() -> None:
    seen = Seen(extent({0: 1000}, begin=990), {(LOGS, 0): 5})
    assert seen.extent.lag(seen.committed) == {(LOGS, 0): 10}
    assert len(answer(seen).lanes) == 1


def test_an_emptied_topic_is_no_lag() -> None:
    seen = Seen(extent({0: 1000}, begin=1000), {(LOGS, 0): 5})
    assert answer(seen).lanes == ()


def test_a_chain_whose_runs_fail_rests_and_the_others_do_not() -> None:
    both = Extent({}, {(LOGS, 0): 10, ("bsc.logs", 0): 10}, ())
    decision = answer(Seen(both, {}, resting_s={"anvil": 12.0}), chains=("anvil", "bsc"))
    assert [one.chain for one in decision.lanes] == ["bsc"]
    assert "anvil: its last run failed, trying again in 12 s" in decision.notes


def test_a_change_of_the_lanes_is_told_and_remembered() -> None:
    seen = Seen(extent({0: 500, 1: 500}), {}, [Live(lane("anvil", PARTITIONS))], now=1000)
    decision = answer(seen)
    assert [one.all() for one in decision.lanes] == [[place] for place in PARTITIONS]
    assert "anvil: from 1 to 2 lanes, 1,000 behind" in decision.notes
    assert decision.memory == {"anvil": Memory(1000)}


def test_a_change_that_rests_is_not_remembered_as_made() -> None:
    before = {"anvil": Memory(100)}
    live = [Live(lane("anvil", PARTITIONS))]
    decision = answer(Seen(extent({0: 500, 1: 500}), {}, live, {"anvil": 12.0}, memory=before, now=1000))
    assert decision.lanes == ()
    assert decision.memory == before


def test_a_rest_without_lag_is_not_mentioned() -> None:
    decision = answer(Seen(extent({0: 0}), {}, resting_s={"anvil": 12.0}))
    assert "failed" not in (decision.skip_reason or "")


@pytest.mark.parametrize(
    ("failures", "since_s", "rest_s"),
    [(0, 0, 0), (1, 0, 5), (1, 4, 1), (1, 60, 0), (2, 0, 10), (4, 0, 40), (8, 0, LONGEST_REST_S)],
)
def test_the_rest_doubles_with_each_failure(failures: int, since_s: float, rest_s: float) -> None:
    assert rest_after(failures, since_s) == rest_s


@pytest.mark.parametrize(
    ("lag", "before", "observed"),
    [
        (0, None, True),  # never seen before
        (5, (0, 100.0), True),  # lag begins
        (0, (5, 100.0), True),  # lag ends
        (6, (5, 100.0), False),  # changes, too soon
        (6, (5, 40.0), True),  # changes, the last event is old
        (5, (5, 0.0), False),  # does not change
        (0, (0, 0.0), False),
    ],
)
def test_observations_are_few(lag: int, before: tuple[int, float] | None, observed: bool) -> None:
    remembered = {} if before is None else {LOGS: before}
    assert (to_observe({LOGS: lag}, remembered, now=101.0, every_s=60) == [LOGS]) is observed
