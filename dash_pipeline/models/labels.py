"""Labelled rows: read, checked cell by cell, in the columns that a model's description names.

Belongs here: csv or Parquet -> one frame, or one line that says which cell is wrong. Does not belong here: what the
columns mean (`pool_risk.py`, `wallet_risk.py`, `liquidity_outlook.py`), keeping labels (`lifecycle.py`).
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from dash_pipeline.errors import DashError
from dash_pipeline.models.spec import Spec
from dash_pipeline.settings import Settings

AS_OF, GROUP = "as_of", "group"
_LABELS = {"true": 1, "1": 1, "1.0": 1, "false": 0, "0": 0, "0.0": 0}
# Cells that say as much as an empty one.
_BLANKS = ("", "nan", "null", "none")
_UTC = pl.Datetime("us", "UTC")
_PARQUET = b"PAR1"


@dataclass(frozen=True)
class Labels:
    """Labelled rows of one model.

    `frame`: `id` String, `label` Int8 (1: positive), the spec's raw columns Float64 (NaN where unknown), and where the
    source has them `as_of` (datetime, UTC) and `group` (String). `sha256`: of the source's content. `source`: where it
    came from.
    """

    frame: pl.DataFrame
    sha256: str
    source: str


def read_labels(spec: Spec, source: str, settings: Settings | None = None) -> Labels:
    """The labelled rows of a csv or Parquet file, at a path or s3://bucket/key (with the settings' S3).

    A column is found by its name in `spec` or one of its other names; case and punctuation do not count, and of columns
    of one name the second is `name_1`. Other columns are ignored. A label is TRUE, FALSE, 1 or 0. Rows of one id
    are a group, unless a column `group` says otherwise.

    Raises DashError: no such file, a missing column, no rows; and for the first wrong cell its row (1 is the first row
    of data), line in the file and column. Unavailable: S3 does not answer.
    """
    data = _content(source, settings)
    table = _parquet(data, source) if data.startswith(_PARQUET) else _csv(data, source)
    frame = _checked(spec, table, source)
    return Labels(frame, hashlib.sha256(data).hexdigest(), source)


def _content(source: str, settings: Settings | None) -> bytes:
    if not source.startswith("s3://"):
        try:
            return Path(source).read_bytes()
        except OSError as error:
            raise DashError(f"labels: {source}: {error.strerror}") from None
    from dash_pipeline.settings import load_settings
    from dash_pipeline.storage import s3

    bucket, _, key = source.removeprefix("s3://").partition("/")
    if not bucket or not key:
        raise DashError(f"labels: {source}: not s3://bucket/key")
    data = s3.bucket(settings or load_settings(), bucket).get(key)
    if data is None:
        raise DashError(f"labels: {source}: there is no such object")
    return data


# ------------------------------------------------------------------------------------------------ text by column


@dataclass(frozen=True)
class _Table:
    """Cells as text, stripped, null where blank. `lines`: of each row, its line in the file; empty for Parquet."""

    columns: Mapping[str, pl.Series]
    rows: int
    lines: Sequence[int]

    def place(self, row: int) -> str:
        """A row (0 is the first) as a person finds it."""
        return f"row {row + 1:,}" + (f" (line {self.lines[row]:,})" if self.lines else "")


def _csv(data: bytes, source: str) -> _Table:
    try:
        reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        header = next(reader, [])
        lines, rows = [], []
        for row in reader:
            if not row:
                continue
            lines.append(reader.line_num)
            rows.append(row)
    except UnicodeDecodeError as error:
        raise DashError(f"labels: {source}: neither UTF-8 text nor Parquet (byte {error.start:,})") from None
    except csv.Error as error:
        raise DashError(f"labels: {source}: line {reader.line_num:,}: {error}") from None
    for number, (line, row) in enumerate(zip(lines, rows, strict=True), start=1):
        if len(row) != len(header):
            raise DashError(
                f"labels: {source}: row {number:,} (line {line:,}) has {len(row)} cells, the header {len(header)}"
            )
    columns = zip(*rows, strict=True) if rows else ((),) * len(header)
    series = [_text(pl.Series(values, dtype=pl.String)) for values in columns]
    return _Table(dict(zip(_names(header), series, strict=True)), len(rows), lines)


def _parquet(data: bytes, source: str) -> _Table:
    try:
        frame = pl.read_parquet(io.BytesIO(data))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DashError(f"labels: {source}: not a Parquet file: {str(error).splitlines()[0]}") from None
    columns: dict[str, pl.Series] = {}
    for name, values in zip(_names(frame.columns), frame, strict=True):
        if isinstance(values.dtype, pl.Datetime):
            values = values.dt.epoch("us") / 1e6
        if not values.dtype.is_nested() and values.dtype != pl.Binary:
            columns[name] = _text(values.cast(pl.String))
    return _Table(columns, frame.height, ())


def _text(values: pl.Series) -> pl.Series:
    stripped = values.str.strip_chars()
    return stripped.set(stripped.str.to_lowercase().is_in(_BLANKS), None)


def _names(header: Sequence[str]) -> list[str]:
    """Each column's name as it is looked up; a repeated one gets a number, as other programs give it."""
    seen: dict[str, int] = {}
    names = []
    for text in header:
        name = _plain(text)
        times = seen[name] = seen.get(name, -1) + 1
        names.append(f"{name}_{times}" if times else name)
    return names


