"""Housekeeping as assets: one for each thing that is swept, so that one that fails stops no other.

Belongs here: names, what is shown. Does not belong here: the sweeps (`dash_pipeline/housekeeping/`,
`resources/instance.py`), when they are done (`sensors/schedules.py`).
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetExecutionContext,
    AssetKey,
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
from assets.keys import LIFECYCLE, backup_key, compaction_key, health_key, housekeeping_key, index_key, table_key
from assets.lifecycle.on_time import DAILY
from assets.search import INDEXES
from dash_pipeline.chains import Chain
from dash_pipeline.errors import DashError
from dash_pipeline.storage.tables import TABLES
from resources.housekeeping import HousekeepingResource

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

_Sweep = Callable[[AssetExecutionContext, HousekeepingResource], dict[str, Any]]
_NAMED = 50


def housekeeping_assets(chains: Iterable[Chain]) -> list[AssetsDefinition]:
    """An asset for each thing that is swept, downstream of what makes it."""
    swept = _swept([chain.name for chain in chains])
    return [_asset(name, kind, about, sweep, swept[name]) for name, (kind, about, sweep) in _SWEEPS.items()]


def _swept(chains: list[str]) -> dict[str, list[AssetKey]]:
    """Sweep -> the assets whose leftovers it sweeps. Dagster's own records are none's."""
    return {
        "search_documents": [*map(index_key, INDEXES), index_key("alerts")],
        "uploads": [compaction_key(), backup_key("database")],
        "staging_tables": [table_key(chain, "transactions") for chain in chains],
        "orphaned_rows": [table_key(chain, "blocks") for chain in chains],
        "rollups": [index_key("token-performance"), index_key("wallet-activity")],
        "operations": [health_key(chain) for chain in chains],
        "compression": [table_key(chain, table) for chain in chains for table in TABLES if TABLES[table].hyper],
        "dagster_records": [],
    }


def housekeeping_job() -> "UnresolvedAssetJobDefinition":
    """Everything swept once."""
    return define_asset_job(
        "housekeeping",
        AssetSelection.assets(*map(housekeeping_key, _SWEEPS)).without_checks(),
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


def _operations(context: AssetExecutionContext, housekeeping: HousekeepingResource) -> dict[str, Any]:
    return {f"{table} deleted": rows for table, rows in housekeeping.operations().items()}


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
    "operations": (
        "postgres",
        "Checkpoints, notices that are over and their deliveries, older than `DASH_DAGSTER_DAYS`, are deleted.",
        _operations,
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


def _asset(name: str, kind: str, about: str, sweep: _Sweep, deps: list[AssetKey]) -> AssetsDefinition:
    @asset(
        key=housekeeping_key(name),
        deps=deps,
        description=about,
        group_name=LIFECYCLE,
        owners=[owners.OPERATIONS],
        freshness_policy=DAILY,
        kinds={kind},
    )
    def sweeping(context: AssetExecutionContext, housekeeping: HousekeepingResource) -> MaterializeResult[Any]:
        try:
            return MaterializeResult(metadata=sweep(context, housekeeping))
        except DashError as error:
            raise Failure(str(error), allow_retries=False) from None

    return sweeping
