"""Asset keys: the names that code locations agree on.

A key per chain and table, not per table: each chain has its own lag, latency and failures, and a plot that mixes five
chains says nothing. Groups keep the graph readable: folded, it is `topics -> <chain> -> search, staging, marts,
intelligence, archive`, with one node per chain, whose tables are what an operator looks for by chain.
"""

from __future__ import annotations

from dagster import AssetKey

from dash_pipeline.topics import ANOMALIES, DEAD_LETTERS, TYPES

ANALYTICS = "analytics"
ARCHIVE = "archive"
BACKUPS = "backups"
INTELLIGENCE = "intelligence"
LIFECYCLE = "lifecycle"
MARTS = "marts"
MODELS = "models"
PLATFORM_HEALTH = "platform_health"
SEARCH = "search"
STAGING = "staging"
TOPICS = "topics"


def topic_key(chain: str, type_: str) -> AssetKey:
    """The Kafka topic for messages of `type_` (a key of `dash_pipeline.topics.TYPES`)."""
    return AssetKey(["kafka", chain, TYPES[type_]])


def dead_letters_key() -> AssetKey:
    """The Kafka topic that refused messages go to."""
    return AssetKey(["kafka", *DEAD_LETTERS.split(".")])


def anomalies_topic_key() -> AssetKey:
    """The Kafka topic that anomalies are published to."""
    return AssetKey(["kafka", *ANOMALIES.split(".")])


def table_key(chain: str, table: str) -> AssetKey:
    """One chain's rows in a table of schema `chain`."""
    return AssetKey([chain, table])


def index_key(index: str) -> AssetKey:
    """A search index, all chains."""
    return AssetKey([SEARCH, index])


def view_key(name: str) -> AssetKey:
    """A relation of schema `analytics`, all chains."""
    return AssetKey([ANALYTICS, name])


def anomalies_key(chain: str) -> AssetKey:
    """One chain's rows in intel.anomalies."""
    return AssetKey([chain, "anomalies"])


def intel_key(name: str) -> AssetKey:
    """A table of schema `intel`, all chains: predictions or alerts."""
    return AssetKey(["intel", name])


def labels_key(model: str) -> AssetKey:
    """The labelled data that a model is trained on."""
    return AssetKey(["labels", model])


def model_key(model: str, stage: str) -> AssetKey:
    """A stage of a model's life: version, evaluation or champion."""
    return AssetKey(["models", f"{model}_{stage}"])


def backup_key(name: str) -> AssetKey:
    """What is backed up (database, ...), or the drill that proves it."""
    return AssetKey([BACKUPS, name])


def archive_key(chain: str, table: str) -> AssetKey:
    """One chain's rows of a table that are no longer hot."""
    return AssetKey([chain, f"{table}_archive"])


def derived_key(chain: str) -> AssetKey:
    """One chain's archived rows that were derived from others anew."""
    return AssetKey([chain, "pool_events_derived"])


def compaction_key() -> AssetKey:
    """The archive's objects, merged where they are small."""
    return AssetKey([ARCHIVE, "compaction"])


def sizes_key() -> AssetKey:
    """How much is hot, and how much is archived."""
    return AssetKey([ARCHIVE, "sizes"])


def housekeeping_key(name: str) -> AssetKey:
    """What is swept: documents, uploads, staging tables, rows, or Dagster's own records."""
    return AssetKey(["housekeeping", name])


def health_key(chain: str) -> AssetKey:
    """How a chain does: latency, throughput, lag."""
    return AssetKey([PLATFORM_HEALTH, chain])
