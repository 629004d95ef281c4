"""dbt on a real database: views say what their tables hold; the marts have tests of their own (`test_marts.py`)."""

from __future__ import annotations

from pathlib import Path

import pytest
from dagster import DagsterInstance, ExecuteInProcessResult

from assets.keys import view_key
from dash_pipeline import settings as settings_module
from dash_pipeline.definitions import build_defs
from dash_pipeline.settings import Settings
from dash_pipeline.storage import timescale
from dash_pipeline.storage.migrate import upgrade
from dash_pipeline.storage.tables import TABLES
from dash_pipeline.storage.timescale import Connection
from resources.dbt import load_lineage, load_manifest
from resources.timescale import TimescaleResource

COLUMNS = "SELECT column_name, udt_name FROM information_schema.columns WHERE table_schema = %s AND table_name = %s"


@pytest.fixture
def here(fresh_database: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    """A migrated database of the test's own, as the process's settings."""
    upgrade(fresh_database)
    for name in ("kafka_bootstrap", "opensearch_url"):
        monkeypatch.setenv(f"DASH_{name.upper()}", str(getattr(fresh_database, name)))
    monkeypatch.setenv("DASH_TIMESCALE_DSN", fresh_database.timescale_dsn.get_secret_value())
    monkeypatch.setenv("DASH_STACK_DIR", str(tmp_path))
    for name in ("HOST", "PORT", "DATABASE", "USER"):  # dbt's resource sets them for the process
        monkeypatch.setenv(f"DASH_DBT_{name}", "")
    monkeypatch.setenv("DBT_ENV_SECRET_DASH_PASSWORD", "")
    settings_module.settings.cache_clear()
    load_manifest.cache_clear()
    load_lineage.cache_clear()
    return fresh_database


def columns(conn: Connection, schema: str, table: str) -> dict[str, str]:
    return dict(conn.execute(COLUMNS, (schema, table)).fetchall())


def run(*views: str) -> ExecuteInProcessResult:
    with DagsterInstance.ephemeral() as instance:
        job = build_defs("marts").resolve_job_def("build_views")
        return job.execute_in_process(
            instance=instance, asset_selection=[view_key(view) for view in views], raise_on_error=False
        )


def made(result: ExecuteInProcessResult) -> set[str]:
    return {event.asset_key.path[-1] for event in result.get_asset_materialization_events() if event.asset_key}


@pytest.mark.patient
def test_views_are_built_alone(here: Settings) -> None:
    wanted = ("tokens", "traces")
    assert TimescaleResource().absent([f"analytics.{name}" for name in wanted]) != []
    assert made(run(*wanted)) == set(wanted)
    assert TimescaleResource().absent([f"analytics.{name}" for name in wanted]) == []
    with timescale.connect(here) as conn:
        for name in wanted:
            table = TABLES[name]
            assert columns(conn, "chain", name) == {n: c.type for n, c in table.columns.items()}
            assert columns(conn, "analytics", name) == {
                n: "text" if c.type == "bytea" else c.type for n, c in table.columns.items()
            }
        conn.execute(
            "INSERT INTO chain.tokens (chain, ts, block_number, block_hash, address, decimals, total_supply)"
            " VALUES ('t', now(), 1, '\\x0b', '\\xC0fe', 18, 2::numeric ^ 256 - 1)"
        )
        row = conn.execute("SELECT address, total_supply::text, symbol FROM analytics.tokens").fetchone()
        assert row == ("0xc0fe", str(2**256 - 1), None)


def test_a_model_that_fails_is_said_in_one_line(here: Settings) -> None:
    with timescale.connect(here) as conn:
        conn.execute("DROP TABLE chain.traces")
    result = run("blocks", "traces")
    assert not result.success
    assert made(result) == {"blocks"}
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    user = failure.step_failure_data.user_failure_data
    assert user is not None
    assert "chain.traces" in (user.description or "")
    assert "\n" not in (user.description or "")
