"""Notices of failed runs.

Belongs here: one sensor for all code locations; what its notice says, and when it is one. Does not belong here: how it
is told (`dash_pipeline/notify/`), when it is over (`operations.py`), alerts about the market.
"""

from collections.abc import Mapping

from dagster import (
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    DefaultSensorStatus,
    RunFailureSensorContext,
    RunsFilter,
    SensorDefinition,
    run_failure_sensor,
)

from assets.owners import OWNER_TAG
from dash_pipeline.notify.notice import EVERYBODY_ELSE, Notice
from dash_pipeline.settings import settings
from resources.notifier import NotifierResource

#: What the keys of such notices begin with; the job follows.
RUN_FAILURE = "run-failure/"
_COUNTED = 100


def failure_alerts() -> SensorDefinition:
    """Log every failed run, and tell its owner once its job has failed often enough in a row."""

    @run_failure_sensor(
        name="failure_alerts",
        monitor_all_code_locations=True,
        default_status=DefaultSensorStatus.RUNNING,
        description="Logs failed runs, and tells their owner (`DASH_OWNER_ROUTES`) once a job has failed"
        " `DASH_FAILURES_IN_ROW` times in a row.",
    )
    def alert(context: RunFailureSensorContext, notifier: NotifierResource) -> None:
        run = context.dagster_run
        failures = failures_in_row(context.instance, run)
        notice = describe(run, _reason(context), settings().dagster_url, failures)
        context.log.error(f"{notice.title}: {notice.text}")
        if failures >= threshold(run.job_name, settings().failures_in_row):
            # Failing here would say it all twice at the next tick, or never: the sensor's cursor moves on.
            for problem in notifier.tell_at_least_once(notice):
                context.log.warning(problem)

    return alert


def failures_in_row(instance: DagsterInstance, run: DagsterRun) -> int:
    """How often the job has failed in a row, up to this failed run; runs that were started later do not count, and of
    those that still go on nobody knows."""
    record = instance.get_run_record_by_id(run.run_id)
    if record is None:
        return 1
    before = instance.get_run_records(
        RunsFilter(
            job_name=run.job_name,
            statuses=[DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE],
            created_before=record.create_timestamp,
        ),
        limit=_COUNTED,
    )
    statuses = [one.dagster_run.status for one in before if one.dagster_run.run_id != run.run_id]
    return 1 + [*statuses, DagsterRunStatus.SUCCESS].index(DagsterRunStatus.SUCCESS)


def threshold(job: str, failures: Mapping[str, int]) -> int:
    """How many failures in a row of the job are told."""
    return failures.get(job, failures.get(EVERYBODY_ELSE, 1))


def _reason(context: RunFailureSensorContext) -> str:
    """What the first failed step says; the run's own message only names the step."""
    for event in context.get_step_failure_events():
        failed = event.step_failure_data
        if failed.user_failure_data and failed.user_failure_data.description:
            return failed.user_failure_data.description
        if failed.error:
            return (failed.error.cause or failed.error).message
    return context.failure_event.message or "no reason given"


def describe(run: DagsterRun, error: str, dagster_url: str, failures: int) -> Notice:
    """The notice of a failed run; its owner is in the run's tags."""
    return Notice(
        key=f"{RUN_FAILURE}{run.job_name}",
        severity="medium",
        title=f"{run.job_name} failed" + (f" {failures} times in a row" if failures > 1 else ""),
        text=" ".join(error.split()),
        owner=run.tags.get(OWNER_TAG, EVERYBODY_ELSE),
        links={"run": f"{dagster_url.rstrip('/')}/runs/{run.run_id}"},
    )
