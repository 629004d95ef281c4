"""`platform_health`: each chain's latency, throughput and lag in the UI, and whether operators have been told of it.

Belongs here: names, what is shown. Does not belong here: the numbers (`dash_pipeline/storage/health.py`), what is worth
a notice (`sensors/operations_decision.py`), when it is done (`sensors/schedules.py`).
"""

import base64
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetCheckResult,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetsDefinition,
    AssetSelection,
    AssetSpec,
    Failure,
    MaterializeResult,
    MetadataValue,
    define_asset_job,
    in_process_executor,
    multi_asset,
)

from assets import owners
from assets.keys import LIFECYCLE, PLATFORM_HEALTH, health_key, table_key
from dash_pipeline.chains import Chain
from dash_pipeline.errors import DashError
from resources.health import Health, HealthResource

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

NO_NOTICE = "no_notice_is_open"


def health_asset(chains: Iterable[Chain]) -> AssetsDefinition:
    """An asset for each chain, made together: one run is light, and a run for each chain would not be."""
    names = {chain.name: chain for chain in chains}

    @multi_asset(
        name="read_health",
        specs=[_spec(chain) for chain in names.values()],
        check_specs=[
            AssetCheckSpec(
                NO_NOTICE,
                asset=health_key(name),
                description="Operators have not been told of anything about this chain that still holds.",
            )
            for name in names
        ],
        can_subset=True,
        description="What lanes measured lately, how old the newest commit is, and what is open.",
    )
    def health(context: AssetExecutionContext, health: HealthResource) -> Iterator[MaterializeResult[Any]]:
        try:
            found = health.read([name for name in names if health_key(name) in context.selected_asset_keys])
        except DashError as error:
            raise Failure(str(error), allow_retries=False) from None
        for name, one in found.items():
            yield MaterializeResult(
                asset_key=health_key(name), metadata=_metadata(one), check_results=[_check(name, one.notices)]
            )

    return health


def health_job(chains: Iterable[Chain]) -> "UnresolvedAssetJobDefinition":
    """All chains once."""
    return define_asset_job(
        PLATFORM_HEALTH,
        AssetSelection.assets(*(health_key(chain.name) for chain in chains)),
        description="Reads how each chain does: latency by stage, events/s, lag.",
        tags={owners.OWNER_TAG: owners.OPERATIONS},
        executor_def=in_process_executor,
    )


def _spec(chain: Chain) -> AssetSpec:
    return AssetSpec(
        health_key(chain.name),
        deps=[table_key(chain.name, "blocks")],
        description=f"How {chain.title} does: latency split into ingestion (Kafka's append to read), processing (read"
        " to the first statement) and output (to the commit), events/s, lag, age of the newest commit. Plots are of the"
        " last 5 minutes each: the median checkpoint's p50, the worst one's p99. The picture shows the last hours."
        "\n\nFrom `ops.checkpoints`, `ops.stream_offsets`.",
        group_name=LIFECYCLE,
        owners=[owners.OPERATIONS],
        kinds={"postgres"},
        skippable=True,
    )


def _metadata(one: Health) -> dict[str, Any]:
    """Numbers under the same labels each time, so that the UI plots them."""
    now, measured = one.now, one.measured
    found: dict[str, Any] = {
        "events per s": round(measured.events_per_s, 1),
        "commit age, s": round(now.commit_age_s or 0.0, 1),
        "index behind, s": round(measured.index_behind_s, 3),
        "dead letters, last hour": now.dead_letters,
        "reorgs": measured.reorgs,
        "anomalies": measured.anomalies,
    }
    if one.lag is not None:
        found["lag"] = one.lag
    if now.event_age_s is not None:
        found["event age, s"] = round(now.event_age_s, 1)
    for stage, values in measured.latency.items():
        for percentile, value in values.items():
            found[f"latency {stage} {percentile}, ms"] = round(value, 2)
    if one.picture:
        image = base64.b64encode(one.picture).decode()
        found["last hours"] = MetadataValue.md(f"![latency, events/s and lag](data:image/png;base64,{image})")
    return found


def _check(chain: str, notices: list[str]) -> AssetCheckResult:
    return AssetCheckResult(
        asset_key=health_key(chain),
        check_name=NO_NOTICE,
        passed=not notices,
        severity=AssetCheckSeverity.WARN,
        description="; ".join(notices) or "nothing is open",
        metadata={"open notices": len(notices)},
    )
