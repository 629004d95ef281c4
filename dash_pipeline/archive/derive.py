"""Archived rows that follow from others, derived anew: pool_events (and pools) from the logs of their day.

Belongs here: holding a day against what today's decoder makes of its logs, and replacing it. Does not belong here: the
decoder (`events/abi.py`, the one that lanes use), anomalies (`anomalies.py`).

A day's logs are read and decoded. Where the rows are others than the archived ones, they are written as new objects,
read back and compared, and one transaction lists them instead of the day's former objects. A run that is killed leaves
objects that are not listed, or that are listed as replaced: the next one deletes both.

Rows are never lost for want of their source: a day is refused when an archived row's log is not archived. Rows of the
day that are hot came after it was archived, and stay as they are: of two rows with one key history shows the archived
one, and the next archiving run drops the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date

import polars as pl

from dash_pipeline.archive import manifest
from dash_pipeline.archive.export import DAY, Corrupt, Day, fetch, put, sweep
from dash_pipeline.archive.manifest import Entry
from dash_pipeline.archive.parquet import content_hash
from dash_pipeline.archive.rewrite import purge
from dash_pipeline.errors import DashError
from dash_pipeline.events.abi import pool_events, pools
from dash_pipeline.settings import Settings
from dash_pipeline.storage import s3
from dash_pipeline.storage.encryption import Keyring, keyring
from dash_pipeline.storage.tables import LOGS, POOL_EVENTS, POOLS, Table
from dash_pipeline.storage.timescale import Connection, Writer, lock_chain, session


@dataclass(frozen=True)
class Derived:
    """What became of a chain's day. `before`, `after`: archived pool events that there were, and that its logs hold;
    `differs`: they are not the same rows; `pools`: those that were missing in table pools; `refused`: why nothing was
    done, else empty."""

    chain: str
    date: date
    before: int = 0
    after: int = 0
    differs: bool = False
    pools: int = 0
    refused: str = ""


Done = Callable[[Derived], None]


def derive(
    settings: Settings,
    run_id: str,
    chain: str | None = None,
    first: date | None = None,
    last: date | None = None,
    *,
    dry_run: bool = False,
    done: Done = lambda day: None,
) -> list[Derived]:
    """Make the archived pool_events of each archived day, or of those from `first` to `last`, what their logs say, and
    insert pools that are missing. Days that are still hot are refused if `last` asks for them.

    `done` is told of each day as soon as it is dealt with; a refused one stops no other. `dry_run` changes nothing.
    Raises DashError when another run is at the archive, Unavailable when a server does not answer; what was done before
    that stays done.
    """
    found = []
    bucket, ring = s3.bucket(settings), keyring(settings)
    with session(settings) as conn, ExitStack() as alone:
        # Nobody else replaces objects of either meanwhile, so what is listed now is there until the end.
        for table in (LOGS, POOL_EVENTS):
            if not alone.enter_context(manifest.exporting(conn, table.name)):
                raise DashError(
                    f"archive: another run is at the objects of {table.name}; run this again when it has ended"
                )
        days = {
            (one.chain, one.date)
            for table in (LOGS, POOL_EVENTS)
            for one in manifest.entries(conn, table.name, chain)
            if (first or one.date) <= one.date <= (last or one.date)
        }
        hot = _hot_days(conn, chain, first, last) - days if last else set()
        for name, day in sorted(days | hot):
            try:
                if (name, day) in hot:
                    one = Derived(name, day, refused=_HOT.format(chain=name, day=day))
                else:
                    one = _derive(conn, bucket, ring, Day(POOL_EVENTS, name, day), run_id, dry_run=dry_run)
            except Corrupt as error:
                one = Derived(name, day, refused=str(error))
            found.append(one)
            done(one)
    if not dry_run:
        purge(settings)
    return found


_HOT = (
    "archive: {chain} {day} is still hot: derive it once it is archived; what is merely missing comes when its logs are"
    " ingested again (`dash-pipeline offsets --set-beginning {chain}.logs`)"
)
_NO_LOGS = (
    "archive: {chain} {day}: the logs of {lost:,} of its {rows:,} pool events are not archived; nothing is replaced."
    " `dash-pipeline archive run` archives logs that are hot"
)


def _hot_days(conn: Connection, chain: str | None, first: date | None, last: date | None) -> set[tuple[str, date]]:
    """The days in this range of which there are hot logs."""
    rows = conn.execute(
        "WITH days AS (SELECT generate_series(min(range_start), max(range_end), interval '1 day') AS day"
        "  FROM timescaledb_information.chunks WHERE hypertable_schema = 'chain' AND hypertable_name = 'logs')"
        " SELECT c.chain, day::date FROM ops.chains c, days WHERE (%(chain)s::text IS NULL OR c.chain = %(chain)s)"
        " AND (%(first)s::date IS NULL OR day >= %(first)s) AND (%(last)s::date IS NULL OR day <= %(last)s)"
        " AND EXISTS (SELECT FROM chain.logs l WHERE l.chain = c.chain AND l.ts >= day"
        "  AND l.ts < day + interval '1 day')",
        {"chain": chain, "first": first, "last": last},
    ).fetchall()
    return set(rows)


@dataclass(frozen=True)
class _Part:
    """A part of a day. `was`: its archived pool events; `now`: those that its logs hold, a frame per kind; `lost`: how
    many archived ones have no log."""

    was: pl.DataFrame
    now: list[pl.DataFrame]
    lost: int

    def rows(self) -> pl.DataFrame:
        return pl.concat(self.now) if self.now else self.was.clear()

    def differs(self) -> bool:
        rows = self.rows()
        return rows.height != self.was.height or content_hash(rows, POOL_EVENTS) != content_hash(self.was, POOL_EVENTS)


def _derive(conn: Connection, bucket: s3.Bucket, ring: Keyring, day: Day, run_id: str, *, dry_run: bool) -> Derived:
    """Deal with a day. It is read twice where it is to be replaced: a part at a time is in memory."""
    if not dry_run:
        sweep(bucket, conn, day)
    logs, old = (manifest.entries(conn, table.name, day.chain, day.date) for table in (LOGS, POOL_EVENTS))
    before = after = lost = 0
    differs, created = False, []
    for part in _parts(bucket, ring, day, logs, old):
        before, after, lost = before + part.was.height, after + sum(map(len, part.now)), lost + part.lost
        differs |= part.differs()
        created.append(pools(part.now))
    if lost:
        refused = _NO_LOGS.format(chain=day.chain, day=day.date, lost=lost, rows=before)
        return Derived(day.chain, day.date, before, before, refused=refused)
    written = []
    if differs and not dry_run:
        parts = (part.rows() for part in _parts(bucket, ring, day, logs, old))
        written = [put(bucket, ring.current, day, rows) for rows in parts if rows.height]
    # What is only asked is taken back: how many pools are missing is known by inserting them.
    with conn.transaction(force_rollback=dry_run):
        lock_chain(conn, day.chain, exclusive=False)
        missing = Writer(conn).insert(POOLS, created)
        if differs:
            manifest.add(conn, written, run_id)
            manifest.replace(conn, old)
            manifest.count(conn, written, old)
    return Derived(day.chain, day.date, before, after, differs, missing)


def _parts(bucket: s3.Bucket, ring: Keyring, day: Day, logs: Sequence[Entry], old: Sequence[Entry]) -> Iterator[_Part]:
    """The day in parts of about LOGS.part_rows logs, by time: a log and what is derived from it have the same."""
    count = -(-sum(one.rows for one in logs) // LOGS.part_rows) or 1
    _, start, end = day.bounds()
    edges = [*(start + n * DAY / count for n in range(count)), end]

    def rows(entries: Sequence[Entry], table: Table, number: int) -> pl.DataFrame:
        inside = pl.col("ts").is_between(edges[number], edges[number + 1], closed="left")
        frames = [fetch(bucket, ring, one, table).filter(inside) for one in entries]
        return pl.concat([pl.DataFrame(schema=table.schema()), *frames])

    for number in range(count):
        source, was = rows(logs, LOGS, number), rows(old, POOL_EVENTS, number)
        lost = was.join(source, on=list(POOL_EVENTS.key), how="anti").height
        yield _Part(was, pool_events(source), lost)
