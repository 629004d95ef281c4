"""What the anomaly sensor decides, without servers."""

from __future__ import annotations

from typing import Any

import pytest

from dash_pipeline.lag import Extent
from dash_pipeline.topics import ANOMALIES
from sensors.anomalies_decision import Seen, decide

PLACES = [(ANOMALIES, 0), (ANOMALIES, 1)]


def seen(ends: tuple[int, int] = (5, 0), done: tuple[int, int] = (0, 0), **other: Any) -> Seen:
    extent = Extent(dict.fromkeys(PLACES, 0), dict(zip(PLACES, ends, strict=True)))
    return Seen(extent, dict(zip(PLACES, done, strict=True)), **other)


def test_new_anomalies_start_one_run_for_all_partitions_however_many_there_are() -> None:
    for count in (1, 10_000):
        decision = decide(seen((count, 0)))
        assert decision.partitions == tuple(PLACES)
        assert decision.reason == f"{count:,} anomalies"


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"due": 2}, "2 deliveries"),
        ({"unindexed": 3}, "3 alerts to be indexed"),
        ({"due": 2, "unindexed": 3}, "2 deliveries, 3 alerts to be indexed"),
    ],
)
def test_alerts_that_wait_start_a_run_too(other: dict[str, int], reason: str) -> None:
    decision = decide(seen((5, 5), (5, 5), **other))
    assert decision.partitions == tuple(PLACES)
    assert decision.reason == reason


def test_nothing_new_starts_nothing() -> None:
    assert decide(seen((5, 5), (5, 5))).partitions == ()


def test_a_run_that_lives_is_left_to_it() -> None:
    decision = decide(seen(live=1))
    assert decision.partitions == ()
    assert decision.reason == "5 anomalies; a run is at it"


def test_after_a_failure_it_waits() -> None:
    decision = decide(seen(rest_s=12.4))
    assert decision.partitions == ()
    assert decision.reason == "5 anomalies; the last run failed, trying again in 12 s"


def test_a_missing_topic_is_named() -> None:
    decision = decide(Seen(Extent({}, {}, (ANOMALIES,)), {}, due=1))
    assert decision.partitions == ()
    assert ANOMALIES in decision.reason
