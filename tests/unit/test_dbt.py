"""The dbt project agrees with the tables' description."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dash_pipeline.errors import DashError
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
    models = {node["name"]: node for node in manifest["nodes"].values() if node["resource_type"] == "model"}
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


@pytest.fixture
def manifest(environment: pytest.MonkeyPatch) -> Mapping[str, Any]:
    from resources.dbt import load_manifest

    return load_manifest()


def of_type(manifest: Mapping[str, Any], type_: str) -> list[Mapping[str, Any]]:
    return [node for node in manifest["nodes"].values() if node["resource_type"] == type_]


def test_every_model_and_column_is_described(manifest: Mapping[str, Any]) -> None:
    for node in [*of_type(manifest, "model"), *manifest["sources"].values()]:
        assert node["description"], node["name"]
        assert node["columns"], node["name"]
        assert [name for name, c in node["columns"].items() if not c["description"]] == [], node["name"]


def test_every_relation_with_a_key_is_tested_for_it(manifest: Mapping[str, Any]) -> None:
    """All but the views that only show another model's hours in another way."""
    tested: dict[str, set[str]] = {node["name"]: set() for node in of_type(manifest, "model")}
    keys: dict[str, list[list[str]]] = {}
    for node in of_type(manifest, "test"):
        name = manifest["nodes"][node["attached_node"]]["name"]
        tested[name].add(node["test_metadata"]["name"])
        if node["test_metadata"]["name"] in ("unique_key", "key_not_null"):
            keys.setdefault(name, []).append(node["test_metadata"]["kwargs"]["columns"])
    assert {name for name, tests in tested.items() if not {"unique_key", "key_not_null"} <= tests} == {
        "int_token_hours",
        "int_token_traders",
    }
    for name, (one, other) in keys.items():
        assert one == other, name
    for node in of_type(manifest, "model"):
        for index in node["config"].get("indexes", []):
            if index.get("unique"):
                assert set(index["columns"]) == set(keys[node["name"]][0]), "the database holds it to the same key"
    kinds = {node["test_metadata"]["name"] for node in of_type(manifest, "test")}
    assert kinds == {"unique_key", "key_not_null", "accepted_values", "relationships"}


def test_what_no_run_may_build_anew_from_hot_rows_is_said(manifest: Mapping[str, Any]) -> None:
    tables = [node for node in of_type(manifest, "model") if node["config"]["materialized"] != "view"]
    assert len(tables) == 8
    for node in tables:
        assert node["config"]["materialized"] == "incremental"
        assert node["config"]["full_refresh"] is False
        assert node["config"]["incremental_strategy"] == "changed"


def test_exposures_and_freshness(manifest: Mapping[str, Any]) -> None:
    assert {e["name"] for e in manifest["exposures"].values()} == {"dagster_ui", "read_api", "search"}
    watched = {s["name"] for s in manifest["sources"].values() if s["loaded_at_field"]}
    assert watched == {"stream_offsets", "chains"}


@pytest.mark.usefixtures("environment")
def test_columns_are_followed_back_to_the_tables() -> None:
    """Every column of every model has its origins, but for counts of rows; a mart's lead to a topic's table."""
    from resources.dbt import load_lineage

    lineage = load_lineage()
    without = {(model.split(".")[-1], c) for model, cs in lineage.items() for c, origins in cs.items() if not origins}
    assert {column for _, column in without} <= {
        "transfers_in", "transfers_out", "tx_sent", "tx_received", "swaps", "swaps_in_estimate", "blocks",
        "orphaned_blocks", "hot_blocks", "reorgs_24h", "dead_letters_24h", "hours_to_come",
    }  # fmt: skip

    def leaves(place: tuple[str, str]) -> set[tuple[str, str]]:
        model, column = place
        if model not in lineage:
            return {place}
        return set().union(*(leaves((parent, name)) for parent, name in lineage[model][column]))

    high = leaves(("model.dash.token_performance", "high"))
    assert {("source.dash.chain.pool_events", name) for name in ("reserve0_f", "reserve1_f", "sqrt_price_x96")} <= high
    assert leaves(("model.dash.wallet_activity", "amount_in")) == {
        ("source.dash.chain.token_transfers", "value"),
        ("source.dash.recalled.token_transfers", "value"),
    }


def test_a_model_that_sql_cannot_be_read_of_is_named(manifest: Mapping[str, Any]) -> None:
    from resources.lineage import column_lineage

    (node,) = [dict(n) for n in of_type(manifest, "model") if n["name"] == "pool_bars"]
    broken = {"nodes": {"model.dash.pool_bars": node | {"raw_code": "select 1 from from"}}, "sources": {}}
    with pytest.raises(DashError, match="dbt model pool_bars"):
        column_lineage(GENERATE.parent, broken)
