"""One chain's archived rows as assets, a partition for each day.

Belongs here: names, lineage, what is shown of a day. Does not belong here: the work (`dash_pipeline/archive/`), when it
is done (`sensors/retention.py`).
"""

from collections.abc import Iterable, Iterator
from datetime import date
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetsDefinition,
    AssetSelection,
    AssetSpec,
    BackfillPolicy,
    DailyPartitionsDefinition,
    Failure,
    MaterializeResult,
    asset,
    asset_check,
    define_asset_job,
    in_process_executor,
    multi_asset,
    multi_asset_check,
)

from assets import owners
from assets.keys import (
    ARCHIVE,
    LIFECYCLE,
    archive_key,
    compaction_key,
    dead_letters_key,
    derived_key,
    intel_key,
    sizes_key,
    table_key,
)
from assets.lifecycle.on_time import DAILY
from dash_pipeline.archive.parquet import ARCHIVED
from dash_pipeline.chains import Chain
from dash_pipeline.errors import DashError
from resources.archive import ArchiveResource

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

#: The day of Ethereum's first block: no chain here is older.
FIRST_DAY = "2015-07-30"
CHECK_ARCHIVE = "check_archive"
COMPACT_ARCHIVE = "compact_archive"
# Days and lines that a check names; the rest are counted.
_NAMED = 20

# Tables that are one asset for all chains.
_SHARED = {"predictions": intel_key("predictions"), "dead_letters": dead_letters_key()}
_PARTITIONS = DailyPartitionsDefinition(FIRST_DAY)


def archive_name(chain: str) -> str:
    """The name of the job that archives a chain's days."""
    return f"archive_{chain}"


def archive_asset(chain: Chain) -> AssetsDefinition:
    """What a chain's tables no longer hold, on S3."""

    @multi_asset(
        name=f"archive_days_{chain.name}",
        specs=[
            AssetSpec(
                archive_key(chain.name, table),
                deps=[_SHARED.get(table) or table_key(chain.name, table)],
                description=f"{described.about} Days of {chain.title} that are no longer hot, as Parquet on S3; each"
                " was read back and compared before its rows were dropped.",
                group_name=ARCHIVE,
                owners=[owners.OPERATIONS],
                kinds={"s3", "parquet"},
                tags={"dash/chain": chain.name},
                skippable=True,
            )
            for table, described in ARCHIVED.items()
        ],
        partitions_def=_PARTITIONS,
        backfill_policy=BackfillPolicy.single_run(),
        can_subset=True,
    )
    def archive(context: AssetExecutionContext, archive: ArchiveResource) -> Iterator[MaterializeResult[Any]]:
        days = {date.fromisoformat(key) for key in context.partition_keys}
        keys = {table: archive_key(chain.name, table) for table in ARCHIVED}
        for table, key in keys.items():
            if key not in context.selected_asset_keys:
                continue
            try:
                done = archive.retain(context.run_id, table, chain.name, days)
            except DashError as error:
                # What is done stays done, and the sensor starts the next run.
                raise Failure(str(error), allow_retries=False) from None
            for day, shown in done.items():
                context.add_asset_metadata(shown, asset_key=key, partition_key=day.isoformat())
            yield MaterializeResult(asset_key=key, metadata=archive.size(table))

    return archive


def derive_name(chain: str) -> str:
    """The name of the job that derives a chain's archived days anew."""
    return f"derive_{chain}"


def derived_asset(chain: Chain) -> AssetsDefinition:
    """A chain's archived pool_events, decoded from its archived logs again."""

    @asset(
        key=derived_key(chain.name),
        deps=[archive_key(chain.name, "logs"), archive_key(chain.name, "pool_events")],
        description=f"Archived logs of {chain.title}, decoded again: days on which the archived pool_events are others"
        " are replaced, and pools that are missing are added. Materialise days after the decoder has changed.",
        group_name=ARCHIVE,
        owners=[owners.OPERATIONS],
        kinds={"s3", "parquet"},
        tags={"dash/chain": chain.name},
        partitions_def=_PARTITIONS,
        backfill_policy=BackfillPolicy.single_run(),
    )
    def derived(context: AssetExecutionContext, archive: ArchiveResource) -> MaterializeResult[Any]:
        days = sorted(map(date.fromisoformat, context.partition_keys))
        try:
            done = archive.derive(context.run_id, chain.name, days[0], days[-1])
        except DashError as error:
            raise Failure(str(error), allow_retries=False) from None
        for day in done:
            if not day.refused:
                shown = {"rows before": day.before, "rows": day.after, "replaced": day.differs, "pools": day.pools}
                context.add_asset_metadata(shown, partition_key=day.date.isoformat())
        if refused := [day.refused for day in done if day.refused]:
            raise Failure("\n".join(refused), allow_retries=False)
        return MaterializeResult(metadata={"days": len(done), "replaced": sum(day.differs for day in done)})

    return derived


