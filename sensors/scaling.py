"""Lag -> how many lanes, and which: the autoscaling rule, as pure functions.

Belongs here: when the number of lanes changes, which lanes are started for that. Does not belong here: reading offsets
or runs (`lag.py`), the words of a tick (`lag_decision.py`), how partitions are split (`microbatch/lanes.py`).

A lane is started by starting its run: it takes its partitions over, and the lanes that had them end by themselves. So
the owner of a partition is the newest live lane that has it, and what is decided here is only which lanes to start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from dash_pipeline.microbatch.lanes import Lane, lane, split
from dash_pipeline.topics import Partition

# Lag fits into fewer lanes when it is below this share of what earns them.
_HYSTERESIS = 0.5


@dataclass(frozen=True)
class Policy:
    """The autoscaling knobs; see docs/operations.md."""

    max_lanes: int
    lag_per_lane: int
    min_lanes: int = 1
    scale_up_cooldown_s: float = 30.0
    scale_down_after_s: float = 120.0


@dataclass(frozen=True)
class Live:
    """A lane whose run is queued, starting or running. `since`: when the run was made (epoch seconds); `begun`: its
    process is there, and has claimed its partitions or is about to."""

    lane: Lane
    since: float = 0.0
    begun: bool = True


@dataclass(frozen=True)
class Memory:
    """What is remembered of a chain from tick to tick: when its lanes were planned (epoch seconds), since when its lag
    would fit into fewer, and into how many at the most of that time. Losing it delays a change, no more."""

    changed_at: float
    low_since: float | None = None
    low_lanes: int = 0


@dataclass(frozen=True)
class Scaling:
    """Lanes to start, what to remember, and what has changed in a few words."""

    lanes: tuple[Lane, ...] = ()
    memory: Memory | None = None
    note: str = ""


def scale(
    chain: str,
    lag: Mapping[Partition, int],
    live: Iterable[Live],
    memory: Memory | None,
    policy: Policy,
    now: float,
) -> Scaling:
    """The lanes to start now. `lag` names every partition of the chain, also those without lag: a lane owns these as
    well, because their messages may come while it runs.

    - Nothing lives and there is lag: as many lanes as it earns.
    - Lagging partitions that no live lane has: lanes of their own; at the maximum, one together with the lane that has
      the least to do. That is no change of the plan, and waits for nothing.
    - More lanes are earned than live: all partitions are planned anew, unless that was done within the cool-down.
    - The lag would have fitted into fewer lanes for a while: the same, with at most half of the lanes gone at a time.

    A plan is let begin before the next: lanes that are queued or starting would claim late what is another's by then.
    """
    lanes = sorted(live, key=lambda one: one.since)
    owner = {partition: i for i, one in enumerate(lanes) for partition in one.lane.all() if partition in lag}
    current = [lanes[i] for i in sorted(set(owner.values()))]
    behind = sum(lag.values())
    if not current:
        if not behind:
            return Scaling()
        return Scaling(tuple(split(chain, lag, wanted(lag, policy))), Memory(now))
    memory = memory or Memory(max(one.since for one in current))
    least = min(policy.min_lanes, policy.max_lanes, len(_numbers(lag)))
    free = {partition: n for partition, n in lag.items() if partition not in owner}
    if free and (sum(free.values()) or (behind and len(current) < least)):
        return Scaling(tuple(_fill(chain, lag, free, owner, lanes, least, policy)), memory)
    memory = _watch(memory, behind, len(current), policy, least, now)
    if not all(one.begun for one in current):
        return Scaling(memory=memory)
    count, target = len(current), len(current)
    rested = now - memory.changed_at >= policy.scale_up_cooldown_s
    if behind and wanted(lag, policy) > count and (rested or count < least):
        target = wanted(lag, policy)
    elif memory.low_since is not None and rested and now - memory.low_since >= policy.scale_down_after_s:
        target = max(memory.low_lanes, -(-count // 2))
    if target == count:
        return Scaling(memory=memory)
    there = [{p for p in one.lane.all() if p in lag} for one in current]
    start = tuple(one for one in split(chain, lag, target) if set(one.all()) not in there)
    return Scaling(start, Memory(now), f"{chain}: from {count} to {target} lanes, {behind:,} behind")


def wanted(lag: Mapping[Partition, int], policy: Policy) -> int:
    """The lanes that a lag earns: one for each `lag_per_lane`, between minimum and maximum, and beyond the minimum no
    more than partition numbers have lag, because a lane without any would do nothing."""
    most = min(policy.max_lanes, len(_numbers(lag)))
    earned = -(-sum(lag.values()) // policy.lag_per_lane)
    useful = len(_numbers({partition: n for partition, n in lag.items() if n}))
    return max(min(policy.min_lanes, most), min(most, earned, useful))


def _watch(memory: Memory, behind: int, count: int, policy: Policy, least: int, now: float) -> Memory:
    """Since when the lag fits into fewer lanes, and into how many at the most."""
    fits = max(least, int(behind // (_HYSTERESIS * policy.lag_per_lane)) + 1)
    if fits >= count:
        return replace(memory, low_since=None, low_lanes=0)
    since = now if memory.low_since is None else memory.low_since
    return replace(memory, low_since=since, low_lanes=max(memory.low_lanes, fits))


def _fill(
    chain: str,
    lag: Mapping[Partition, int],
    free: Mapping[Partition, int],
    owner: Mapping[Partition, int],
    lanes: list[Live],
    least: int,
    policy: Policy,
) -> list[Lane]:
    """Lanes for the partitions that nobody has."""
    owners = set(owner.values())
    room = policy.max_lanes - len(owners)
    if room > 0:
        return split(chain, free, min(room, max(wanted(free, replace(policy, min_lanes=1)), least - len(owners))))
    work = {i: 0 for i in owners if lanes[i].begun}
    if not work:
        return []
    for partition, i in owner.items():
        if i in work:
            work[i] += lag[partition]
    idlest = min(work, key=lambda i: (work[i], i))
    return [lane(chain, [*free, *(partition for partition, i in owner.items() if i == idlest)])]


def _numbers(partitions: Iterable[Partition]) -> set[int]:
    return {number for _, number in partitions}
