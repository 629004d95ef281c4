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
from dash_pipeline.storage.tables import TABLES

_HEX = re.compile(r"'0x((?:[0-9a-fA-F]{2})*)'")


def query(settings: Settings, sql: str) -> pl.DataFrame:
    """The answer to a query in polars' SQL over the tables of schema `chain`; hashes and addresses are `0x` and hex, in
    the query (`'0x...'`) and in the answer. Exact amounts are decimal digits: `CAST(value AS DOUBLE)`, or `value_f`.

    Raises DashError for what is not SQL or names what is not there, Unavailable when a server does not answer.
    """
    context = pl.SQLContext({name: history(settings, name) for name in TABLES})
    try:
        found = collect(context.execute(_HEX.sub(r"x'\1'", sql)))
    except pl.exceptions.PolarsError as error:
        raise DashError(f"query: {first_line(error)}; tables: {', '.join(TABLES)}") from None
    return found.with_columns(
        (pl.lit("0x") + pl.col(name).bin.encode("hex")).alias(name)
        for name, dtype in found.schema.items()
        if dtype == pl.Binary
    )
