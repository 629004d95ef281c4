"""A lane's whole run on real servers: from the broker to committed rows, through what goes wrong on the way."""

from __future__ import annotations

import gc
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from dash_pipeline import topics
from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.kafka import confluent_options
from dash_pipeline.microbatch import consume
from dash_pipeline.microbatch.drain import Limits, drain
from dash_pipeline.microbatch.lanes import lane
from dash_pipeline.settings import Settings
from dash_pipeline.stack import Stack
from dash_pipeline.storage import timescale as db
from dash_pipeline.topics import DEAD_LETTERS, TYPES
from sensors.scaling import Live, Policy, scale
from tests.chain import ROWS, Messages, block, branch, merge
from tests.lane import PARTITIONS, PATIENCE_S, QUICK, SMALL, Background, Market, new_market, wait_for


@pytest.fixture
def market(migrated: Settings, unique: Callable[[str], str]) -> Market:
    return new_market(migrated, unique("c"))


@pytest.fixture
def admin(settings: Settings) -> AdminClient:
    return AdminClient(confluent_options(settings))


def whole(blocks: list[tuple[str, Messages]]) -> Messages:
    return merge(messages for _, messages in blocks)


def dead_letter_messages(settings: Settings, chain: str) -> list[Message]:
    """The chain's messages on the dead-letter topic."""
    options = confluent_options(settings) | {"group.id": "test", "fetch.message.max.bytes": 30 << 20}
    consumer = Consumer(options)
    try:
        place = TopicPartition(DEAD_LETTERS, 0)
        first, end = consumer.get_watermark_offsets(place, 10)
        consumer.assign([TopicPartition(DEAD_LETTERS, 0, first)])
        found: list[Message] = []
        deadline = time.monotonic() + 30
        while not found or (found[-1].offset() or 0) + 1 < end:
            assert time.monotonic() < deadline
            message = consumer.poll(1)
            if message is not None:
                assert message.error() is None
                found.append(message)
    finally:
        consumer.close()
    return [m for m in found if dict(m.headers() or [])["topic"].decode().startswith(f"{chain}.")]


# --- a good day


def test_a_stream_from_end_to_end(market: Market) -> None:
    sent = market.produce(whole(branch("A", 0, 19, "-")))
    done = market.drain()
    market.check(20)
    assert done.messages == sent
    assert done.rows == {name: 20 * count for name, count in ROWS.items()}
    assert (done.lag_before, done.lag_after, done.dead_letters, done.reorgs) == (sent, 0, 0, 0)
    assert done.heights == (0, 19)
    assert done.offsets == {f"{t}/{p}": end for (t, p), end in market.ends().items()}
    assert set(done.latency) == {"ingestion", "processing", "output", "end_to_end"}
    assert all(0 <= v["p50"] <= v["p95"] <= v["p99"] for v in done.latency.values())
    assert sum(c.messages for c in market.checkpoints) == sent
    assert sum(c.rows.get("logs", 0) for c in market.checkpoints) == 20 * ROWS["logs"]


def test_a_run_goes_on_where_the_last_ended_and_takes_what_comes_meanwhile(market: Market) -> None:
    market.produce(whole(branch("A", 0, 4, "-")))
    market.drain()
    market.produce(whole(branch("A", 5, 9, "A4")))
    run = Background(lambda: market.drain(Limits(idle_timeout_s=3, checkpoint_s=1), "second"))
    wait_for(lambda: market.counts()["logs"] == 10 * ROWS["logs"], "the second run reads what waited")
    market.produce(whole(branch("A", 10, 12, "A9")))
    run.join()
    assert run.error is None
    assert run.result is not None
    assert run.result.heights == (5, 12)
    market.check(13)
    assert {
        r for (r,) in market.query("SELECT run_id FROM ops.stream_offsets WHERE topic = %s", market.topic("log"))
    } == {"second"}


