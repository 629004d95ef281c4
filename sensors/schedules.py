"""What runs by the clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagster import DefaultScheduleStatus, ScheduleDefinition

from dash_pipeline.settings import settings

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


def hourly_conclusions(job: UnresolvedAssetJobDefinition) -> ScheduleDefinition:
    """Whether alerts follow from anomalies: looked at from outside the runs that see to it."""
    return ScheduleDefinition(
        name="hourly_conclusions",
        job=job,
        cron_schedule="27 * * * *",
        default_status=DefaultScheduleStatus.RUNNING,
        description="Looks for anomalies nobody reacted to, alerts that did not arrive, and those the index lacks.",
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


def daily_backup(job: UnresolvedAssetJobDefinition) -> ScheduleDefinition:
    """A backup a day, before the models are trained; once a week a full one."""
    return ScheduleDefinition(
        name="daily_backup",
        job=job,
        cron_schedule="11 2 * * *",
        default_status=DefaultScheduleStatus.RUNNING,
        description="Backs up the database, and deletes the backups that are no longer kept.",
    )


def weekly_drill(job: UnresolvedAssetJobDefinition) -> ScheduleDefinition:
    """The restore drill, on Sundays: it reads every table twice."""
    return ScheduleDefinition(
        name="weekly_drill",
        job=job,
        cron_schedule="17 5 * * 0",
        default_status=DefaultScheduleStatus.RUNNING,
        description="Restores the newest backup beside the database and compares every table.",
    )


def hourly_waiting(job: UnresolvedAssetJobDefinition) -> ScheduleDefinition:
    """Whether the database's log reaches the bucket."""
    return ScheduleDefinition(
        name="hourly_waiting",
        job=job,
        cron_schedule="37 * * * *",
        default_status=DefaultScheduleStatus.RUNNING,
        description="Looks at how much of the database's log waits to be archived.",
    )


def daily_compaction(job: UnresolvedAssetJobDefinition) -> ScheduleDefinition:
    """Small objects of the archive, merged once a day, before they are checked."""
    return ScheduleDefinition(
        name="daily_compaction",
        job=job,
        cron_schedule="53 1 * * *",
        default_status=DefaultScheduleStatus.RUNNING,
        description="Merges the small objects that late rows have left.",
    )


def daily_archive_check(job: UnresolvedAssetJobDefinition) -> ScheduleDefinition:
    """The archive, read again once a day."""
    return ScheduleDefinition(
        name="daily_archive_check",
        job=job,
        cron_schedule="29 2 * * *",
        default_status=DefaultScheduleStatus.RUNNING,
        description="Compares every archived object with what was written, and looks for missing days.",
    )


def daily_other_backups(job: UnresolvedAssetJobDefinition) -> ScheduleDefinition:
    """Snapshots of the indexes and of Kafka's topics a day, after the database's."""
    return ScheduleDefinition(
        name="daily_other_backups",
        job=job,
        cron_schedule="31 2 * * *",
        default_status=DefaultScheduleStatus.RUNNING,
        description="Takes snapshots of the search indexes and of Kafka's topics and offsets; deletes old ones.",
    )


def weekly_search_drill(job: UnresolvedAssetJobDefinition) -> ScheduleDefinition:
    """The drill of the search indexes, on Sundays after the database's."""
    return ScheduleDefinition(
        name="weekly_search_drill",
        job=job,
        cron_schedule="47 5 * * 0",
        default_status=DefaultScheduleStatus.RUNNING,
        description="Restores the newest snapshot of the indexes beside them, and compares every document.",
    )


def daily_housekeeping(job: UnresolvedAssetJobDefinition) -> ScheduleDefinition:
    """Sweeping once a day, when backups are done: what goes is in the newest of them."""
    return ScheduleDefinition(
        name="daily_housekeeping",
        job=job,
        cron_schedule="3 4 * * *",
        default_status=DefaultScheduleStatus.RUNNING,
        description="Deletes documents, uploads, staging tables, rows and Dagster's records that have had their time.",
    )


def daily_on_time(job: UnresolvedAssetJobDefinition) -> ScheduleDefinition:
    """Whether what the clock starts has been done, in the morning, when the night's runs are over."""
    return ScheduleDefinition(
        name="daily_on_time",
        job=job,
        cron_schedule="3 7 * * *",
        default_status=DefaultScheduleStatus.RUNNING,
        description="Looks for backups, drills and sweeps that are overdue.",
    )


def frequent_health(job: UnresolvedAssetJobDefinition) -> ScheduleDefinition:
    """`platform_health` every `DASH_HEALTH_MINUTES`."""
    return ScheduleDefinition(
        name="frequent_health",
        job=job,
        cron_schedule=f"*/{settings().health_minutes} * * * *",
        default_status=DefaultScheduleStatus.RUNNING,
        description="Shows how each chain does: latency by stage, events/s, lag.",
    )
