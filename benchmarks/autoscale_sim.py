"""A token launch against the autoscaling rule: `python -m benchmarks autoscale_sim [--trace FILE] [...]`.

Belongs here: a world of partitions, lanes and pods that start, and its plot. Does not belong here: the rule, which is
the sensor's own (`sensors/scaling.py`), and anything measured: speed and start times are parameters, whose defaults
were measured elsewhere (README). It needs no stack.

What is left out: that lanes share a database. With `--ceiling` they do: so many events/s are committed altogether.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dash_pipeline.errors import DashError
from dash_pipeline.microbatch.lanes import Lane
from sensors.scaling import Live, Memory, Policy, scale

PLOT = Path(__file__).parents[1] / "docs" / "autoscale.png"
CHAIN = "launch"
STEP_S = 0.25
_MAY_BE_0 = {"burst_at_s", "hold_s", "skew", "ceiling", "start_spread", "cooldown_s", "down_after_s", "seed"}


@dataclass(frozen=True)
class Scenario:
    """Rates in events/s, times in seconds. `start_s` is the median of a log-normal time from a run's request to its
    first read, `start_spread` its sigma; `skew` that of the partitions' shares; `ceiling` 0 is none."""

    baseline: float = 60_000
    factor: float = 50
    burst_at_s: float = 60
    ramp_s: float = 5
    hold_s: float = 60
    decay_s: float = 60
    seconds: float = 720
    partitions: int = 200
    skew: float = 0.2
    lane_rate: float = 64_500
    ceiling: float = 0
    start_s: float = 3.0
    start_spread: float = 0.35
    tick_s: float = 5.0
    max_run_s: float = 600
    min_lanes: int = 10
    max_lanes: int = 50
    lag_per_lane: int = 322_500  # what a lane does between two ticks
    cooldown_s: float = 10
    down_after_s: float = 60
    seed: int = 1

    def rate(self, t: float) -> float:
        """Events/s that are produced at a time."""
        since = t - self.burst_at_s
        if since < 0:
            share = 0.0
        elif since < self.ramp_s + self.hold_s:
            share = min(1.0, since / self.ramp_s)
        else:
            share = math.exp(-(since - self.ramp_s - self.hold_s) / self.decay_s)
        return self.baseline * (1 + (self.factor - 1) * share)

    def policy(self) -> Policy:
        """The rule's knobs."""
        return Policy(self.max_lanes, self.lag_per_lane, self.min_lanes, self.cooldown_s, self.down_after_s)


@dataclass
class Course:
    """What happened, tick by tick. `lanes`: those that read; `planned`: owners of partitions, pods that start included;
    `delay_s`: how old the oldest message is that is not committed yet, in the median partition and the worst."""

    seconds: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    produced: list[int] = field(default_factory=list)
    consumed: list[int] = field(default_factory=list)
    lag: list[int] = field(default_factory=list)
    lanes: list[int] = field(default_factory=list)
    planned: list[int] = field(default_factory=list)
    delay_s: list[float] = field(default_factory=list)
    worst_delay_s: list[float] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    started: int = 0

    def figures(self) -> dict[str, object]:
        """The course in a few numbers."""
        peak = max(self.lag)
        burst = self.lag.index(peak)
        calm = next((s for s, n in zip(self.seconds[burst:], self.lag[burst:], strict=True) if n < peak / 100), None)
        return {
            "most lanes": max(self.lanes),
            "lanes at the end": self.lanes[-1],
            "peak lag": peak,
            "worst delay, s": round(max(self.worst_delay_s), 1),
            "peak to a hundredth of it, s": None if calm is None else round(calm - self.seconds[burst], 1),
            "changes of the plan": len(self.changes),
            "pods started": self.started,
        }


@dataclass
class _Pod:
    lane: Lane
    requested: float
    there: float
    ends: float

    def numbers(self) -> npt.NDArray[np.int64]:
        return np.array([number for _, number in self.lane.all()], np.int64)


def simulate(scenario: Scenario) -> Course:
    """Replay the burst; the same scenario gives the same course."""
    dice = random.Random(scenario.seed)
    shares = np.array([dice.lognormvariate(0, scenario.skew) for _ in range(scenario.partitions)])
    shares /= shares.sum()
    steps = round(scenario.seconds / STEP_S) + 1
    total = np.cumsum([scenario.rate(i * STEP_S) * STEP_S for i in range(steps)])
    consumed = np.zeros(scenario.partitions, np.int64)
    course, pods, memory = Course(), list[_Pod](), None
    owner: dict[int, _Pod] = {}
    every = max(1, round(scenario.tick_s / STEP_S))
    for i in range(steps):
        now = i * STEP_S
        produced = np.floor(total[i] * shares).astype(np.int64)
        # A pod that is there claims its partitions; those that had one of them end.
        for pod in sorted((pod for pod in pods if pod.there <= now), key=lambda pod: pod.there):
            if pod.there > now - STEP_S:
                owner |= dict.fromkeys(pod.numbers().tolist(), pod)
        pods = [
            pod
            for pod in pods
            if pod.ends > now and (pod.there > now or all(owner.get(n) is pod for n in pod.numbers().tolist()))
        ]
        reading = [pod for pod in pods if pod.there <= now]
        _consume(scenario, reading, produced, consumed)
        if i % every == 0:
            memory = _tick(scenario, dice, now, produced - consumed, pods, memory, course)
            _note(course, now, scenario.rate(now), produced, consumed, pods, total, shares)
    return course