def test_two_lanes_at_once_on_a_chain_that_forks(market: Market) -> None:
    market.produce(whole([*branch("A", 0, 30, "-"), *branch("B", 21, 40, "A20")]))
    runs = [Background(lambda n=n: market.drain(SMALL, f"lane {n}", market.lane(n))) for n in range(PARTITIONS)]
    for run in runs:
        run.join()
        assert run.error is None
    market.check(41)
    side = market.query("SELECT count(*) FROM side.logs WHERE chain = %s", market.chain)
    assert side == [(10 * ROWS["logs"],)]


def test_a_run_ends_when_its_time_is_up(market: Market) -> None:
    market.produce(whole(branch("A", 0, 3, "-")))
    began = time.monotonic()
    market.drain(Limits(idle_timeout_s=60, max_run_s=2))
    assert time.monotonic() - began < 20
    market.check(4)


def test_a_run_that_is_over_leaves_no_client_behind(market: Market) -> None:
    def clients() -> int:
        gc.collect()
        threads = subprocess.check_output(["ps", "-L", "-o", "comm=", "-p", str(os.getpid())], text=True)
        return threads.count("rdk:main")

    before = clients()

    for _ in range(2):
        market.drain()

    assert clients() == before


# --- bad messages


def test_dead_letters_are_whole_on_their_topic_and_the_lane_goes_on(market: Market) -> None:
    large = b'{"type": "log", "data": "0x' + b"ab" * (5 << 20) + b'"}'
    bad = [b"not json", b"\xff\x00", large]
    good = block("A0", "-")
    market.produce({"log": [bad[0], *good["log"], *bad[1:]]})
    market.produce({t: v for t, v in good.items() if t != "log"})
    market.produce(whole(branch("A", 1, 2, "A0")))
    done = market.drain()
    market.check(3)
    assert done.dead_letters == 3
    letters = market.letters()
    assert len(letters) == 3
    found = {m.value(): {k: v.decode() for k, v in m.headers() or []} for m in
             dead_letter_messages(market.settings, market.chain)}  # fmt: skip
    assert found.keys() == set(bad)
    assert {(h["topic"], int(h["partition"]), int(h["offset"]), h["reason"]) for h in found.values()} == set(letters)
    assert found[large]["reason"] == f"message of {len(large)} bytes, at most {8 << 20} are taken"
    ((kept, size),) = market.query(
        "SELECT payload, payload_bytes FROM ops.dead_letters WHERE topic LIKE %s AND payload_bytes > 1000000",
        f"{market.chain}.%",
    )
    assert (kept, size) == (large[: db.PAYLOAD_KEPT], len(large))


def test_a_message_without_a_value(market: Market) -> None:
    producer = Producer(confluent_options(market.settings))
    producer.produce(market.topic("log"), None, key=b"k", partition=0)
    assert producer.flush(10) == 0
    market.produce(block("A0", "-"))
    market.drain()
    market.check(1)
    assert len(market.letters()) == 1


# --- topics


def test_partitions_added_while_a_run_goes_on_are_not_lost(market: Market, admin: AdminClient) -> None:
    market.produce(whole(branch("A", 0, 4, "-")))
    old = market.lane()
    run = Background(lambda: market.drain(Limits(idle_timeout_s=3), "old", old))
    (future,) = admin.create_partitions([NewPartitions(market.topic("log"), 4)]).values()
    future.result(10)
    wait_for(lambda: (market.topic("log"), 3) in market.partitions(), "the broker has the partitions")
    producer = Producer(confluent_options(market.settings))
    late = whole(branch("A", 5, 9, "A4"))
    for i, value in enumerate(late["log"]):
        producer.produce(market.topic("log"), value, partition=2 + i % 2)
    assert producer.flush(10) == 0
    market.produce({t: v for t, v in late.items() if t != "log"})
    lag = {p: 1 for p in market.partitions() if p[1] >= 2}
    lag = dict.fromkeys(market.partitions(), 0) | lag
    (new,) = scale(market.chain, lag, [Live(old)], None, Policy(max_lanes=2, lag_per_lane=5000), time.time()).lanes
    assert new.partitions == {market.topic("log"): (2, 3)}
    market.drain(QUICK, "new", new)
    run.join()
    assert run.error is None
    market.check(10)


