"""One history: hot and archived rows of a table as one lazy frame.

Belongs here: reading both as one. Does not belong here: how rows get into the archive (`archive/`).

Each row comes once: the manifest and the hot rows are read in one snapshot, in which a row is in one of them. A message
that was sent again after its day had been archived is a hot row and an archived one; on days that have both, rows are
held against each other by their key.

A filter goes down to where the rows are: comparisons with constants rule out objects by what the manifest says of
them (chain, time, height), row groups by their statistics, and become part of the database's query.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl
from polars.io.plugins import register_io_source

from dash_pipeline.archive import manifest
from dash_pipeline.archive.manifest import Entry
from dash_pipeline.archive.parquet import ARCHIVED
from dash_pipeline.errors import DashError, Unavailable, first_line
from dash_pipeline.settings import Settings
from dash_pipeline.storage.encryption import Keyring, keyring
from dash_pipeline.storage.hot import Hot, reader
from dash_pipeline.storage.tables import HISTORIES, Table
from dash_pipeline.storage.timescale import session

_SQL = {"Eq": "=", "Gt": ">", "GtEq": ">=", "Lt": "<", "LtEq": "<="}
_MIRRORED = {"Eq": "Eq", "Gt": "Lt", "GtEq": "LtEq", "Lt": "Gt", "LtEq": "GtEq"}


@dataclass(frozen=True)
class Bound:
    """A comparison of a column with a constant, as a filter has it: polars' name of the operator."""

    column: str
    op: str
    value: Any


