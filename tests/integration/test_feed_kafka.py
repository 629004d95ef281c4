"""Feeding a real broker: every line arrives as it stands, and whatever goes wrong says how much arrived."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from dash_pipeline import market, topics
from dash_pipeline.errors import Unavailable
from dash_pipeline.feed import files
from dash_pipeline.feed.node import ask
from dash_pipeline.feed.publish import KafkaSink, Key, Stopped, publish
from dash_pipeline.feed.replay import replay
from dash_pipeline.feed.wait import end_offsets, wait_until_committed
from dash_pipeline.kafka import kafka_python_options
from dash_pipeline.settings import Settings
from dash_pipeline.storage.migrate import upgrade

Published = dict[str, list[tuple[int, bytes | None, bytes]]]


@pytest.fixture
def chain(unique: Callable[[str], str]) -> str:
    """A chain of the test's own: its topics are nobody else's."""
    return unique("c")


def read_back(settings: Settings, chain: str) -> Published:
    """All messages in the chain's topics: topic -> (partition, key, value), each partition in order."""
    ends = end_offsets(settings, topics.chain_topics(chain))
    consumer = KafkaConsumer(**kafka_python_options(settings), fetch_max_bytes=64 << 20)
    found: Published = defaultdict(list)
    try:
        consumer.assign([TopicPartition(*place) for place in ends])
        consumer.seek_to_beginning()
        left = sum(ends.values())
        deadline = time.monotonic() + 60
        while left:
            assert time.monotonic() < deadline
            for batch in consumer.poll(timeout_ms=500).values():
                left -= len(batch)
                for record in batch:
                    found[record.topic].append((record.partition, record.key, record.value))
    finally:
        consumer.close()
    return found


def row(type_: str, block: int, **fields: object) -> bytes:
    number = "number" if type_ == "block" else "block_number"
    return json.dumps({"type": type_, number: block, **fields}).encode()


def write(file: Path, *rows: bytes) -> Path:
    file.write_bytes(b"".join(row + b"\n" for row in rows))
    return file


def event(line: bytes) -> files.Event:
    return files.Event(files.parse(line), line)


# --- topics


def test_topics_are_created_once(settings: Settings, chain: str) -> None:
    created = topics.ensure(settings, [chain], partitions=3)
    assert set(topics.chain_topics(chain)) <= set(created)
    assert topics.ensure(settings, [chain], partitions=5) == []
    with KafkaAdminClient(**kafka_python_options(settings)) as admin:
        found = {topic["name"]: topic for topic in admin.describe_topics([f"{chain}.logs", f"{chain}.blocks"])}
    assert len(found[f"{chain}.logs"]["partitions"]) == 3
    assert len(found[f"{chain}.blocks"]["partitions"]) == 1


def test_only_the_topics_named(settings: Settings, chain: str) -> None:
    assert topics.ensure(settings, [chain], names=[f"{chain}.logs"]) == [f"{chain}.logs"]