def test_a_topic_that_is_missing_is_one_clear_line(market: Market) -> None:
    missing = lane(market.chain, [(f"{market.chain}.uncles", 0)])
    with pytest.raises(Unavailable) as caught:
        market.drain(of=missing, retry_for_s=1)
    assert str(caught.value).startswith(f"{market.chain}.uncles: the topic or partition does not exist")
    assert "\n" not in str(caught.value)


def test_a_topic_that_was_made_anew_is_one_clear_line(market: Market, admin: AdminClient) -> None:
    market.produce(whole(branch("A", 0, 4, "-")))
    market.drain()
    topic = market.topic("log")
    admin.delete_topics([topic])[topic].result(10)
    wait_for(lambda: (topic, 0) not in market.partitions(), "the topic is gone")
    topics.ensure(market.settings, [market.chain], PARTITIONS)
    began = time.monotonic()
    with pytest.raises(consume.OffsetsGoneError) as caught:
        market.drain()
    assert time.monotonic() - began < 15, "trying again will not help"
    assert str(caught.value).startswith(f"{topic}/0 ends at offset 0, but 10 is the next to ingest")
    assert "\n" not in str(caught.value)
    assert market.counts() == {name: 5 * count for name, count in ROWS.items()}


def test_offsets_that_were_deleted_are_recorded_and_the_lane_goes_on(market: Market, admin: AdminClient) -> None:
    blocks = branch("A", 0, 9, "-")
    market.produce(whole(blocks[:3]))
    market.drain()
    market.produce(whole(blocks[3:]))
    topic = market.topic("trace")
    for future in admin.delete_records([TopicPartition(topic, 0, 8)]).values():
        future.result(10)
    market.drain()
    ((where, partition, offset, reason),) = market.letters()
    assert (where, partition, offset) == (topic, 0, 3)
    assert reason == "offsets 3 to 7 were deleted from Kafka before they were ingested"
    assert market.counts() == {n: 10 * c - 5 * (n == "traces") for n, c in ROWS.items()}
    assert market.lag() == 0
    ((header,),) = [[dict(m.headers() or [])["reason"].decode()] for m in
                    dead_letter_messages(market.settings, market.chain)]  # fmt: skip
    assert header == reason


# --- servers that go away


@pytest.fixture
def restarted(stack: Stack) -> Iterator[None]:
    """Whatever a test stops is up afterwards."""
    yield
    for name in ("timescale", "kafka", "opensearch"):
        if stack.supervisor.state(name).pid is None:
            stack.start(name)


@pytest.mark.usefixtures("restarted")
@pytest.mark.parametrize(
    ("server", "how"),
    [
        pytest.param("timescale", "stop", marks=pytest.mark.patient),
        ("timescale", "kill"),
        ("kafka", "kill"),
    ],
)
def test_a_server_that_restarts_while_a_lane_drains(market: Market, stack: Stack, server: str, how: str) -> None:
    blocks = 150
    market.produce(whole(branch("A", 0, blocks - 1, "-")))
    run = Background(lambda: market.drain(Limits(idle_timeout_s=6, batch_rows=20, checkpoint_s=1)))
    wait_for(lambda: market.counts()["logs"] > 0, "it has begun")
    if how == "kill":
        stack.kill(server)
    else:
        stack.stop(server)
        time.sleep(1)
        stack.start(server)
    stack.wait_ready(server)
    run.join()
    assert run.error is None, run.error
    market.check(blocks)


@pytest.mark.usefixtures("restarted")
def test_a_database_that_stays_away_ends_the_run_with_one_line(market: Market, stack: Stack) -> None:
    market.produce(whole(branch("A", 0, 4, "-")))
    of = market.lane()
    stack.stop("timescale")
    began = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        market.drain(of=of, retry_for_s=2)
    assert 2 < time.monotonic() - began < 20
    assert str(caught.value).startswith("database: ")
    assert str(caught.value).endswith("(tried for 2 s; nothing is lost)")
    assert "\n" not in str(caught.value)
    stack.start("timescale")
    market.drain()
    market.check(5)


