"""The retention sensor: days older than the retention in, runs that archive them out.

Belongs here: reading and answering. Does not belong here: the decision (`retention_decision.py`).
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dagster import (
    DefaultSensorStatus,
    RunRequest,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    MAX_RETRIES_TAG,
)

from assets.lifecycle.archive import archive_name
from dash_pipeline.chains import Chain
from dash_pipeline.errors import DashError
from resources.archive import ArchiveResource
from sensors.retention_decision import decide
from sensors.runs import live, rest

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition


def retention_sensor(chains: Iterable[Chain], jobs: "Iterable[UnresolvedAssetJobDefinition]") -> SensorDefinition:
    """One sensor for all chains."""
    names = [chain.name for chain in chains]

    @sensor(
        name="retention_sensor",
        jobs=list(jobs),
        minimum_interval_seconds=60,
        default_status=DefaultSensorStatus.RUNNING,
        description="Archives days that are older than DASH_RETENTION_DAYS, counted from their chain's newest block.",
    )
    def evaluate(context: SensorEvaluationContext, archive: ArchiveResource) -> SensorResult | SkipReason:
        try:
            due = {chain: days for chain, days in archive.due().items() if chain in names}
        except DashError as error:
            return SkipReason(str(error))
        at_it = [name for name in names if live(context.instance, archive_name(name))]
        waits = {name: rest(context.instance, archive_name(name)) for name in due}
        runs, reason = decide(due, at_it, {name: seconds for name, seconds in waits.items() if seconds})
        return SensorResult(
            run_requests=[
                RunRequest(
                    job_name=archive_name(run.chain),
                    tags={
                        ASSET_PARTITION_RANGE_START_TAG: run.first.isoformat(),
                        ASSET_PARTITION_RANGE_END_TAG: run.last.isoformat(),
                        MAX_RETRIES_TAG: "0",  # this sensor is the retry
                    },
                )
                for run in runs
            ],
            skip_reason=None if runs else reason,
        )

    return evaluate
