"""The lag sensor's shell: what it reads, what it asks for, what it remembers. Servers are stand-ins."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator

import pytest
from dagster import (
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    Definitions,
    SensorResult,
    SkipReason,
    build_sensor_context,
    validate_run_config,
)
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.test_utils import create_run_for_test

from dash_pipeline.definitions import build_defs
from dash_pipeline.errors import Unavailable
from dash_pipeline.lag import Extent
from dash_pipeline.microbatch.lanes import Lane, lane
from dash_pipeline.settings import settings
from dash_pipeline.topics import Partition, chain_topics
from resources.kafka import KafkaResource
from resources.timescale import TimescaleResource
from sensors.lag import CHAIN_TAG, LANE_TAG, PARTITIONS_TAG, live_lanes, run_request

PLACES = {(topic, 0): 10 for topic in chain_topics("anvil")}


class Kafka(KafkaResource):
    """Every topic of `anvil` with ten messages in one partition."""

    def extent(self, topics: Iterable[str]) -> Extent:
        names = set(topics)
        there = {place: end for place, end in PLACES.items() if place[0] in names}
        return Extent(dict.fromkeys(there, 0), there, tuple(sorted(names - {topic for topic, _ in there})))


class DeadKafka(KafkaResource):
    def extent(self, topics: Iterable[str]) -> Extent:
        raise Unavailable("Kafka at 127.0.0.1:1 does not answer: timed out")


class Nothing(TimescaleResource):
    """Nothing is ingested."""

    def progress(self) -> tuple[dict[Partition, int], frozenset[str]]:
        return {}, frozenset()


class Everything(TimescaleResource):
    def progress(self) -> tuple[dict[Partition, int], frozenset[str]]:
        return dict(PLACES), frozenset()


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def defs(environment: pytest.MonkeyPatch) -> Definitions:
    return build_defs("ingestion")


def tick(
    defs: Definitions,
    instance: DagsterInstance,
    kafka: KafkaResource | None = None,
    timescale: TimescaleResource | None = None,
    cursor: str | None = None,
) -> SensorResult | SkipReason:
    resources = {"kafka": kafka or Kafka(), "timescale": timescale or Nothing()}
    with build_sensor_context(
        instance, cursor, repository_def=defs.get_repository_def(), resources=resources
    ) as context:
        result = defs.get_sensor_def("lag_sensor")(context)
    assert isinstance(result, SensorResult | SkipReason)
    return result


def test_lag_asks_for_a_run_that_the_job_accepts(defs: Definitions, instance: DagsterInstance) -> None:
    result = tick(defs, instance)
    assert isinstance(result, SensorResult)
    (request,) = result.run_requests or []
    assert request.job_name == "ingest_anvil"
    assert request.run_key is None
    assert request.tags[CHAIN_TAG] == "anvil"
    assert request.tags[LANE_TAG] == "anvil-0"
    assert Lane.from_tag(request.tags[PARTITIONS_TAG]).all() == sorted(PLACES)
    assert request.tags["dagster/max_retries"] == "0"
    assert validate_run_config(defs.resolve_job_def("ingest_anvil"), request.run_config)


def test_no_lag_is_skipped_in_one_line(defs: Definitions, instance: DagsterInstance) -> None:
    result = tick(defs, instance, timescale=Everything())
    assert isinstance(result, SensorResult)
    assert not result.run_requests
    assert result.skip_reason
    message = result.skip_reason.skip_message or ""
    assert message.startswith("no lag: anvil; no topics: ethereum, ")


def test_servers_that_do_not_answer_are_one_line(defs: Definitions, instance: DagsterInstance) -> None:
    """The stand-in database of the environment is real in one way: nothing listens there."""
    kafka = tick(defs, instance, kafka=DeadKafka())
    assert kafka == SkipReason("Kafka at 127.0.0.1:1 does not answer: timed out")
    database = tick(defs, instance, timescale=TimescaleResource())
    assert isinstance(database, SkipReason)
    assert "database" in (database.skip_message or "")
    assert "\n" not in (database.skip_message or "")


def test_topics_are_observed_when_their_lag_begins_and_ends_only(defs: Definitions, instance: DagsterInstance) -> None:
    first = tick(defs, instance)
    assert isinstance(first, SensorResult)
    assert {event.asset_key.path[1] for event in first.asset_events} == {"anvil"}
    assert len(first.asset_events) == len(PLACES)
    assert first.asset_events[0].metadata["lag"].value == 10
    again = tick(defs, instance, cursor=first.cursor)
    assert isinstance(again, SensorResult)
    assert again.asset_events == []
    over = tick(defs, instance, timescale=Everything(), cursor=again.cursor)
    assert isinstance(over, SensorResult)
    assert len(over.asset_events) == len(PLACES)


@pytest.mark.parametrize("cursor", ["{}", "not JSON", "[]", '{"anvil.logs": [5, 1.0]}', '{"topics": [], "scaling": 1}'])
def test_a_lost_cursor_loses_nothing(defs: Definitions, instance: DagsterInstance, cursor: str) -> None:
    with_cursor, without = tick(defs, instance, cursor=cursor), tick(defs, instance)
    assert isinstance(with_cursor, SensorResult)
    assert isinstance(without, SensorResult)
    assert with_cursor.run_requests == without.run_requests


LIVE = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]


@pytest.mark.parametrize("status", LIVE)
def test_a_run_that_waits_or_runs_is_a_live_lane(
    defs: Definitions, instance: DagsterInstance, status: DagsterRunStatus
) -> None:
    location = RegisteredCodeLocationOrigin("ingestion")
    instance.add_run(
        DagsterRun(
            job_name="ingest_anvil",
            tags=run_request(lane("anvil", PLACES), settings()).tags,
            status=status,
            remote_job_origin=RemoteJobOrigin(RemoteRepositoryOrigin(location, "__repository__"), "ingest_anvil"),
        )
    )
    (live,) = live_lanes(instance, ["anvil", "bsc"])
    assert live.lane.all() == sorted(PLACES)
    assert live.begun == (status in (DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING))
    assert abs(live.since - time.time()) < 60
    result = tick(defs, instance)
    assert isinstance(result, SensorResult)
    assert not result.run_requests


def test_more_lag_than_the_live_lane_is_worth_plans_anew(
    defs: Definitions, instance: DagsterInstance, environment: pytest.MonkeyPatch
) -> None:
    """Through all of it: tags of a run that lives, the cool-down, the cursor, and the next tick with it."""
    environment.setitem(PLACES, ("anvil.logs", 1), 20_000)
    environment.setitem(PLACES, ("anvil.logs", 0), 20_000)
    location = RegisteredCodeLocationOrigin("ingestion")
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(location, "__repository__"), "ingest_anvil")
    tags = run_request(lane("anvil", PLACES), settings()).tags
    instance.add_run(
        DagsterRun(job_name="ingest_anvil", tags=tags, status=DagsterRunStatus.STARTED, remote_job_origin=origin)
    )
    cooling = tick(defs, instance)
    assert isinstance(cooling, SensorResult)
    assert not cooling.run_requests
    long_ago = json.loads(cooling.cursor or "") | {"scaling": {"anvil": [time.time() - 31, None, 0]}}
    scaled = tick(defs, instance, cursor=json.dumps(long_ago))
    assert isinstance(scaled, SensorResult)
    assert [request.tags[LANE_TAG] for request in scaled.run_requests or []] == ["anvil-0", "anvil-1"]
    for request in scaled.run_requests or []:
        instance.add_run(
            DagsterRun(
                job_name="ingest_anvil", tags=request.tags, status=DagsterRunStatus.STARTED, remote_job_origin=origin
            )
        )
    again = tick(defs, instance, cursor=scaled.cursor)
    assert isinstance(again, SensorResult)
    assert not again.run_requests


def test_a_run_that_ended_is_not_live(instance: DagsterInstance, environment: pytest.MonkeyPatch) -> None:
    tags = run_request(lane("anvil", PLACES), settings()).tags
    create_run_for_test(instance, job_name="ingest_anvil", tags=tags, status=DagsterRunStatus.SUCCESS)
    create_run_for_test(instance, job_name="ingest_anvil", tags=tags, status=DagsterRunStatus.FAILURE)
    assert live_lanes(instance, ["anvil"]) == []


def test_a_chain_that_just_failed_rests(defs: Definitions, instance: DagsterInstance) -> None:
    run = create_run_for_test(instance, job_name="ingest_anvil", status=DagsterRunStatus.STARTED)
    instance.report_run_failed(run)
    result = tick(defs, instance)
    assert isinstance(result, SensorResult)
    assert not result.run_requests
    assert result.skip_reason
    assert "anvil: its last run failed, trying again in" in (result.skip_reason.skip_message or "")
