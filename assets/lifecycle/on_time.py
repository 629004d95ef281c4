"""Whether what is done by the clock was done: backups, drills, compaction, sweeps.

Belongs here: how old each may be, and the check of it. Does not belong here: the clock (`sensors/schedules.py`).

How old an asset may be is its freshness policy, which the UI shows. The check says the same where checks are looked at,
and one thing that a policy does not: what has never succeeded counts from the first time this was looked at, instead of
being unknown for ever.
"""

import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetsDefinition,
    AssetSelection,
    DagsterInstance,
    FreshnessPolicy,
    RunsFilter,
    define_asset_job,
    in_process_executor,
    multi_asset_check,
)
from dagster._core.definitions.freshness import TimeWindowFreshnessPolicy

from assets import owners

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

CHECK_ON_TIME, ON_TIME = "check_on_time", "on_time"
#: One that was missed is a warning in the UI, a second one a failure; a day's room for runs that wait for each other.
DAILY = FreshnessPolicy.time_window(fail_window=timedelta(days=3), warn_window=timedelta(days=2))
WEEKLY = FreshnessPolicy.time_window(fail_window=timedelta(days=15), warn_window=timedelta(days=8))


def on_time_checks(assets: Iterable[AssetsDefinition]) -> AssetChecksDefinition:
    """A check of each asset that has a freshness policy: it is not older than what that warns of."""
    allowed = {
        spec.key: spec.freshness_policy.warn_window.to_timedelta()
        for one in assets
        for spec in one.specs
        if isinstance(spec.freshness_policy, TimeWindowFreshnessPolicy) and spec.freshness_policy.warn_window
    }
    specs = [
        AssetCheckSpec(ON_TIME, asset=key, description=f"It was done in the last {window.days} days of the wall clock.")
        for key, window in allowed.items()
    ]

    @multi_asset_check(name="look_at_ages", specs=specs, can_subset=True)
    def check(context: AssetCheckExecutionContext) -> Iterator[AssetCheckResult]:
        looked_at = _first_look(context.instance)
        for key in sorted(context.selected_asset_check_keys):
            event = context.instance.get_latest_materialization_event(key.asset_key)
            age = timedelta(seconds=time.time() - (event.timestamp if event else looked_at))
            since = "since it was done" if event else "since this was first looked at: it was never done"
            yield AssetCheckResult(
                asset_key=key.asset_key,
                check_name=key.name,
                passed=age <= allowed[key.asset_key],
                severity=AssetCheckSeverity.WARN,
                description=f"{age.total_seconds() / 86_400:.1f} days {since}",
            )

    return check


def on_time_job(checks: AssetChecksDefinition) -> "UnresolvedAssetJobDefinition":
    """The checks of what the clock starts."""
    return define_asset_job(
        CHECK_ON_TIME,
        AssetSelection.checks(*checks.check_keys),
        description="Looks for backups, drills, compactions and sweeps that are overdue.",
        tags={owners.OWNER_TAG: owners.OPERATIONS},
        executor_def=in_process_executor,
    )


def _first_look(instance: DagsterInstance) -> float:
    """When the first run of this check that is still recorded was created, as seconds since 1970; now without one."""
    first = instance.get_run_records(RunsFilter(job_name=CHECK_ON_TIME), limit=1, order_by="id", ascending=True)
    return first[0].create_timestamp.timestamp() if first else time.time()
