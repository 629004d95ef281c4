"""Kafka -> batches of raw messages.

Belongs here: the lane's consumer and its tuning. Does not belong here: what messages mean.

confluent-kafka here and kafka-python everywhere else: in the warm loop kafka-python's own decoding of record batches
costs more than everything this platform does with the records.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, Message, TopicPartition

from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.kafka import confluent_options
from dash_pipeline.microbatch.lanes import Lane
from dash_pipeline.settings import Settings
from dash_pipeline.topics import Partition

log = logging.getLogger(__name__)

_TIMEOUT_S = 10.0
#: After so much silence whoever reads has to `ask`, and again after as much.
SILENCE_S = 1.0
# A broker that does not answer for so long then is gone.
_ANSWER_S = 3.0
_CLOSE_S = 3.0


@dataclass
class TopicBatch:
    """Messages of one topic in the order they were read: value, record time in ms, partition and offset of each."""

    topic: str
    values: list[bytes]
    timestamps: npt.NDArray[np.int64]
    partitions: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]


@dataclass
class Batch:
    """What one read gave: messages by topic, the next offset of each partition read, when it was read (epoch ms)."""

    topics: list[TopicBatch]
    next_offsets: dict[Partition, int]
    consumed_ms: float
    messages: int = 0
    bytes: int = 0
    first_offsets: dict[Partition, int] = field(default_factory=dict)


class OffsetsGoneError(DashError):
    """Kafka no longer has the offsets that are to be ingested next."""


def open_consumer(settings: Settings, group: str) -> Consumer:
    """A consumer for `assign`; it commits nothing by itself, and says nothing of brokers that are gone: `ask`."""
    return Consumer(
        confluent_options(settings)
        | {
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "check.crcs": True,
            # Without this a full fetch queue is looked at again only after a second.
            "fetch.queue.backoff.ms": 2,
            # What comes within 5 ms comes in one answer: an answer for every few messages costs broker and lane more
            # than the messages do.
            "fetch.wait.max.ms": 5,
            "fetch.min.bytes": 65_536,
            "queued.max.messages.kbytes": 65_536,
            "fetch.message.max.bytes": 25 << 20,
            "fetch.max.bytes": 52 << 20,
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 2_000,
            "topic.metadata.refresh.interval.ms": 30_000,
            "error_cb": lambda error: log.debug("%s", error),
        }
    )


def ask(consumer: Consumer, timeout_s: float = _ANSWER_S) -> None:
    """Raises Unavailable when no broker answers: then there is nothing to read, which must not look like a partition
    that has been read to its end. By itself the client does not always say so, least of all of a broker that has shut
    down in good order."""
    try:
        consumer.list_topics(timeout=timeout_s)
    except KafkaException as error:
        raise as_dash_error(error.args[0], None) from error


def close(consumer: Consumer) -> None:
    """End a consumer of `open_consumer`. Without a broker the client keeps what Kafka's group was told last for up to
    three minutes: a thread does the waiting, and ends with the process."""
    thread = threading.Thread(target=consumer.close, name="closing", daemon=True)
    thread.start()
    thread.join(_CLOSE_S)


def ranges(consumer: Consumer, lane: Lane) -> dict[Partition, tuple[int, int]]:
    """First and end offset of each of the lane's partitions. Raises Unavailable when the broker does not answer."""
    found = {}
    # Without a broker the client would ask what it remembers, and find no such partition.
    ask(consumer, _TIMEOUT_S)
    for topic, partition in lane.all():
        try:
            found[topic, partition] = consumer.get_watermark_offsets(TopicPartition(topic, partition), _TIMEOUT_S)
        except KafkaException as error:
            raise as_dash_error(error.args[0], topic) from error
    return found


def assign(consumer: Consumer, offsets: Mapping[Partition, int]) -> None:
    """Read each partition from its offset on."""
    consumer.assign([TopicPartition(topic, partition, offset) for (topic, partition), offset in offsets.items()])


def read(consumer: Consumer, max_messages: int, max_bytes: int, wait_s: float) -> Iterator[Batch]:
    """Wait for a message, then take what is there; nothing when none came in time. More than one batch when the
    messages are larger than `max_bytes` together."""
    first = consumer.poll(wait_s)
    if first is None:
        return
    # consume(n, timeout) would wait for the whole timeout unless n messages are there.
    messages = [first, *consumer.consume(max_messages - 1, 0)] if max_messages > 1 else [first]
    for message in messages:
        if (error := message.error()) is not None:
            raise as_dash_error(error, message.topic())
    if sum(map(len, messages)) <= max_bytes:
        yield _batch(messages)
        return
    taken: list[Message] = []
    size = 0
    for message in messages:
        if taken and size + len(message) > max_bytes:
            yield _batch(taken)
            taken, size = [], 0
        taken.append(message)
        size += len(message)
    yield _batch(taken)


def _batch(messages: list[Message]) -> Batch:
    by_topic: dict[str, list[Message]] = {}
    for message in messages:
        by_topic.setdefault(message.topic() or "", []).append(message)
    topics, next_offsets, first_offsets, size = [], {}, {}, 0
    for topic, group in by_topic.items():
        values = [message.value() or b"" for message in group]
        partitions = np.fromiter(map(Message.partition, group), np.int64, len(group))
        offsets = np.fromiter(map(Message.offset, group), np.int64, len(group))
        timestamps = np.fromiter((message.timestamp()[1] for message in group), np.int64, len(group))
        for partition in np.unique(partitions).tolist():
            mine = offsets[partitions == partition]
            next_offsets[topic, partition] = int(mine[-1]) + 1
            first_offsets[topic, partition] = int(mine[0])
        size += sum(map(len, values))
        topics.append(TopicBatch(topic, values, timestamps, partitions, offsets))
    return Batch(topics, next_offsets, time.time() * 1e3, len(messages), size, first_offsets)


def ends(consumer: Consumer, partitions: Iterable[Partition]) -> dict[Partition, int]:
    """The end offsets that the last fetches reported; asks no server."""
    found = {}
    for topic, partition in partitions:
        _, end = consumer.get_watermark_offsets(TopicPartition(topic, partition), cached=True)
        if end != OFFSET_INVALID:
            found[topic, partition] = end
    return found


def tell_group(consumer: Consumer, offsets: Mapping[Partition, int]) -> None:
    """Commit to Kafka's own group, for the tools that read lag there. Nothing depends on it or waits for it."""
    consumer.commit(offsets=[TopicPartition(t, p, o) for (t, p), o in offsets.items()], asynchronous=True)


def as_dash_error(error: KafkaError, topic: str | None) -> DashError:
    """One line for what the broker or the client reports."""
    code = error.code()
    if code == KafkaError._AUTO_OFFSET_RESET or code == KafkaError.OFFSET_OUT_OF_RANGE:
        return OffsetsGoneError(f"{topic}: {error.str()}")
    if code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION):
        return Unavailable(f"{topic}: the topic or partition does not exist (any more)")
    return Unavailable(f"Kafka: {error.str()}")
