"""Alerts about failed runs: what they say, who gets them, and what happens when nobody takes them."""

from __future__ import annotations

import json

import pytest
from dagster import DagsterInstance, build_run_status_sensor_context, build_sensor_context, job, op
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.test_utils import create_run_for_test

from dash_pipeline.settings import settings
from sensors.alerts import failure_alerts, webhook

WEBHOOKS = {"team:search": "http://search", "*": "http://all"}


@pytest.mark.parametrize(
    ("owner", "webhooks", "url"),
    [
        ("team:search", WEBHOOKS, "http://search"),
        ("team:chain-data", WEBHOOKS, "http://all"),
        ("*", WEBHOOKS, "http://all"),
        ("team:chain-data", {"team:search": "http://search"}, None),
        ("team:chain-data", {}, None),
    ],
)
def test_alerts_go_to_their_owner(owner: str, webhooks: dict[str, str], url: str | None) -> None:
    assert webhook(owner, webhooks) == url


@op
def breaks() -> None:
    raise RuntimeError("broken\non purpose")


@job(tags={"dash/owner": "team:search"})
def broken_job() -> None:
    breaks()


def fail_a_run(url: str, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DASH_ALERT_WEBHOOKS", json.dumps({"team:search": url}))
    settings.cache_clear()
    with DagsterInstance.ephemeral() as instance:
        result = broken_job.execute_in_process(instance=instance, raise_on_error=False)
        context = build_run_status_sensor_context(
            "failure_alerts", result.get_run_failure_event(), instance, result.dagster_run
        )
        failure_alerts()(context.for_run_failure())


def test_a_failed_run_is_posted(environment: pytest.MonkeyPatch, received: tuple[str, list[dict[str, str]]]) -> None:
    url, messages = received
    fail_a_run(url, environment)
    (message,) = messages
    assert message["owner"] == "team:search"
    assert message["job"] == "broken_job"
    assert message["url"] == f"http://127.0.0.1:3000/runs/{message['run_id']}"
    assert message["text"].startswith("broken_job failed: ")
    assert message["error"] == "RuntimeError: broken on purpose"
    assert "\n" not in message["text"]


def test_a_webhook_that_is_down_does_not_fail_the_sensor(environment: pytest.MonkeyPatch) -> None:
    fail_a_run("http://127.0.0.1:1/", environment)


def test_a_run_of_another_location_is_posted(
    environment: pytest.MonkeyPatch, received: tuple[str, list[dict[str, str]]]
) -> None:
    """The sensor is one location's; the drill, for one, is another's job."""
    url, messages = received
    environment.setenv("DASH_ALERT_WEBHOOKS", json.dumps({"*": url}))
    settings.cache_clear()
    sensor = failure_alerts()
    place = RegisteredCodeLocationOrigin("lifecycle")
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(place, "__repository__"), "restore_drill")
    with DagsterInstance.ephemeral() as instance:

        def tick(cursor: str | None) -> str | None:
            with build_sensor_context(instance, cursor=cursor, repository_name="ingestion") as context:
                return sensor.evaluate_tick(context).cursor

        cursor = tick(None)
        run = create_run_for_test(instance, job_name="restore_drill", remote_job_origin=origin)
        instance.report_run_failed(run, "1 differences: ops.witness")
        tick(cursor)
    (message,) = messages
    assert message["text"].startswith("restore_drill failed: 1 differences: ops.witness")
