"""The anomaly sensor: what is new on dash.anomalies, and which alerts wait, in; a run of the prediction engine out.

Belongs here: reading and answering. Does not belong here: the decision (`anomalies_decision.py`).

It reads offsets, never messages. No run key: Dagster remembers run keys for ever, and a run that failed must be started
again; two runs at once do no harm, because offsets are fenced and alerts have ids.
"""

from typing import TYPE_CHECKING

from dagster import (
    DefaultSensorStatus,
    RunRequest,
    SensorDefinition,
    SensorEvaluationContext,
    SkipReason,
    sensor,
)

from assets.intelligence.engine import ENGINE, PREDICT
from dash_pipeline.errors import DashError
from dash_pipeline.settings import settings
from dash_pipeline.topics import ANOMALIES
from resources.kafka import KafkaResource
from resources.timescale import TimescaleResource
from sensors.anomalies_decision import Seen, decide
from sensors.runs import live, rest, run_tags

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition


def anomaly_sensor(job: "UnresolvedAssetJobDefinition") -> SensorDefinition:
    """Starts the prediction engine when anomalies or alerts wait and no run is at it."""

    @sensor(
        name="anomaly_sensor",
        job=job,
        minimum_interval_seconds=5,
        default_status=DefaultSensorStatus.RUNNING,
        description="Starts the prediction engine for new anomalies on Kafka, and for alerts that wait.",
    )
    def evaluate(
        context: SensorEvaluationContext, kafka: KafkaResource, timescale: TimescaleResource
    ) -> RunRequest | SkipReason:
        try:
            extent = kafka.extent([ANOMALIES])
            committed, due, unindexed = timescale.reactions()
        except DashError as error:
            # A failed read is not an empty topic: nothing is decided on it.
            return SkipReason(str(error))
        seen = Seen(extent, committed, due, unindexed, live(context.instance, PREDICT), rest(context.instance, PREDICT))
        decision = decide(seen)
        if not decision.partitions:
            return SkipReason(decision.reason)
        context.log.info(decision.reason)
        values = settings()
        partitions = [number for _, number in decision.partitions]
        config = {"partitions": partitions, "idle_timeout_s": values.idle_timeout_s, "max_run_s": values.max_run_s}
        return RunRequest(
            run_config={"ops": {ENGINE: {"config": config}}},
            tags=run_tags(values.max_run_s),
        )

    return evaluate
