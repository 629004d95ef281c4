"""Starts training: when a model has no champion, and when what its champion scores has drifted.

Belongs here: reading and answering. Does not belong here: the decision (`training_decision.py`), and training by the
clock (`schedules.py`).
"""

import time
from collections.abc import Iterable

from dagster import (
    DagsterInstance,
    DefaultSensorStatus,
    RunRequest,
    RunsFilter,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)
from dagster._core.storage.tags import MAX_RETRIES_TAG

from assets.intelligence.models import train_name
from dash_pipeline.errors import DashError
from resources.models import ModelsResource
from sensors.runs import live
from sensors.training_decision import Seen, rested, why_train

LABELS_TAG = "dash/labels"


def training_sensor(models: Iterable[str], jobs: "Iterable[object]") -> SensorDefinition:
    """One sensor for all models."""
    names = list(models)

    @sensor(
        name="training_sensor",
        jobs=list(jobs),  # type: ignore[arg-type]
        minimum_interval_seconds=60,
        default_status=DefaultSensorStatus.RUNNING,
        description="Trains a model that has no champion yet, or whose input has drifted.",
    )
    def evaluate(context: SensorEvaluationContext, models: ModelsResource) -> SensorResult | SkipReason:
        requests, notes = [], []
        for model in names:
            try:
                seen = _seen(context.instance, models, model)
            except DashError as error:
                notes.append(f"{model}: {error}")
                continue
            now, reason = why_train(seen)
            notes.append(f"{model}: {reason}")
            if now:
                tags = {LABELS_TAG: seen.labels or "", MAX_RETRIES_TAG: "0"}
                requests.append(RunRequest(job_name=train_name(model), tags=tags))
        return SensorResult(run_requests=requests, skip_reason=None if requests else "; ".join(notes))

    return evaluate


def _seen(instance: DagsterInstance, models: ModelsResource, model: str) -> Seen:
    state = models.state(model)
    job = train_name(model)
    records = instance.get_run_records(RunsFilter(job_name=job), limit=1)
    ago = time.time() - records[0].create_timestamp.timestamp() if records else None
    # Thousands of predictions are read for it: only when something could follow.
    drifted = state.champion is not None and rested(ago) and models.drift(model).drifted
    return Seen(
        state.champion,
        state.problem,
        state.labels,
        drifted,
        records[0].dagster_run.tags.get(LABELS_TAG) if records else None,
        ago,
        live(instance, job) > 0,
    )