def _consume(
    scenario: Scenario, reading: Sequence[_Pod], produced: npt.NDArray[np.int64], consumed: npt.NDArray[np.int64]
) -> None:
    """Each lane takes from its partitions by what waits there."""
    rate = scenario.lane_rate
    if scenario.ceiling and reading:
        rate = min(rate, scenario.ceiling / len(reading))
    for pod in reading:
        mine = pod.numbers()
        waits = produced[mine] - consumed[mine]
        behind = int(waits.sum())
        if behind:
            consumed[mine] += np.floor(waits * min(1.0, rate * STEP_S / behind)).astype(np.int64)


def _tick(
    scenario: Scenario,
    dice: random.Random,
    now: float,
    behind: npt.NDArray[np.int64],
    pods: list[_Pod],
    memory: Memory | None,
    course: Course,
) -> Memory | None:
    lag = {(f"{CHAIN}.logs", number): int(messages) for number, messages in enumerate(behind)}
    live = [Live(pod.lane, pod.requested, pod.there <= now) for pod in pods]
    scaling = scale(CHAIN, lag, live, memory, scenario.policy(), now)
    for lane in scaling.lanes:
        there = now + dice.lognormvariate(math.log(scenario.start_s), scenario.start_spread)
        pods.append(_Pod(lane, now, there, there + scenario.max_run_s))
        course.started += 1
    if scaling.note:
        course.changes.append(f"{now:g} s: {scaling.note}")
    return scaling.memory


def _note(
    course: Course,
    now: float,
    rate: float,
    produced: npt.NDArray[np.int64],
    consumed: npt.NDArray[np.int64],
    pods: Sequence[_Pod],
    total: npt.NDArray[np.float64],
    shares: npt.NDArray[np.float64],
) -> None:
    # When the message was produced that is to be consumed next.
    since = np.searchsorted(total, (consumed + 1) / shares) * STEP_S
    delay = np.where(produced > consumed, np.maximum(0.0, now - since), 0.0)
    course.seconds.append(now)
    course.rate.append(round(rate))
    course.produced.append(int(produced.sum()))
    course.consumed.append(int(consumed.sum()))
    course.lag.append(int((produced - consumed).sum()))
    course.lanes.append(sum(pod.there <= now for pod in pods))
    course.planned.append(len({id(pod) for pod in {n: pod for pod in pods for n in pod.numbers().tolist()}.values()}))
    course.delay_s.append(round(float(np.median(delay)), 2))
    course.worst_delay_s.append(round(float(delay.max()), 2))


Trace = dict[str, list[float]]


def read_trace(file: Path) -> Trace:
    """A measured course: csv with the columns seconds, lag, lanes. Raises DashError with one line."""
    try:
        with file.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        if not rows:
            raise ValueError("no rows")
        return {name: [float(row[name]) for row in rows] for name in ("seconds", "lag", "lanes")}
    except OSError as error:
        raise DashError(f"{file}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise DashError(f"{file}: not a csv with the number columns seconds, lag, lanes: {error}") from None


def plot(course: Course, scenario: Scenario, file: Path, trace: Trace | None = None) -> None:
    """Three panels: lag, lanes, delay."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8), layout="constrained")
    FigureCanvasAgg(figure)
    lag, lanes, delay = figure.subplots(3, 1, sharex=True)
    lag.plot(course.seconds, np.array(course.lag) / 1e6, label="lag, million messages")
    lag.plot(course.seconds, np.array(course.rate) / 1e6, color="0.6", linewidth=1, label="produced, million/s")
    lag.set_title(
        f"A burst of {scenario.factor:g} times {scenario.baseline:,.0f} events/s, lanes of {scenario.lane_rate:,.0f}"
        f" events/s, pods there after {scenario.start_s:g} s (simulated)",
        fontsize=10,
    )
    lanes.step(course.seconds, course.lanes, where="post", label="lanes that read")
    lanes.step(course.seconds, course.planned, where="post", color="0.6", linewidth=1, label="planned")
    delay.plot(course.seconds, course.worst_delay_s, label="oldest message not committed, s: worst partition")
    delay.plot(course.seconds, course.delay_s, label="median partition")
    if trace:
        lag.plot(trace["seconds"], np.array(trace["lag"]) / 1e6, "--", color="tab:red", label="lag, measured")
        lanes.step(trace["seconds"], trace["lanes"], "--", where="post", color="tab:red", label="lanes, measured")
    delay.set_xlabel("seconds")
    for axes in (lag, lanes, delay):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right", fontsize=8)
    figure.savefig(file, dpi=110)


def main(arguments: Sequence[str]) -> None:
    """Simulate, print the course as JSON, plot it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks autoscale_sim", description=__doc__)
    parser.add_argument("--trace", type=Path, help="csv (seconds, lag, lanes) to lay over the plot")
    parser.add_argument("--plot", type=Path, default=PLOT)
    for name, default in asdict(Scenario()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"{default:g}")
    given = vars(parser.parse_args(arguments))
    for name in asdict(Scenario()):
        if given[name] < 0 or (given[name] == 0 and name not in _MAY_BE_0):
            parser.error(f"--{name.replace('_', '-')}: {given[name]:g} is too small")
    trace = read_trace(given["trace"]) if given["trace"] else None
    scenario = Scenario(**{name: given[name] for name in asdict(Scenario())})
    course = simulate(scenario)
    plot(course, scenario, given["plot"], trace)
    told = {"figures": course.figures(), "scenario": asdict(scenario), "course": asdict(course)}
    print(json.dumps({"benchmark": "autoscale_sim"} | told))
