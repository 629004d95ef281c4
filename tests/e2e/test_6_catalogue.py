"""The checks of the catalogue on the platform that has gone through the demo: each is made, and none fails.

The jobs run in this process, on the platform's servers; that Dagster starts them by the clock is `test_2_ui.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from dagster import DagsterInstance

from dash_pipeline.definitions import build_defs
from dash_pipeline.demo import CHAIN, LIVE_CHAIN, Outcome
from dash_pipeline.settings import settings
from dash_pipeline.stack import Stack

#: Checks that rightly fail here, and why.
FAILING = {
    f"{CHAIN}/blocks close_to_wall_clock": "the market was recorded long ago",
    f"{LIVE_CHAIN}/blocks close_to_wall_clock": "test_3_kills feeds it the same market",
    "models/liquidity_outlook_champion drift": "the sample has too few rows of this market to be like it",
    "models/pool_risk_champion drift": "the sample is of other markets",
    "models/wallet_risk_champion drift": "the sample is of other markets",
}


@pytest.fixture
def on_platform(platform: Stack, outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    assert outcome.agrees
    monkeypatch.setenv("DASH_STACK_DIR", str(platform.layout.home))
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.mark.usefixtures("on_platform")
@pytest.mark.parametrize(
    ("location", "job"),
    [
        ("ingestion", "check_blocks"), ("intelligence", "check_conclusions"), ("intelligence", "check_drift"),
        ("lifecycle", "check_archive"), ("lifecycle", "check_on_time"), ("lifecycle", "check_backups"),
    ],
)  # fmt: skip
def test_no_check_fails_on_the_demo(location: str, job: str) -> None:
    with DagsterInstance.ephemeral() as instance:
        done = build_defs(location).resolve_job_def(job).execute_in_process(instance=instance)
    checks = done.get_asset_check_evaluations()
    assert checks
    failed = {
        f"{check.asset_key.to_user_string()} {check.check_name}": (check.description, check.metadata)
        for check in checks
        if not check.passed
    }
    assert {name: why for name, why in failed.items() if name not in FAILING} == {}
    if job == "check_blocks":
        judged = {f"{check.asset_key.to_user_string()} {check.check_name}" for check in checks}
        assert {f"{CHAIN}/pools on_the_chain", f"kafka/{CHAIN}/logs nothing_lost_unread"} <= judged
