"""A checkpoint of the warm loop as asset metadata: numbers, so that the UI plots them.

Belongs here: labels and units. Does not belong here: measuring (`dash_pipeline/microbatch/`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dagster import MetadataValue

from assets.ingestion.tables import SOURCES
from dash_pipeline.topics import topic_name

if TYPE_CHECKING:
    from dash_pipeline.microbatch.drain import Checkpoint

Metadata = dict[str, Any]


def checkpoint_metadata(done: Checkpoint, chain: str, table: str) -> Metadata:
    """What happened since the last checkpoint, for one table. Latency counts from Kafka's append to the commit."""
    return {
        "rows": done.rows.get(table, 0),
        "lane events": done.messages,
        "lane bytes": done.bytes,
        "lane events per s": round(done.events_per_s, 1),
        "lane lag before": done.lag_before,
        "lane lag after": done.lag_after,
        "lane dead letters": done.dead_letters,
        "lane reorgs": done.reorgs,
        "index behind, s": round(done.index_behind_s, 3),
        **{
            f"latency {stage} {percentile}, ms": round(value, 2)
            for stage, values in done.latency.items()
            for percentile, value in values.items()
        },
        "offsets": MetadataValue.json(_offsets(done, chain, table)),
    }


def anomalies_metadata(done: Checkpoint) -> Metadata:
    """Anomalies found, changed or retracted since the last checkpoint."""
    return {"anomalies": done.anomalies, "lane events": done.messages}


def run_metadata(done: Checkpoint, table: str) -> Metadata:
    """The totals of a whole run, under labels of their own: a plot that mixes them with checkpoints would lie."""
    return {
        "run rows": done.rows.get(table, 0),
        "run events": done.messages,
        "run bytes": done.bytes,
        "run seconds": round(done.seconds, 1),
        "run events per s": round(done.events_per_s, 1),
        "run dead letters": done.dead_letters,
        "run reorgs": done.reorgs,
    } | ({"ended early": done.ended_early} if done.ended_early else {})


def _offsets(done: Checkpoint, chain: str, table: str) -> dict[str, int]:
    """The next offsets of the partitions that the table's rows come from."""
    topic = topic_name(chain, SOURCES[table])
    return {place: next_ for place, next_ in done.offsets.items() if place.startswith(f"{topic}/")}
