"""Anomalies on their topic: from the broker through a lane and back to the broker, once, whatever was left undone."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from dash_pipeline import topics
from dash_pipeline.errors import Unavailable
from dash_pipeline.feed.wait import end_offsets
from dash_pipeline.kafka import confluent_options
from dash_pipeline.microbatch.announce import Announcer
from dash_pipeline.microbatch.drain import Limits, drain
from dash_pipeline.microbatch.lanes import lane
from dash_pipeline.settings import Settings
from dash_pipeline.storage import anomalies as store
from dash_pipeline.storage import timescale as db
from dash_pipeline.topics import ANOMALIES
from tests.chain import merge
from tests.pools import Pool, block, life

DEVELOPER = "0x" + "d" * 40
QUICK = Limits(idle_timeout_s=1.5, max_run_s=120, checkpoint_s=1)


@pytest.fixture
def chain(migrated: Settings, unique: Callable[[str], str]) -> str:
    """A chain of the test's own, with a pool's life and its end in its topics."""
    name, pool = unique("c"), Pool("x", DEVELOPER)
    topics.ensure(migrated, [name], 2)
    blocks = [messages for _, messages in life(pool, 40)]
    blocks.append(block("A40", "A39", [(DEVELOPER, pool.drained(0.97))]))
    producer = Producer(confluent_options(migrated))
    for type_, values in merge(blocks).items():
        for i, value in enumerate(values):
            partition = 0 if type_ in topics.SINGLE else i % 2
            producer.produce(topics.topic_name(name, type_), value, partition=partition)
    assert producer.flush(30) == 0
    return name


def run(settings: Settings, chain: str, name: str = "run") -> int:
    done = drain(settings, lane(chain, end_offsets(settings, topics.chain_topics(chain))), QUICK, name)
    assert done.lag_after == 0
    return done.anomalies


def published(settings: Settings, chain: str) -> list[tuple[str, dict[str, Any]]]:
    """Key and message of everything on the topic that is of this chain."""
    consumer = Consumer(confluent_options(settings) | {"group.id": "test", "enable.partition.eof": False})
    found = []
    try:
        for (topic, number), end in end_offsets(settings, [ANOMALIES]).items():
            first, _ = consumer.get_watermark_offsets(TopicPartition(topic, number), 10)
            consumer.assign([TopicPartition(topic, number, first)])
            while first < end:
                message = consumer.poll(10)
                assert message is not None
                assert message.error() is None
                first = (message.offset() or 0) + 1
                anomaly = json.loads(message.value() or b"")
                if anomaly["chain"] == chain:
                    found.append(((message.key() or b"").decode(), anomaly))
    finally:
        consumer.close()
    return found


def test_a_lane_publishes_what_it_found_keyed_by_token(migrated: Settings, chain: str) -> None:
    count = run(migrated, chain)
    messages = published(migrated, chain)
    assert len(messages) == count > 0
    with db.connect(migrated) as conn:
        rows = store.read_anomalies(conn, [bytes.fromhex(one["id"][2:]) for _, one in messages])
        assert chain not in store.unpublished(conn)
    assert {row.id for row in rows} == {bytes.fromhex(one["id"][2:]) for _, one in messages}
    pool = Pool("x", DEVELOPER)
    assert {key for key, _ in messages} == {pool.token}
    high = [one for _, one in messages if one["severity"] == "high"]
    assert [(one["kind"], one["pool"], one["wallets"]) for one in high] == [
        ("liquidity_withdrawal", pool.address, [DEVELOPER])
    ]
    assert not high[0]["retracted"]
    assert high[0]["evidence"]["withdrawn_share"] == pytest.approx(0.97, abs=0.01)


def test_what_a_run_left_the_next_one_publishes(
    migrated: Settings, chain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed between its commit and the broker's answer leaves rows that are not marked."""

    def killed(self: Announcer) -> list[store.Stored]:
        raise Unavailable("killed before it was published")

    with monkeypatch.context() as patched:
        patched.setattr(Announcer, "publish", killed)
        count = run(migrated, chain)
    assert published(migrated, chain) == []
    with db.connect(migrated) as conn:
        assert chain in store.unpublished(conn)
    assert run(migrated, chain, "next") == 0
    assert len(published(migrated, chain)) == count


def test_a_kill_between_the_brokers_answer_and_the_mark_publishes_the_same_again(
    migrated: Settings, chain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(conn: object, anomalies: object) -> None:
        raise Unavailable("killed before it was marked")

    with monkeypatch.context() as patched:
        patched.setattr(store, "mark_published", killed)
        run(migrated, chain)
    first = published(migrated, chain)
    run(migrated, chain, "next")
    again = published(migrated, chain)
    assert len(again) > len(first) > 0
    assert {(one["id"], one["revision"]) for _, one in again} == {(one["id"], one["revision"]) for _, one in first}
