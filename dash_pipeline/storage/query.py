"""SQL over hot and archived rows together.

Belongs here: a person's SQL in, a frame that can be printed out. Does not belong here: how rows are found
(`history.py`).
"""

from __future__ import annotations

import re

import polars as pl

from dash_pipeline.errors import DashError, first_line
from dash_pipeline.settings import Settings
from dash_pipeline.storage.history import collect, history
from dash_pipeline.storage.tables import HISTORIES

_HEX = re.compile(r"'0x((?:[0-9a-fA-F]{2})*)'")


def query(settings: Settings, sql: str) -> pl.DataFrame:
    """The answer to a query in polars' SQL over every table that has a history; hashes and addresses are `0x` and
    hex, in the query (`'0x...'`) and in the answer. Exact amounts are decimal digits: `CAST(value AS DOUBLE)`, or
    `value_f`.

    Raises DashError for what is not SQL or names what is not there, Unavailable when a server does not answer.
    """
    context = pl.SQLContext({name: history(settings, name) for name in HISTORIES})
    try:
        found = collect(context.execute(_HEX.sub(r"x'\1'", sql)))
    except pl.exceptions.PolarsError as error:
        raise DashError(f"query: {first_line(error)}; tables: {', '.join(HISTORIES)}") from None
    return found.with_columns(
        (_hex(pl.col(name)) if dtype == pl.Binary else pl.col(name).list.eval(_hex(pl.element()))).alias(name)
        for name, dtype in found.schema.items()
        if dtype in (pl.Binary, pl.List(pl.Binary))
    )


def _hex(values: pl.Expr) -> pl.Expr:
    return pl.lit("0x") + values.bin.encode("hex")
