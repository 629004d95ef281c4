"""Which topics there are, and how they come into being.

Belongs here: names, partitions, size and retention.
Does not belong here: what is in a message (`events/`) or how the broker is reached (`kafka.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from kafka import KafkaAdminClient
from kafka.errors import TopicAlreadyExistsError, for_code

from dash_pipeline.errors import DashError
from dash_pipeline.kafka import kafka_errors, kafka_python_options
from dash_pipeline.settings import Settings

#: A topic's name and a partition's number.
Partition = tuple[str, int]

#: What ethereum-etl calls a message (its key `type`) -> the topic that it is published to, behind `<chain>.`.
#: In the order in which the exporter publishes a block.
TYPES = {
    "block": "blocks",
    "transaction": "transactions",
    "log": "logs",
    "token_transfer": "token_transfers",
    "trace": "traces",
    "contract": "contracts",
    "token": "tokens",
}
DEAD_LETTERS = "dash.dead_letters"
ANOMALIES = "dash.anomalies"

# Few and small, or needed in order: one partition is enough.
SINGLE = frozenset({"block", "contract", "token"})
MAX_MESSAGE_BYTES = 20 << 20
# A dead letter holds the message that was refused, and the reason.
MAX_DEAD_LETTER_BYTES = 24 << 20
RETENTION_MS = 7 * 24 * 3600 * 1000


def topic_name(chain: str, type_: str) -> str:
    """The topic for messages of `type_` (a key of TYPES) of one chain."""
    return f"{chain}.{TYPES[type_]}"


def chain_topics(chain: str) -> list[str]:
    """All topics of one chain, in TYPES' order."""
    return [topic_name(chain, type_) for type_ in TYPES]


def wanted(chains: Iterable[str], partitions: int = 4) -> dict[str, dict[str, Any]]:
    """What should exist for these chains: topic -> partitions, replicas, configs, for the admin client."""
    topics = {
        topic_name(chain, type_): _topic(1 if type_ in SINGLE else partitions, MAX_MESSAGE_BYTES)
        for chain in chains
        for type_ in TYPES
    }
    return topics | {
        DEAD_LETTERS: _topic(1, MAX_DEAD_LETTER_BYTES),
        ANOMALIES: _topic(partitions, MAX_MESSAGE_BYTES),
    }


def ensure(
    settings: Settings, chains: Iterable[str], partitions: int = 4, names: Collection[str] | None = None
) -> list[str]:
    """Create the missing topics of `chains` and of the platform itself, and wait until they have leaders.

    `names` narrows it to these topics. A topic that exists is left as it is. Returns the created ones' names.
    Raises Unavailable when the broker does not answer.
    """
    topics = wanted(chains, partitions)
    if names is not None:
        topics = {name: topic for name, topic in topics.items() if name in names}
    with kafka_errors(settings), KafkaAdminClient(**kafka_python_options(settings)) as admin:
        existing = set(admin.list_topics())
        missing = {name: topic for name, topic in topics.items() if name not in existing}
        created = _create(admin, missing) if missing else []
        admin.wait_for_topics(list(missing))
    return created


def _topic(partitions: int, max_message_bytes: int) -> dict[str, Any]:
    configs = {"max.message.bytes": str(max_message_bytes), "retention.ms": str(RETENTION_MS)}
    return {"num_partitions": partitions, "replication_factor": -1, "configs": configs}


def _create(admin: KafkaAdminClient, missing: dict[str, dict[str, Any]]) -> list[str]:
    """Somebody else creating the same topic at the same moment is no mistake; any other refusal is."""
    answer = admin.create_topics(missing, raise_errors=False)
    created, refused = [], []
    for topic in answer["topics"]:
        error = for_code(topic["error_code"])
        if topic["error_code"] == 0:
            created.append(topic["name"])
        elif error is not TopicAlreadyExistsError:
            reason = topic.get("error_message") or "no reason given"
            refused.append(f"topic {topic['name']}: {error.__name__}: {reason}")
    if refused:
        raise DashError("\n".join(refused))
    return created
