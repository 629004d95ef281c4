"""Kafka's topics and offsets on the real broker: kept, encrypted, and made anew from what was kept."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from typer.testing import CliRunner

from dash_pipeline import cli, topics
from dash_pipeline.backups import kafka as backups
from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.kafka import kafka_python_options
from dash_pipeline.settings import Settings
from dash_pipeline.storage import s3, timescale
from dash_pipeline.storage.migrate import upgrade
from tests.faults import faulty


@pytest.fixture(scope="module")
def migrated(database: Settings) -> Settings:
    upgrade(database)
    return database


@pytest.fixture
def admin(settings: Settings) -> Iterator[KafkaAdminClient]:
    with KafkaAdminClient(**kafka_python_options(settings)) as admin:
        yield admin


@pytest.fixture
def mine(
    migrated: Settings, admin: KafkaAdminClient, unique: Callable[[str], str], tmp_path: Path
) -> Iterator[Settings]:
    """Settings with one chain of the test's own, its topics, and a bucket."""
    chain = unique("k")
    registry = tmp_path / "chains.toml"
    registry.write_text(f'[{chain}]\ntitle = "Test"\nchain_id = 1\nblock_time_s = 1.0\n')
    settings = migrated.model_copy(update={"s3_bucket": unique("kafka"), "chains_file": registry})
    topics.ensure(settings, [chain], partitions=3)
    store = s3.bucket(settings)
    store.client.create_bucket(Bucket=store.name)
    yield settings
    store.delete(store.keys(""))
    store.client.delete_bucket(Bucket=store.name)
    admin.delete_topics([name for name in admin.list_topics() if name.startswith(f"{chain}.")])


def chain_of(settings: Settings) -> str:
    assert settings.chains_file
    return settings.chains_file.read_text()[1:].split("]")[0]


def test_topics_and_offsets_are_kept(mine: Settings, admin: KafkaAdminClient) -> None:
    logs = f"{chain_of(mine)}.logs"
    with KafkaProducer(**kafka_python_options(mine)) as producer:
        for _ in range(5):
            producer.send(logs, b"{}", partition=2)
    group = f"dash-{chain_of(mine)}"
    consumer = KafkaConsumer(group_id=group, enable_auto_commit=False, **kafka_python_options(mine))
    consumer.assign([TopicPartition(logs, 2)])
    consumer.commit({TopicPartition(logs, 2): OffsetAndMetadata(4, "", -1)})
    consumer.close()
    with timescale.connect(mine) as conn:
        timescale.claim(conn, {(logs, 1): 0, (logs, 2): 5}, "run")
    try:
        taken = backups.snapshot(mine)
    finally:
        admin.delete_groups([group])
    assert backups.load(mine) == taken
    assert set(taken.topics) == set(topics.wanted([chain_of(mine)])), "the platform's, and nobody else's"
    assert taken.topics[logs] == backups.Topic(
        3, 1, {"max.message.bytes": str(topics.MAX_MESSAGE_BYTES), "retention.ms": str(topics.RETENTION_MS)}
    )
    assert taken.topics[f"{chain_of(mine)}.blocks"].partitions == 1
    assert taken.groups[group] == {logs: {2: 4}}
    assert taken.committed[logs] == {1: 0, 2: 5}


def test_lost_topics_are_made_as_they_were(mine: Settings, admin: KafkaAdminClient) -> None:
    """With a setting of their own, and as many partitions; what is there is never made narrower or other."""
    chain = chain_of(mine)
    lost, narrow, wide, other = (f"{chain}.{name}" for name in ("lost", "logs", "traces", "contracts"))
    backups.snapshot(mine)
    taken = backups.load(mine)
    assert backups.restore_topics(mine, taken) == backups.Made((), (), ())
    taken = replace(
        taken,
        topics=taken.topics
        | {
            lost: backups.Topic(5, 3, {"cleanup.policy": "compact", "retention.ms": "1234567"}),
            narrow: replace(taken.topics[narrow], partitions=6),
            wide: replace(taken.topics[wide], partitions=1),
            other: replace(taken.topics[other], configs={"retention.ms": "1"}),
        },
    )
    assert backups.restore_topics(mine, taken) == backups.Made((lost,), (narrow,), (other,))
    found = backups._topics(admin, {lost, narrow, wide, other})
    assert found[lost] == backups.Topic(5, 1, {"cleanup.policy": "compact", "retention.ms": "1234567"})
    assert (found[narrow].partitions, found[wide].partitions) == (6, 3)
    assert found[other].configs["retention.ms"] == str(topics.RETENTION_MS)
    assert backups.restore_topics(mine, taken) == backups.Made((), (), (other,))


