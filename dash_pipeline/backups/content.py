"""What every table of a cluster holds at one position of its log: rows and a hash, to compare a copy with.

Belongs here: taking such a record, taking it of a copy, the comparison. Does not belong here: making the copy.

The source goes on ingesting, so the record must be of a state that recovery can reach to the row. A transaction that
reads (REPEATABLE READ) does not see such a state: a commit is in the log before it is visible, and of two commits the
one later in the log may be visible first, so no position of the log need belong to what it sees. Holding all writers
off for a moment would do, and would be felt by each lane. Instead a logical replication slot is made: PostgreSQL then
hands out a snapshot of *exactly* the transactions whose commit records lie before the slot's position, which is what
logical replication copies tables by. Recovery that stops before the first record at that position
(`recovery_target_inclusive = off`) has applied the same commits. Nobody waits for it but the maker of the slot, who
waits for the transactions that are under way. The slot is dropped as soon as the snapshot is in use.

A snapshot belongs to one database, so each database of the cluster has a position of its own.

The hash of a table is the sum of the hashes of its rows' text, so the order of rows does not matter and one pass is
enough (0.7 s for a million transfers; hashing records in binary takes half, but calls 1.0 and 1.00 equal and knows no
json). Unlogged and temporary tables are not in the log, and so not in any backup. TimescaleDB's chunks are counted with
their hypertable. Sequences are not compared: recovery may skip up to 32 numbers, as a crash may.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from dash_pipeline.errors import DashError, Unavailable, first_line

Connection = psycopg.Connection[tuple[Any, ...]]

# What a value's text depends on.
_TEXT = "-c timezone=UTC -c datestyle=ISO -c intervalstyle=postgres -c extra_float_digits=1 -c bytea_output=hex"
_CONNECT_S = 10
# A slot waits for the transactions under way; one that is longer than this is told, not waited for.
_SLOT_MS = 120_000

_TABLES = r"""
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p'
  AND n.nspname NOT LIKE 'pg\_%' AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE '\_timescaledb\_%'
ORDER BY 1, 2
"""


class Table(msgspec.Struct, frozen=True):
    """How many rows, and the sum of their hashes (as text: it has more digits than JSON's numbers)."""

    rows: int
    hash: str


class Point(msgspec.Struct, frozen=True):
    """The tables (`schema.name`) of a database at a position of the log; `at` is the source's clock (UTC, ISO 8601)."""

    database: str
    lsn: str
    at: str
    tables: Mapping[str, Table]


class Difference(msgspec.Struct, frozen=True):
    """A table that is not what it was: what was expected, what was found (None: no such table)."""

    database: str
    table: str
    expected: Table | None
    found: Table | None

    def __str__(self) -> str:
        def said(table: Table | None) -> str:
            return f"{table.rows:,} rows" if table else "no such table"

        same = self.expected and self.found and self.expected.rows == self.found.rows
        what = f"{said(self.found)} with another content" if same else f"{said(self.found)}, not {said(self.expected)}"
        return f"{self.database}: {self.table}: {what}"


def connect(dsn: str, database: str = "", **options: Any) -> Connection:
    """An autocommit connection, to another database of the same server if one is named, that prints values the same way
    everywhere. Raises Unavailable with one line."""
    named = {"dbname": database} if database else {}
    try:
        return psycopg.connect(
            make_conninfo(dsn, **named), autocommit=True, connect_timeout=_CONNECT_S, options=_TEXT,
            application_name="dash-backup", **options,
        )  # fmt: skip
    except psycopg.OperationalError as error:
        raise Unavailable(f"database: {first_line(error)}") from error


@contextmanager
def session(dsn: str, database: str = "", **options: Any) -> Iterator[Connection]:
    """`connect` for as long as the block lasts. Raises DashError for what the role may not do, Unavailable when the
    server goes away."""
    with connect(dsn, database, **options) as conn:
        try:
            yield conn
        except psycopg.errors.InsufficientPrivilege as error:
            raise DashError(
                f"database: {first_line(error)}; the role of DASH_BACKUP_DSN needs REPLICATION, pg_read_all_data and"
                " pg_monitor"
            ) from error
        except psycopg.OperationalError as error:
            raise Unavailable(f"database: {first_line(error)}") from error


def databases(conn: Connection) -> list[str]:
    """Every database of the cluster that can be connected to."""
    found = conn.execute("SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1")
    return [name for (name,) in found.fetchall()]


def points(dsn: str) -> list[Point]:
    """A record of each database of the cluster that has tables, in the order of their positions.

    Raises DashError when the role may not replicate, or a transaction is open for so long that no slot can be made.
    """
    with session(dsn) as conn:
        names = databases(conn)
    return [point for name in names if (point := _point(dsn, name)).tables]


def _point(dsn: str, database: str) -> Point:
    with session(dsn, database) as conn:
        conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        with _snapshot(dsn, database) as (lsn, snapshot):
            conn.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(snapshot))
        at = conn.execute("SELECT to_char(clock_timestamp(), 'YYYY-MM-DD\"T\"HH24:MI:SS.US+00:00')").fetchone()
        assert at is not None
        return Point(database, lsn, at[0], tables(conn))


@contextmanager
def _snapshot(dsn: str, database: str) -> Iterator[tuple[str, str]]:
    """A position of the log, and the snapshot that sees what was committed before it."""
    slot = f"dash_point_{os.getpid()}"
    with connect(dsn, database, replication="database") as walsender:
        try:
            walsender.execute(f"SET statement_timeout = {_SLOT_MS}")
            made = walsender.execute(
                f"CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL pgoutput (SNAPSHOT 'export')"
            ).fetchone()
        except psycopg.errors.QueryCanceled:
            raise Unavailable(
                f"database {database}: a transaction is open for {_SLOT_MS // 1000} s; pg_stat_activity says whose"
            ) from None
        except psycopg.Error as error:
            raise DashError(
                f"database {database}: no snapshot at a position of the log: {first_line(error)}; it takes"
                " wal_level = logical and a role with REPLICATION (DASH_BACKUP_DSN)"
            ) from error
        assert made is not None
        yield made[1], made[2]


def tables(conn: Connection) -> dict[str, Table]:
    """Every table of the connection's database, as its transaction sees it."""
    return {f"{schema}.{name}": _table(conn, schema, name) for schema, name in conn.execute(_TABLES).fetchall()}


def _table(conn: Connection, schema: str, name: str) -> Table:
    row = conn.execute(
        sql.SQL("SELECT count(*), coalesce(sum(hashtextextended(_row::text, 0)), 0)::text FROM {} AS _row").format(
            sql.Identifier(schema, name)
        )
    ).fetchone()
    assert row is not None
    return Table(*row)


def compare(expected: Point, found: Mapping[str, Table]) -> list[Difference]:
    """The tables that differ, by name."""
    return [
        Difference(expected.database, name, expected.tables.get(name), found.get(name))
        for name in sorted({*expected.tables, *found})
        if expected.tables.get(name) != found.get(name)
    ]


def rows(points: Sequence[Point]) -> int:
    """How many rows these records are of."""
    return sum(table.rows for point in points for table in point.tables.values())
