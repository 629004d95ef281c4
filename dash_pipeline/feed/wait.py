"""Waiting until the platform has committed what was published.

Belongs here: comparing Kafka's end offsets with the offsets in TimescaleDB.
Does not belong here: making it happen.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable

import psycopg
from kafka import KafkaConsumer, TopicPartition

from dash_pipeline.errors import Unavailable
from dash_pipeline.kafka import kafka_errors, kafka_python_options
from dash_pipeline.settings import Settings
from dash_pipeline.storage.timescale import committed_offsets
from dash_pipeline.topics import Partition

Offsets = dict[Partition, int]

POLL_S = 0.25


def end_offsets(settings: Settings, topics: Iterable[str]) -> Offsets:
    """The offset behind the last message, of every partition of `topics`."""
    with kafka_errors(settings):
        consumer = KafkaConsumer(**kafka_python_options(settings))
        try:
            partitions = [
                TopicPartition(topic, number)
                for topic in topics
                for number in consumer.partitions_for_topic(topic) or ()
            ]
            ends = consumer.end_offsets(partitions)
        finally:
            consumer.close()
    return {(partition.topic, partition.partition): end for partition, end in ends.items()}


def missing(targets: Offsets, committed: Offsets) -> Counter[str]:
    """How many messages of each topic lie between what is committed and the targets."""
    behind: Counter[str] = Counter()
    for place, target in targets.items():
        behind[place[0]] += max(target - committed.get(place, 0), 0)
    return +behind


def wait_until_committed(
    settings: Settings, targets: Offsets, timeout_s: float, tell: Callable[[int, int], None]
) -> float:
    """Block until the offsets in `ops.stream_offsets` have reached `targets`; returns the seconds it took.

    `tell` hears how many messages are missing, and how many were at first. Raises Unavailable, naming what is
    missing in which topics, after `timeout_s`; and when the database does not answer.
    """
    start = time.monotonic()
    try:
        with psycopg.connect(settings.timescale_dsn.get_secret_value(), autocommit=True) as connection:
            at_first = behind = missing(targets, committed_offsets(connection))
            while behind:
                tell(behind.total(), at_first.total())
                if time.monotonic() - start > timeout_s:
                    raise Unavailable(_timed_out(behind, timeout_s))
                time.sleep(POLL_S)
                behind = missing(targets, committed_offsets(connection))
    except psycopg.Error as error:
        said = " ".join(str(error).split())
        raise Unavailable(f"the messages are published, but TimescaleDB cannot be asked: {said}") from error
    tell(0, at_first.total())
    return time.monotonic() - start


def _timed_out(behind: Counter[str], timeout_s: float) -> str:
    topics = ", ".join(f"{count:,} of {topic}" for topic, count in sorted(behind.items()))
    return f"after {timeout_s:g} s {behind.total():,} published messages are not committed: {topics}"
