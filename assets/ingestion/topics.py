"""Kafka topics as external assets, so that lineage starts where the data does.

Belongs here: what a topic is called and what is in it. Does not belong here: its lag; the lag sensor observes that.
"""

from __future__ import annotations

from collections.abc import Iterable

from dagster import AssetSpec

from assets.keys import INTELLIGENCE, TOPICS, anomalies_key, anomalies_topic_key, dead_letters_key, topic_key
from assets.owners import CHAIN_DATA
from dash_pipeline.chains import Chain
from dash_pipeline.topics import ANOMALIES, DEAD_LETTERS, TYPES, topic_name

_CONTENTS = {
    "block": "Block headers",
    "transaction": "Transactions with the fields of their receipts",
    "log": "Event logs, undecoded",
    "token_transfer": "ERC-20 and ERC-721 transfers that the exporter found in the logs",
    "trace": "Call traces",
    "contract": "Created contracts",
    "token": "Tokens, as their contracts describe themselves",
}


def topic_specs(chains: Iterable[Chain]) -> list[AssetSpec]:
    """Every topic of every chain, the anomalies, and the dead letters."""
    chains = list(chains)
    return [_topic(chain, type_) for chain in chains for type_ in TYPES] + [
        AssetSpec(
            anomalies_topic_key(),
            deps=[anomalies_key(chain.name) for chain in chains],
            description="A JSON message for each anomaly that is found, changed or retracted, keyed by token, with an"
            f" id that is the same after any replay: topic `{ANOMALIES}`.",
            group_name=INTELLIGENCE,
            owners=[CHAIN_DATA],
            kinds={"kafka"},
            metadata={"topic": ANOMALIES},
        ),
        AssetSpec(
            dead_letters_key(),
            description=f"Messages that were refused, with the reason: topic `{DEAD_LETTERS}`. A copy of each is in"
            " `ops.dead_letters`.",
            group_name="operations",
            owners=[CHAIN_DATA],
            kinds={"kafka"},
            metadata={"topic": DEAD_LETTERS},
        ),
    ]


def _topic(chain: Chain, type_: str) -> AssetSpec:
    name = topic_name(chain.name, type_)
    return AssetSpec(
        topic_key(chain.name, type_),
        description=f"{_CONTENTS[type_]} of {chain.title}, one JSON message each, as `ethereum-etl stream` publishes"
        f" them: topic `{name}`. Observed: messages in it, how many of them are ingested, and the lag.",
        group_name=TOPICS,
        owners=[CHAIN_DATA],
        kinds={"kafka"},
        tags={"dash/chain": chain.name},
        metadata={"topic": name, "message_type": type_},
    )
