"""Snapshots of the search indexes and of Kafka as assets, and the indexes' drill.

Belongs here: names, what is shown of them. Does not belong here: the work (`dash_pipeline/backups/`), when it is done
(`sensors/schedules.py`).
"""

from typing import TYPE_CHECKING, Any

from dagster import (
    AssetExecutionContext,
    AssetsDefinition,
    AssetSelection,
    Failure,
    MaterializeResult,
    MetadataValue,
    asset,
    define_asset_job,
    in_process_executor,
)

from assets import owners
from assets.keys import LIFECYCLE, backup_key, dead_letters_key, index_key
from assets.lifecycle.on_time import DAILY, WEEKLY
from assets.search import INDEXES
from dash_pipeline.errors import DashError
from resources.other_backups import OtherBackupsResource

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

SEARCH, KAFKA, SEARCH_DRILL = "search", "kafka", "search_drill"


def other_backup_assets() -> list[AssetsDefinition]:
    """The newest snapshots of search and Kafka, and the last drill of the indexes."""
    return [_search(), _kafka(), _drill()]


def _search() -> AssetsDefinition:
    @asset(
        key=backup_key(SEARCH),
        deps=[*map(index_key, INDEXES), index_key("alerts")],
        description="The newest snapshot of the search indexes on S3, with the count and the hash of each index's"
        " documents at that moment.",
        group_name=LIFECYCLE,
        owners=[owners.OPERATIONS],
        freshness_policy=DAILY,
        kinds={"opensearch", "s3"},
    )
    def search(context: AssetExecutionContext, other_backups: OtherBackupsResource) -> MaterializeResult[Any]:
        try:
            taken, gone = other_backups.search(context.log.info)
        except DashError as error:
            raise Failure(str(error), allow_retries=False) from None
        return MaterializeResult(
            metadata={
                "snapshot": taken.name,
                "indexes": len(taken.indexes),
                "documents": taken.documents,
                "seconds": round(taken.seconds, 2),
                "followers waited, s": round(taken.held_s, 2),
                "written to meanwhile": MetadataValue.json([one.name for one in taken.indexes if not one.digest]),
                "snapshots deleted": len(gone),
            }
        )

    return search


def _kafka() -> AssetsDefinition:
    @asset(
        key=backup_key(KAFKA),
        deps=[dead_letters_key()],
        description="The newest record of Kafka's topics (partitions, replicas, settings) and of how far they are read."
        " Messages are not in it: they are rows.",
        group_name=LIFECYCLE,
        owners=[owners.OPERATIONS],
        freshness_policy=DAILY,
        kinds={"kafka", "s3"},
    )
    def kafka(other_backups: OtherBackupsResource) -> MaterializeResult[Any]:
        try:
            taken, gone = other_backups.kafka()
        except DashError as error:
            raise Failure(str(error), allow_retries=False) from None
        return MaterializeResult(
            metadata={
                "topics": len(taken.topics),
                "partitions": sum(topic.partitions for topic in taken.topics.values()),
                "consumer groups": len(taken.groups),
                "committed partitions": sum(map(len, taken.committed.values())),
                "snapshots deleted": len(gone),
            }
        )

    return kafka


def _drill() -> AssetsDefinition:
    @asset(
        key=backup_key(SEARCH_DRILL),
        deps=[backup_key(SEARCH)],
        description="The last good drill of the indexes: the newest snapshot restored under other names, and every"
        " document compared by count and hash with what was recorded when it was taken. A difference fails it.",
        group_name=LIFECYCLE,
        owners=[owners.OPERATIONS],
        freshness_policy=WEEKLY,
        kinds={"opensearch", "s3"},
    )
    def search_drill(other_backups: OtherBackupsResource) -> MaterializeResult[Any]:
        try:
            found = other_backups.drill()
        except DashError as error:
            raise Failure(str(error), allow_retries=False) from None
        metadata: dict[str, Any] = {
            "snapshot": found.snapshot.name,
            "documents": found.documents,
            "indexes": len(found.snapshot.indexes),
            "not compared": MetadataValue.json(list(found.uncompared)),
            "RTO, s": round(found.restore_s, 2),
            "RPO, s": round(found.age_s),
            "seconds": round(found.seconds, 2),
        }
        if found.differences:
            raise Failure(
                f"{len(found.differences)} differences: {'; '.join(found.differences[:5])}",
                metadata=metadata | {"differences": MetadataValue.json(list(found.differences))},
                allow_retries=False,
            )
        return MaterializeResult(metadata=metadata)

    return search_drill


def other_backups_job() -> "UnresolvedAssetJobDefinition":
    """Snapshots of search and Kafka."""
    return _job(
        "backup_search_and_kafka",
        AssetSelection.assets(backup_key(SEARCH), backup_key(KAFKA)),
        "Takes snapshots of the search indexes and of Kafka's topics and offsets.",
    )


def search_drill_job() -> "UnresolvedAssetJobDefinition":
    """The drill of the indexes."""
    return _job(
        "search_drill",
        AssetSelection.assets(backup_key(SEARCH_DRILL)),
        "Restores the newest snapshot of the indexes beside them, and compares every document.",
    )


def _job(name: str, selection: AssetSelection, description: str) -> "UnresolvedAssetJobDefinition":
    return define_asset_job(
        name,
        selection.without_checks(),
        description=description,
        tags={owners.OWNER_TAG: owners.OPERATIONS},
        executor_def=in_process_executor,
    )
