"""Lanes: which partitions a run drains.

Belongs here: the value, and how partitions are split, both pure. Does not belong here: how many lanes there are to be,
asking Kafka or Dagster (`sensors/`).

A lane is a set of partitions of one chain. Lanes that are planned together are disjoint; a lane that starts takes its
partitions over from those that have them, which end. Offsets are fenced in the database: nothing is lost meanwhile.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
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
        """The chain and the lane's first partition number: unique among lanes that were planned together."""
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


def split(chain: str, lag: Mapping[Partition, int], count: int) -> list[Lane]:
    """These partitions in `count` lanes, or in as many as there are partition numbers, evenly by lag.

    Partition n of every topic goes to the same lane, so that keyed topics stay together. Each number weighs as much
    again as the average beside its own lag: the messages to come are of all partitions.
    """
    behind = Counter[int]()
    for (_, number), messages in lag.items():
        behind[number] += messages
    share = 1 + behind.total() // max(1, len(behind))
    slots = [(0, i) for i in range(min(count, len(behind)))]
    slot = {}
    for number in sorted(behind, key=lambda number: (-behind[number], number)):
        weight, slot[number] = heapq.heappop(slots)
        heapq.heappush(slots, (weight + behind[number] + share, slot[number]))
    return [lane(chain, (p for p in lag if slot[p[1]] == i)) for i in range(len(slots))]
