"""The whole platform on the test stack: stores, code servers, webserver, daemon."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from rich.console import Console

from dash_pipeline.demo import Outcome, demo
from dash_pipeline.feed.replay import silent
from dash_pipeline.stack import Stack
from dash_pipeline.stack.progress import Lines
from dash_pipeline.stack.secrets import write_env
from dash_pipeline.stack.stack import GROUPS
from tests.webhooks import Receiver


@pytest.fixture(scope="package")
def operators(stack: Stack) -> Iterator[Receiver]:
    """The webhook at which operators are told."""
    with Receiver(stack.settings().alert_secret) as receiver:
        yield receiver


@pytest.fixture(scope="package")
def platform(stack: Stack, operators: Receiver) -> Iterator[Stack]:
    """The test stack with everything up: schema, topics, indexes and Dagster, whose sensors are running."""
    channels = {"ops": {"kind": "webhook", "url": operators.url}}
    routes = {"*": ["ops"]}
    write_env(stack.layout, {"DASH_NOTIFY_CHANNELS": json.dumps(channels), "DASH_OWNER_ROUTES": json.dumps(routes)})
    stack.up(progress=Lines(Console(stderr=True)))
    yield stack
    for name in reversed(GROUPS["dagster"]):
        stack.stop(name)


@pytest.fixture(scope="package")
def outcome(platform: Stack) -> Outcome:
    """What the demo has come to on the platform."""
    return demo(platform, silent, lambda text: None)
