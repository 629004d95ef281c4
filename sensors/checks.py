"""Notices of failed asset checks: new results in, notices out. It starts no runs.

Belongs here: which results are told, and in which words. Does not belong here: the checks (`assets/`), how it is told
(`dash_pipeline/notify/`), notices of failed runs (`alerts.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetCheckSeverity,
    DagsterEventType,
    DagsterInstance,
    DefaultSensorStatus,
    EventLogRecord,
    EventRecordsFilter,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)

from assets.keys import PLATFORM_HEALTH
from assets.owners import OWNER_TAG
from dash_pipeline.errors import DashError
from dash_pipeline.notify.notice import EVERYBODY_ELSE, Notice
from dash_pipeline.settings import settings
from resources.notifier import NotifierResource

#: What the keys of such notices begin with; asset and check follow.
CHECK = "check/"
# Results that a tick looks at, at most; the next one goes on.
_RESULTS = 1_000


@dataclass(frozen=True)
class Result:
    """A check's result, and the owner and the page of the run that found it."""

    evaluation: AssetCheckEvaluation
    owner: str
    run: str


def check_alerts() -> SensorDefinition:
    """One sensor for all code locations, because results are in the one event log."""

    @sensor(
        name="check_alerts",
        minimum_interval_seconds=10,
        default_status=DefaultSensorStatus.RUNNING,
        description="Tells the owner of a run whose asset check has failed, and when it passes again.",
    )
    def evaluate(context: SensorEvaluationContext, notifier: NotifierResource) -> SensorResult | SkipReason:
        records = _new_results(context.instance, context.cursor)
        if not records:
            return SkipReason("no new results of checks")
        raised, passed = told(_results(context.instance, records), settings().dagster_url)
        try:
            _, open_ = notifier.state([])
            over = {key: why for key, why in passed.items() if key in open_}
            if raised or over:
                notifier.tell(raised, over)
        except DashError as error:
            return SkipReason(str(error))
        return SensorResult(
            skip_reason=f"{len(records)} results: {len(raised)} checks fail, {len(over)} pass again",
            cursor=str(records[-1].storage_id),
        )

    return evaluate


def told(results: Iterable[Result], dagster_url: str) -> tuple[list[Notice], dict[str, str]]:
    """The notices of checks whose last result is a failure; and, for those that passed, key -> why it is over.

    The checks of `platform_health` are left out: they fail because there are notices, and would keep themselves open.
    """
    last = {result.evaluation.asset_check_key: result for result in results}
    failed = {key: result for key, result in last.items() if not result.evaluation.passed}
    return (
        [_notice(key, one, dagster_url) for key, one in failed.items() if key.asset_key.path[0] != PLATFORM_HEALTH],
        {_name(key): f"run {one.run} found it well" for key, one in last.items() if key not in failed},
    )


def _notice(key: AssetCheckKey, result: Result, dagster_url: str) -> Notice:
    found, url = result.evaluation, dagster_url.rstrip("/")
    serious = found.severity is AssetCheckSeverity.ERROR
    asset = key.asset_key.to_user_string()
    return Notice(
        key=_name(key),
        severity="high" if serious else "low",
        title=f"{asset}: the check {key.name} {'fails' if serious else 'warns'}",
        text=" ".join((found.description or "the page of the asset shows what it found").split()),
        owner=result.owner,
        links={"checks": f"{url}/assets/{asset}?view=checks&checkDetail={key.name}", "run": f"{url}/runs/{result.run}"},
    )


def _name(key: AssetCheckKey) -> str:
    return f"{CHECK}{key.asset_key.to_user_string()}/{key.name}"


def _new_results(instance: DagsterInstance, cursor: str | None) -> list[EventLogRecord]:
    """Results since the cursor, the oldest first; from the first one on when it was lost: what is open is
    not told twice then, what was over long ago is told once more, and that it is over."""
    after = int(cursor) if cursor and cursor.isdigit() else None
    wanted = EventRecordsFilter(DagsterEventType.ASSET_CHECK_EVALUATION, after_cursor=after)
    return list(instance.get_event_records(wanted, limit=_RESULTS, ascending=True))


def _results(instance: DagsterInstance, records: Iterable[EventLogRecord]) -> list[Result]:
    tags: dict[str, Mapping[str, str]] = {}
    found = []
    for record in records:
        event, run_id = record.event_log_entry.dagster_event, record.run_id
        assert event is not None
        if run_id not in tags:
            run = instance.get_run_by_id(run_id)
            tags[run_id] = run.tags if run else {}
        owner = tags[run_id].get(OWNER_TAG, EVERYBODY_ELSE)
        found.append(Result(event.asset_check_evaluation_data, owner, run_id))
    return found
