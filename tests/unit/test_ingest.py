"""The ingestion asset: what a drain's checkpoints become in Dagster. The drain and the servers are stand-ins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from dagster import AssetKey, DagsterEventType, DagsterInstance, ExecuteInProcessResult

from dash_pipeline.definitions import build_defs
from dash_pipeline.errors import Unavailable
from dash_pipeline.lag import Extent
from dash_pipeline.microbatch.drain import Checkpoint, Limits
from dash_pipeline.microbatch.lanes import Lane
from resources.kafka import KafkaResource
from resources.lanes import LaneResource
from resources.timescale import TimescaleResource

LATENCY = {"ingestion": {"p50": 1.0, "p95": 2.0, "p99": 3.0}, "end_to_end": {"p50": 4.0, "p95": 5.0, "p99": 6.0}}
HALF = Checkpoint(
    seconds=10,
    messages=70,
    bytes=7000,
    rows={"blocks": 5, "logs": 50, "transactions": 0},
    offsets={"anvil.blocks/0": 5, "anvil.logs/0": 30, "anvil.logs/1": 35},
    lag_before=140,
    lag_after=70,
    events_per_s=7.0,
    latency=LATENCY,
    index_behind_s=0.5,
    heights=(1, 5),
)
# In another order than the graph's.
ALL_ROWS = {"pools": 1, "pool_events": 9, "logs": 100, "blocks": 10, "transactions": 0}
WHOLE = Checkpoint(seconds=20, messages=140, bytes=14000, rows=ALL_ROWS)

drained: list[tuple[Lane, Limits]] = []


class Lanes(LaneResource):
    """Two checkpoints, then the end."""

    def drain(self, lane: Lane, limits: Limits, run_id: str, on_checkpoint: Callable[[Checkpoint], None]) -> Checkpoint:
        drained.append((lane, limits))
        on_checkpoint(HALF)
        on_checkpoint(HALF)
        return WHOLE


class Away(LaneResource):
    def drain(self, lane: Lane, limits: Limits, run_id: str, on_checkpoint: Callable[[Checkpoint], None]) -> Checkpoint:
        raise Unavailable("database: no connection (tried for 60 s; nothing is lost)")


class HandedOver(LaneResource):
    def drain(self, lane: Lane, limits: Limits, run_id: str, on_checkpoint: Callable[[Checkpoint], None]) -> Checkpoint:
        return replace(WHOLE, ended_early="handed over to run abc")


class Kafka(KafkaResource):
    def extent(self, topics: Any) -> Extent:
        return Extent(end={("anvil.blocks", 0): 10, ("anvil.logs", 0): 60, ("anvil.logs", 1): 70})


class EmptyDatabase:
    def execute(self, *args: object, **options: object) -> EmptyDatabase:
        return self

    def fetchone(self) -> None:
        return None

    def fetchall(self) -> list[tuple[object, ...]]:
        return []


class Timescale(TimescaleResource):
    @contextmanager
    def connect(self) -> Iterator[Any]:
        yield EmptyDatabase()


def ingest(
    instance: DagsterInstance, lanes: LaneResource, config: dict[str, Any] | None = None
) -> ExecuteInProcessResult:
    defs = build_defs("ingestion", resource_overrides={"lanes": lanes, "kafka": Kafka(), "timescale": Timescale()})
    return defs.resolve_job_def("ingest_anvil").execute_in_process(
        {"ops": {"drain_anvil": {"config": config or {}}}}, instance=instance, raise_on_error=False
    )


@pytest.fixture
def instance(environment: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    drained.clear()
    with DagsterInstance.ephemeral() as instance:
        yield instance


def materialisations(result: ExecuteInProcessResult, *key: str) -> list[dict[str, Any]]:
    """The metadata of each materialisation, in order."""
    return [
        {label: value.value for label, value in event.materialization.metadata.items()}
        for event in result.all_events
        if event.event_type == DagsterEventType.ASSET_MATERIALIZATION and event.asset_key == AssetKey(key)
    ]


def test_checkpoints_become_materialisations_with_numbers(instance: DagsterInstance) -> None:
    result = ingest(instance, Lanes())
    assert result.success
    first, second, run = materialisations(result, "anvil", "logs")
    assert first == second
    assert first["rows"] == 50
    assert first["lane lag after"] == 70
    assert first["lane events per s"] == 7.0
    assert first["latency end_to_end p99, ms"] == 6.0
    assert first["offsets"] == {"anvil.logs/0": 30, "anvil.logs/1": 35}
    assert run["run rows"] == 100
    assert not first.keys() & run.keys(), "a plot would mix checkpoints and totals"


def test_a_table_without_rows_is_not_materialised(instance: DagsterInstance) -> None:
    result = ingest(instance, Lanes())
    assert materialisations(result, "anvil", "transactions") == []
    assert materialisations(result, "anvil", "traces") == []


def test_the_indexes_say_how_far_behind_they_are(instance: DagsterInstance) -> None:
    result = ingest(instance, Lanes())
    assert materialisations(result, "search", "wallet-activity") == [{"anvil: behind, s": 0.5}] * 2


def test_run_config_is_the_lane_and_its_limits(instance: DagsterInstance) -> None:
    config = {"partitions": {"anvil.logs": [1]}, "idle_timeout_s": 1.0, "max_run_s": 5.0, "batch_rows": 7}
    ingest(instance, Lanes(), config)
    ((lane, limits),) = drained
    assert lane == Lane("anvil", {"anvil.logs": (1,)})
    assert (limits.idle_timeout_s, limits.max_run_s, limits.batch_rows) == (1.0, 5.0, 7)


def test_without_config_a_run_drains_every_partition(instance: DagsterInstance) -> None:
    ingest(instance, Lanes())
    ((lane, _),) = drained
    assert lane == Lane("anvil", {"anvil.blocks": (0,), "anvil.logs": (0, 1)})


def test_an_error_for_people_fails_the_run_in_one_line(instance: DagsterInstance) -> None:
    result = ingest(instance, Away())
    assert not result.success
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    data = failure.step_failure_data
    assert data.user_failure_data is not None
    assert data.user_failure_data.description == "database: no connection (tried for 60 s; nothing is lost)"


def test_a_run_that_was_taken_over_succeeds_and_says_so(instance: DagsterInstance) -> None:
    result = ingest(instance, HandedOver())
    assert result.success
    (run,) = materialisations(result, "anvil", "logs")
    assert run["ended early"] == "handed over to run abc"


def test_checks_alone_drain_nothing(instance: DagsterInstance) -> None:
    defs = build_defs("ingestion", resource_overrides={"lanes": Lanes(), "kafka": Kafka(), "timescale": Timescale()})
    result = defs.resolve_job_def("check_blocks").execute_in_process(instance=instance)
    assert result.success
    assert drained == []
