"""Starts runs of the marts when rows have come.

Belongs here: when they are updated. Does not belong here: what a run takes (`dash_pipeline/storage/marts.py`), and the
project itself having changed (`views.py`).
"""

import time
from typing import TYPE_CHECKING

from dagster import (
    DefaultSensorStatus,
    RunRequest,
    RunsFilter,
    SensorDefinition,
    SensorEvaluationContext,
    SkipReason,
    sensor,
)
from dagster._core.storage.tags import MAX_RETRIES_TAG

from assets.marts.views import BUILD_VIEWS, UPDATE_MARTS
from dash_pipeline.errors import DashError
from dash_pipeline.settings import settings
from resources.timescale import TimescaleResource
from sensors.runs import live, rest

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition


def marts_sensor(job: "UnresolvedAssetJobDefinition") -> SensorDefinition:
    """Updates the marts when hours have changed, at most every `DASH_MARTS_EVERY_S`."""

    @sensor(
        name="marts_sensor",
        job=job,
        minimum_interval_seconds=10,
        default_status=DefaultSensorStatus.RUNNING,
        description="Updates the marts when hours have changed, at most every DASH_MARTS_EVERY_S.",
    )
    def evaluate(context: SensorEvaluationContext, timescale: TimescaleResource) -> RunRequest | SkipReason:
        try:
            changed = timescale.changed_hours()
        except DashError as error:
            return SkipReason(str(error))
        instance = context.instance
        records = instance.get_run_records(RunsFilter(job_name=UPDATE_MARTS), limit=1)
        reason = why_not(
            changed,
            live(instance, BUILD_VIEWS) + live(instance, UPDATE_MARTS),
            time.time() - records[0].create_timestamp.timestamp() if records else None,
            settings().marts_every_s,
            rest(instance, UPDATE_MARTS),
        )
        return SkipReason(reason) if reason else RunRequest(tags={MAX_RETRIES_TAG: "0"})  # this sensor is the retry

    return evaluate


def why_not(changed: int, runs: int, since_s: float | None, every_s: float, rest_s: float) -> str | None:
    """Why the marts need not be updated now, or None when they must.

    `changed`: hours that they do not show; `runs`: runs that are building them; `since_s`: seconds since the last one
    was started, None if there never was one; `rest_s`: seconds to wait after failures.
    """
    if not changed:
        return "the marts show every hour"
    if runs:
        return f"{changed} hours have changed; a run is building the marts"
    if rest_s > 0:
        return f"{changed} hours have changed; the last run failed, trying again in {rest_s:.0f} s"
    if since_s is not None and since_s < every_s:
        return f"{changed} hours have changed; the next run is in {every_s - since_s:.0f} s"
    return None
