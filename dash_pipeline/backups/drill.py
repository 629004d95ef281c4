"""The restore drill: the newest backup put back on a second server, and held to what the source held.

Belongs here: the drill and its report. Does not belong here: each of its steps; the indexes,
which have a drill of their own (`search.py`).

Every table of every database is compared twice: at the positions of the log that the backup was described at, and at
positions taken now, which only the archived log reaches. The second server recovers from one position to the next and
stands still at each, readable, so that what is compared is that state and no other; the source goes on ingesting
(`content.py` says why the two are exactly the same). Then it is put into service, which ends the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from dash_pipeline.backups import wal
from dash_pipeline.backups.content import (
    Difference,
    Point,
    compare,
    connect,
    points,
    rows,
    session,
    tables,
)
from dash_pipeline.backups.database import Backup, Say, archived, replication_dsn, scratch, timeline_of
from dash_pipeline.backups.restore import choose, fetch, restorable
from dash_pipeline.backups.server import PrivateServer, Target, private_server
from dash_pipeline.settings import Settings

_PATIENCE_S = 3600.0


class Drill(msgspec.Struct, frozen=True):
    """What a drill found.

    `rto_s`: from the start to a server that can be written to, without the time that comparing took. `rpo_s`: had the
    database's disk died when the drill began, the commits of so many last seconds would have been lost. `compared`: how
    many tables were, each at one of `positions`. `differences` has a line for each, and is empty when all is well.
    """

    at: str
    backup: str
    rto_s: float
    rpo_s: float
    tables: int
    rows: int
    positions: tuple[str, ...]
    differences: tuple[str, ...]
    seconds: float

    @property
    def good(self) -> bool:
        """Whether everything was what it should be."""
        return not self.differences


def drill(
    settings: Settings,
    say: Say = lambda _: None,
    damage: Callable[[PrivateServer], None] | None = None,
) -> Drill:
    """Restore the newest backup beside the database, compare, clean up.

    `damage` is called with the restored server before it recovers to the last position: a test's hand.
    Raises DashError when the backup cannot be restored at all.
    """
    at, began = datetime.now(UTC), time.monotonic()
    dsn = replication_dsn(settings)
    with session(dsn) as conn:
        rpo_s = wal.waiting(conn).loss_s
    backup = choose(restorable(settings), None)
    say("counting rows of the source")
    now = points(dsn)
    with session(dsn) as conn:
        timeline = timeline_of(conn)
        archived(settings, conn, timeline, max(wal.lsn_number(point.lsn) for point in now))
    counted_s = time.monotonic() - began
    expected = sorted([*backup.points, *now], key=lambda point: wal.lsn_number(point.lsn))
    with scratch(settings, "drill") as folder:
        server = private_server(settings, folder)
        try:
            fetch(settings, backup, folder, say)
            differences, compared_s = _compare_all(server, backup, timeline, expected, say, damage)
        finally:
            server.stop()
    seconds = time.monotonic() - began
    return Drill(
        at=at.isoformat(), backup=backup.name, rto_s=round(seconds - counted_s - compared_s, 3),
        rpo_s=round(rpo_s, 3), tables=sum(len(point.tables) for point in expected), rows=rows(expected),
        positions=tuple(f"{point.database} {point.lsn}" for point in expected),
        differences=tuple(map(str, differences)),
        seconds=round(seconds, 3),
    )  # fmt: skip


def _compare_all(
    server: PrivateServer,
    backup: Backup,
    timeline: int,
    expected: list[Point],
    say: Say,
    damage: Callable[[PrivateServer], None] | None,
) -> tuple[list[Difference], float]:
    differences: list[Difference] = []
    compared_s = 0.0
    for number, point in enumerate(expected):
        server.configure(backup, Target(lsn=point.lsn, timeline=timeline, pause=True))
        if damage and number == len(expected) - 1:
            damage(server)
        server.start()
        with server.wait("SELECT pg_get_wal_replay_pause_state()", "paused", _PATIENCE_S) as conn:
            say(f"comparing {len(point.tables)} tables of {point.database} at {point.lsn}")
            began = time.monotonic()
            with connect(server.dsn(point.database)) as there:
                differences += compare(point, tables(there))
            compared_s += time.monotonic() - began
            if number == len(expected) - 1:
                conn.execute("SELECT pg_wal_replay_resume()")
                server.wait("SELECT pg_is_in_recovery()", False, _PATIENCE_S).close()
                return differences, compared_s
        server.stop()
    return differences, compared_s