def _plain(name: str) -> str:
    return re.sub(r"[^0-9a-z]+", "_", name.lower()).strip("_")


# ------------------------------------------------------------------------------------------------ checked values


def _checked(spec: Spec, table: _Table, source: str) -> pl.DataFrame:
    wanted: dict[str, tuple[str, ...]] = {"id": (spec.id_column, "id"), "label": (spec.label_column, "label")}
    wanted |= {name: (name, *column.names) for name, column in spec.columns.items()}
    if spec.split == "time":
        wanted[AS_OF] = (AS_OF,)
    found = {name: _find(table, names) for name, names in wanted.items()}
    missing = [wanted[name][0] for name, values in found.items() if values is None]
    if missing:
        raise DashError(f"labels: {source}: columns of {spec.name} are missing: {', '.join(missing)}")
    if not table.rows:
        raise DashError(f"labels: {source}: no rows; nothing to train or evaluate {spec.name} on")

    cells = {name: values for name, values in found.items() if values is not None}
    wrong = _Wrong(table, source)
    frame = {"id": _ids(spec, cells["id"], wrong), "label": _labels(spec, cells["label"], wrong)}
    if (moments := _find(table, (AS_OF,))) is not None:
        frame[AS_OF] = _moments(moments, wrong)
    if (groups := _find(table, (GROUP,))) is not None:
        wrong.add(groups.is_null(), GROUP, groups, "the group is missing")
        frame[GROUP] = groups
    for name, column in spec.columns.items():
        frame[name] = _numbers(name, cells[name], column.blank, wrong)
    wrong.tell()
    return pl.DataFrame(frame)


def _find(table: _Table, names: Sequence[str]) -> pl.Series | None:
    return next((table.columns[name] for name in map(_plain, names) if name in table.columns), None)


class _Wrong:
    """Cells that are not as they should be; the first one is told."""

    def __init__(self, table: _Table, source: str) -> None:
        self._table, self._source = table, source
        self._first: tuple[int, str] | None = None
        self._count = 0

    def add(self, where: pl.Series, column: str, cells: pl.Series, problem: str) -> None:
        """Rows of `where` have in `column` a cell with this problem; `{}` in it is the cell's text."""
        rows = where.arg_true()
        self._count += len(rows)
        if len(rows) and (self._first is None or rows[0] < self._first[0]):
            self._first = rows[0], f"column {column}: {problem.format(repr(cells[rows[0]]))}"

    def tell(self) -> None:
        if self._first is None:
            return
        row, problem = self._first
        more = f", and {self._count - 1:,} more cells" if self._count > 1 else ""
        raise DashError(f"labels: {self._source}: {self._table.place(row)}, {problem}{more}; nothing was read")


def _ids(spec: Spec, cells: pl.Series, wrong: _Wrong) -> pl.Series:
    wrong.add(cells.is_null(), spec.id_column, cells, "the id is missing")
    return cells


def _labels(spec: Spec, cells: pl.Series, wrong: _Wrong) -> pl.Series:
    labels = cells.str.to_lowercase().replace_strict(_LABELS, default=None, return_dtype=pl.Int8)
    wrong.add(cells.is_null(), spec.label_column, cells, "the label is missing")
    wrong.add(labels.is_null() & cells.is_not_null(), spec.label_column, cells, "{} is none of TRUE, FALSE, 1, 0")
    return labels


def _numbers(name: str, cells: pl.Series, blank: float | None, wrong: _Wrong) -> pl.Series:
    numbers = cells.cast(pl.Float64, strict=False)
    wrong.add(numbers.is_null() & cells.is_not_null(), name, cells, "{} is not a number")
    wrong.add(numbers.is_infinite().fill_null(value=False), name, cells, "{} is infinite")
    return numbers.fill_null(float("nan") if blank is None else blank)


def _moments(cells: pl.Series, wrong: _Wrong) -> pl.Series:
    """Times as text (ISO 8601, UTC if they do not say) or as seconds since 1970."""
    seconds = cells.cast(pl.Float64, strict=False)
    if seconds.null_count() == cells.null_count():
        moments = (seconds * 1e6).cast(pl.Int64).cast(_UTC)
    else:
        try:
            moments = cells.str.to_datetime(time_unit="us", time_zone="UTC", strict=False)
        except pl.exceptions.ComputeError:  # none of them is a time
            moments = pl.Series([None] * len(cells), dtype=_UTC)
    wrong.add(cells.is_null(), AS_OF, cells, "the time is missing")
    wrong.add(moments.is_null() & cells.is_not_null(), AS_OF, cells, "{} is not a time")
    return moments
