"""Anomalies and alerts that wait -> whether the prediction engine is started; a pure function.

Belongs here: the decision and the words for it. Does not belong here: reading (`anomalies.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dash_pipeline.lag import Extent
from dash_pipeline.topics import ANOMALIES, Partition


@dataclass(frozen=True)
class Seen:
    """What a tick has read. `due`: deliveries to make now; `unindexed`: alerts that the index does not show yet;
    `rest_s`: seconds until the engine is tried again after failures."""

    extent: Extent
    committed: Mapping[Partition, int]
    due: int = 0
    unindexed: int = 0
    live: int = 0
    rest_s: float = 0


@dataclass(frozen=True)
class Decision:
    """The partitions to drain, none when nothing is started; why, or why not."""

    partitions: tuple[Partition, ...]
    reason: str


def decide(seen: Seen) -> Decision:
    """One run for all that waits, however much it is; none while one lives."""
    lag = sum(seen.extent.lag(seen.committed).values())
    waits = [
        f"{count:,} {what}"
        for count, what in ((lag, "anomalies"), (seen.due, "deliveries"), (seen.unindexed, "alerts to be indexed"))
        if count
    ]
    if ANOMALIES in seen.extent.missing:
        return Decision((), f"no topic {ANOMALIES}: `dash-pipeline up` makes it")
    if not waits:
        return Decision((), "no new anomalies, no alerts to deliver")
    waiting = ", ".join(waits)
    if seen.live:
        return Decision((), f"{waiting}; a run is at it")
    if seen.rest_s > 0:
        return Decision((), f"{waiting}; the last run failed, trying again in {seen.rest_s:.0f} s")
    return Decision(tuple(sorted(seen.extent.end)), waiting)
