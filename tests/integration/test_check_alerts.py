"""Notices of failed asset checks: told to the run's owner once, and again when the check passes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from dagster import (
    AssetCheckResult,
    AssetCheckSeverity,
    AssetKey,
    AssetSelection,
    AssetSpec,
    DagsterInstance,
    Definitions,
    asset_check,
    build_sensor_context,
    define_asset_job,
)

from dash_pipeline import settings as settings_module
from dash_pipeline.settings import Settings
from dash_pipeline.storage import timescale as db
from resources.notifier import NotifierResource
from sensors.checks import check_alerts
from tests.webhooks import SECRET, Receiver


@pytest.fixture
def receiver(migrated: Settings, in_environment: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A webhook of team:x, on this module's database, which knows of no notice yet."""
    with db.connect(migrated) as conn:
        conn.execute("TRUNCATE ops.notices, ops.notice_deliveries")
    with Receiver() as ops:
        in_environment.setenv("DASH_NOTIFY_CHANNELS", json.dumps({"ops": {"kind": "webhook", "url": ops.url}}))
        in_environment.setenv("DASH_OWNER_ROUTES", json.dumps({"team:x": ["ops"]}))
        in_environment.setenv("DASH_ALERT_SECRET", SECRET.get_secret_value())
        settings_module.settings.cache_clear()
        yield ops


def check(instance: DagsterInstance, key: list[str], passed: bool, owner: str = "team:x") -> None:
    """A run of this owner finds that the asset is well, or not."""

    @asset_check(name="is_whole", asset=AssetKey(key))
    def judged() -> AssetCheckResult:
        return AssetCheckResult(passed=passed, severity=AssetCheckSeverity.ERROR, description="2 rows\nare missing")

    defs = Definitions(
        assets=[AssetSpec(key)],
        asset_checks=[judged],
        jobs=[define_asset_job("judge", AssetSelection.checks(judged), tags={"dash/owner": owner})],
    )
    assert defs.resolve_job_def("judge").execute_in_process(instance=instance).success


def tick(instance: DagsterInstance, cursor: str | None = None) -> Any:
    with build_sensor_context(instance, cursor=cursor, resources={"notifier": NotifierResource()}) as context:
        return check_alerts().evaluate_tick(context)


def test_a_check_that_fails_is_told_once_and_when_it_passes_again(receiver: Receiver) -> None:
    with DagsterInstance.ephemeral() as instance:
        assert tick(instance).skip_message == "no new results of checks"
        check(instance, ["anvil", "logs"], passed=True)
        check(instance, ["anvil", "logs"], passed=False)
        check(instance, ["anvil", "blocks"], passed=False, owner="team:y")
        first = tick(instance)
        assert first.skip_message == "3 results: 2 checks fail, 0 pass again"
        check(instance, ["anvil", "logs"], passed=False)
        again = tick(instance, first.cursor)
        check(instance, ["anvil", "logs"], passed=True)
        last = tick(instance, again.cursor)
        assert last.skip_message == "1 results: 0 checks fail, 1 pass again"

    raised, over = (request.message for request in receiver.requests)
    assert raised["event"] == "raised"
    assert raised["key"] == over["key"] == "check/anvil/logs/is_whole"
    assert raised["title"] == "anvil/logs: the check is_whole fails"
    assert raised["text"] == "2 rows are missing"
    assert raised["severity"] == "high"
    assert over["event"] == "resolved"


def test_what_shows_that_there_are_notices_raises_none(receiver: Receiver) -> None:
    """It would keep itself open."""
    with DagsterInstance.ephemeral() as instance:
        check(instance, ["platform_health", "anvil"], passed=False)

        assert tick(instance).skip_message == "1 results: 0 checks fail, 0 pass again"

    assert not receiver.requests


def test_without_its_cursor_it_finds_what_still_fails(receiver: Receiver) -> None:
    with DagsterInstance.ephemeral() as instance:
        check(instance, ["anvil", "logs"], passed=False)
        tick(instance)
        tick(instance, "not a number")

    assert len(receiver.requests) == 1
