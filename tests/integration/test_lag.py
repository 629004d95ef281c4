"""Reading how far Kafka goes, on a real broker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from kafka import KafkaAdminClient, KafkaProducer

from dash_pipeline.errors import Unavailable
from dash_pipeline.kafka import kafka_python_options
from dash_pipeline.lag import Extent, ExtentReader
from dash_pipeline.settings import Settings


@pytest.fixture
def admin(settings: Settings) -> Iterator[KafkaAdminClient]:
    with KafkaAdminClient(**kafka_python_options(settings)) as admin:
        yield admin


@pytest.fixture
def reader(settings: Settings) -> Iterator[ExtentReader]:
    reader = ExtentReader(settings)
    yield reader
    reader.close()


@pytest.fixture
def topic(admin: KafkaAdminClient, unique: Callable[[str], str]) -> Iterator[str]:
    name = unique("lag")
    admin.create_topics({name: {"num_partitions": 2, "replication_factor": 1}})
    admin.wait_for_topics([name])
    yield name
    admin.delete_topics([name])


def produce(settings: Settings, topic: str, partition: int, count: int) -> None:
    producer = KafkaProducer(**kafka_python_options(settings))
    for _ in range(count):
        producer.send(topic, b"{}", partition=partition)
    producer.flush()
    producer.close()


def test_offsets_and_missing_topics(reader: ExtentReader, settings: Settings, topic: str) -> None:
    produce(settings, topic, 1, 3)
    assert reader.read([topic, "nothing.here"]) == Extent(
        {(topic, 0): 0, (topic, 1): 0}, {(topic, 0): 0, (topic, 1): 3}, ("nothing.here",)
    )


def test_looking_for_a_topic_does_not_make_it(reader: ExtentReader, admin: KafkaAdminClient) -> None:
    reader.read(["nothing.here"])
    assert "nothing.here" not in admin.list_topics()


def test_added_partitions_and_topics_are_seen_at_the_next_read(
    reader: ExtentReader, admin: KafkaAdminClient, topic: str, unique: Callable[[str], str]
) -> None:
    later = unique("lag")
    assert reader.read([topic, later]).missing == (later,)
    admin.create_partitions({topic: 4})
    admin.create_topics({later: {"num_partitions": 1, "replication_factor": 1}})
    admin.wait_for_topics([later])
    try:
        extent = reader.read([topic, later])
        assert sorted(extent.end) == sorted([(later, 0), *((topic, number) for number in range(4))])
    finally:
        admin.delete_topics([later])


def test_deleted_messages_move_the_beginning(
    reader: ExtentReader, settings: Settings, admin: KafkaAdminClient, topic: str
) -> None:
    produce(settings, topic, 0, 10)
    from kafka import TopicPartition

    admin.delete_records({TopicPartition(topic, 0): 6})
    extent = reader.read([topic])
    assert extent.begin[topic, 0] == 6
    assert extent.lag({(topic, 0): 2})[topic, 0] == 4


def test_a_broker_that_is_gone_is_one_line_and_soon(settings: Settings) -> None:
    gone = settings.model_copy(update={"kafka_bootstrap": "127.0.0.1:1"})
    reader = ExtentReader(gone, timeout_s=2)
    start = time.monotonic()
    with pytest.raises(Unavailable, match=r"Kafka at 127\.0\.0\.1:1 does not answer"):
        reader.read(["anvil.blocks"])
    assert time.monotonic() - start < 8
