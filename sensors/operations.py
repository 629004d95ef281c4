"""The operations sensor: lag, commits, dead letters and drills in, notices out. It starts no runs.

Belongs here: reading and telling. Does not belong here: the decision (`operations_decision.py`).
"""

import json
import time
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from dagster import (
    DagsterInstance,
    DagsterRunStatus,
    DefaultSensorStatus,
    RunsFilter,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)

from assets.keys import backup_key
from assets.lifecycle.backups import DATABASE, DRILL
from assets.lifecycle.other_backups import SEARCH, SEARCH_DRILL
from dash_pipeline.chains import Chain
from dash_pipeline.errors import DashError
from dash_pipeline.settings import Settings, settings
from dash_pipeline.topics import chain_topics
from resources.kafka import KafkaResource
from resources.notifier import NotifierResource
from resources.timescale import TimescaleResource
from sensors.alerts import RUN_FAILURE
from sensors.operations_decision import Limits, Seen, decide

if TYPE_CHECKING:
    from dagster import AssetKey

_DRILLS = {DATABASE: DRILL, SEARCH: SEARCH_DRILL}


def operations_sensor(chains: Iterable[Chain]) -> SensorDefinition:
    """One sensor for all chains: what is told goes through the one notifier."""
    names = [chain.name for chain in chains]

    @sensor(
        name="operations_sensor",
        minimum_interval_seconds=10,
        default_status=DefaultSensorStatus.RUNNING,
        description="Tells operators of lag, of commits that stand still, of dead letters and overdue drills, and when"
        " such a thing is over (`DASH_NOTIFY_CHANNELS`, `DASH_OWNER_ROUTES`). Delivers what waits for a channel.",
    )
    def evaluate(
        context: SensorEvaluationContext,
        kafka: KafkaResource,
        timescale: TimescaleResource,
        notifier: NotifierResource,
    ) -> SensorResult | SkipReason:
        values = settings()
        try:
            health, open_ = notifier.state(names)
            lag, problem = _lag(names, kafka, timescale)
            seen = Seen(
                health, lag, _drills(context.instance), open_, time.time(), problem,
                _recovered(context.instance, open_), _remembered(context.cursor), values.dagster_url,
            )  # fmt: skip
            decision = decide(seen, limits(values))
            sent = notifier.tell(decision.raised, decision.resolved)
        except DashError as error:
            return SkipReason(str(error))
        return SensorResult(
            skip_reason=f"{len(decision.raised)} notices hold, {len(decision.resolved)} are over; {sent.delivered}"
            f" messages sent, {sent.failed} to be tried again, {sent.dropped} given up",
            cursor=json.dumps(decision.since),
        )

    return evaluate


def limits(values: Settings) -> Limits:
    """The limits that are set."""
    return Limits(
        values.notify_lag,
        values.notify_after_s,
        values.notify_quiet_s,
        values.wall_clock_gap_s,
        values.notify_dead_letters,
        values.drill_overdue_days,
    )


def _lag(names: list[str], kafka: KafkaResource, timescale: TimescaleResource) -> tuple[dict[str, int], str]:
    """Chain -> messages that wait, 0 where there is no topic; or why Kafka could not be asked."""
    try:
        extent = kafka.extent([topic for name in names for topic in chain_topics(name)])
    except DashError as error:
        return {}, str(error)
    committed, _ = timescale.progress()
    waiting = Counter[str]()
    for (topic, _), messages in extent.lag(committed).items():
        waiting[topic.split(".", 1)[0]] += messages
    return {name: waiting[name] for name in names}, ""


def _drills(instance: DagsterInstance) -> dict[str, float]:
    """What is backed up -> seconds since its last good drill, or since its first backup while there was none. A drill
    that finds a difference materialises nothing."""
    found = {}
    for what, drill in _DRILLS.items():
        at = _materialised(instance, backup_key(drill), ascending=False)
        at = at or _materialised(instance, backup_key(what), ascending=True)
        if at is not None:
            found[what] = time.time() - at
    return found


def _materialised(instance: DagsterInstance, key: "AssetKey", *, ascending: bool) -> float | None:
    records = instance.fetch_materializations(key, limit=1, ascending=ascending).records
    return records[0].timestamp if records else None


def _recovered(instance: DagsterInstance, open_: Iterable[str]) -> dict[str, str]:
    """Key of an open notice of failed runs -> the job's newest ended run, if that was a success."""
    found = {}
    for key in open_:
        if key.startswith(RUN_FAILURE):
            ended = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE]
            runs = instance.get_runs(RunsFilter(job_name=key.removeprefix(RUN_FAILURE), statuses=ended), limit=1)
            if runs and runs[0].status is DagsterRunStatus.SUCCESS:
                found[key] = runs[0].run_id
    return found


def _remembered(cursor: str | None) -> dict[str, float]:
    """When conditions began; nothing when the cursor was lost, which only tells later."""
    try:
        return {str(key): float(at) for key, at in json.loads(cursor or "{}").items()}
    except (ValueError, TypeError, AttributeError):
        return {}
