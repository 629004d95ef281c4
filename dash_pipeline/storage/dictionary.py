"""The data dictionary: what `tables.py` and the marts' descriptions in `dbt/` say, for people.

Belongs here: the page's text. Written to `docs/data-dictionary.md` by `python -m dash_pipeline.storage.dictionary`; a
test fails when the page is not this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from dash_pipeline.storage.tables import HISTORIES, Table

PAGE = Path(__file__).parents[2] / "docs" / "data-dictionary.md"
MARTS = Path(__file__).parents[2] / "dbt" / "models" / "marts" / "marts.yml"

_INTRO = """\
# Data dictionary

Written by `python -m dash_pipeline.storage.dictionary` from `dash_pipeline/storage/tables.py` and, for
schema `analytics`, `dbt/models/marts/marts.yml`.

Schema `chain` holds canonical rows. Addresses and hashes are `bytea` here and `0x...` text in the views of schema
`analytics`, one view per table. `numeric` amounts are exact; the column beside it that ends in `_f` is a double for
analytics. Schema `side` has the same tables for rows of branches that are not canonical. After those of
`chain` come three of other schemas that have a history, too (`dash-pipeline query`), and then the marts.
"""


def markdown() -> str:
    """The page."""
    described = yaml.safe_load(MARTS.read_text(encoding="utf-8"))["models"]
    tables = (line for table in HISTORIES.values() for line in _section(table))
    return "\n".join([_INTRO, *tables, *(line for mart in described for line in _mart(mart))])


def _section(table: Table) -> Iterator[str]:
    kind = f"Hypertable, a chunk per day of `{table.time}`." if table.hyper else "Table."
    yield f"## {table.relation}\n\n{table.about} {kind} Key: `{', '.join(table.key)}`.\n"
    yield "| column | type | null | meaning |\n|---|---|---|---|"
    for name, column in table.columns.items():
        yield f"| {name} | {column.type} | {'yes' if column.null else ''} | {column.about} |"
    yield ""


def _mart(mart: Mapping[str, Any]) -> Iterator[str]:
    yield f"## analytics.{mart['name']}\n\n{mart['description'].strip()}\n"
    yield "| column | type | meaning |\n|---|---|---|"
    for column in mart["columns"]:
        yield f"| {column['name']} | {column['data_type']} | {column['description']} |"
    yield ""


if __name__ == "__main__":
    PAGE.write_text(markdown())
