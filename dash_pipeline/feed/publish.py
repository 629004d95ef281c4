"""Events -> Kafka: which topic, which key, how fast, and what has really arrived.

Belongs here: the producer's tuning and the counts.
Does not belong here: where events come from (`files.py`, `follow.py`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from enum import StrEnum
from typing import Protocol, Self, TypeVar

from kafka import KafkaProducer
from kafka.errors import KafkaError

from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.feed.files import Event, Message
from dash_pipeline.kafka import as_dash_error, kafka_errors, kafka_python_options
from dash_pipeline.settings import Settings
from dash_pipeline.topics import MAX_DEAD_LETTER_BYTES, TYPES, topic_name

# The producer's own buffer has no limit: without a pause to flush, a file would be held in memory whole.
UNFLUSHED_BYTES = 8 << 20
BATCH_BYTES = 256 << 10
# At full speed messages are gathered; at a rate somebody is looking at the latency.
LINGER_MS = 20
LINGER_MS_AT_A_RATE = 1
# A broker that answers at all may take this long.
SHORTEST_PATIENCE_S = 10.0
# How long closing may take when there is nobody to say goodbye to.
TOLD_WITHIN_S = 5.0
CLOSE_S = 2
# Sleeping for less costs more than it waits.
SHORTEST_SLEEP_S = 0.001

T = TypeVar("T")


class Key(StrEnum):
    """What messages are keyed by: those with one key stay in order, in one partition."""

    NONE = "none"
    TOKEN = "token"
    WALLET = "wallet"


# The first of these that a message has is its key; a block has none of them.
_KEY_FIELDS: Mapping[Key, tuple[str, ...]] = {
    Key.NONE: (),
    Key.TOKEN: ("token_address", "address", "to_address"),
    Key.WALLET: ("from_address", "address"),
}


class Sink(Protocol):
    """Where messages go: a KafkaSink, or a list in tests."""

    @property
    def delivered(self) -> Counter[str]:
        """How many messages of each topic are known to have arrived, since the start."""

    def send(self, topic: str, value: bytes, key: bytes | None) -> None:
        """Take a message; it may be delivered later. Raises Unavailable when nothing more can be taken."""

    def flush(self) -> None:
        """Wait until every message sent is delivered or refused. Raises Unavailable when neither happens."""


class KafkaSink:
    """A producer that counts what was acknowledged. Raises Unavailable when the broker does not answer."""

    def __init__(self, settings: Settings, *, linger_ms: int = LINGER_MS) -> None:
        self.delivered: Counter[str] = Counter()
        self._settings = settings
        self._unflushed = 0
        self._sent = self._told = 0
        self._patience_s = max(settings.retry_for_s, SHORTEST_PATIENCE_S)
        with kafka_errors(settings):
            self._producer = KafkaProducer(
                **kafka_python_options(settings),
                linger_ms=linger_ms,
                batch_size=BATCH_BYTES,
                max_request_size=MAX_DEAD_LETTER_BYTES,
                allow_auto_create_topics=False,
                delivery_timeout_ms=round(self._patience_s * 1000),
                request_timeout_ms=round(self._patience_s * 1000) // 2,
                max_block_ms=round(self._patience_s * 1000),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # What counts was flushed; without a broker the goodbye fails too, and must not hide the reason.
        with suppress(KafkaError):
            self._producer.close(timeout=CLOSE_S)

    def send(self, topic: str, value: bytes, key: bytes | None) -> None:
        """Hand a message to the producer."""
        self._unflushed += len(value)
        if self._unflushed > UNFLUSHED_BYTES:
            self.flush()
        try:
            future = self._producer.send(topic, value, key)
        except KafkaError as error:
            raise as_dash_error(self._settings, error) from error
        self._sent += 1
        future.add_callback(self._count, topic)
        future.add_errback(self._refused)

    def flush(self) -> None:
        """Wait until the broker has, or has refused, every message sent.

        The timeout is needed: the library does not give up batches that a dead broker has not acknowledged.
        """
        with kafka_errors(self._settings):
            self._producer.flush(timeout=self._patience_s)
        # The library's flush ends when the last answer is known, a moment before it is told to whoever asked.
        deadline = time.monotonic() + TOLD_WITHIN_S
        while self._told < self._sent and time.monotonic() < deadline:
            time.sleep(0.001)
        self._unflushed = 0

    def _count(self, topic: str, _metadata: object) -> None:
        self.delivered[topic] += 1
        self._told += 1

    def _refused(self, _error: object) -> None:
        self._told += 1


class Stopped(DashError):
    """Publishing ended before its end; the line says why and how much is in Kafka."""

    def __init__(self, reason: str, published: Counter[str], exit_code: int) -> None:
        """`published` is by topic."""
        counts = ", ".join(f"{count:,} to {topic}" for topic, count in sorted(published.items()))
        super().__init__(f"{reason}; published: {counts or 'nothing'}")
        self.exit_code = exit_code


def publish(events: Iterable[Event], chain: str, sink: Sink, key: Key = Key.NONE) -> Counter[str]:
    """Send every event to the topic of its type, as it stands, and wait until all are delivered.

    Returns how many messages of each type. Raises Stopped, with what the broker has acknowledged, when the source is
    wrong, the broker refuses messages or does not answer, or a person interrupts.
    """
    topics = {type_: topic_name(chain, type_) for type_ in TYPES}
    before = sink.delivered.copy()
    sent: Counter[str] = Counter()
    try:
        for message, line in events:
            sink.send(topics[message.type], line, message_key(message, key))
            sent[message.type] += 1
        sink.flush()
    except Unavailable as error:
        raise Stopped(str(error), sink.delivered - before, error.exit_code) from error
    except (DashError, KeyboardInterrupt) as error:
        with suppress(Unavailable):
            sink.flush()
        reason, exit_code = ("interrupted", 130) if isinstance(error, KeyboardInterrupt) else (str(error), 2)
        raise Stopped(reason, sink.delivered - before, exit_code) from error
    delivered = sink.delivered - before
    if refused := sent.total() - delivered.total():
        reason = f"the broker refused {refused:,} of {sent.total():,} messages"
        raise Stopped(reason, delivered, Unavailable.exit_code)
    return sent


def message_key(message: Message, by: Key) -> bytes | None:
    """The message's key, an address in lower case; None (as the exporter does it) when it has none."""
    for field in _KEY_FIELDS[by]:
        value = getattr(message, field)
        if isinstance(value, str):
            return value.lower().encode()
    return None


def paced(items: Iterable[T], per_second: float | None) -> Iterator[T]:
    """The items, at most so many a second; None is as fast as they come."""
    if per_second is None:
        yield from items
        return
    start = time.monotonic()
    for number, item in enumerate(items):
        ahead = start + number / per_second - time.monotonic()
        if ahead > SHORTEST_SLEEP_S:
            time.sleep(ahead)
        yield item


def told(items: Iterable[T], tell: Callable[[int], None], every_s: float = 0.1) -> Iterator[T]:
    """The items; `tell` hears how many have passed, now and then and at the end."""
    number, due = 0, 0.0
    for number, item in enumerate(items, start=1):
        yield item
        if (now := time.monotonic()) >= due:
            tell(number)
            due = now + every_s
    tell(number)
