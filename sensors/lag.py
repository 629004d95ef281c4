"""The lag sensor: end offsets and committed offsets in, runs out. It never reads a message.

Belongs here: reading and answering. Does not belong here: the decision (`lag_decision.py`).

No run key is ever set: Dagster remembers run keys for ever, and a lane that failed must be started again. Two ticks
that start the same lane do no harm: the later one takes over. The cursor is a memory that may be lost.
"""

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING

from dagster import (
    AssetObservation,
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

from assets.ingestion.ingest import drain_name
from assets.jobs import ingest_name
from assets.keys import topic_key
from dash_pipeline.chains import Chain
from dash_pipeline.errors import DashError
from dash_pipeline.microbatch.lanes import Lane
from dash_pipeline.settings import Settings, settings
from dash_pipeline.topics import TYPES, Partition, chain_topics, topic_name
from resources.kafka import KafkaResource
from resources.timescale import TimescaleResource
from sensors.lag_decision import Seen, decide, to_observe
from sensors.pods import pod_tags
from sensors.runs import BEGUN_STATUSES, LIVE_STATUSES, rest, run_tags
from sensors.scaling import Live, Memory, Policy

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

    from dash_pipeline.lag import Extent

LANE_TAG = "dash/lane"
CHAIN_TAG = "dash/chain"
PARTITIONS_TAG = "dash/partitions"
LIMITS_TAG = "dash/limits"

OBSERVE_EVERY_S = 60.0


def lag_sensor(chains: Mapping[str, Chain], jobs: "Sequence[UnresolvedAssetJobDefinition]") -> SensorDefinition:
    """One sensor for all chains: one connection and one tick, whatever the number of chains."""

    @sensor(
        name="lag_sensor",
        jobs=list(jobs),
        minimum_interval_seconds=5,
        default_status=DefaultSensorStatus.RUNNING,
        description="Starts lanes: as many runs as the lag of a chain earns. Reads offsets only, never messages.",
    )
    def evaluate(
        context: SensorEvaluationContext, kafka: KafkaResource, timescale: TimescaleResource
    ) -> SensorResult | SkipReason:
        names = list(chains)
        try:
            extent = kafka.extent([topic for chain in names for topic in chain_topics(chain)])
            committed, unfinished = timescale.progress()
        except DashError as error:
            # A failed read is not an empty topic: nothing is decided on it.
            return SkipReason(str(error))
        values = settings()
        before, memory = _remembered(context.cursor)
        seen = Seen(
            extent, committed, live_lanes(context.instance, names), _resting(context.instance, names), unfinished,
            memory, time.time(),
        )  # fmt: skip
        decision = decide(names, seen, policy(values))
        lag = extent.lag(committed)
        try:
            requests = [run_request(lane, values, sum(lag.get(p, 0) for p in lane.all())) for lane in decision.lanes]
        except DashError as error:
            return SkipReason(str(error))
        if decision.lanes:
            for note in decision.notes:
                context.log.info(note)
        observations, after = _observe(names, extent, committed, before)
        return SensorResult(
            run_requests=requests,
            skip_reason=decision.skip_reason,
            asset_events=observations,
            cursor=json.dumps(
                {"topics": after, "scaling": {chain: astuple(one) for chain, one in decision.memory.items()}}
            ),
        )

    return evaluate


def policy(values: Settings) -> Policy:
    """The autoscaling knobs that are set."""
    return Policy(
        values.max_lanes,
        values.lag_per_lane,
        values.min_lanes,
        values.scale_up_cooldown_s,
        values.scale_down_after_s,
    )


def run_request(lane: Lane, values: Settings, lag: int = 0) -> RunRequest:
    """The run of one lane that has `lag` messages to do: who it is and how large its pod in the tags, what it does in
    the config. Raises DashError when the settings' pod is none."""
    config = {
        "partitions": {topic: list(numbers) for topic, numbers in lane.partitions.items()},
        "idle_timeout_s": values.idle_timeout_s,
        "max_run_s": values.max_run_s,
        "batch_rows": values.batch_rows,
        "batch_bytes": values.batch_bytes,
        "checkpoint_s": values.checkpoint_s,
    }
    return RunRequest(
        job_name=ingest_name(lane.chain),
        run_config={"ops": {drain_name(lane.chain): {"config": config}}},
        tags={
            CHAIN_TAG: lane.chain,
            LANE_TAG: lane.name,
            PARTITIONS_TAG: lane.to_tag(),
            LIMITS_TAG: f"idle {values.idle_timeout_s:g} s, run {values.max_run_s:g} s",
        }
        | pod_tags(values.lane_pods, lag)
        | run_tags(values.max_run_s),
    )


def live_lanes(instance: DagsterInstance, chains: Iterable[str]) -> list[Live]:
    """The lanes of runs that are queued, starting, running or being stopped, the oldest first."""
    records = instance.get_run_records(
        RunsFilter(statuses=LIVE_STATUSES, tags={CHAIN_TAG: list(chains)}), order_by="id", ascending=True
    )
    return [
        Live(Lane.from_tag(run.tags[PARTITIONS_TAG]), record.create_timestamp.timestamp(), run.status in BEGUN_STATUSES)
        for record in records
        if PARTITIONS_TAG in (run := record.dagster_run).tags
    ]


def _resting(instance: DagsterInstance, chains: Iterable[str]) -> dict[str, float]:
    """Chain -> seconds until it is tried again, for those that have to wait."""
    waits = {chain: rest(instance, ingest_name(chain)) for chain in chains}
    return {chain: seconds for chain, seconds in waits.items() if seconds}


Observed = dict[str, tuple[int, float]]


def _remembered(cursor: str | None) -> tuple[Observed, dict[str, Memory]]:
    """What the cursor holds: topic -> lag and time of its last event, chain -> its lanes' history. Nothing when it was
    lost, or written by another version."""
    try:
        value = json.loads(cursor or "{}")
        observed = {topic: (int(lag), float(at)) for topic, (lag, at) in value["topics"].items()}
        memory = {
            chain: Memory(float(changed), None if low is None else float(low), int(lanes))
            for chain, (changed, low, lanes) in value["scaling"].items()
        }
        return observed, memory
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}, {}


def _observe(
    chains: Iterable[str], extent: "Extent", committed: Mapping[Partition, int], before: Observed
) -> tuple[list[AssetObservation], Observed]:
    """Observations of the topics whose lag is worth an event, and what to remember of them."""
    keys = {topic_name(chain, type_): topic_key(chain, type_) for chain in chains for type_ in TYPES}
    end, lag, done = Counter[str](), Counter[str](), Counter[str]()
    for place, behind in extent.lag(committed).items():
        topic = place[0]
        end[topic] += extent.end[place]
        lag[topic] += behind
        done[topic] += committed.get(place, 0)
    now = time.time()
    topics = to_observe(lag, before, now, OBSERVE_EVERY_S)
    observations = [
        AssetObservation(
            keys[topic],
            metadata={
                "end offset": end[topic],
                "committed offset": done[topic],
                "lag": lag[topic],
                "partitions": sum(place[0] == topic for place in extent.end),
            },
        )
        for topic in topics
    ]
    return observations, {**before, **{topic: (lag[topic], now) for topic in topics}}
