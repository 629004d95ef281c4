"""Which snapshots are kept.

Belongs here: the rule. Does not belong here: deleting.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime


def kept(times: Iterable[datetime], daily: int = 7, weekly: int = 4) -> set[datetime]:
    """The snapshots, by their times (UTC), to keep: the newest of each of the last `daily` days and of each of the last
    `weekly` ISO weeks that have one. Days and weeks without a snapshot do not count: where none was taken for a month,
    the old ones are still the best there are."""
    newest_first = sorted(times, reverse=True)
    days = {time.date(): time for time in reversed(newest_first)}
    weeks = {time.isocalendar()[:2]: time for time in reversed(newest_first)}
    return {days[day] for day in sorted(days, reverse=True)[:daily]} | {
        weeks[week] for week in sorted(weeks, reverse=True)[:weekly]
    }