def test_two_who_create_the_same_topics(settings: Settings, chain: str) -> None:
    created: list[str] = []
    threads = [threading.Thread(target=lambda: created.extend(topics.ensure(settings, [chain]))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for name in created if name.startswith(chain)) == sorted(topics.chain_topics(chain))


# --- what arrives


def test_the_recorded_market_arrives_as_it_stands(settings: Settings, chain: str) -> None:
    report = replay(settings, [market.RECORDED], chain)
    recorded = {
        topics.topic_name(chain, file.name.split(".")[0]): [line for _, line in files.read_lines(file)]
        for file in market.RECORDED.glob("*.jsonl.zst")
    }
    published = read_back(settings, chain)
    assert report.topics == {topic: len(lines) for topic, lines in recorded.items()}
    assert report.messages > 35_000
    for topic, lines in recorded.items():
        assert sorted(value for _, _, value in published[topic]) == sorted(lines)
        assert {key for _, key, _ in published[topic]} == {None}
    assert [value for _, _, value in published[f"{chain}.blocks"]] == recorded[f"{chain}.blocks"]


@pytest.mark.parametrize("key", [Key.TOKEN, Key.WALLET])
def test_one_key_one_partition_in_order(settings: Settings, chain: str, tmp_path: Path, key: Key) -> None:
    rows = [
        row("token_transfer", number, token_address=f"0xT{number % 7}", from_address=f"0xF{number % 5}")
        for number in range(500)
    ]
    replay(settings, [write(tmp_path / "token_transfer.jsonl", *rows)], chain, key=key)
    places: dict[bytes | None, set[int]] = defaultdict(set)
    order: dict[bytes | None, list[int]] = defaultdict(list)
    for partition, name, value in read_back(settings, chain)[f"{chain}.token_transfers"]:
        places[name].add(partition)
        order[name].append(json.loads(value)["block_number"])
    assert len(places) == {Key.TOKEN: 7, Key.WALLET: 5}[key]
    assert all(len(partitions) == 1 for partitions in places.values())
    assert all(numbers == sorted(numbers) for numbers in order.values())


def test_a_message_of_ten_megabytes(settings: Settings, chain: str, tmp_path: Path) -> None:
    large = row("transaction", 1, input="0x" + "ab" * (5 << 20))
    replay(settings, [write(tmp_path / "transaction.jsonl", large)], chain)
    assert [value for _, _, value in read_back(settings, chain)[f"{chain}.transactions"]] == [large]


# --- what goes wrong


def test_a_wrong_file_publishes_nothing(settings: Settings, chain: str, tmp_path: Path) -> None:
    write(tmp_path / "block.jsonl", row("block", 1))
    write(tmp_path / "log.jsonl", row("log", 1), b"{broken")
    topics.ensure(settings, [chain])
    with pytest.raises(Stopped, match=r"log\.jsonl: line 2: not JSON: .*; published: nothing"):
        replay(settings, [tmp_path], chain)
    assert read_back(settings, chain) == {}


def test_a_message_that_the_broker_refuses(settings: Settings, chain: str) -> None:
    topics.ensure(settings, [chain])
    too_large = row("log", 3, data="0x" + "ab" * (11 << 20))
    # Last, because the broker refuses whole batches: one that follows may share the large one's.
    with KafkaSink(settings) as sink, pytest.raises(Stopped) as caught:
        publish([event(row("block", 1)), event(row("log", 1)), event(row("log", 2)), event(too_large)], chain, sink)
    assert str(caught.value) == f"the broker refused 1 of 4 messages; published: 1 to {chain}.blocks, 2 to {chain}.logs"
    assert len(read_back(settings, chain)[f"{chain}.logs"]) == 2


@pytest.mark.usefixtures("impatient")
def test_a_broker_that_is_not_there(settings: Settings, chain: str, tmp_path: Path) -> None:
    nowhere = settings.model_copy(update={"kafka_bootstrap": f"127.0.0.1:{market.free_port()}"})
    with pytest.raises(Unavailable, match="does not answer"):
        replay(nowhere, [write(tmp_path / "block.jsonl", row("block", 1))], chain)


@pytest.mark.usefixtures("impatient")
def test_a_user_that_the_broker_does_not_know(settings: Settings, chain: str) -> None:
    wrong = settings.model_copy(update={"kafka_username": "nobody"})
    with pytest.raises(Unavailable, match="or does not know user nobody with this password"):
        topics.ensure(wrong, [chain])


# --- waiting


@pytest.fixture
def ingested(database: Settings) -> Settings:
    """The settings with a database that has the schema."""
    upgrade(database)
    return database


def commit(settings: Settings, topic: str, partition: int, offset: int) -> None:
    with psycopg.connect(settings.timescale_dsn.get_secret_value()) as connection:
        connection.execute(
            "INSERT INTO ops.stream_offsets (topic, partition, next_offset) VALUES (%s, %s, %s)"
            " ON CONFLICT (topic, partition) DO UPDATE SET next_offset = excluded.next_offset",
            (topic, partition, offset),
        )


def test_waiting_ends_when_all_is_committed(ingested: Settings, chain: str, tmp_path: Path) -> None:
    file = write(tmp_path / "block.jsonl", *(row("block", number) for number in range(5)))
    told: list[tuple[str, int, int | None]] = []
    waiting = threading.Event()

    def progress(stage: str, done: int, total: int | None) -> None:
        told.append((stage, done, total))
        if stage == "waiting for commits":
            waiting.set()

    def lane() -> None:
        waiting.wait(30)
        for offset in (2, 5):
            commit(ingested, f"{chain}.blocks", 0, offset)

    thread = threading.Thread(target=lane)
    thread.start()
    report = replay(ingested, [file], chain, wait_s=30, progress=progress)
    thread.join()
    assert report.committed_after_s is not None
    assert ("waiting for commits", 0, 5) in told
    assert told[-1] == ("waiting for commits", 5, 5)


def test_waiting_too_long_says_what_is_missing(ingested: Settings, chain: str, tmp_path: Path) -> None:
    file = write(tmp_path / "block.jsonl", *(row("block", number) for number in range(5)))
    replay(ingested, [file], chain)
    commit(ingested, f"{chain}.blocks", 0, 3)
    targets = end_offsets(ingested, [f"{chain}.blocks"])
    with pytest.raises(Unavailable) as caught:
        wait_until_committed(ingested, targets, 0.5, lambda *_: None)
    assert str(caught.value) == f"after 0.5 s 2 published messages are not committed: 2 of {chain}.blocks"


# --- the command


@pytest.fixture
def environment(settings: Settings, chain: str, tmp_path: Path) -> dict[str, str]:
    """What a command needs to find the test stack, and a registry with the test's chain."""
    registry = tmp_path / "chains.toml"
    registry.write_text(f'[{chain}]\ntitle = "Test"\nchain_id = 31337\nblock_time_s = 1\n')
    opt = os.environ.get("DASH_OPT_DIR") or str(Path(".stack/opt").absolute())
    values = {"DASH_CHAINS_FILE": str(registry), "DASH_STACK_DIR": str(tmp_path / "stack"), "DASH_OPT_DIR": opt}
    for name in type(settings).model_fields:
        if (name.startswith("kafka") or name in ("timescale_dsn", "opensearch_url")) and getattr(settings, name):
            value = getattr(settings, name)
            values[f"DASH_{name.upper()}"] = getattr(value, "get_secret_value", lambda value=value: str(value))()
    return {**os.environ, **values}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from dash_pipeline.cli import main; main()", "feed", *arguments]


def test_the_command_reports_in_json(environment: dict[str, str], chain: str, tmp_path: Path) -> None:
    file = write(tmp_path / "block.jsonl", row("block", 1), row("block", 2))
    done = subprocess.run(
        command(str(file), "--chain", chain, "--json"), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["topics"] == {f"{chain}.blocks": 2}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"type": "block", "number": 1}\nhello\n', "wrong.jsonl: line 2: not JSON"),
        ('{"type": "uncle"}\n', "wrong.jsonl: line 1: unknown type 'uncle'"),
        ("[]\n", "wrong.jsonl: line 1: not a JSON object"),
    ],
)
def test_a_wrong_file_is_one_line_and_exit_code_2(
    environment: dict[str, str], chain: str, tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "wrong.jsonl"
    file.write_text(text)
    done = subprocess.run(
        command(str(file), "--chain", chain), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert said in last
    assert last.endswith("; published: nothing")


@pytest.fixture
def node() -> Iterator[str]:
    with market.anvil(market.install(market.market_home()), market.free_port()) as url:
        yield url


def test_a_node_is_followed_until_ctrl_c(
    environment: dict[str, str], settings: Settings, chain: str, node: str
) -> None:
    """And the next run goes on where this one ended."""
    ask(node, "anvil_mine", "0xa")
    first = subprocess.Popen(
        command("--rpc", node, "--chain", chain, "--json"),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 180  # the exporter may have to be installed
    while sum(end_offsets(settings, [f"{chain}.blocks"]).values()) < 11:
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    first.send_signal(signal.SIGINT)
    said, complaints = first.communicate(timeout=30)
    assert first.returncode == 0, complaints
    assert json.loads(said)["types"] == {"block": 11}

    ask(node, "anvil_mine", "0x5")
    second = subprocess.run(
        command("--rpc", node, "--chain", chain, "--once", "--json"),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 0, second.stderr
    assert json.loads(second.stdout)["types"] == {"block": 5}
    blocks = [json.loads(value)["number"] for _, _, value in read_back(settings, chain)[f"{chain}.blocks"]]
    assert blocks == list(range(16))
