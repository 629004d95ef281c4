"""The code locations: what is in them, that they load alone, and fast."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from math import inf
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetKey, Definitions

from dash_pipeline.chains import load_chains
from dash_pipeline.definitions import build_defs
from dash_pipeline.settings import settings
from dash_pipeline.storage.tables import TABLES

SNAPSHOTS = Path(__file__).parent / "snapshots"
# A registry of one chain keeps the snapshot readable; the parts of every chain are made alike.
ONE_CHAIN = '[anvil]\ntitle = "Anvil"\nchain_id = 31337\nblock_time_s = 1.0\n'
LOCATIONS = ["ingestion", "intelligence", "lifecycle", "marts"]


@pytest.fixture
def one_chain(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    registry = tmp_path / "chains.toml"
    registry.write_text(ONE_CHAIN)
    environment.setenv("DASH_CHAINS_FILE", str(registry))
    settings.cache_clear()


def described(defs: Definitions) -> dict[str, Any]:
    """What a person would miss if it changed by accident."""
    repository = defs.get_repository_def()
    graph = repository.asset_graph
    return {
        "assets": {
            key.to_user_string(): {
                "group": graph.get(key).group_name,
                "kinds": sorted(graph.get(key).kinds),
                "owners": list(graph.get(key).owners),
                "deps": sorted(parent.to_user_string() for parent in graph.get(key).parent_keys),
                "made by": graph.get(key).assets_def.op.name if graph.get(key).is_executable else None,
            }
            for key in sorted(graph.get_all_asset_keys())
            if graph.get(key).group_name != "default"  # stubs of other locations' assets
        },
        "checks": {
            f"{key.asset_key.to_user_string()}: {key.name}": {"blocking": graph.get_check_spec(key).blocking}
            for key in sorted(graph.asset_check_keys)
        },
        "jobs": sorted(job.name for job in repository.get_all_jobs() if not job.name.startswith("__")),
        "sensors": {
            s.name: {"every, s": s.minimum_interval_seconds, "status": s.default_status.value}
            for s in sorted(repository.sensor_defs, key=lambda s: s.name)
        },
        "schedules": {s.name: s.cron_schedule for s in repository.schedule_defs},
        "resources": sorted(defs.resources or {}),
    }


@pytest.mark.usefixtures("one_chain")
@pytest.mark.parametrize("location", LOCATIONS)
def test_definitions_are_what_they_were(location: str) -> None:
    """After a change that is meant: `DASH_UPDATE_SNAPSHOTS=1 pytest tests/unit/test_definitions.py`."""
    text = json.dumps(described(build_defs(location)), indent=1) + "\n"
    snapshot = SNAPSHOTS / f"{location}.json"
    if os.environ.get("DASH_UPDATE_SNAPSHOTS") == "1":
        snapshot.write_text(text)
    assert json.loads(text) == json.loads(snapshot.read_text())


@pytest.mark.usefixtures("environment")
def test_every_chain_of_the_registry_has_its_tables_topics_and_job() -> None:
    graph = build_defs("ingestion").get_repository_def().asset_graph
    for chain in load_chains():
        assert graph.has(AssetKey(["kafka", chain, "blocks"]))
        for table in TABLES:
            node = graph.get(AssetKey([chain, table]))
            assert node.metadata["dagster/table_name"] == f"chain.{table}"
            assert [c.name for c in node.metadata["dagster/column_schema"].columns] == list(TABLES[table].columns)


@pytest.mark.usefixtures("environment")
def test_lineage_goes_on_across_locations() -> None:
    """What one location calls a dependency, the other one makes."""
    ingestion = build_defs("ingestion").get_repository_def().asset_graph
    marts = build_defs("marts").get_repository_def().asset_graph
    upstream = {parent for key in marts.materializable_asset_keys for parent in marts.get(key).parent_keys}
    assert upstream
    assert upstream - marts.materializable_asset_keys <= ingestion.get_all_asset_keys()


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("location", LOCATIONS)
def test_a_location_loads_alone_and_fast(location: str) -> None:
    """In a fresh interpreter, for less than twice what its libraries alone take."""

    def cpu(code: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    load = f"from dash_pipeline.locations.{location} import defs; defs.get_repository_def()"
    cpu(load)  # compiles, and parses the dbt project
    # The machine may be busy, and slower from one moment to the next: side by side, and the best of each, of three
    # rounds, or of more where these were not enough.
    loaded = imported = inf
    for round_ in range(8):
        loaded, imported = min(loaded, cpu(load)), min(imported, cpu("import dagster, polars"))
        if round_ >= 2 and loaded < 2 * imported:
            break
    assert loaded < 2 * imported


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("location", LOCATIONS)
def test_loading_imports_no_heavy_clients(location: str) -> None:
    heavy = ["dagster_dbt", "dbt", "boto3", "opensearchpy", "lightgbm", "confluent_kafka", "dagster_k8s"]
    code = (
        f"import sys, dash_pipeline.locations.{location} as l; l.defs.get_repository_def();"
        f" print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_a_wrong_setting_is_named_when_a_location_loads(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("DASH_KAFKA_BOOTSTRAP")
    settings.cache_clear()
    with pytest.raises(Exception, match="DASH_KAFKA_BOOTSTRAP: field required"):
        build_defs("ingestion")


def test_every_model_of_the_catalogue_has_its_assets() -> None:
    from assets.intelligence.models import ABOUT
    from dash_pipeline.models.catalogue import MODELS

    assert list(ABOUT) == list(MODELS)


#: Assets that nothing of the platform makes: why they have no upstream.
SOURCES = {
    "kafka/anvil": "whoever publishes the chain's messages",
    "kafka/dash/dead_letters": "every topic's refused messages: an edge from each would hide the graph",
    "labels/": "labelled data from outside",
    "housekeeping/dagster_records": "Dagster's own records, which it sweeps",
    "analytics/stream_offsets": "ops.stream_offsets is written with the rows of every table",
}
#: Kinds of assets without a check: why none makes sense.
UNCHECKED = {"view": "a dbt view has no rows of its own; those of the table that it shows are checked"}


@pytest.fixture
def graphs(one_chain: None) -> dict[str, Any]:
    return {location: build_defs(location).get_repository_def().asset_graph for location in LOCATIONS}


def own(graph: Any) -> list[Any]:
    """A location's assets, without what it knows of others' by name only."""
    return [graph.get(key) for key in sorted(graph.get_all_asset_keys()) if graph.get(key).group_name != "default"]


def test_every_asset_is_in_the_catalogue_with_what_a_person_looks_for(graphs: dict[str, Any]) -> None:
    lacking = []
    for location, graph in graphs.items():
        checked = {key.asset_key for key in graph.asset_check_keys}
        for node in own(graph):
            has = {
                "description": node.description,
                "owner": node.owners,
                "kind": node.kinds,
                "check": node.key in checked or node.kinds & UNCHECKED.keys(),
                "link to its code": node.metadata.get("dagster/code_references"),
            }
            lacking += [f"{location}: {node.key.to_user_string()} has no {what}" for what in has if not has[what]]
    assert lacking == []


def test_links_lead_to_code_that_makes_the_asset(graphs: dict[str, Any], environment: pytest.MonkeyPatch) -> None:
    for graph in graphs.values():
        for node in own(graph):
            for reference in node.metadata["dagster/code_references"].code_references:
                line = Path(reference.file_path).read_text().splitlines()[reference.line_number - 1].strip()
                expected = ("@", "def ") if reference.file_path.endswith(".py") else ("{", "--", "select", "with")
                assert line.lower().startswith(expected), (node.key, reference, line)
    environment.setenv("DASH_CODE_URL", "https://git.example/dash/blob/abc")
    settings.cache_clear()
    node = build_defs("marts").get_repository_def().asset_graph.get(AssetKey(["analytics", "blocks"]))
    sql, function = node.metadata["dagster/code_references"].code_references
    assert sql.url.startswith("https://git.example/dash/blob/abc/dbt/models/")
    assert function.url.startswith("https://git.example/dash/blob/abc/assets/marts/")


def test_no_asset_is_an_orphan(graphs: dict[str, Any]) -> None:
    """Each is made from others, down to sources; and what one location names, another one has."""
    parents: dict[str, set[str]] = {}
    for graph in graphs.values():
        for node in own(graph):
            parents[node.key.to_user_string()] = {parent.to_user_string() for parent in node.parent_keys}
    assert {parent for found in parents.values() for parent in found} <= parents.keys()
    roots = [key for key, found in parents.items() if not found]
    assert [key for key in roots if not key.startswith(tuple(SOURCES))] == []


def test_groups_are_read_from_left_to_right(graphs: dict[str, Any]) -> None:
    """A folded graph has no cycle of groups but those that are real: the engine reads champions trained on history."""
    edges: dict[str, set[str]] = {}
    groups = {node.key: node.group_name for graph in graphs.values() for node in own(graph)}
    for graph in graphs.values():
        for node in own(graph):
            edges.setdefault(node.group_name, set()).update(groups[key] for key in node.parent_keys)
    order: list[str] = []
    left = {group: found - {group} for group, found in edges.items()}
    while ready := sorted(group for group, found in left.items() if found <= set(order)):
        order += ready
        left = {group: found for group, found in left.items() if group not in order}
    assert left == {}, f"these groups point at each other: {left}; so far {order}"
