"""What Kafka is configured with and how far it was read, as one small object; and the topics made anew from it.

Belongs here: topics' partitions, replicas and settings, consumers' offsets. Does not belong here: messages, which
producers keep or the archive has; `ops.stream_offsets` as the truth, which comes back with the database's own backup.

An object is `backups/kafka/<UTC time>.<name of its key>.json`, encrypted with the key of that name.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from dash_pipeline.backups.keep import kept
from dash_pipeline.chains import load_chains
from dash_pipeline.errors import DashError
from dash_pipeline.kafka import kafka_errors, kafka_python_options
from dash_pipeline.settings import Settings
from dash_pipeline.storage import s3, timescale
from dash_pipeline.storage.encryption import keyring
from dash_pipeline.topics import wanted

_FOLDER, _END, _TIME = "backups/kafka/", ".json", "%Y%m%dT%H%M%S.%fZ"
_NEVER_COMMITTED = -1


@dataclass(frozen=True)
class Topic:
    """A topic: `configs` are its own settings, those of the broker are not among them."""

    partitions: int
    replicas: int
    configs: dict[str, str]


@dataclass(frozen=True)
class Snapshot:
    """The platform's topics by name; `groups`: consumer group -> topic -> partition -> next offset, as the broker has
    them; `committed`: topic -> partition -> next offset, as ops.stream_offsets has them."""

    taken_at: datetime
    topics: dict[str, Topic]
    groups: dict[str, dict[str, dict[int, int]]]
    committed: dict[str, dict[int, int]]


@dataclass(frozen=True)
class Made:
    """What a restore did: topics that were missing and are `created`, or had too few partitions and are `widened`;
    those in `differing` are there with other settings, and stay so."""

    created: tuple[str, ...]
    widened: tuple[str, ...]
    differing: tuple[str, ...]


def snapshot(settings: Settings) -> Snapshot:
    """Read the platform's topics and offsets, and keep them in the bucket.

    Raises Unavailable when broker, database or store do not answer.
    """
    from kafka import KafkaAdminClient

    with closing(timescale.connect(settings)) as conn:
        committed = _nested(timescale.committed_offsets(conn))
    with kafka_errors(settings), KafkaAdminClient(**kafka_python_options(settings)) as admin:
        topics = _topics(admin, set(wanted(load_chains(settings.chains_file))))
        found = Snapshot(datetime.now(UTC), topics, _groups(admin, topics), committed)
    seal = keyring(settings).current
    name = f"{_FOLDER}{found.taken_at:{_TIME}}{'.' + quote(seal.name, safe='') if seal else ''}{_END}"
    s3.bucket(settings).put(name, msgspec.json.encode(found), new=True, seal=seal)
    return found


def snapshots(settings: Settings) -> dict[str, datetime]:
    """The snapshots' objects and times, newest first."""
    found = {name: _parts(name)[0] for name in s3.bucket(settings).keys(_FOLDER)}
    return dict(sorted(found.items(), key=lambda item: item[1], reverse=True))


def load(settings: Settings, name: str = "") -> Snapshot:
    """A snapshot by its object's name, the newest without one. Raises DashError when there is none, when it is damaged
    or the settings lack its key."""
    name = name or next(iter(snapshots(settings)), "")
    bucket = s3.bucket(settings)
    seal = keyring(settings).named(_parts(name)[1]) if name else None
    data = bucket.get(name, seal) if name else None
    if data is None:
        where = name or f"{_FOLDER}*"
        raise DashError(f"s3: {bucket.name}/{where}: there is no such snapshot; asset backups/kafka takes one")
    try:
        return msgspec.json.decode(data, type=Snapshot)
    except msgspec.DecodeError:
        raise DashError(f"s3: {bucket.name}/{name} is damaged; take one of the others") from None


def forget(settings: Settings) -> list[str]:
    """Delete the snapshots that need not be kept; their objects' names."""
    found = snapshots(settings)
    keep = kept(found.values(), settings.backup_daily, settings.backup_weekly)
    gone = sorted(name for name, taken_at in found.items() if taken_at not in keep)
    s3.bucket(settings).delete(gone)
    return gone


def restore_topics(settings: Settings, wanted: Snapshot) -> Made:
    """Make the topics that are missing, with the partitions and settings they had, and widen those that have fewer
    partitions; a topic is never made narrower, and one that is there keeps its settings.

    A topic that is made anew begins at offset 0: `dash-pipeline offsets --set-beginning TOPIC` lets it be ingested from
    there. Replicas are at most as many as there are brokers. Raises Unavailable when the broker does not answer, and
    DashError when it refuses.
    """
    from kafka import KafkaAdminClient

    with kafka_errors(settings), KafkaAdminClient(**kafka_python_options(settings)) as admin:
        there = _topics(admin, set(wanted.topics))
        brokers = len(admin.describe_cluster()["brokers"])
        missing = {
            name: {
                "num_partitions": topic.partitions,
                "replication_factor": min(topic.replicas, brokers),
                "configs": topic.configs,
            }
            for name, topic in wanted.topics.items()
            if name not in there
        }
        narrow = {
            name: wanted.topics[name].partitions
            for name, topic in there.items()
            if topic.partitions < wanted.topics[name].partitions
        }
        if missing:
            admin.create_topics(missing)
        if narrow:
            admin.create_partitions(narrow)
        admin.wait_for_topics(list(missing))
    differing = (name for name, topic in there.items() if topic.configs != wanted.topics[name].configs)
    return Made(tuple(sorted(missing)), tuple(sorted(narrow)), tuple(sorted(differing)))


def _topics(admin: Any, names: set[str]) -> dict[str, Topic]:
    """Those of the topics that the broker has."""
    from kafka.admin import ConfigResource

    there = sorted(names & set(admin.list_topics()))
    if not there:
        return {}
    configs = admin.describe_configs([ConfigResource("TOPIC", name) for name in there])["topic"]
    return {
        about["name"]: Topic(
            len(about["partitions"]),
            max(len(one["replica_nodes"]) for one in about["partitions"]),
            {
                name: config["value"]
                for name, config in configs[about["name"]].items()
                if config["config_source"] == "DYNAMIC_TOPIC_CONFIG"
            },
        )
        for about in admin.describe_topics(there)
    }


def _groups(admin: Any, topics: Mapping[str, Topic]) -> dict[str, dict[str, dict[int, int]]]:
    """The offsets that any group has committed on the topics."""
    names = [group["group_id"] for group in admin.list_groups()]
    groups = {}
    for name, offsets in (admin.list_group_offsets(names) if names else {}).items():
        found = _nested(
            {
                (place.topic, place.partition): at.offset
                for place, at in offsets.items()
                if place.topic in topics and at.offset != _NEVER_COMMITTED
            }
        )
        if found:
            groups[name] = found
    return groups


def _nested(offsets: Mapping[tuple[str, int], int]) -> dict[str, dict[int, int]]:
    nested: dict[str, dict[int, int]] = {}
    for (topic, partition), offset in sorted(offsets.items()):
        nested.setdefault(topic, {})[partition] = offset
    return nested


def _parts(name: str) -> tuple[datetime, str]:
    """An object's time and the name of its key."""
    try:
        time, _, rest = name.removeprefix(_FOLDER).removesuffix(_END).partition("Z")
        return datetime.strptime(f"{time}Z", _TIME).replace(tzinfo=UTC), unquote(rest.removeprefix("."))
    except ValueError:
        raise DashError(f"s3: {name} is no snapshot of Kafka; only those belong under {_FOLDER}") from None
