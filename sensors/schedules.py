"""What runs by the clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagster import DefaultScheduleStatus, ScheduleDefinition

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition


def hourly_checks(job: UnresolvedAssetJobDefinition) -> ScheduleDefinition:
    """The block checks once an hour: they judge what no lane's run could, because it spanned several lanes."""
    return ScheduleDefinition(
        name="hourly_checks",
        job=job,
        cron_schedule="7 * * * *",
        default_status=DefaultScheduleStatus.RUNNING,
        description="Judges the newest settled blocks of every chain.",
    )


def daily_drift(job: UnresolvedAssetJobDefinition) -> ScheduleDefinition:
    """The drift checks, so that the UI has one a day; the training sensor looks more often."""
    return ScheduleDefinition(
        name="daily_drift",
        job=job,
        cron_schedule="23 4 * * *",
        default_status=DefaultScheduleStatus.RUNNING,
        description="Compares what the champions scored lately with what they were trained on.",
    )


def weekly_training(job: UnresolvedAssetJobDefinition) -> ScheduleDefinition:
    """A challenger a week, from the labels as they are then."""
    return ScheduleDefinition(
        name=f"weekly_{job.name}",
        job=job,
        cron_schedule="41 3 * * 1",
        default_status=DefaultScheduleStatus.RUNNING,
        description="Trains a challenger, which replaces the champion only if it is better on the same rows.",
    )
