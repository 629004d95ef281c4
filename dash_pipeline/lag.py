"""How far Kafka goes: first and last offsets of topics, read without touching a message.

Belongs here: reading offsets, and what lag is. Does not belong here: committed offsets (`storage/timescale.py`)
and what to do about lag (`microbatch/lanes.py`, `sensors/`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from threading import Lock

from kafka import KafkaConsumer, TopicPartition

from dash_pipeline.kafka import kafka_errors, kafka_python_options
from dash_pipeline.settings import Settings
from dash_pipeline.topics import Partition


@dataclass(frozen=True)
class Extent:
    """What Kafka holds of some topics at one moment.

    `begin` is the offset of the first message still there, `end` the one behind the last; `missing` are the
    topics that do not exist.
    """

    begin: Mapping[Partition, int] = field(default_factory=dict)
    end: Mapping[Partition, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def lag(self, committed: Mapping[Partition, int]) -> dict[Partition, int]:
        """Messages between the committed offset and the end, for every partition; never negative."""
        return {
            place: max(0, end - max(committed.get(place, 0), self.begin.get(place, 0)))
            for place, end in self.end.items()
        }

    def gaps(self, topic: str, committed: Mapping[Partition, int]) -> tuple[str, ...]:
        """A line for each partition of a topic of which messages are gone that were never ingested, or that ends before
        what is ingested. A topic of which nothing was ever ingested has none, whether it is there or not."""
        known = {place: offset for place, offset in committed.items() if place[0] == topic and offset}
        found = []
        for place, offset in sorted(known.items()):
            name, first, end = f"{topic}/{place[1]}", self.begin.get(place, 0), self.end.get(place)
            if end is None:
                found.append(f"{name} is gone; {offset:,} messages of it are ingested: `dash-pipeline restore-topics`")
            elif end < offset:
                found.append(
                    f"{name} was made anew: it ends at {end:,}, and {offset:,} are ingested;"
                    f" `dash-pipeline offsets --set-beginning {topic}`"
                )
            elif first > offset:
                found.append(f"{name}: messages {offset:,} to {first - 1:,} are gone before they were ingested")
        return tuple(found)


class ExtentReader:
    """Reads extents over one connection, kept between reads.

    A tick every few seconds must not pay for a new connection, nor hang on a broker that is gone.
    """

    def __init__(self, settings: Settings, timeout_s: float = 5.0) -> None:
        self._settings = settings
        self._timeout_ms = int(timeout_s * 1000)
        self._consumer: KafkaConsumer | None = None
        # The client is not thread-safe, and a code server evaluates ticks in threads.
        self._lock = Lock()

    def read(self, topics: Iterable[str]) -> Extent:
        """The topics' extent now. Raises Unavailable when the broker does not answer in time."""
        with self._lock, kafka_errors(self._settings):
            try:
                return self._read(list(topics))
            except BaseException:
                self._close()  # after an error the next read starts on a new connection
                raise

    def close(self) -> None:
        """End the connection; the next read makes another."""
        with self._lock:
            self._close()

    def _read(self, topics: list[str]) -> Extent:
        consumer = self._consumer = self._consumer or self._connect()
        existing = consumer.topics()  # asks the broker, so that new topics and partitions are seen
        places = [
            TopicPartition(topic, number)
            for topic in topics
            if topic in existing
            for number in sorted(consumer.partitions_for_topic(topic) or ())
        ]
        return Extent(
            begin=_plain(consumer.beginning_offsets(places, timeout_ms=self._timeout_ms)),
            end=_plain(consumer.end_offsets(places, timeout_ms=self._timeout_ms)),
            missing=tuple(topic for topic in topics if topic not in existing),
        )

    def _connect(self) -> KafkaConsumer:
        options = kafka_python_options(self._settings)
        options |= {
            "bootstrap_timeout_ms": self._timeout_ms,
            "request_timeout_ms": self._timeout_ms,
            "enable_auto_commit": False,
        }
        return KafkaConsumer(**options)

    def _close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()


def _plain(offsets: Mapping[TopicPartition, int]) -> dict[Partition, int]:
    return {(place.topic, place.partition): offset for place, offset in offsets.items()}
