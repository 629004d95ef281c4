"""Which chain's days are archived next."""

from __future__ import annotations

from datetime import date

from sensors.retention_decision import Archive, decide

DAYS = [date(2025, 3, 1), date(2025, 3, 2), date(2025, 3, 5)]


def test_nothing_is_due() -> None:
    assert decide({}, [], {}) == ([], "no day is older than the retention")


def test_the_days_of_a_chain_are_one_run() -> None:
    assert decide({"anvil": DAYS}, [], {}) == ([Archive("anvil", DAYS[0], DAYS[2])], "")


def test_chains_take_turns() -> None:
    runs, _ = decide({"anvil": DAYS, "bsc": DAYS}, [], {})
    assert [run.chain for run in runs] == ["anvil"]
    assert decide({"anvil": DAYS, "bsc": DAYS}, ["anvil"], {}) == ([], "anvil: a run is at it")
    assert decide({"bsc": DAYS}, ["anvil"], {}) == ([], "a run for anvil is at it")


def test_a_chain_that_failed_rests_and_others_do_not_wait_for_it() -> None:
    runs, reason = decide({"anvil": DAYS, "bsc": DAYS}, [], {"anvil": 12.3})
    assert runs == [Archive("bsc", DAYS[0], DAYS[2])]
    assert reason == "anvil: rests for 12 s"
    assert decide({"anvil": DAYS}, [], {"anvil": 12.3}) == ([], "anvil: rests for 12 s")
