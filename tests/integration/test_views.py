"""dbt on a real database: every table has its view, and the descriptions are true."""

from __future__ import annotations

from pathlib import Path

import pytest
from dagster import DagsterInstance

from dash_pipeline import settings as settings_module
from dash_pipeline.definitions import build_defs
from dash_pipeline.settings import Settings
from dash_pipeline.storage import timescale
from dash_pipeline.storage.migrate import upgrade
from dash_pipeline.storage.tables import TABLES
from dash_pipeline.storage.timescale import Connection
from resources.dbt import load_manifest
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
    return fresh_database


def columns(conn: Connection, schema: str, table: str) -> dict[str, str]:
    return dict(conn.execute(COLUMNS, (schema, table)).fetchall())


def test_the_job_builds_every_view(here: Settings) -> None:
    defs = build_defs("marts")
    relations = [f"analytics.{node['name']}" for node in load_manifest()["nodes"].values()]
    assert TimescaleResource().absent(relations) == relations
    with DagsterInstance.ephemeral() as instance:
        result = defs.resolve_job_def("build_views").execute_in_process(instance=instance)
    made = {event.asset_key.path[-1] for event in result.get_asset_materialization_events() if event.asset_key}
    assert {f"analytics.{name}" for name in made} == set(relations)
    assert TimescaleResource().absent(relations) == []
    with timescale.connect(here) as conn:
        for name, table in TABLES.items():
            assert columns(conn, "chain", name) == {n: c.type for n, c in table.columns.items()}
            assert columns(conn, "analytics", name) == {
                n: "text" if c.type == "bytea" else c.type for n, c in table.columns.items()
            }
        for source in load_manifest()["sources"].values():
            described = {n: column["data_type"] for n, column in source["columns"].items()}
            assert columns(conn, source["schema"], source["name"]) == described
        conn.execute(
            "INSERT INTO chain.tokens (chain, ts, block_number, block_hash, address, decimals, total_supply)"
            " VALUES ('t', now(), 1, '\\x0b', '\\xC0fe', 18, 2::numeric ^ 256 - 1)"
        )
        row = conn.execute("SELECT address, total_supply::text, symbol FROM analytics.tokens").fetchone()
        assert row == ("0xc0fe", str(2**256 - 1), None)


def test_a_model_that_fails_is_said_in_one_line(here: Settings) -> None:
    with timescale.connect(here) as conn:
        conn.execute("DROP TABLE chain.traces")
    with DagsterInstance.ephemeral() as instance:
        result = (
            build_defs("marts")
            .resolve_job_def("build_views")
            .execute_in_process(instance=instance, raise_on_error=False)
        )
    assert not result.success
    made = {event.asset_key.path[-1] for event in result.get_asset_materialization_events() if event.asset_key}
    assert "blocks" in made
    assert "traces" not in made
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    user = failure.step_failure_data.user_failure_data
    assert user is not None
    assert "chain.traces" in (user.description or "")
    assert "\n" not in (user.description or "")
