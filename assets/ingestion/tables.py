"""One chain's tables as asset specs: what is in them and where it comes from.

Belongs here: lineage, columns, owners. Does not belong here: columns' meanings (`dash_pipeline/storage/tables.py`) and
how rows get in (`ingest.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from dagster import AssetKey, AssetSpec, TableColumn, TableColumnConstraints, TableConstraints, TableSchema

from assets.keys import anomalies_key, table_key, topic_key
from assets.owners import CHAIN_DATA
from dash_pipeline.chains import Chain
from dash_pipeline.storage.tables import TABLES, Column, Table

#: Table -> the type of the messages that its rows are made from.
SOURCES: Mapping[str, str] = {
    "blocks": "block",
    "transactions": "transaction",
    "logs": "log",
    "token_transfers": "token_transfer",
    "pool_events": "log",
    "traces": "trace",
    "contracts": "contract",
    "tokens": "token",
    "pools": "log",
}
# Decoded from rows of another table, in the same transaction: the graph says so instead of pointing at the topic.
_DECODED_FROM = {"pool_events": "logs", "pools": "pool_events"}


def table_specs(chain: Chain) -> list[AssetSpec]:
    """Every table, for one chain."""
    return [_spec(chain, table) for table in TABLES.values()]


def anomalies_spec(chain: Chain) -> AssetSpec:
    """What detectors found in one chain's pools, in the transactions of the rows."""
    return AssetSpec(
        anomalies_key(chain.name),
        deps=[table_key(chain.name, "pool_events"), table_key(chain.name, "pools")],
        description="Liquidity withdrawals, reserve drains, price and volume spikes and wallet bursts: written in the"
        " transaction of the rows that they rest on, retracted when a fork takes these away.\n\n"
        f"Rows of {chain.title} (`chain = '{chain.name}'`) in `intel.anomalies`.",
        group_name=chain.name,
        owners=[CHAIN_DATA],
        kinds={"postgres", "polars"},
        tags={"dash/chain": chain.name},
        skippable=True,
        metadata={"dagster/table_name": "intel.anomalies", "natural key": "id"},
    )


def upstream(chain: str, table: str) -> AssetKey:
    """What a table's rows are made from."""
    if table in _DECODED_FROM:
        return table_key(chain, _DECODED_FROM[table])
    return topic_key(chain, SOURCES[table])


def _spec(chain: Chain, table: Table) -> AssetSpec:
    return AssetSpec(
        table_key(chain.name, table.name),
        deps=[upstream(chain.name, table.name)],
        description=f"{table.about}\n\nRows of {chain.title} (`chain = '{chain.name}'`) in `chain.{table.name}`.",
        group_name=chain.name,
        owners=[CHAIN_DATA],
        kinds={"postgres", "polars"},
        tags={"dash/chain": chain.name},
        skippable=True,  # a run that had no rows for a table has not made it
        metadata={
            "dagster/table_name": f"chain.{table.name}",
            "dagster/column_schema": _columns(table.name),
            "natural key": ", ".join(table.key),
        },
    )


@lru_cache
def _columns(name: str) -> TableSchema:
    table = TABLES[name]
    return TableSchema(
        columns=[_column(column, spec) for column, spec in table.columns.items()],
        constraints=TableConstraints(other=[f"unique ({', '.join(table.key)})"]),
    )


def _column(name: str, column: Column) -> TableColumn:
    constraints = TableColumnConstraints(nullable=column.null)
    return TableColumn(name=name, type=column.type, description=column.about, constraints=constraints)
