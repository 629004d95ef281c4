"""Backups without servers: segments, gaps, which backup a moment is restored from, and what is said of differences."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest

from dash_pipeline.backups import wal
from dash_pipeline.backups.content import Point, Table, compare
from dash_pipeline.backups.database import Backup, ancestry
from dash_pipeline.backups.restore import choose, moment
from dash_pipeline.errors import DashError

DAY = datetime(2026, 3, 1, 2, tzinfo=UTC)


def backup(day: int, parent: int | None = None) -> Backup:
    name = [(DAY + timedelta(days=n)).strftime("%Y%m%dT%H%M%SZ") for n in (day, parent or 0)]
    ended = (DAY + timedelta(days=day, hours=1)).isoformat()
    return Backup(name[0], name[1] if parent is not None else "", ended, 1, "0/0", "0/0", "", 1, "", 1.0, "", ())


@pytest.mark.parametrize(
    ("lsn", "segment"),
    [
        ("0/0", "000000010000000000000000"),
        ("0/2A000028", "00000001000000000000002A"),
        ("0/FF000000", "0000000100000000000000FF"),
        ("1/0", "000000010000000100000000"),
        ("A/FFFFFFFF", "000000010000000A000000FF"),
    ],
)
def test_the_segment_of_a_position(lsn: str, segment: str) -> None:
    assert wal.segment_of(1, wal.lsn_number(lsn)) == segment


def test_segments_follow_each_other() -> None:
    assert list(islice(wal.following("0000000200000001000000FE"), 3)) == [
        "0000000200000001000000FF",
        "000000020000000200000000",
        "000000020000000200000001",
    ]
    # 64 MB segments: there are 64 of them to the next high word.
    assert next(wal.following("00000001000000000000003F", 64 << 20)) == "000000010000000100000000"


def test_the_first_gap_is_found() -> None:
    names = [wal.segment_of(1, n << 24) for n in range(250, 260)]
    others = ["00000002.history", wal.segment_of(2, 300 << 24), f"{names[3]}.00000028.backup"]
    assert wal.first_gap([*names, *others], names[2]) is None
    assert wal.first_gap([*names[:5], *names[6:], *others], names[2]) == names[5]
    assert wal.first_gap(names[3:], names[2]) == names[2]
    assert wal.first_gap(names[3:], names[3]) is None
    assert wal.first_gap([], names[3]) is None


def test_the_newest_backup_that_ended_before_the_moment_is_chosen() -> None:
    there = [backup(0), backup(1), backup(2)]
    assert choose(there, None) is there[2]
    assert choose(there, DAY + timedelta(days=1, hours=2)) is there[1]
    assert choose(there, DAY + timedelta(days=2, minutes=30)) is there[1]
    with pytest.raises(DashError, match="the earliest that can be restored is 2026-03-01 03:00:00 UTC"):
        choose(there, DAY)
    with pytest.raises(DashError, match="there is no backup of the database; `dash-pipeline backup` takes one"):
        choose([], None)


def test_a_backup_is_restored_from_all_it_rests_on() -> None:
    there = [backup(0), backup(1, 0), backup(2, 1)]
    assert ancestry(there[2], there) == there
    assert ancestry(there[0], there) == there[:1]
    with pytest.raises(DashError, match="needs 20260302T020000Z, which is gone"):
        ancestry(there[2], [there[0], there[2]])


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-03-01T02:00", DAY),
        ("2026-03-01 02:00:00", DAY),
        ("2026-03-01T03:00+01:00", DAY),
        ("2026-03-01T02:00:00Z", DAY),
    ],
)
def test_a_moment_is_utc_unless_it_says_otherwise(text: str, at: datetime) -> None:
    assert moment(text) == at


@pytest.mark.parametrize("text", ["yesterday", "14:00", "2026-13-01", ""])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(DashError, match="is not a time such as"):
        moment(text)


def test_differences_say_what_and_where() -> None:
    point = Point("dash", "0/1", "", {"a.same": Table(1, "5"), "a.less": Table(3, "5"), "a.gone": Table(2, "7"),
                                      "a.other": Table(2, "7")})  # fmt: skip
    found = {"a.same": Table(1, "5"), "a.less": Table(2, "4"), "a.new": Table(1, "1"), "a.other": Table(2, "8")}
    assert [str(one) for one in compare(point, found)] == [
        "dash: a.gone: no such table, not 2 rows",
        "dash: a.less: 2 rows, not 3 rows",
        "dash: a.new: 1 rows, not no such table",
        "dash: a.other: 2 rows with another content",
    ]
