"""The dbt models as assets.

Belongs here: keys, lineage and owners of models. Does not belong here: SQL (`dbt/models/`).

The specs are read from dbt's manifest here instead of by `@dbt_assets`: importing dagster-dbt brings all of dbt, two
seconds of CPU, and a code location must load in less. dagster-dbt runs the models (`resources/dbt.py`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetsDefinition,
    AssetSelection,
    AssetSpec,
    Failure,
    MaterializeResult,
    TableColumn,
    TableSchema,
    define_asset_job,
    in_process_executor,
    multi_asset,
)

from assets.keys import ANALYTICS, dead_letters_key, table_key, view_key
from assets.owners import ANALYTICS as OWNER
from assets.owners import OWNER_TAG
from dash_pipeline.errors import DashError
from resources.dbt import DbtResource

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

BUILD_VIEWS = "build_views"

#: Tables of schema `ops` that are not assets: what they are made from instead.
_OPS: Mapping[str, Callable[[str], AssetKey | None]] = {
    "reorgs": lambda chain: table_key(chain, "blocks"),
    "dead_letters": lambda chain: dead_letters_key(),
    "stream_offsets": lambda chain: None,
}


def view_assets(manifest: Mapping[str, Any], chains: Iterable[str]) -> AssetsDefinition:
    """Every model of the project."""
    specs = model_specs(manifest, list(chains))
    models = {spec.key: unique_id for unique_id, spec in specs.items()}

    @multi_asset(
        name="dbt_run",
        specs=list(specs.values()),
        can_subset=True,
        description="Runs dbt for the selected models.",
    )
    def build(context: AssetExecutionContext, dbt: DbtResource) -> Iterator[MaterializeResult[Any]]:
        wanted = [manifest["nodes"][models[key]]["name"] for key in sorted(context.selected_asset_keys)]
        try:
            for unique_id, metadata in dbt.run(wanted):
                yield MaterializeResult(asset_key=specs[unique_id].key, metadata=metadata)
        except DashError as error:
            raise Failure(str(error), allow_retries=False) from None

    return build


def view_job() -> "UnresolvedAssetJobDefinition":
    """All models."""
    return define_asset_job(
        BUILD_VIEWS,
        AssetSelection.groups(ANALYTICS),
        description="Builds the views and marts of schema `analytics`.",
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
        group_name=ANALYTICS,
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
        key = table_key(chain, source["name"]) if source["schema"] == "chain" else _OPS[source["name"]](chain)
        if key is not None:
            yield key
