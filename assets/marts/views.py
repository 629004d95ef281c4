"""The dbt models as assets.

Belongs here: keys, lineage and owners of models, and their tests as checks. Does not belong here: SQL (`dbt/models/`).

The specs are read from dbt's manifest here instead of by `@dbt_assets`: importing dagster-dbt brings all of dbt, two
seconds of CPU, and a code location must load in less. dagster-dbt runs the models (`resources/dbt.py`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetCheckResult,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetKey,
    AssetsDefinition,
    AssetSelection,
    AssetSpec,
    Failure,
    MaterializeResult,
    TableColumn,
    TableColumnDep,
    TableColumnLineage,
    TableSchema,
    define_asset_job,
    in_process_executor,
    multi_asset,
)

from assets.keys import MARTS, STAGING, dead_letters_key, table_key, view_key
from assets.owners import ANALYTICS as OWNER
from assets.owners import OWNER_TAG
from dash_pipeline.errors import DashError
from resources.dbt import DbtResource, load_lineage

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

BUILD_VIEWS = "build_views"
UPDATE_MARTS = "update_marts"

#: Tables of schema `ops` that are not assets: what they are made from instead. Others are made from none.
_OPS: Mapping[str, Callable[[str], AssetKey]] = {
    "reorgs": lambda chain: table_key(chain, "blocks"),
    "chains": lambda chain: table_key(chain, "blocks"),
    "block_tree": lambda chain: table_key(chain, "blocks"),
    "pool_quotes": lambda chain: table_key(chain, "pools"),
    "dead_letters": lambda chain: dead_letters_key(),
}


def view_assets(manifest: Mapping[str, Any], chains: Iterable[str]) -> AssetsDefinition:
    """Every model of the project, and its tests as checks."""
    names = list(chains)
    specs, checks = model_specs(manifest, names), check_specs(manifest)
    models = {spec.key: unique_id for unique_id, spec in specs.items()}

    @multi_asset(
        name="dbt_build",
        specs=list(specs.values()),
        check_specs=list(checks.values()),
        can_subset=True,
        description="Builds the selected models, and runs the tests that are about them.",
    )
    def build(context: AssetExecutionContext, dbt: DbtResource) -> Iterator[MaterializeResult[Any] | AssetCheckResult]:
        wanted = {manifest["nodes"][models[key]]["name"] for key in context.selected_asset_keys}
        try:
            for result in dbt.build(wanted):
                metadata = {"seconds": result.seconds}
                if result.unique_id in specs and result.passed:
                    lineage = column_lineage(manifest, result.unique_id, names)
                    yield MaterializeResult(
                        asset_key=specs[result.unique_id].key, metadata=metadata | {"dagster/column_lineage": lineage}
                    )
                elif (check := checks.get(result.unique_id)) and check.key in context.selected_asset_check_keys:
                    yield AssetCheckResult(
                        asset_key=check.asset_key,
                        check_name=check.name,
                        passed=result.passed,
                        severity=AssetCheckSeverity.WARN if result.warns else AssetCheckSeverity.ERROR,
                        description=result.message,
                        metadata=metadata,
                    )
        except DashError as error:
            raise Failure(str(error), allow_retries=False) from None

    return build


def view_job() -> "UnresolvedAssetJobDefinition":
    """All models."""
    return define_asset_job(
        BUILD_VIEWS,
        AssetSelection.groups(STAGING, MARTS),
        description="Builds the views and marts of schema `analytics`.",
        tags={OWNER_TAG: OWNER},
        executor_def=in_process_executor,
    )


def marts_job() -> "UnresolvedAssetJobDefinition":
    """The marts, for what has changed."""
    return define_asset_job(
        UPDATE_MARTS,
        AssetSelection.groups(MARTS),
        description="Brings the marts up to date with the hours that have changed, and tests what it wrote.",
        tags={OWNER_TAG: OWNER},
        executor_def=in_process_executor,
    )


def model_specs(manifest: Mapping[str, Any], chains: list[str]) -> dict[str, AssetSpec]:
    """dbt's unique id -> the model's spec."""
    return {
        unique_id: _spec(node, chains, manifest)
        for unique_id, node in manifest["nodes"].items()
        if node["resource_type"] == "model"
    }


def check_specs(manifest: Mapping[str, Any]) -> dict[str, AssetCheckSpec]:
    """dbt's unique id -> the test's spec."""
    return {
        unique_id: AssetCheckSpec(
            node["name"],
            asset=view_key(manifest["nodes"][node["attached_node"]]["name"]),
            description=f"dbt test {node['test_metadata']['name']}"
            f" {', '.join(_arguments(node['test_metadata']['kwargs']))}",
        )
        for unique_id, node in manifest["nodes"].items()
        if node["resource_type"] == "test"
    }


def _arguments(arguments: Mapping[str, Any]) -> Iterator[str]:
    for name, value in arguments.items():
        if name != "model":
            yield f"{name}: {', '.join(map(str, value)) if isinstance(value, list) else value}"


def column_lineage(manifest: Mapping[str, Any], unique_id: str, chains: list[str]) -> TableColumnLineage:
    """Where a model's columns come from: a table is one asset for each chain."""
    return TableColumnLineage(
        {
            column: [
                TableColumnDep(key, origin)
                for key, origin in sorted(
                    {(key, name) for parent, name in origins for key in _parents(parent, chains, manifest)}
                )
            ]
            for column, origins in load_lineage()[unique_id].items()
        }
    )


def _spec(node: Mapping[str, Any], chains: list[str], manifest: Mapping[str, Any]) -> AssetSpec:
    materialized = node["config"]["materialized"]
    columns = [
        TableColumn(name=name, type=column["data_type"] or "", description=column["description"])
        for name, column in node["columns"].items()
    ]
    return AssetSpec(
        view_key(node["name"]),
        deps={key for parent in node["depends_on"]["nodes"] for key in _parents(parent, chains, manifest)},
        description=f"{node['description']}\n\n{materialized.capitalize()} `{node['schema']}.{node['name']}`, all"
        " chains; hashes and addresses as `0x...` text.",
        group_name=STAGING if node["fqn"][1] == "staging" else MARTS,
        owners=[OWNER],
        kinds={"dbt", "postgres", materialized},
        code_version=node["checksum"]["checksum"],
        metadata={
            "dagster/table_name": f"{node['schema']}.{node['name']}",
            "dagster/column_schema": TableSchema(columns=columns),
        },
    )


def _parents(unique_id: str, chains: list[str], manifest: Mapping[str, Any]) -> Iterator[AssetKey]:
    """The asset keys of a model's parent. One source is one table, which every chain's lanes write into."""
    if unique_id in manifest["nodes"]:
        yield view_key(manifest["nodes"][unique_id]["name"])
        return
    source = manifest["sources"][unique_id]
    for chain in chains:
        # Rows of schemas `side` and `recalled` are those of `chain`, elsewhere.
        if source["schema"] != "ops":
            yield table_key(chain, source["name"])
        elif made_from := _OPS.get(source["name"]):
            yield made_from(chain)