def history(settings: Settings, table: str) -> pl.LazyFrame:
    """All rows of a table, hot and archived, with the table's schema; nothing is read before the
    frame is collected, and then only what its filters leave.

    `collect()` reads it, and raises Unavailable when a server does not answer or an object cannot be read, DashError
    when the settings lack an object's key.
    """
    if table not in HISTORIES:
        raise DashError(f"history: no table {table}; there are {', '.join(HISTORIES)}")
    described = HISTORIES[table]

    def read(
        with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        # None is all of them. Where none is asked for, as by count(*), polars counts the rows of what it gets, and a
        # frame without columns has none.
        columns = list(described.columns) if with_columns is None else with_columns or [described.time]
        left = n_rows
        for frame in _frames(settings, described, columns, predicate):
            part = frame.select(columns) if left is None else frame.select(columns).head(left)
            left = None if left is None else left - part.height
            yield part
            if left == 0:
                return

    return register_io_source(read, schema=described.schema(), validate_schema=False, is_pure=False)


def collect(frame: pl.LazyFrame) -> pl.DataFrame:
    """Collect a frame made of histories; what went wrong while reading them is raised as what it is."""
    try:
        return frame.collect()
    except pl.exceptions.ComputeError as error:
        for kind in (Unavailable, DashError):
            _, found, text = str(error).partition(f"exception: {kind.__name__}: ")
            if found:
                raise kind(text) from error
        raise


def archived(
    settings: Settings, table: str, entries: Sequence[Entry], columns: Sequence[str], predicate: pl.Expr
) -> pl.DataFrame:
    """The rows of these objects (at least one) that the predicate holds for; the caller holds the seam.

    Raises Unavailable when an object cannot be read, DashError when the settings lack its key.
    """
    return pl.concat(_archived(settings, keyring(settings), entries, HISTORIES[table], columns, predicate))


def bounds(predicate: pl.Expr | None) -> list[Bound]:
    """The comparisons of a column with a constant that must all hold where `predicate` does; what else it asks is left
    out."""
    if predicate is None:
        return []
    node = json.loads(predicate.meta.serialize(format="json"))
    if not isinstance(node, dict) or not isinstance(binary := node.get("BinaryExpr"), dict):
        return []
    right, left = predicate.meta.pop()
    if binary["op"] == "And":
        return bounds(left) + bounds(right)
    if binary["op"] not in _MIRRORED:
        return []
    for column, constant, op in ((left, right, binary["op"]), (right, left, _MIRRORED[binary["op"]])):
        if column.meta.is_column() and not constant.meta.root_names():
            value = pl.select(constant).item()
            return [] if value is None else [Bound(column.meta.output_name(), op, value)]
    return []


def possible(entry: Entry, asked: Sequence[Bound]) -> bool:
    """Whether the object may hold rows for which all of this holds."""
    # What the manifest knows the least and the greatest of.
    ranges: dict[str, tuple[Any, Any]] = {
        HISTORIES[entry.table].time: (entry.ts_min, entry.ts_max),
        "block_number": (entry.block_min, entry.block_max),
    }
    for bound in asked:
        if bound.column == "chain":
            if bound.op == "Eq" and entry.chain != bound.value:
                return False
        elif bound.column in ranges:
            least, greatest = ranges[bound.column]
            value = bound.value
            if (
                (bound.op in ("Eq", "Gt", "GtEq") and (greatest < value or (bound.op == "Gt" and greatest == value)))
                or (bound.op in ("Eq", "Lt", "LtEq") and (least > value or (bound.op == "Lt" and least == value)))
            ):  # fmt: skip
                return False
    return True


def _frames(
    settings: Settings, table: Table, columns: Sequence[str], predicate: pl.Expr | None
) -> Iterator[pl.DataFrame]:
    """The rows, in frames: days that are in one place as they come, then those that are in both, each row once."""
    asked = bounds(predicate)
    asked_of = predicate.meta.root_names() if predicate is not None else []
    needed = [name for name in table.columns if name in {*columns, *table.key, *asked_of, "chain", table.time}]
    day = pl.col(table.time).dt.date()
    with session(settings) as conn, manifest.reading(conn, table.name):
        ring = keyring(settings)
        listed = manifest.entries(conn, table.name) if table.name in ARCHIVED else []
        entries = [one for one in listed if possible(one, asked)]
        row = conn.execute("SELECT pg_export_snapshot()").fetchone()
        assert row
        with reader(settings, row[0]) as hot:
            found = _hot(hot, table, needed, asked)
        if predicate is not None:
            found = found.filter(predicate)
        hot_days = found.select("chain", date=day).unique()
        both = _days(entries).join(hot_days, on=["chain", "date"], how="semi")
        twice = set(both.iter_rows())
        whole = [one for one in entries if (one.chain, one.date) not in twice]
        parts = [one for one in entries if (one.chain, one.date) in twice]
        # Within the lock: an object that is replaced meanwhile is not deleted before its readers are done.
        if not twice:
            yield found
        else:
            yield found.join(both, left_on=["chain", day], right_on=["chain", "date"], how="anti")
            late = found.join(both, left_on=["chain", day], right_on=["chain", "date"], how="semi")
            archived = pl.concat(_archived(settings, ring, parts, table, needed, predicate))
            # The archived one of a row stays, as in the next export; it may have been derived anew.
            yield pl.concat([archived, late.select(archived.columns)]).unique(list(table.key), keep="first")
        yield from _archived(settings, ring, whole, table, needed, predicate)


def _days(entries: Sequence[Entry]) -> pl.DataFrame:
    days = {(one.chain, one.date) for one in entries}
    return pl.DataFrame(list(days), {"chain": pl.String, "date": pl.Date}, orient="row")


def _hot(hot: Hot, table: Table, columns: Sequence[str], asked: Sequence[Bound]) -> pl.DataFrame:
    known = [one for one in asked if one.column in table.columns and isinstance(one.value, str | bytes | int | datetime)
             and table.columns[one.column].type in _COMPARED]  # fmt: skip
    where = " AND ".join(f'"{one.column}" {_SQL[one.op]} ${n}' for n, one in enumerate(known, 1))
    return hot.rows(table, where or "true", [one.value for one in known], columns)


# Types that PostgreSQL and polars order alike; texts only by bytes, which the database's locale C.UTF-8 does.
_COMPARED = frozenset({"bytea", "int8", "int4", "timestamptz", "text"})


def _archived(
    settings: Settings,
    ring: Keyring,
    entries: Sequence[Entry],
    table: Table,
    columns: Sequence[str],
    predicate: pl.Expr | None,
) -> Iterator[pl.DataFrame]:
    """The rows of objects, a frame for each encryption key and layout."""
    schema = table.schema()
    for version, name in sorted({(one.schema_version, one.encryption_key) for one in entries}):
        alike = [one for one in entries if (one.schema_version, one.encryption_key) == (version, name)]
        scan = pl.scan_parquet(
            [f"s3://{settings.s3_bucket}/{one.object}" for one in alike],
            storage_options=_storage(settings, ring, name),
            hive_partitioning=False,
        )
        if predicate is not None:
            scan = scan.filter(predicate)
        try:
            wanted = scan.select(pl.col(column).cast(schema[column]) for column in columns)
            yield _read(wanted, sum(one.size for one in alike))
        except (OSError, pl.exceptions.PolarsError) as error:
            text = first_line(error)
            raise Unavailable(
                f"archive: {table.name}: objects cannot be read: {text}; `dash-pipeline archive check` names them"
            ) from error


# How long a read may take: more than any store needs that answers.
_READ_S, _READ_BYTES_PER_S = 60.0, 1 << 20


def _read(scan: pl.LazyFrame, size: int) -> pl.DataFrame:
    """The scan's rows. Raises TimeoutError: a store may be silent, and polars rarely waits for itself for ever when it
    reads from one (its issue 25762); such a thread is left behind."""
    done: Future[pl.DataFrame] = Future()

    def collect() -> None:
        try:
            done.set_result(scan.collect())
        except BaseException as error:
            done.set_exception(error)

    limit = _READ_S + size / _READ_BYTES_PER_S
    threading.Thread(target=collect, name="archive", daemon=True).start()
    try:
        return done.result(limit)
    except TimeoutError:
        raise TimeoutError(f"nothing came for {limit:.0f} s") from None


def _storage(settings: Settings, ring: Keyring, name: str) -> dict[str, Any]:
    """How polars reaches the objects that are encrypted with the key of this name."""
    secret, key = settings.s3_secret_key, ring.named(name)
    options = {
        "aws_region": settings.s3_region,
        "aws_endpoint_url": settings.s3_endpoint,
        "aws_allow_http": "true",
        "aws_virtual_hosted_style_request": "false",
        "max_retries": 2,
        "aws_access_key_id": settings.s3_access_key,
        "aws_secret_access_key": secret.get_secret_value() if secret else None,
        "aws_server_side_encryption": "sse-c" if key else None,
        "aws_sse_customer_key_base64": base64.b64encode(key.secret).decode() if key else None,
    }
    return {option: value for option, value in options.items() if value is not None}