@pytest.mark.usefixtures("restarted")
def test_a_broker_that_stays_away_ends_the_run_with_one_line(market: Market, stack: Stack) -> None:
    market.produce(whole(branch("A", 0, 4, "-")))
    of = market.lane()
    stack.stop("kafka")
    with pytest.raises(Unavailable) as caught:
        market.drain(of=of, retry_for_s=2)
    assert str(caught.value).startswith("Kafka: ")
    assert str(caught.value).endswith("(tried for 2 s; nothing is lost)")
    assert "\n" not in str(caught.value)
    stack.start("kafka")
    market.drain()
    market.check(5)


@pytest.mark.usefixtures("restarted")
def test_a_broker_that_goes_away_is_not_taken_for_an_idle_one(market: Market, stack: Stack) -> None:
    market.produce(whole(branch("A", 0, 4, "-")))
    run = Background(lambda: market.drain(Limits(idle_timeout_s=PATIENCE_S), retry_for_s=2))
    wait_for(lambda: market.counts()["logs"] == 5 * ROWS["logs"], "all is read")
    stack.stop("kafka")
    run.join()
    assert isinstance(run.error, Unavailable)
    assert str(run.error).startswith("Kafka: ")
    stack.start("kafka")
    market.produce(whole(branch("A", 5, 9, "A4")))
    market.drain()
    market.check(10)


@pytest.mark.usefixtures("restarted")
def test_a_last_word_to_the_group_that_no_broker_hears_holds_nobody_up(market: Market, stack: Stack) -> None:
    consumer = consume.open_consumer(market.settings, f"dash-{market.chain}")
    (partition, *_) = market.lane().all()
    consumer.commit(offsets=[TopicPartition(*partition, 0)], asynchronous=False)  # it knows the group's coordinator now
    stopping = threading.Thread(target=stack.stop, args=("kafka",))
    stopping.start()
    while stopping.is_alive():
        consume.tell_group(consumer, {partition: 0})
        consumer.poll(0.1)
    began = time.monotonic()
    consume.close(consumer)
    assert time.monotonic() - began < 20  # 3, and not the client's 180


@pytest.mark.usefixtures("restarted")
def test_an_index_that_is_away_does_not_stop_the_tables(
    market: Market, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dash_pipeline.microbatch.drain._CLOSE_S", 3.0)  # or the run's end would wait 30 s for it
    market.produce(whole(branch("A", 0, 4, "-")))
    stack.stop("opensearch")
    market.drain()
    market.check(5)
    ((waiting,),) = market.query("SELECT count(*) FROM ops.search_outbox WHERE chain = %s", market.chain)
    assert waiting > 0, "the index has it to do"


def test_a_database_that_refuses_every_commit_ends_the_run(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a full disk does: connecting works, writing does not."""
    import psycopg

    from dash_pipeline.microbatch import drain as module

    def refuse(*_: Any) -> None:
        raise psycopg.errors.DiskFull("could not extend file: No space left on device\nHINT: Check free disk space.")

    market.produce(whole(branch("A", 0, 4, "-")))
    with monkeypatch.context() as patched:
        patched.setattr(module, "commit", refuse)
        began = time.monotonic()
        with pytest.raises(Unavailable, match="No space left on device"):
            market.drain(retry_for_s=2)
        assert time.monotonic() - began < 20
    market.drain()
    market.check(5)


def test_settings_without_a_schema_say_so(market: Market, fresh_database: Settings) -> None:
    with pytest.raises(DashError, match="schema `ops` is missing"):
        drain(fresh_database, market.lane(), QUICK, "run")


def test_every_type_has_its_topic(market: Market) -> None:
    assert {t for t, _ in market.partitions()} == {market.topic(type_) for type_ in TYPES}