def derive_jobs(chains: Iterable[Chain]) -> "list[UnresolvedAssetJobDefinition]":
    """A job for each chain that derives the days it is started for."""
    return [
        define_asset_job(
            derive_name(chain.name),
            AssetSelection.assets(derived_key(chain.name)).without_checks(),
            description=f"Derives archived days of {chain.title} anew. Started by a person, for a range of days.",
            tags={owners.OWNER_TAG: owners.OPERATIONS},
            executor_def=in_process_executor,
        )
        for chain in chains
    ]


def compaction_asset(chains: Iterable[Chain]) -> AssetsDefinition:
    """Few objects where there were many, all chains."""

    @asset(
        key=compaction_key(),
        description="Days with late rows have several objects; the small ones are merged into one, which is compared"
        " with them before it takes their place.",
        deps=[archive_key(chain.name, table) for chain in chains for table in ARCHIVED],
        group_name=LIFECYCLE,
        owners=[owners.OPERATIONS],
        freshness_policy=DAILY,
        kinds={"s3", "parquet"},
    )
    def compaction(context: AssetExecutionContext, archive: ArchiveResource) -> MaterializeResult[Any]:
        try:
            return MaterializeResult(metadata={"objects fewer": archive.compact(context.run_id)})
        except DashError as error:
            raise Failure(str(error), allow_retries=False) from None

    return compaction


def sizes_asset() -> AssetsDefinition:
    """How much is hot and archived, measured whether anything was due or not."""

    @asset(
        key=sizes_key(),
        deps=[compaction_key()],  # measured when that is done
        description="Bytes of each hot table with its indexes, and of what else grows in the database; bytes and rows"
        " that are archived. All chains, once a day.",
        group_name=LIFECYCLE,
        owners=[owners.OPERATIONS],
        freshness_policy=DAILY,
        kinds={"postgres", "s3"},
    )
    def sizes(archive: ArchiveResource) -> MaterializeResult[Any]:
        try:
            return MaterializeResult(metadata=archive.sizes())
        except DashError as error:
            raise Failure(str(error), allow_retries=False) from None

    return sizes


def compaction_job() -> "UnresolvedAssetJobDefinition":
    """The archive's small objects, merged, and its size."""
    return define_asset_job(
        COMPACT_ARCHIVE,
        AssetSelection.assets(compaction_key(), sizes_key()).without_checks(),
        description="Merges the small objects of each archived day, and measures what is hot and archived.",
        tags={owners.OWNER_TAG: owners.OPERATIONS},
        executor_def=in_process_executor,
    )


