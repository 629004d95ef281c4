"""What sensors ask Dagster about the runs they started.

Belongs here: reading runs, their common tags, and how long to wait after failures. Does not belong here: any one
sensor's decision.
"""

from __future__ import annotations

import time

from dagster import DagsterInstance, DagsterRunStatus, RunsFilter
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster._core.storage.tags import MAX_RETRIES_TAG, MAX_RUNTIME_SECONDS_TAG

# Not Dagster's IN_PROGRESS_RUN_STATUSES: those leave out the runs that wait in the queue.
LIVE_STATUSES = [status for status in DagsterRunStatus if status not in FINISHED_STATUSES]
# The run's process is there.
BEGUN_STATUSES = (DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING)
# What fails is tried again after these seconds, doubled with each failure in a row.
FIRST_REST_S = 5.0
LONGEST_REST_S = 300.0
# Failures in a row that are counted; with more, a job rests as long as it may anyway.
_FAILURES = 8
# How long a run may take beyond its own limit before run monitoring ends it: start, last commits, checks.
_GRACE_S = 300


def run_tags(max_run_s: float) -> dict[str, str]:
    """The tags of a run that ends by itself after so many seconds, and that its sensor starts again if it fails."""
    return {MAX_RETRIES_TAG: "0", MAX_RUNTIME_SECONDS_TAG: str(int(max_run_s) + _GRACE_S)}


def live(instance: DagsterInstance, job: str) -> int:
    """Runs of the job that are queued, starting, running or being stopped."""
    return instance.get_runs_count(RunsFilter(job_name=job, statuses=LIVE_STATUSES))


def rest(instance: DagsterInstance, job: str) -> float:
    """Seconds until the job is tried again; runs that ended otherwise than by failure end the rest."""
    records = instance.get_run_records(
        RunsFilter(job_name=job, statuses=[DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE]), limit=_FAILURES
    )
    statuses = [record.dagster_run.status for record in records] + [DagsterRunStatus.SUCCESS]
    failures = statuses.index(DagsterRunStatus.SUCCESS)
    return rest_after(failures, time.time() - (records[0].end_time or time.time())) if failures else 0.0


def rest_after(failures: int, since_s: float) -> float:
    """Seconds to wait before the next try, after so many failures in a row, the last one `since_s` ago."""
    if not failures:
        return 0.0
    return max(0.0, min(FIRST_REST_S * 2.0 ** (failures - 1), LONGEST_REST_S) - since_s)
