"""Housekeeping as assets: one for each thing that is swept, so that one that fails stops no other.

Belongs here: names, what is shown. Does not belong here: the sweeps (`dash_pipeline/housekeeping/`,
`resources/instance.py`), when they are done (`sensors/schedules.py`).
"""

from collections.abc import Callable
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
from assets.keys import LIFECYCLE, housekeeping_key
from dash_pipeline.errors import DashError
from resources.housekeeping import HousekeepingResource

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

_Sweep = Callable[[AssetExecutionContext, HousekeepingResource], dict[str, Any]]
_NAMED = 50


def housekeeping_assets() -> list[AssetsDefinition]:
    """An asset for each thing that is swept."""
    return [_asset(name, kind, about, sweep) for name, (kind, about, sweep) in _SWEEPS.items()]


def housekeeping_job() -> "UnresolvedAssetJobDefinition":
    """Everything swept once."""
    return define_asset_job(
        "housekeeping",
        AssetSelection.assets(*map(housekeeping_key, _SWEEPS)),
        description="Deletes documents, uploads, staging tables, rows and Dagster's records that have had their time.",
        tags={owners.OWNER_TAG: owners.OPERATIONS},
        executor_def=in_process_executor,
    )


def _documents(context: AssetExecutionContext, housekeeping: HousekeepingResource) -> dict[str, Any]:
    gone = housekeeping.documents(context.log.info)
    return {"documents deleted": sum(gone.values()), "by alias": MetadataValue.json(gone)}


def _uploads(context: AssetExecutionContext, housekeeping: HousekeepingResource) -> dict[str, Any]:
    gone = housekeeping.uploads()
    return {"uploads ended": len(gone), "keys": MetadataValue.json(gone[:_NAMED])}


def _staging(context: AssetExecutionContext, housekeeping: HousekeepingResource) -> dict[str, Any]:
    found = housekeeping.staging()
    return {"tables dropped": len(found.dropped), "left to autovacuum": len(found.left)}


def _branches(context: AssetExecutionContext, housekeeping: HousekeepingResource) -> dict[str, Any]:
    gone = housekeeping.branches()
    return {"rows deleted": sum(gone.values()), "by table": MetadataValue.json(gone)}


def _rollups(context: AssetExecutionContext, housekeeping: HousekeepingResource) -> dict[str, Any]:
    return {f"{table} deleted": rows for table, rows in housekeeping.rollups().items()}


def _compression(context: AssetExecutionContext, housekeeping: HousekeepingResource) -> dict[str, Any]:
    said: list[str] = []
    done = housekeeping.compress(said.append)
    for line in said:
        context.log.info(line)
    return {"chunks compressed": done, "note": "; ".join(said)}


def _records(context: AssetExecutionContext, housekeeping: HousekeepingResource) -> dict[str, Any]:
    done = housekeeping.records(context.instance)
    return {
        "runs deleted": done.runs,
        "events deleted": done.events,
        "check results deleted": done.checks,
        "ticks deleted": done.ticks,
    }


_SWEEPS: dict[str, tuple[str, str, _Sweep]] = {
    "search_documents": (
        "opensearch",
        "Documents past the window of their index (`DASH_SEARCH_TRANSACTION_DAYS`, `DASH_SEARCH_WALLET_DAYS`,"
        " `DASH_SEARCH_ALERT_DAYS`) are deleted.",
        _documents,
    ),
    "uploads": (
        "s3",
        "Uploads in parts that nobody finished within `DASH_UPLOAD_HOURS` are ended, and their parts deleted.",
        _uploads,
    ),
    "staging_tables": ("postgres", "Staging tables that a crash of the database left behind are dropped.", _staging),
    "orphaned_rows": (
        "postgres",
        "Rows of blocks that are not canonical are deleted once they are older than `DASH_RETENTION_DAYS` and can never"
        " be canonical again: below the finalised height, which another block holds. They are no history.",
        _branches,
    ),
    "rollups": (
        "postgres",
        "Candles that no window of a pool reaches back to, and sums of busy wallets' days that are no longer hot, are"
        " deleted.",
        _rollups,
    ),
    "compression": (
        "postgres",
        "Hot days older than `DASH_COMPRESS_AFTER_DAYS` are compressed, where the licence of TimescaleDB has it.",
        _compression,
    ),
    "dagster_records": (
        "dagster",
        "Runs that ended more than `DASH_DAGSTER_DAYS` ago are deleted, with their logs and events, and old ticks. The"
        " newest materialisation and observation of every asset and partition stay.",
        _records,
    ),
}


def _asset(name: str, kind: str, about: str, sweep: _Sweep) -> AssetsDefinition:
    @asset(
        key=housekeeping_key(name),
        description=about,
        group_name=LIFECYCLE,
        owners=[owners.OPERATIONS],
        kinds={kind},
    )
    def sweeping(context: AssetExecutionContext, housekeeping: HousekeepingResource) -> MaterializeResult[Any]:
        try:
            return MaterializeResult(metadata=sweep(context, housekeeping))
        except DashError as error:
            raise Failure(str(error), allow_retries=False) from None

    return sweeping
