"""The simulator of the autoscaling rule: what must hold in its world, and that it shows what it is for."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.autoscale_sim import Scenario, main, read_trace, simulate
from dash_pipeline.errors import DashError

SHORT = Scenario(seconds=300, hold_s=20, decay_s=20)


@pytest.mark.parametrize(
    "scenario",
    [
        SHORT,
        replace(SHORT, seed=2, partitions=30, skew=1.0, start_s=8, start_spread=1.0),
        replace(SHORT, seed=3, max_lanes=100, factor=100),
        replace(SHORT, seed=4, max_run_s=40, min_lanes=1, ceiling=1_000_000),
        replace(SHORT, seed=5, partitions=4),
    ],
)
def test_no_message_is_made_or_lost_and_lanes_stay_in_bounds(scenario: Scenario) -> None:
    course = simulate(scenario)
    made = [p - c for p, c in zip(course.produced, course.consumed, strict=True)]
    assert made == course.lag
    assert all(lag >= 0 for lag in course.lag)
    assert course.consumed == sorted(course.consumed)
    most = min(scenario.max_lanes, scenario.partitions)
    assert all(planned <= most for planned in course.planned)
    assert all(planned >= min(scenario.min_lanes, most) for planned in course.planned[1:])
    speed = scenario.lane_rate * max(max(course.lanes), most) * scenario.tick_s
    steps = [b - a for a, b in itertools.pairwise(course.consumed)]
    assert all(step <= speed for step in steps), "no faster than lanes are"
    if scenario.ceiling:
        assert all(step <= scenario.ceiling * scenario.tick_s for step in steps)


def test_from_ten_lanes_to_fifty_and_back() -> None:
    scenario = Scenario()
    course = simulate(scenario)
    before = course.seconds.index(scenario.burst_at_s)
    assert set(course.lanes[2:before]) == {10}
    assert max(course.lanes) == 50
    assert course.lanes[-1] == 10
    assert course.lag[-1] < scenario.lag_per_lane
    assert len(course.changes) < 10


def test_the_same_seed_is_the_same_course() -> None:
    assert simulate(SHORT) == simulate(SHORT)
    assert simulate(SHORT) != simulate(replace(SHORT, seed=2))


def test_a_measured_course_is_laid_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("seconds,lag,lanes\n0,0,10\n5,1000000,20\n")
    assert read_trace(trace) == {"seconds": [0, 5], "lag": [0, 1e6], "lanes": [10, 20]}
    main(["--seconds", "30", "--trace", str(trace), "--plot", str(tmp_path / "with.png")])
    main(["--seconds", "30", "--plot", str(tmp_path / "without.png")])
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()
    told = json.loads(capsys.readouterr().out.splitlines()[0])
    assert told["scenario"]["seconds"] == 30
    assert len(told["course"]["lag"]) == 7


@pytest.mark.parametrize("content", [None, "", "a,b\n1,2\n", "seconds,lag,lanes\n1,x,2\n", "seconds,lag,lanes\n1\n"])
def test_a_trace_that_is_none_is_one_line(tmp_path: Path, content: str | None) -> None:
    trace = tmp_path / "trace.csv"
    if content is not None:
        trace.write_text(content)
    with pytest.raises(DashError, match=r"trace\.csv: ") as caught:
        read_trace(trace)
    assert "\n" not in str(caught.value)


def test_a_scenario_that_is_none_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--partitions", "0"])
    assert "--partitions: 0 is too small" in capsys.readouterr().err
