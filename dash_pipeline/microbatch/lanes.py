"""Lanes: which partitions a run drains.

Belongs here: the value and the decision, both pure. Does not belong here: asking Kafka or Dagster (the lag sensor).

A lane is a disjoint set of partitions of one chain. Offsets are fenced in the database, so lanes that overlap by
mistake lose nothing; they are kept disjoint because one of two would do its work in vain.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dash_pipeline.topics import Partition


@dataclass(frozen=True)
class Lane:
    """Partitions of one chain's topics: `partitions` maps topic -> partition numbers."""

    chain: str
    partitions: Mapping[str, tuple[int, ...]]

    @property
    def name(self) -> str:
        """The chain and the lane's first partition number: unique among live lanes, which are disjoint."""
        return f"{self.chain}-{min((min(ps) for ps in self.partitions.values()), default=0)}"

    def all(self) -> list[Partition]:
        """Every (topic, partition), in the order in which offset rows are locked."""
        return sorted((topic, p) for topic, ps in self.partitions.items() for p in ps)

    def to_tag(self) -> str:
        """The lane as a run tag's value."""
        return json.dumps({"chain": self.chain, "partitions": dict(self.partitions)}, separators=(",", ":"))

    @staticmethod
    def from_tag(tag: str) -> Lane:
        """The lane a tag's value names."""
        value = json.loads(tag)
        return lane(value["chain"], ((t, p) for t, ps in value["partitions"].items() for p in ps))


def lane(chain: str, partitions: Iterable[Partition]) -> Lane:
    """A lane of these partitions."""
    topics: dict[str, list[int]] = {}
    for topic, partition in sorted(partitions):
        topics.setdefault(topic, []).append(partition)
    return Lane(chain, {topic: tuple(ps) for topic, ps in topics.items()})


def plan_lanes(
    chain: str, lag: Mapping[Partition, int], live: Iterable[Lane], max_lanes: int, lag_per_lane: int
) -> list[Lane]:
    """The lanes to start now: the partitions that no live lane owns, split into as many lanes as their lag earns.

    `lag` names every partition of the chain, also those without lag: a lane owns those as well, because their messages
    may come while it runs. Partition n of every topic goes to the same lane, so that keyed topics stay together.
    Partitions that no live lane owns (added while lanes run, say) get a lane even when `max_lanes` are live.
    """
    live = list(live)
    owned = {partition for one in live for partition in one.all()}
    free = {partition: n for partition, n in lag.items() if partition not in owned}
    waiting = sum(n for n in free.values() if n > 0)
    if not waiting:
        return []
    numbers = sorted({number for _, number in free})
    earned = -(-waiting // lag_per_lane)
    count = max(1, min(earned, max_lanes - len(live), len(numbers)))
    slot = {number: i % count for i, number in enumerate(numbers)}
    lanes = [lane(chain, (p for p in free if slot[p[1]] == i)) for i in range(count)]
    return [one for one in lanes if any(free[p] > 0 for p in one.all())]
