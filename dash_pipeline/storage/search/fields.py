"""A table's columns as fields of a document: the SQL that writes them and the mapping that reads them are one list.

Belongs here: how a column becomes JSON and how the index treats it. Does not belong here: which tables make a document.

Addresses, hashes and other bytes are `0x` and lower-case hex; exact amounts are strings of digits, because JSON readers
round larger numbers; times are ISO 8601 in UTC (the session's time zone must be UTC).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from dash_pipeline.storage.tables import Table

Mapping = dict[str, Any]

KEYWORD: Mapping = {"type": "keyword"}
# Queried, never sorted or aggregated.
TERM: Mapping = {"type": "keyword", "doc_values": False}
# Kept in the document and neither queried nor sorted: costs nothing but its bytes.
STORED: Mapping = {"type": "keyword", "index": False, "doc_values": False}
# Sorted and aggregated, not queried.
COUNT: Mapping = {"type": "long", "index": False}
MEASURE: Mapping = {"type": "double", "index": False}
SEEN: Mapping = {"type": "date", "index": False}
LONG: Mapping = {"type": "long"}
INTEGER: Mapping = {"type": "integer"}
DOUBLE: Mapping = {"type": "double"}
DATE: Mapping = {"type": "date"}
# Text that anyone may choose: a longer one is kept and not searchable, instead of refusing the document.
NAME: Mapping = {"type": "keyword", "ignore_above": 256}

_MAPPINGS: dict[str, Mapping] = {
    "bytea": KEYWORD,
    "text": NAME,
    "numeric": KEYWORD,
    "int8": LONG,
    "int4": INTEGER,
    "float8": DOUBLE,
    "bool": {"type": "boolean"},
    "timestamptz": DATE,
}


def select_list(table: Table, alias: str, skip: Collection[str] = ()) -> str:
    """The table's columns as they are in a document, for a SELECT from `alias`."""
    return ", ".join(
        f"{_expression(column.type, f'{alias}.{name}')} AS {name}"
        for name, column in table.columns.items()
        if name not in skip
    )


def _expression(type_: str, column: str) -> str:
    if type_ == "bytea":
        return hex_text(column)
    return f"{column}::text" if type_ == "numeric" else column


def hex_text(expression: str) -> str:
    """SQL: bytes as `0x...`; null stays null."""
    return f"'0x' || encode({expression}, 'hex')"


def properties(
    table: Table, searched: Collection[str], sorted_by: Collection[str] = (), skip: Collection[str] = ()
) -> dict[str, Mapping]:
    """The mapping of the fields that `select_list` writes: `searched` ones can be queried, `sorted_by` ones sorted and
    aggregated; all others are kept in the document and cost the index nothing."""
    return {
        name: _mapping(column.type, name in searched, name in sorted_by)
        for name, column in table.columns.items()
        if name not in skip
    }


def _mapping(type_: str, searched: bool, sorted_by: bool) -> Mapping:
    if type_ == "jsonb":
        return {"type": "object", "enabled": False}
    return _MAPPINGS[type_] | ({} if searched else {"index": False}) | ({} if sorted_by else {"doc_values": False})
