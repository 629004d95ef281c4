"""Keeps the relations of schema `analytics` in step with the dbt project, so that nobody has to think of it.

Belongs here: when dbt runs. Does not belong here: what it builds (`dbt/`).
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dagster import (
    DagsterRunStatus,
    DefaultSensorStatus,
    RunRecord,
    RunRequest,
    RunsFilter,
    SensorDefinition,
    SensorEvaluationContext,
    SkipReason,
    sensor,
)
from dagster._core.storage.dagster_run import FINISHED_STATUSES

from assets.marts.views import BUILD_VIEWS, UPDATE_MARTS
from dash_pipeline.errors import DashError
from resources.dbt import project_version
from resources.timescale import TimescaleResource
from sensors.runs import live

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

PROJECT_TAG = "dash/dbt-project"
RETRY_AFTER_S = 300.0


def views_sensor(job: "UnresolvedAssetJobDefinition", relations: Sequence[str]) -> SensorDefinition:
    """Runs dbt when a relation is missing in the database or the project has changed since it last succeeded."""

    @sensor(
        name="views_sensor",
        job=job,
        minimum_interval_seconds=30,
        default_status=DefaultSensorStatus.RUNNING,
        description="Runs dbt when a view is missing or the project has changed.",
    )
    def evaluate(context: SensorEvaluationContext, timescale: TimescaleResource) -> RunRequest | SkipReason:
        try:
            absent = timescale.absent(relations)
        except DashError as error:
            return SkipReason(str(error))
        version = project_version()
        records = context.instance.get_run_records(
            RunsFilter(job_name=BUILD_VIEWS, tags={PROJECT_TAG: version}), limit=1
        )
        busy = live(context.instance, UPDATE_MARTS) > 0
        reason = (
            "the marts are being updated" if busy else why_not(absent, records[0] if records else None, time.time())
        )
        if reason:
            return SkipReason(reason)
        return RunRequest(tags={PROJECT_TAG: version})

    return evaluate


def why_not(absent: Sequence[str], last: RunRecord | None, now: float) -> str | None:
    """Why dbt need not run now, or None when it must. `last` is the last run of this state of the project."""
    if last is None:
        return None
    status = last.dagster_run.status
    if status not in FINISHED_STATUSES:
        return "dbt is running"
    if status is DagsterRunStatus.SUCCESS and not absent:
        return "every view is there, and as the project says"
    wait = (last.end_time or now) + RETRY_AFTER_S - now
    if status is not DagsterRunStatus.SUCCESS and wait > 0:
        return f"dbt did not succeed, trying again in {wait:.0f} s"
    return None
