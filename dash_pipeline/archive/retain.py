"""Retention: which days are no longer hot, and taking them out one by one.

Belongs here: finding the days. Does not belong here: taking one out (`export.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from datetime import date, datetime, timedelta

from dash_pipeline.archive import manifest
from dash_pipeline.archive.export import DAY, Day, export
from dash_pipeline.archive.manifest import Entry, midnight
from dash_pipeline.archive.needed import NEEDED
from dash_pipeline.archive.parquet import ARCHIVED
from dash_pipeline.settings import Settings
from dash_pipeline.storage.changes import waiting_days
from dash_pipeline.storage.tables import Table
from dash_pipeline.storage.timescale import Connection, chunks, newest_times, session

Done = Callable[[Day, list[Entry]], None]


def retain(
    settings: Settings,
    run_id: str,
    tables: Iterable[str] = ARCHIVED,
    chain: str | None = None,
    days: Container[date] | None = None,
    done: Done = lambda day, entries: None,
) -> int:
    """Archive every day that is older than the retention, or those of one chain or some dates; returns how many rows.

    `done` is told of each day as soon as its rows are no longer hot. A table that another run is taking rows out of is
    left to it. Raises Unavailable or Corrupt; the days done before that stay done, and the next call goes on.
    """
    rows = 0
    with session(settings) as conn:
        until = edges(settings, conn)
        for name in tables:
            with manifest.exporting(conn, name) as alone:
                asked = (
                    one
                    for one in (due(conn, ARCHIVED[name], until) if alone else ())
                    if chain in (None, one.chain) and (days is None or one.date in days)
                )
                for one, entries in export(settings, conn, asked, run_id):
                    done(one, entries)
                    rows += sum(entry.rows for entry in entries)
    return rows


def all_due(settings: Settings) -> dict[str, list[date]]:
    """Chain -> its days, in any table, that are to be archived; the oldest first."""
    found: dict[str, set[date]] = {}
    with session(settings) as conn:
        until = edges(settings, conn)
        for table in ARCHIVED.values():
            for one in due(conn, table, until):
                found.setdefault(one.chain, set()).add(one.date)
    return {chain: sorted(days) for chain, days in found.items()}


def edges(settings: Settings, conn: Connection) -> dict[str, datetime]:
    """Chain -> the time that lies the retention before its newest block: days that end by then are archived.

    Not those that the search follower has yet to look at: documents and rollups are made of hot rows.
    """
    retention = timedelta(days=settings.retention_days)
    behind: dict[str, datetime] = dict(
        conn.execute("SELECT chain, min(ts_min) FROM ops.search_outbox GROUP BY chain").fetchall()
    )
    return {
        chain: min(newest - retention, behind.get(chain, newest))
        for chain, newest in newest_times(conn, settings).items()
    }


def due(conn: Connection, table: Table, edges: dict[str, datetime]) -> Iterator[Day]:
    """The days that have hot rows, end before their chain's edge, and hold no row that is needed nor an hour that the
    marts do not show yet; the oldest first."""
    until = max(edges.values(), default=datetime.min)
    if not table.hyper:
        # Days of plain tables, each with the rows of its chain: an index on the time finds the few that are old.
        found = conn.execute(
            f"SELECT ({table.time} AT TIME ZONE 'UTC')::date, chain FROM {table.relation} t"
            " JOIN unnest(%s::text[], %s::timestamptz[]) e(chain, edge) USING (chain)"
            f" WHERE {table.time} < date_trunc('day', edge, 'UTC') AND {table.time} < %s"
            f" GROUP BY 1, 2 HAVING NOT bool_or({NEEDED.get(table.name, 'false')}) ORDER BY 1, 2",
            (list(edges), list(edges.values()), until),
        ).fetchall()
        yield from (Day(table, chain, day) for day, chain in found)
        return
    waiting = waiting_days(conn, table.name)
    for chunk in chunks(conn, table.relation, until):
        days = conn.execute(
            f"SELECT DISTINCT (ts AT TIME ZONE 'UTC')::date, chain FROM {chunk} ORDER BY 1, 2"
        ).fetchall()
        for day, chain in days:
            if chain in edges and midnight(day) + DAY <= edges[chain] and (chain, day) not in waiting:
                yield Day(table, chain, day, chunk)
