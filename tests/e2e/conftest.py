"""The whole platform on the test stack: stores, code servers, webserver, daemon."""

from __future__ import annotations

import pytest
from rich.console import Console

from dash_pipeline.stack import Stack
from dash_pipeline.stack.progress import Lines


@pytest.fixture(scope="session")
def platform(stack: Stack) -> Stack:
    """The test stack with everything up: schema, topics, indexes and Dagster, whose sensors are running."""
    stack.up(progress=Lines(Console(stderr=True)))
    return stack
