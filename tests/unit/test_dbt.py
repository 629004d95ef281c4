"""The dbt project agrees with the tables' description."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from dash_pipeline.settings import settings
from dash_pipeline.storage.tables import TABLES

GENERATE = Path(__file__).parents[2] / "dbt" / "generate.py"
spec = importlib.util.spec_from_file_location("generate", GENERATE)
assert spec
assert spec.loader
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


def test_generated_files_are_up_to_date() -> None:
    for path, text in generate.files().items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run `python dbt/generate.py`"


@pytest.mark.usefixtures("environment")
def test_every_table_is_a_source_with_its_columns_and_has_a_view() -> None:
    from resources.dbt import load_manifest

    manifest = load_manifest()
    sources = {s["name"]: s for s in manifest["sources"].values() if s["schema"] == "chain"}
    assert sources.keys() == TABLES.keys()
    models = {node["name"]: node for node in manifest["nodes"].values()}
    for name, table in TABLES.items():
        described = {column: (c["data_type"], c["description"]) for column, c in sources[name]["columns"].items()}
        assert described == {column: (c.type, c.about) for column, c in table.columns.items()}
        assert models[name]["schema"] == "analytics"
        assert models[name]["config"]["materialized"] == "view"
        assert list(models[name]["columns"]) == list(table.columns)


def test_the_profile_comes_from_the_dsn(environment: pytest.MonkeyPatch) -> None:
    from resources.dbt import profile

    environment.setenv("DASH_TIMESCALE_DSN", "postgresql://al%40ice:p%2Fw@db.example:6543/hot?sslmode=require")
    settings.cache_clear()
    assert profile(settings()) == {
        "DASH_DBT_HOST": "db.example",
        "DASH_DBT_PORT": "6543",
        "DASH_DBT_DATABASE": "hot",
        "DASH_DBT_USER": "al@ice",
        "DBT_ENV_SECRET_DASH_PASSWORD": "p/w",
        "DASH_DBT_SSLMODE": "require",
    }
