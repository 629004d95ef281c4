"""Which snapshots are kept: the newest of the last days and weeks that have one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from dash_pipeline.backups.keep import kept

NOW = datetime(2025, 3, 30, 4, tzinfo=UTC)  # a Sunday


def test_a_daily_snapshot_for_two_months_leaves_seven_days_and_the_last_of_four_weeks() -> None:
    days = [NOW - timedelta(days=n) for n in range(60)]
    assert kept(days) == {NOW - timedelta(days=n) for n in (0, 1, 2, 3, 4, 5, 6, 7, 14, 21)}


def test_of_a_day_the_newest_is_kept() -> None:
    assert kept([NOW, NOW - timedelta(hours=3)], weekly=0) == {NOW}


def test_days_without_a_snapshot_do_not_count() -> None:
    old = [NOW - timedelta(days=n) for n in (100, 200, 300)]
    assert kept(old) == set(old)


def test_the_rule_applied_again_changes_nothing() -> None:
    days = [NOW - timedelta(days=n) for n in range(60)]
    assert kept(kept(days)) == kept(days)


def test_nothing_of_nothing() -> None:
    assert kept([]) == set()
