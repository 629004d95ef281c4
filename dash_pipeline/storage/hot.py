"""Hot rows as frames: the way out of PostgreSQL by columns.

Belongs here: reading many rows of a table. Does not belong here: which rows (`export.py`, `storage/history.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import polars as pl

from dash_pipeline.errors import Unavailable, first_line
from dash_pipeline.settings import Settings
from dash_pipeline.storage.tables import Table


class Hot:
    """Reads in one snapshot; `reader()` makes one."""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    def rows(
        self, table: Table, where: str, values: Sequence[object] = (), columns: Sequence[str] | None = None
    ) -> pl.DataFrame:
        """Rows of the table (its schema, or these of its columns); `where` is SQL, $1, $2 ... in it are `values`.
        Raises Unavailable."""
        schema = {name: dtype for name, dtype in table.schema().items() if columns is None or name in columns}
        # A numeric is an extension type to Arrow; as text it is exact and needs no extension.
        casts = {name: "::text" if table.columns[name].type in _TEXT else "" for name in schema}
        asked = ", ".join(f'"{name}"{cast}' for name, cast in casts.items()) or "1"
        query = f"SELECT {asked} FROM {table.relation} WHERE {where}"
        try:
            self._cursor.execute(query, tuple(values) or None)
            arrow = self._cursor.fetch_arrow_table()
        except Exception as error:
            raise Unavailable(f"database: {first_line(error)}") from error
        frame: pl.DataFrame = pl.from_arrow(arrow)  # type: ignore[assignment]
        return frame.select(pl.col(name).cast(dtype) for name, dtype in schema.items())


_TEXT = frozenset({"numeric", "jsonb"})


@contextmanager
def reader(settings: Settings, snapshot: str) -> Iterator[Hot]:
    """A reader that sees what the exported snapshot sees. Raises Unavailable."""
    import adbc_driver_postgresql.dbapi as adbc

    try:
        conn = adbc.connect(settings.timescale_dsn.get_secret_value())
    except adbc.Error as error:
        raise Unavailable(f"database: {first_line(error)}") from error
    with conn, conn.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        cursor.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
        cursor.execute("SET LOCAL timezone = 'UTC'")
        yield Hot(cursor)
