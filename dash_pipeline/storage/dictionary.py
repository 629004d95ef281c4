"""The data dictionary: what `tables.py` says, for people.

Belongs here: the page's text. Written to `docs/data-dictionary.md` by `python -m dash_pipeline.storage.dictionary`; a
test fails when the page is not this.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dash_pipeline.storage.tables import HISTORIES, Table

PAGE = Path(__file__).parents[2] / "docs" / "data-dictionary.md"

_INTRO = """\
# Data dictionary

Written by `python -m dash_pipeline.storage.dictionary` from `dash_pipeline/storage/tables.py`.

Schema `chain` holds canonical rows. Addresses and hashes are `bytea` here and `0x...` text in the views of schema
`analytics`, one view per table. `numeric` amounts are exact; the column beside it that ends in `_f` is a double for
analytics. Schema `side` has the same tables for rows of branches that are not canonical. The last three tables are of
other schemas; like those of `chain`, they have a history (`dash-pipeline query`).
"""


def markdown() -> str:
    """The page."""
    return "\n".join([_INTRO, *(line for table in HISTORIES.values() for line in _section(table))])


def _section(table: Table) -> Iterator[str]:
    kind = f"Hypertable, a chunk per day of `{table.time}`." if table.hyper else "Table."
    yield f"## {table.relation}\n\n{table.about} {kind} Key: `{', '.join(table.key)}`.\n"
    yield "| column | type | null | meaning |\n|---|---|---|---|"
    for name, column in table.columns.items():
        yield f"| {name} | {column.type} | {'yes' if column.null else ''} | {column.about} |"
    yield ""


if __name__ == "__main__":
    PAGE.write_text(markdown())