def test_the_operators_command(mine: Settings, admin: KafkaAdminClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A topic that is deleted comes back."""
    monkeypatch.setattr("dash_pipeline.settings.load_settings", lambda: mine)
    lost = f"{chain_of(mine)}.logs"
    before = backups.snapshot(mine).topics[lost]
    admin.delete_topics([lost])
    wait_for(lambda: lost not in admin.list_topics())
    done = CliRunner().invoke(cli.app, ["restore-topics"])
    assert done.stdout == f"made: {lost}\nwidened: none\nother settings: none\n"
    assert backups._topics(admin, {lost}) == {lost: before}


def wait_for(what: Callable[[], bool], seconds: float = 30) -> None:
    """Until it is so."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_only_its_own_key_reads_a_snapshot(mine: Settings) -> None:
    """A key that is changed leaves the old snapshots readable, as long as it stays behind the new one."""
    old = {"2025/a.b": base64.b64encode(os.urandom(32)).decode()}
    new = {"2026": base64.b64encode(os.urandom(32)).decode()}

    def keyed(keys: dict[str, str]) -> Settings:
        return mine.model_copy(update={"encryption_keys": keys})

    first = backups.snapshot(keyed(old))
    second = backups.snapshot(keyed(new | old))
    newest, oldest = backups.snapshots(mine)
    assert newest.endswith("Z.2026.json")
    assert backups.load(keyed(new | old), oldest) == first
    assert backups.load(keyed(new), newest) == second
    with pytest.raises(DashError, match=r"no key named 2025/a\.b"):
        backups.load(keyed(new), oldest)
    with pytest.raises(DashError, match="2026 in DASH_ENCRYPTION_KEYS is the key it was written with"):
        backups.load(keyed({"2026": old["2025/a.b"]}), newest)
    unsealed = backups.snapshot(keyed({}))
    assert backups.load(keyed({})) == unsealed


def test_what_is_kept(mine: Settings) -> None:
    a, b = backups.snapshot(mine), backups.snapshot(mine)
    store = s3.bucket(mine)
    newest, older = backups.snapshots(mine)
    long_ago = f"{b.taken_at - timedelta(days=40):%Y%m%d}"
    store.put(older.replace(f"{a.taken_at:%Y%m%d}", long_ago), b"")
    assert backups.forget(mine) == [older]
    assert list(backups.snapshots(mine)) == [newest, older.replace(f"{a.taken_at:%Y%m%d}", long_ago)]


@pytest.mark.usefixtures("impatient")
def test_what_goes_wrong_is_one_line(mine: Settings) -> None:
    with pytest.raises(DashError, match=r"backups/kafka/\*: there is no such snapshot; asset backups/kafka takes one"):
        backups.load(mine)
    with faulty(mine) as (through, fault):
        backups.snapshot(through)
        fault.corrupt("backups/kafka")
        with pytest.raises(DashError, match="is not what was stored"):
            backups.load(through)
        fault.down()
        for use in (backups.snapshot, backups.load, backups.forget):
            with pytest.raises(Unavailable, match="no connection to"):
                use(through)
        fault.fine()
        assert len(backups.snapshots(through)) == 1
    away = mine.model_copy(update={"kafka_bootstrap": "127.0.0.1:1"})
    for do in (lambda: backups.snapshot(away), lambda: backups.restore_topics(away, backups.load(mine))):
        with pytest.raises(Unavailable, match=r"Kafka at 127\.0\.0\.1:1 does not answer"):
            do()
    s3.bucket(mine).put("backups/kafka/notes.txt", b"")
    with pytest.raises(DashError, match=r"notes\.txt is no snapshot of Kafka"):
        backups.snapshots(mine)
