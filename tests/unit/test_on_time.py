"""What the clock starts, held against the clock: done lately, long ago, never."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from dagster import AssetKey, AssetMaterialization, DagsterInstance

from dash_pipeline.definitions import build_defs

DAY = 86_400


@pytest.fixture
def instance(environment: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as instance:
        yield instance


def overdue(instance: DagsterInstance) -> set[str]:
    result = build_defs("lifecycle").resolve_job_def("check_on_time").execute_in_process(instance=instance)
    assert result.success
    checks = result.get_asset_check_evaluations()
    assert len(checks) >= 14
    return {check.asset_key.to_user_string() for check in checks if not check.passed}


def test_what_was_done_is_overdue_later_and_what_never_was_counts_from_the_first_look(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert overdue(instance) == set()
    for name in ("backups/database", "backups/drill"):
        instance.report_runless_asset_event(AssetMaterialization(AssetKey(name.split("/"))))
    now = time.time()
    monkeypatch.setattr("assets.lifecycle.on_time.time.time", lambda: now + 3 * DAY)
    late = overdue(instance)
    assert {"backups/database", "housekeeping/uploads", "archive/compaction"} <= late
    assert not late & {"backups/drill", "backups/search_drill"}
    monkeypatch.setattr("assets.lifecycle.on_time.time.time", lambda: now + 9 * DAY)
    assert {"backups/drill", "backups/search_drill"} <= overdue(instance)
