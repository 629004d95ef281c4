"""The database's backups and the restore drill as assets.

Belongs here: names, what is shown of them. Does not belong here: the work (`dash_pipeline/backups/`), when it is done
(`sensors/schedules.py`).
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetCheckKey,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetExecutionContext,
    AssetsDefinition,
    AssetSelection,
    Config,
    Failure,
    MaterializeResult,
    MetadataValue,
    asset,
    asset_check,
    define_asset_job,
    in_process_executor,
)
from pydantic import Field

from assets import owners
from assets.keys import LIFECYCLE, backup_key, intel_key, table_key
from assets.lifecycle.on_time import DAILY, WEEKLY
from dash_pipeline.chains import Chain
from dash_pipeline.errors import DashError
from dash_pipeline.storage.tables import TABLES
from resources.backups import BackupsResource

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

DATABASE, DRILL = "database", "drill"
_ARCHIVED = "log_archived"
# Tables of schema intel that are assets.
_INTEL = ("predictions", "alerts")


class BackupConfig(Config):
    """How a backup is taken."""

    full: bool = Field(False, description="a full one, whatever there is")


def backup_assets(chains: Iterable[Chain]) -> list[AssetsDefinition]:
    """The newest backup of the database, and the last drill."""
    return [_database(chains), _drill()]


def _database(chains: Iterable[Chain]) -> AssetsDefinition:
    @asset(
        key=backup_key(DATABASE),
        description="The newest base backup of the database cluster (the platform's and Dagster's) on S3: what changed"
        " since the one before, once a week all of it. With the log that is archived beside it, it can be restored to"
        " any moment since.",
        deps=[*(table_key(chain.name, table) for chain in chains for table in TABLES), *map(intel_key, _INTEL)],
        group_name=LIFECYCLE,
        owners=[owners.OPERATIONS],
        freshness_policy=DAILY,
        kinds={"postgres", "s3"},
    )
    def database(
        context: AssetExecutionContext, config: BackupConfig, backups: BackupsResource
    ) -> MaterializeResult[Any]:
        from dash_pipeline.backups.content import rows

        try:
            backup, dropped, segments = backups.take(config.full, context.log.info)
        except DashError as error:
            raise Failure(str(error), allow_retries=False) from None
        return MaterializeResult(
            metadata={
                "backup": backup.name,
                "kind": backup.kind,
                "parent": backup.parent or "none",
                "bytes": backup.bytes,
                "seconds": backup.seconds,
                "rows": rows(backup.points),
                "log from": backup.start,
                "log to": backup.end,
                "restorable from": MetadataValue.timestamp(backup.ended),
                "backups deleted": len(dropped),
                "log segments deleted": segments,
            }
        )

    return database


def _drill() -> AssetsDefinition:
    @asset(
        key=backup_key(DRILL),
        deps=[backup_key(DATABASE)],
        description="The last drill that was good: the newest backup restored into a second server, and every table"
        " compared by rows and hash with what the source held at the same position of its log. A difference fails it.",
        group_name=LIFECYCLE,
        owners=[owners.OPERATIONS],
        freshness_policy=WEEKLY,
        kinds={"postgres", "s3"},
    )
    def drill(context: AssetExecutionContext, backups: BackupsResource) -> MaterializeResult[Any]:
        try:
            found = backups.drill(context.log.info)
        except DashError as error:
            raise Failure(str(error), allow_retries=False) from None
        metadata: dict[str, Any] = {
            "backup": found.backup,
            "RTO, s": found.rto_s,
            "RPO, s": found.rpo_s,
            "tables": found.tables,
            "rows": found.rows,
            "positions": MetadataValue.json(list(found.positions)),
            "seconds": found.seconds,
        }
        if not found.good:
            raise Failure(
                f"{len(found.differences)} differences: {'; '.join(found.differences[:5])}",
                metadata=metadata | {"differences": MetadataValue.json(list(found.differences))},
                allow_retries=False,
            )
        return MaterializeResult(metadata=metadata)

    return drill


def waiting_check() -> AssetChecksDefinition:
    """Whether the log reaches the bucket."""

    @asset_check(
        name=_ARCHIVED,
        asset=backup_key(DATABASE),
        description="No segment of the database's log has waited for S3 longer than DASH_ARCHIVE_WAITING_S.",
    )
    def check(backups: BackupsResource) -> AssetCheckResult:
        try:
            found, allowed_s = backups.waiting()
        except DashError as error:
            return AssetCheckResult(passed=False, description=str(error))
        said = f"{found.segments} segments wait, the oldest for {found.oldest_s:.0f} s"
        failing = f"; archiving {found.failing} fails, the database's log says why" if found.failing else ""
        return AssetCheckResult(
            passed=found.oldest_s <= allowed_s,
            description=said + failing,
            metadata={"segments waiting": found.segments, "oldest, s": found.oldest_s, "loss at most, s": found.loss_s},
        )

    return check


def backup_job() -> "UnresolvedAssetJobDefinition":
    """A backup of the database."""
    return _job(
        "backup_database", AssetSelection.assets(backup_key(DATABASE)).without_checks(), "Backs up the database to S3."
    )


def drill_job() -> "UnresolvedAssetJobDefinition":
    """The restore drill."""
    return _job(
        "restore_drill",
        AssetSelection.assets(backup_key(DRILL)).without_checks(),
        "Restores the newest backup beside the database, and compares every table.",
    )


def waiting_job() -> "UnresolvedAssetJobDefinition":
    """The check of the log alone."""
    return _job(
        "check_backups",
        AssetSelection.checks(AssetCheckKey(backup_key(DATABASE), _ARCHIVED)),
        "Looks at how much of the database's log waits to be archived.",
    )


def _job(name: str, selection: AssetSelection, description: str) -> "UnresolvedAssetJobDefinition":
    return define_asset_job(
        name,
        selection,
        description=description,
        tags={owners.OWNER_TAG: owners.OPERATIONS},
        executor_def=in_process_executor,
    )
