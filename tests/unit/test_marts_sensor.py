"""When the marts are updated: the decision, and the sensor's shell around it. The database is a stand-in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from dagster import DagsterInstance, RunRequest, SkipReason, build_sensor_context

from dash_pipeline.definitions import build_defs
from dash_pipeline.errors import Unavailable
from resources.timescale import TimescaleResource
from sensors.marts import why_not


@pytest.mark.parametrize(
    ("changed", "runs", "since_s", "rest_s", "reason"),
    [
        (0, 0, None, 0.0, "the marts show every hour"),
        (3, 0, None, 0.0, None),
        (3, 0, 60.0, 0.0, None),
        (3, 1, 999.0, 0.0, "a run is building the marts"),
        (3, 0, 59.0, 0.0, "the next run is in 1 s"),
        (3, 0, 999.0, 20.0, "trying again in 20 s"),
        (0, 1, 1.0, 20.0, "the marts show every hour"),
    ],
)
def test_the_decision(changed: int, runs: int, since_s: float | None, rest_s: float, reason: str | None) -> None:
    said = why_not(changed, runs, since_s, 60, rest_s)
    assert said is None if reason is None else reason in (said or "")


class Changed(TimescaleResource):
    hours: int

    def changed_hours(self) -> int:
        return self.hours


class Away(TimescaleResource):
    def changed_hours(self) -> int:
        raise Unavailable("database: connection refused")


@pytest.fixture
def instance(environment: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as instance:
        yield instance


def tick(instance: DagsterInstance, timescale: TimescaleResource) -> RunRequest | SkipReason:
    repository = build_defs("marts").get_repository_def()
    context = build_sensor_context(instance, repository_def=repository, resources={"timescale": timescale})
    found = repository.get_sensor_def("marts_sensor")(context)
    assert isinstance(found, RunRequest | SkipReason)
    return found


def test_changed_hours_start_a_run_and_none_start_none(instance: DagsterInstance) -> None:
    assert isinstance(tick(instance, Changed(hours=2)), RunRequest)
    skipped = tick(instance, Changed(hours=0))
    assert isinstance(skipped, SkipReason)
    assert skipped.skip_message == "the marts show every hour"


def test_a_database_that_is_away_is_a_reason_to_wait(instance: DagsterInstance) -> None:
    skipped = tick(instance, Away())
    assert isinstance(skipped, SkipReason)
    assert skipped.skip_message == "database: connection refused"
