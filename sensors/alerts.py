"""Alerts about failed runs.

Belongs here: one sensor for all code locations; what an alert says and who gets it. Does not belong here: alerts about
the market; those are rows and messages of their own.
"""

import json
from collections.abc import Mapping
from urllib.request import Request, urlopen

from dagster import DagsterRun, DefaultSensorStatus, RunFailureSensorContext, SensorDefinition, run_failure_sensor

from assets.owners import OWNER_TAG
from dash_pipeline.settings import settings

EVERYBODY_ELSE = "*"
_TIMEOUT_S = 5.0


def failure_alerts() -> SensorDefinition:
    """Log every failed run and post it to its owner's webhook, if there is one."""

    @run_failure_sensor(
        name="failure_alerts",
        monitor_all_code_locations=True,
        default_status=DefaultSensorStatus.RUNNING,
        description="Logs failed runs and posts them to the webhook of their owner (`DASH_ALERT_WEBHOOKS`).",
    )
    def alert(context: RunFailureSensorContext) -> None:
        message = describe(context.dagster_run, _reason(context), settings().dagster_url)
        context.log.error(message["text"])
        url = webhook(message["owner"], settings().alert_webhooks)
        if url is None:
            return
        try:
            _post(url, message)
        except OSError as error:
            # The alert is in the log; a webhook that is down must not make this sensor fail and say everything twice.
            context.log.warning(f"the webhook of {message['owner']} did not take the alert: {error}")

    return alert


def _reason(context: RunFailureSensorContext) -> str:
    """What the first failed step says; the run's own message only names the step."""
    for event in context.get_step_failure_events():
        failed = event.step_failure_data
        if failed.user_failure_data and failed.user_failure_data.description:
            return failed.user_failure_data.description
        if failed.error:
            return (failed.error.cause or failed.error).message
    return context.failure_event.message or "no reason given"


def describe(run: DagsterRun, error: str, dagster_url: str) -> dict[str, str]:
    """The alert as JSON; `text` is what chat systems show."""
    owner = run.tags.get(OWNER_TAG, EVERYBODY_ELSE)
    url = f"{dagster_url.rstrip('/')}/runs/{run.run_id}"
    line = " ".join(error.split())
    return {
        "text": f"{run.job_name} failed: {line} ({url})",
        "owner": owner,
        "job": run.job_name,
        "run_id": run.run_id,
        "url": url,
        "error": line,
    }


def webhook(owner: str, webhooks: Mapping[str, str]) -> str | None:
    """Where an owner's alerts go: its own address, else the one for everybody else."""
    return webhooks.get(owner) or webhooks.get(EVERYBODY_ELSE)


def _post(url: str, message: Mapping[str, str]) -> None:
    body = json.dumps(message).encode()
    request = Request(url, body, {"content-type": "application/json"})
    with urlopen(request, timeout=_TIMEOUT_S):
        pass
