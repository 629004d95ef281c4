"""Fixtures of several integration tests: mostly a database that holds nothing when a test begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from dash_pipeline import kafka
from dash_pipeline import settings as settings_module
from dash_pipeline.archive.parquet import ARCHIVED
from dash_pipeline.settings import Settings
from dash_pipeline.storage import timescale as db
from dash_pipeline.storage.migrate import upgrade
from tests.environment import put_in_environment

_OTHERS = (
    "ops.archive_manifest, ops.archived_rows, ops.chains, ops.block_tree, ops.search_outbox, ops.changed_hours,"
    " rollup.wallet_blocks, chain.pools, intel.alerts, intel.deliveries"
)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that is not there is waited for for two seconds."""
    monkeypatch.setattr(kafka, "BOOTSTRAP_TIMEOUT_MS", 2000)


@pytest.fixture(scope="module")
def migrated(database: Settings) -> Settings:
    """The module's own database with the platform's tables."""
    upgrade(database)
    return database


@pytest.fixture
def in_environment(migrated: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The module's settings are those of this process."""
    put_in_environment(migrated, monkeypatch)
    yield monkeypatch
    settings_module.settings.cache_clear()


@pytest.fixture
def conn(migrated: Settings) -> Iterator[db.Connection]:
    """A connection to it; no row, no archived day, no chain is left of the test before."""
    with db.connect(migrated) as conn:
        conn.execute(f"TRUNCATE {_OTHERS}, {', '.join(table.relation for table in ARCHIVED.values())}")
        yield conn


@pytest.fixture
def chain(unique: Callable[[str], str]) -> str:
    """Objects lie by chain: a name of its own keeps tests apart in the one bucket."""
    return unique("c")
