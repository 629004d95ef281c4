"""What the README's first command does, on the test stack: the recorded market through runs that sensors start."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dash_pipeline.demo import CHAIN, Outcome, demo, show
from dash_pipeline.feed.replay import silent
from dash_pipeline.stack import Stack
from dash_pipeline.stack.servers.dagster import graphql

_RUNS = "{ runsOrError { ... on Runs { results { jobName status tags { key value } } } } }"


def test_every_message_is_a_row_and_every_transaction_a_document(outcome: Outcome) -> None:
    assert outcome.agrees, outcome
    assert outcome.published > 50_000
    assert outcome.derived["pool_events"] > 10_000
    assert outcome.derived["pools"] >= 20
    assert outcome.documents["token-performance"] > 20
    assert outcome.documents["wallet-activity"] > 60
    assert outcome.dead_letters == 0


@pytest.mark.parametrize(
    ("job", "sensor"),
    [(f"ingest_{CHAIN}", "lag_sensor"), ("predict", "anomaly_sensor"), ("train_pool_risk", "training_sensor")],
)
def test_sensors_started_the_runs(platform: Stack, outcome: Outcome, job: str, sensor: str) -> None:
    runs = graphql(platform.place, _RUNS)["runsOrError"]["results"]
    tags = [{tag["key"]: tag["value"] for tag in run["tags"]} for run in runs if run["jobName"] == job]
    assert tags
    assert {tag.get("dagster/sensor_name") for tag in tags} == {sensor}


def test_every_rug_pull_is_an_alert_with_predictions(outcome: Outcome) -> None:
    assert {alert["pool"] for alert in outcome.alerts} == set(outcome.rug_pulls), "and nothing else is"
    for alert in outcome.alerts:
        said = {
            one["model"]: one for one in alert["predictions"] if one["subject"] in (alert["pool"], alert["wallets"][0])
        }
        for model in ("pool_risk", "wallet_risk"):
            assert 0 <= said[model]["score"] <= 1
            assert said[model]["contributions"]
            assert said[model]["version"] != "none"


@pytest.mark.patient
def test_feeding_it_again_changes_nothing(platform: Stack, outcome: Outcome) -> None:
    again = demo(platform, silent, lambda text: None)
    assert again.agrees
    assert (again.tables, again.derived, again.documents) == (outcome.tables, outcome.derived, outcome.documents)
    assert again.alerts == outcome.alerts


def test_the_closing_table(outcome: Outcome) -> None:
    page = io.StringIO()
    show(outcome, Console(file=page, width=160))
    text = page.getvalue()
    assert f"{outcome.published:,} events" in text
    assert outcome.ui in text
    assert "rug pulls: 6, with an alert of high severity: 6" in text
    for pool in outcome.rug_pulls:
        assert pool in text
