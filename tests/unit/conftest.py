"""Fixtures for tests without servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dash_pipeline import settings as settings_module

# Nothing listens there: a test that connects fails at once.
ENVIRONMENT = {
    "DASH_KAFKA_BOOTSTRAP": "127.0.0.1:1",
    "DASH_TIMESCALE_DSN": "postgresql://dash:secret@127.0.0.1:1/dash",
    "DASH_OPENSEARCH_URL": "http://127.0.0.1:1",
}


@pytest.fixture(scope="session")
def parsed_dbt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stack's folder that keeps dbt's manifest for all tests of the session."""
    return tmp_path_factory.mktemp("stack")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, parsed_dbt: Path) -> Iterator[pytest.MonkeyPatch]:
    """Valid settings, and none of this machine's."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DASH_STACK_DIR", str(parsed_dbt))
    settings_module.settings.cache_clear()
    yield monkeypatch
    settings_module.settings.cache_clear()