def archive_checks(chain: Chain) -> list[AssetChecksDefinition]:
    """What must hold of a chain's archive."""
    key = archive_key(chain.name, "blocks")

    @asset_check(
        asset=key, name="no_day_missing",
        description="From the chain's first known block to the edge of the retention, each day that blocks should be of"
        " is archived, or about to be. An error where blocks were stored, a warning where they were never ingested.",
    )  # fmt: skip
    def no_day_missing(archive: ArchiveResource) -> AssetCheckResult:
        found = archive.missing_days(chain.name)
        return AssetCheckResult(
            passed=not found.wrong,
            severity=AssetCheckSeverity.ERROR if found.lost else AssetCheckSeverity.WARN,
            description="\n".join(found.wrong[:_NAMED]) or None,
            metadata={
                "days lost": len(found.lost),
                "spans never ingested": len(found.never_ingested),
                "days still hot, due": len(found.due),
                "due": ", ".join(map(str, found.due[:_NAMED])),
            },
        )

    @asset_check(
        asset=key, name="no_row_in_both_places",
        description="No row is hot and archived. Those that were sent again are, until the next run takes them out;"
        " whoever reads sees them once.",
    )  # fmt: skip
    def no_row_in_both_places(archive: ArchiveResource) -> AssetCheckResult:
        try:
            both = archive.doubled(chain.name)
        except DashError as error:
            return AssetCheckResult(passed=False, description=str(error))
        named = ", ".join(f"{day}: {rows:,} rows" for day, rows in list(both.items())[:_NAMED])
        return AssetCheckResult(
            passed=not both,
            severity=AssetCheckSeverity.WARN,
            description=f"{named}; the next run of {archive_name(chain.name)} takes them out" if both else None,
            metadata={"days": len(both), "rows": sum(both.values())},
        )

    @asset_check(
        asset=key, name="no_row_in_neither_place",
        description="Canonical blocks, rows that have left the hot tables, and transactions and transfers that the"
        " wallets' rollup was made of are all hot or archived.",
    )  # fmt: skip
    def no_row_in_neither_place(archive: ArchiveResource) -> AssetCheckResult:
        try:
            lost = archive.lost(chain.name)
        except DashError as error:
            return AssetCheckResult(passed=False, description=str(error))
        return AssetCheckResult(
            passed=not lost, description="\n".join(lost[:_NAMED]) or None, metadata={"tables and days": len(lost)}
        )

    @asset_check(
        asset=key, name="objects_as_written",
        description="Every object of the chain was read again: its hash, its rows and their hash are those recorded.",
    )  # fmt: skip
    def objects_as_written(archive: ArchiveResource) -> AssetCheckResult:
        found = archive.check(chain.name)
        return AssetCheckResult(
            passed=not found.wrong,
            metadata={
                "objects": found.objects,
                "rows": found.rows,
                "bytes": found.size,
                "wrong": "\n".join(found.wrong[:20]),
            },
        )

    return [no_day_missing, no_row_in_both_places, no_row_in_neither_place, objects_as_written, _listed(chain)]


def _listed(chain: Chain) -> AssetChecksDefinition:
    """What the manifest alone can say of each table; `no_row_in_neither_place` is the same for blocks, and more."""
    tables = {archive_key(chain.name, table): table for table in ARCHIVED if table != "blocks"}
    specs = [
        AssetCheckSpec(
            "every_row_listed",
            asset=key,
            description="The listed objects hold as many rows of each day as have left the hot table.",
        )
        for key in tables
    ]
    derivable = AssetCheckSpec(
        "can_be_derived",
        asset=derived_key(chain.name),
        description="Each day of archived pool_events has at least as many archived logs to derive them from.",
    )

    @multi_asset_check(name=f"check_manifest_{chain.name}", specs=[*specs, derivable], can_subset=True)
    def check(context: AssetCheckExecutionContext, archive: ArchiveResource) -> Iterator[AssetCheckResult]:
        unlisted, underivable = archive.unlisted(chain.name)
        for key in sorted(context.selected_asset_check_keys):
            if key.name == derivable.name:
                days = [f"{day}: {events:,} pool_events, {logs:,} logs" for day, events, logs in underivable]
            else:
                days = [
                    f"{day}: {taken - listed:,} of {taken:,} rows are in no listed object"
                    for table, day, taken, listed in unlisted
                    if table == tables[key.asset_key]
                ]
            yield AssetCheckResult(
                asset_key=key.asset_key,
                check_name=key.name,
                passed=not days,
                description="\n".join(days[:_NAMED]) or None,
                metadata={"days": len(days)},
            )

    return check


def archive_jobs(chains: Iterable[Chain]) -> "list[UnresolvedAssetJobDefinition]":
    """A job for each chain that archives the days it is started for."""
    return [
        define_asset_job(
            archive_name(chain.name),
            AssetSelection.assets(*(archive_key(chain.name, table) for table in ARCHIVED)).without_checks(),
            description=f"Archives days of {chain.title} and drops them from the hot tables. Started by the retention"
            " sensor.",
            tags={owners.OWNER_TAG: owners.OPERATIONS},
            executor_def=in_process_executor,
        )
        for chain in chains
    ]


def archive_check_job(chains: Iterable[Chain]) -> "UnresolvedAssetJobDefinition":
    """The archive's checks, all chains."""
    archived = [archive_key(chain.name, table) for chain in chains for table in ARCHIVED]
    return define_asset_job(
        CHECK_ARCHIVE,
        AssetSelection.checks_for_assets(*archived, *(derived_key(chain.name) for chain in chains)),
        description="Reads every archived object again, and looks for days that are missing or in two places.",
        tags={owners.OWNER_TAG: owners.OPERATIONS},
        executor_def=in_process_executor,
    )
