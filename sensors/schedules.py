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
