"""What a run of location `ingestion` can be asked to do, by name.

Belongs here: which assets and checks a job covers, and how its runs execute. Does not belong here: when (`sensors/`).

Runs execute in one process: a process per step costs seconds before its first line, and each job here has one step
that matters or steps that may take turns.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dagster import AssetSelection, define_asset_job, in_process_executor

from assets import owners
from assets.ingestion.checks import check_specs
from assets.keys import anomalies_key, anomalies_topic_key, dead_letters_key, index_key, table_key, topic_key
from assets.search import INDEXES
from dash_pipeline.chains import Chain
from dash_pipeline.storage.tables import TABLES
from dash_pipeline.topics import TYPES

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

CHECK_BLOCKS = "check_blocks"
REBUILD_INDEX = "rebuild_index"


def ingest_name(chain: str) -> str:
    """The name of the job that drains a chain."""
    return f"ingest_{chain}"


def ingest_jobs(chains: Iterable[Chain]) -> list[UnresolvedAssetJobDefinition]:
    """A job per chain: drain a lane, then check what it touched."""
    return [
        define_asset_job(
            ingest_name(chain.name),
            AssetSelection.assets(
                *(table_key(chain.name, table) for table in TABLES), anomalies_key(chain.name)
            ).without_checks()
            | AssetSelection.checks(*(spec.key for spec in check_specs(chain.name))),  # the others are the hour's
            description=f"Drains partitions of {chain.title} and checks the blocks it touched. Started by the lag"
            " sensor; without config it drains every partition of the chain.",
            tags={owners.OWNER_TAG: owners.CHAIN_DATA},
            executor_def=in_process_executor,
        )
        for chain in chains
    ]


def check_job(chains: Iterable[Chain]) -> UnresolvedAssetJobDefinition:
    """The checks of every topic, table and index, without draining anything."""
    names = [chain.name for chain in chains]
    topics = [topic_key(chain, type_) for chain in names for type_ in TYPES]
    tables = [table_key(chain, table) for chain in names for table in TABLES] + [anomalies_key(one) for one in names]
    indexes = [index_key(index) for index in INDEXES]
    return define_asset_job(
        CHECK_BLOCKS,
        AssetSelection.checks_for_assets(*topics, dead_letters_key(), anomalies_topic_key(), *tables, *indexes),
        description="Judges the newest settled blocks of every chain, whichever run ingested them, and looks for"
        " messages that are lost or refused and rows that are off the chain.",
        tags={owners.OWNER_TAG: owners.CHAIN_DATA},
        executor_def=in_process_executor,
    )


def rebuild_job() -> UnresolvedAssetJobDefinition:
    """Search indexes, built again."""
    return define_asset_job(
        REBUILD_INDEX,
        AssetSelection.assets(*map(index_key, INDEXES)).without_checks(),
        description="Builds search indexes again from the hot tables, each behind its alias. Select one to build one.",
        tags={owners.OWNER_TAG: owners.SEARCH},
        executor_def=in_process_executor,
    )
