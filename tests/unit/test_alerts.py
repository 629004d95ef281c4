"""Notices of failed runs: when there is one, what it says, and that it arrives though there is no database."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dagster import (
    DagsterInstance,
    DagsterRunStatus,
    build_run_status_sensor_context,
    build_sensor_context,
    job,
    op,
)
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.test_utils import create_run_for_test

from dash_pipeline.settings import settings
from resources.notifier import NotifierResource
from sensors.alerts import failure_alerts, failures_in_row, threshold

Messages = list[dict[str, Any]]


def route(environment: pytest.MonkeyPatch, url: str, owner: str = "*", **more: str) -> None:
    environment.setenv("DASH_NOTIFY_CHANNELS", json.dumps({"hook": {"kind": "webhook", "url": url}}))
    environment.setenv("DASH_OWNER_ROUTES", json.dumps({owner: ["hook"]}))
    for name, value in more.items():
        environment.setenv(name, value)
    settings.cache_clear()


@op
def breaks() -> None:
    raise RuntimeError("broken\non purpose")


@job(tags={"dash/owner": "team:search"})
def broken_job() -> None:
    breaks()


def fail_runs(times: int = 1) -> None:
    sensor, notifier = failure_alerts(), NotifierResource()
    with DagsterInstance.ephemeral() as instance:
        for _ in range(times):
            result = broken_job.execute_in_process(instance=instance, raise_on_error=False)
            context = build_run_status_sensor_context(
                "failure_alerts", result.get_run_failure_event(), instance, result.dagster_run,
                resources={"notifier": notifier},
            )  # fmt: skip
            sensor(context.for_run_failure())


def test_a_failed_run_is_told_without_a_database(
    environment: pytest.MonkeyPatch, received: tuple[str, Messages]
) -> None:
    url, messages = received
    route(environment, url, "team:search")
    fail_runs()
    (message,) = messages
    assert (message["type"], message["event"], message["owner"]) == ("dash.notice", "raised", "team:search")
    assert (message["key"], message["title"]) == ("run-failure/broken_job", "broken_job failed")
    assert message["text"] == "RuntimeError: broken on purpose"
    assert message["links"]["run"].startswith("http://127.0.0.1:3000/runs/")


def test_an_owner_without_a_route_is_not_told(environment: pytest.MonkeyPatch, received: tuple[str, Messages]) -> None:
    url, messages = received
    route(environment, url, "team:analytics")
    fail_runs()
    assert messages == []


def test_a_webhook_that_is_down_does_not_fail_the_sensor(environment: pytest.MonkeyPatch) -> None:
    route(environment, "http://127.0.0.1:1/")
    fail_runs()


def test_only_failures_in_a_row_are_told_where_that_is_set(
    environment: pytest.MonkeyPatch, received: tuple[str, Messages]
) -> None:
    url, messages = received
    route(environment, url, DASH_FAILURES_IN_ROW='{"broken_job": 3}')
    fail_runs(4)
    assert [message["title"] for message in messages] == [
        "broken_job failed 3 times in a row",
        "broken_job failed 4 times in a row",
    ]


def test_a_success_resets_the_count_and_later_runs_do_not_count() -> None:
    ended = {"success": DagsterRunStatus.SUCCESS, "failure": DagsterRunStatus.FAILURE}
    with DagsterInstance.ephemeral() as instance:
        runs = [
            create_run_for_test(instance, job_name="work", status=ended[how])
            for how in ("failure", "success", "failure", "failure", "success", "failure")
        ]
        create_run_for_test(instance, job_name="other", status=DagsterRunStatus.FAILURE)
        found = [failures_in_row(instance, run) for run in runs]
    assert [found[0], found[2], found[3], found[5]] == [1, 1, 2, 1]


@pytest.mark.parametrize(("set_", "wanted"), [({}, 1), ({"*": 3}, 3), ({"*": 3, "work": 2}, 2), ({"other": 5}, 1)])
def test_thresholds_are_by_job(set_: dict[str, int], wanted: int) -> None:
    assert threshold("work", set_) == wanted


def test_a_run_of_another_location_is_told(environment: pytest.MonkeyPatch, received: tuple[str, Messages]) -> None:
    """The sensor is one location's; the drill, for one, is another's job."""
    url, messages = received
    route(environment, url)
    sensor = failure_alerts()
    place = RegisteredCodeLocationOrigin("lifecycle")
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(place, "__repository__"), "restore_drill")
    with DagsterInstance.ephemeral() as instance:

        def tick(cursor: str | None) -> str | None:
            with build_sensor_context(
                instance, cursor=cursor, repository_name="ingestion", resources={"notifier": NotifierResource()}
            ) as context:
                return sensor.evaluate_tick(context).cursor

        cursor = tick(None)
        run = create_run_for_test(instance, job_name="restore_drill", remote_job_origin=origin)
        instance.report_run_failed(run, "1 differences: ops.witness")
        tick(cursor)
    (message,) = messages
    assert message["title"] == "restore_drill failed"
    assert message["text"].startswith("1 differences: ops.witness")
