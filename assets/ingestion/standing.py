"""Checks of topics and tables that no lane's run makes: what must hold whenever one looks, looked at once an hour.

Belongs here: names, severities, metadata. Does not belong here: SQL (`dash_pipeline/storage/invariants.py`), what must
hold of each block (`checks.py`).
"""

from collections.abc import Iterable, Iterator

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetCheckSpec,
    Failure,
    MetadataValue,
    multi_asset_check,
)

from assets.keys import anomalies_key, anomalies_topic_key, dead_letters_key, table_key, topic_key
from dash_pipeline.chains import Chain
from dash_pipeline.errors import DashError
from dash_pipeline.storage import invariants
from dash_pipeline.storage.tables import TABLES
from dash_pipeline.topics import ANOMALIES, TYPES, topic_name
from resources.kafka import KafkaResource
from resources.timescale import TimescaleResource

READABLE, NONE_REFUSED, ON_THE_CHAIN = "nothing_lost_unread", "none_refused", "on_the_chain"
#: How far back refused messages count, in hours of the wall clock.
_LATELY_H = 24.0


def topic_checks(chains: Iterable[Chain]) -> AssetChecksDefinition:
    """Whether Kafka still holds what is to be ingested, for every topic; and whether messages are refused."""
    topics = {topic_key(chain.name, type_): topic_name(chain.name, type_) for chain in chains for type_ in TYPES}
    topics[anomalies_topic_key()] = ANOMALIES
    specs = [
        AssetCheckSpec(
            READABLE,
            asset=key,
            description="No message is gone from Kafka before it was ingested, and the topic was not made anew.",
        )
        for key in topics
    ]
    refused = AssetCheckSpec(
        NONE_REFUSED,
        asset=dead_letters_key(),
        description=f"No message was refused in the last {_LATELY_H:g} hours; `ops.dead_letters` has the reasons.",
    )

    @multi_asset_check(name="check_topics", specs=[*specs, refused], can_subset=True)
    def check(
        context: AssetCheckExecutionContext, kafka: KafkaResource, timescale: TimescaleResource
    ) -> Iterator[AssetCheckResult]:
        from dash_pipeline.storage.timescale import committed_offsets

        try:
            extent = kafka.extent(topics.values())
            with timescale.connect() as conn:
                committed = committed_offsets(conn)
        except DashError as error:  # what could not be read is no verdict
            raise Failure(str(error), allow_retries=False) from None
        for key in sorted(context.selected_asset_check_keys):
            if key.name == NONE_REFUSED:
                yield _refused(timescale)
                continue
            topic = topics[key.asset_key]
            lag = {place: behind for place, behind in extent.lag(committed).items() if place[0] == topic}
            gaps = extent.gaps(topic, committed)
            yield AssetCheckResult(
                asset_key=key.asset_key,
                check_name=key.name,
                passed=not gaps,
                description="\n".join(gaps) or ("there is no such topic yet" if topic in extent.missing else None),
                metadata={"partitions": len(lag), "lag": sum(lag.values())},
            )

    return check


def _refused(timescale: TimescaleResource) -> AssetCheckResult:
    with timescale.connect() as conn:
        refused = invariants.refused_lately(conn, _LATELY_H)
    return AssetCheckResult(
        asset_key=dead_letters_key(),
        check_name=NONE_REFUSED,
        passed=not refused,
        severity=AssetCheckSeverity.WARN,
        metadata={"messages": sum(refused.values()), "by topic": MetadataValue.json(refused)},
    )


def chain_checks(chain: Chain) -> AssetChecksDefinition:
    """Whether a chain's tables hold rows of canonical blocks only."""
    tables = {table_key(chain.name, table): table for table in TABLES} | {anomalies_key(chain.name): "anomalies"}
    specs = [
        AssetCheckSpec(
            ON_THE_CHAIN,
            asset=key,
            description=f"Of the newest {invariants.HEIGHTS:,} heights, no row is of a block that a fork took away or"
            " that was refused.",
        )
        for key in tables
    ]

    @multi_asset_check(name=f"check_tables_{chain.name}", specs=specs, can_subset=True)
    def check(context: AssetCheckExecutionContext, timescale: TimescaleResource) -> Iterator[AssetCheckResult]:
        with timescale.connect() as conn:
            for key in sorted(context.selected_asset_check_keys):
                found = invariants.off_chain(conn, tables[key.asset_key], chain.name)
                yield AssetCheckResult(
                    asset_key=key.asset_key,
                    check_name=key.name,
                    passed=not found.rows,
                    metadata={"rows off the chain": found.rows, "blocks": MetadataValue.json(list(found.blocks))},
                )

    return check
