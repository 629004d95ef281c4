"""The whole platform on the test stack: stores, code servers, webserver, daemon."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from rich.console import Console

from dash_pipeline.stack import Stack
from dash_pipeline.stack.progress import Lines
from dash_pipeline.stack.stack import GROUPS


@pytest.fixture(scope="package")
def platform(stack: Stack) -> Iterator[Stack]:
    """The test stack with everything up: schema, topics, indexes and Dagster, whose sensors are running."""
    stack.up(progress=Lines(Console(stderr=True)))
    yield stack
    for name in reversed(GROUPS["dagster"]):
        stack.stop(name)
