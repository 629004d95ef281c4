"""Lag -> lanes: what the lag sensor decides, as pure functions.

Belongs here: the decision for all chains and the words for it. Does not belong here: reading offsets or runs
(`lag.py`), how many lanes a chain gets (`scaling.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dash_pipeline.lag import Extent
from dash_pipeline.microbatch.lanes import Lane, lane
from dash_pipeline.topics import Partition, chain_topics
from sensors.scaling import Live, Memory, Policy, scale

# Partitions and topics that one reason names; the rest are counted.
_NAMED = 5


@dataclass(frozen=True)
class Seen:
    """What a tick has read. `resting_s`: chain -> seconds until it is tried again after failures. `unfinished`: chains
    with committed work that the search indexes or the topic of anomalies do not show yet. `memory`: chain -> what
    the tick before remembered; `now` in epoch seconds."""

    extent: Extent
    committed: Mapping[Partition, int]
    live: Sequence[Live] = ()
    resting_s: Mapping[str, float] = field(default_factory=dict)
    unfinished: frozenset[str] = frozenset()
    memory: Mapping[str, Memory] = field(default_factory=dict)
    now: float = 0.0


@dataclass(frozen=True)
class Decision:
    """Lanes to start, what an operator should know, started or not, and what the next tick should."""

    lanes: tuple[Lane, ...] = ()
    notes: tuple[str, ...] = ()
    memory: Mapping[str, Memory] = field(default_factory=dict)

    @property
    def skip_reason(self) -> str | None:
        """Why nothing is started, in one line."""
        return None if self.lanes else "; ".join(self.notes)


def decide(chains: Iterable[str], seen: Seen, policy: Policy) -> Decision:
    """A run for each lane that the policy says is to be started; and one for a chain whose search indexes or anomalies
    were left behind."""
    lanes: list[Lane] = []
    notes: list[str] = []
    idle: list[str] = []
    unfed: list[str] = []
    memory: dict[str, Memory] = {}
    for chain in chains:
        topics = set(chain_topics(chain))
        missing = [topic for topic in seen.extent.missing if topic in topics]
        if len(missing) == len(topics):
            unfed.append(chain)
            continue
        if missing:
            notes.append(f"missing topics: {_some(missing)}")
        broken = _broken(topics, seen)
        notes += broken.values()
        lag = {
            place: behind
            for place, behind in seen.extent.lag(seen.committed).items()
            if place[0] in topics and place not in broken
        }
        live = [one for one in seen.live if one.lane.chain == chain]
        before = seen.memory.get(chain)
        scaling = scale(chain, lag, live, before, policy, seen.now)
        planned = list(scaling.lanes)
        if not planned and not live and chain in seen.unfinished:
            planned = [lane(chain, lag)]  # a run that died or gave up left a gap: the next one closes it first
        rest = seen.resting_s.get(chain, 0)
        remember = before if planned and rest > 0 else scaling.memory
        if remember is not None:
            memory[chain] = remember
        if planned and rest > 0:
            notes.append(f"{chain}: its last run failed, trying again in {rest:.0f} s")
        elif planned:
            lanes += planned
            notes += [scaling.note] if scaling.note else []
        elif live:
            notes.append(f"{chain}: {len(live)} live lane{'s' * (len(live) != 1)}, {sum(lag.values()):,} behind")
        else:
            idle.append(chain)
    if idle:
        notes.append(f"no lag: {', '.join(idle)}")
    if unfed:
        notes.append(f"no topics: {', '.join(unfed)}")
    return Decision(tuple(lanes), tuple(notes), memory)


def to_observe(
    lag: Mapping[str, int], before: Mapping[str, tuple[int, float]], now: float, every_s: float
) -> list[str]:
    """The topics whose lag is worth an event: it began or ended, or it changed and the last event is old.

    `before`: topic -> lag and time of its last event. An event for each tick would fill the event log.
    """
    return [
        topic
        for topic, behind in lag.items()
        if topic not in before
        or bool(behind) != bool(before[topic][0])
        or (behind != before[topic][0] and now - before[topic][1] >= every_s)
    ]


def _broken(topics: set[str], seen: Seen) -> dict[Partition, str]:
    """Partitions whose committed offset is beyond their end: no run can help them, a person must.

    A committed offset before the first message (retention was faster) is not broken: the lane records the loss and
    goes on from the first message.
    """
    return {
        (topic, number): f"{topic}/{number}: the next offset to ingest is {seen.committed[topic, number]:,} but the"
        f" topic ends at {end:,}: it was made anew; `dash-pipeline offsets --set-beginning {topic}` starts it over"
        for (topic, number), end in sorted(seen.extent.end.items())
        if topic in topics and seen.committed.get((topic, number), 0) > end
    }


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
