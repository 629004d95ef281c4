"""What operators are told of the platform's state, and when it is over: the rules with their hysteresis."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dash_pipeline.storage.health import ChainHealth
from sensors.operations_decision import KAFKA, Decision, Limits, Seen, decide

LIMITS = Limits(lag=1000, after_s=60, quiet_s=600, live_within_s=900, dead_letters=3, drill_days=8)
FINE = ChainHealth(commit_age_s=1, event_age_s=5)
DAY = 86_400.0


def look(
    seconds: float, open_: frozenset[str] = frozenset(), before: Decision | None = None, **changes: object
) -> Seen:
    values = {"chains": {"c": FINE}, "lag": {"c": 0}, "drills": {}, "url": "http://ui/"} | changes
    return Seen(open=open_, now=seconds, since=before.since if before else {}, **values)  # type: ignore[arg-type]


def keys(decision: Decision) -> list[str]:
    return [notice.key for notice in decision.raised]


def test_nothing_is_told_of_a_platform_that_does_well() -> None:
    assert decide(look(0), LIMITS) == Decision([], {}, {})


def test_lag_is_told_once_it_lasts_and_over_below_half_of_the_limit() -> None:
    first = decide(look(0, lag={"c": 1000}), LIMITS)
    assert keys(first) == []
    dip = decide(look(30, before=first, lag={"c": 600}), LIMITS)
    lasting = decide(look(60, before=dip, lag={"c": 600}), LIMITS)
    assert keys(lasting) == ["lag/c"]
    assert lasting.raised[0].owner == "team:chain-data"
    assert lasting.raised[0].links["platform health"] == "http://ui/assets/platform_health/c"
    still = decide(look(90, frozenset({"lag/c"}), lasting, lag={"c": 500}), LIMITS)
    assert (keys(still), still.resolved) == (["lag/c"], {})
    over = decide(look(120, frozenset({"lag/c"}), still, lag={"c": 499}), LIMITS)
    assert (keys(over), over.resolved) == ([], {"lag/c": "499 events wait"})


def test_lag_that_goes_away_begins_anew() -> None:
    first = decide(look(0, lag={"c": 1000}), LIMITS)
    gone = decide(look(50, before=first, lag={"c": 10}), LIMITS)
    again = decide(look(70, before=gone, lag={"c": 1000}), LIMITS)
    assert keys(again) == []


@pytest.mark.parametrize("age", [60, None])
def test_commits_that_stand_still_while_events_wait_are_told(age: float | None) -> None:
    chains = {"c": ChainHealth(commit_age_s=age, event_age_s=None if age is None else 70)}
    first = decide(look(0, lag={"c": 1}, chains=chains), LIMITS)
    assert keys(first) == []  # a chain that was quiet until now looks like that, too
    lasting = decide(look(60, before=first, lag={"c": 1}, chains=chains), LIMITS)
    assert keys(lasting) == ["standstill/c"]
    over = decide(look(90, frozenset({"standstill/c"}), lasting, lag={"c": 5}), LIMITS)
    assert over.resolved == {"standstill/c": "commits go on"}


def test_a_live_chain_that_falls_silent_is_told_and_a_replay_that_has_ended_is_not() -> None:
    live = {"c": ChainHealth(commit_age_s=600, event_age_s=700)}
    replay = {"c": ChainHealth(commit_age_s=600, event_age_s=40 * DAY)}
    assert keys(decide(look(0, chains=live), LIMITS)) == ["quiet/c"]
    assert keys(decide(look(0, chains=replay), LIMITS)) == []
    over = decide(look(9, frozenset({"quiet/c"})), LIMITS)
    assert over.resolved == {"quiet/c": "events come again"}


def test_dead_letters_are_told_until_an_hour_has_none() -> None:
    def refused(count: int) -> dict[str, ChainHealth]:
        return {"c": replace(FINE, dead_letters=count)}

    assert keys(decide(look(0, chains=refused(2)), LIMITS)) == []
    assert keys(decide(look(0, chains=refused(3)), LIMITS)) == ["dead-letters/c"]
    assert keys(decide(look(0, frozenset({"dead-letters/c"}), chains=refused(1)), LIMITS)) == ["dead-letters/c"]
    assert decide(look(0, frozenset({"dead-letters/c"})), LIMITS).resolved == {
        "dead-letters/c": "no dead letter for an hour"
    }


def test_an_overdue_drill_is_told() -> None:
    late = decide(look(0, drills={"database": 8 * DAY, "search": 7 * DAY}), LIMITS)
    assert keys(late) == ["drill-overdue/database"]
    assert "8.0 days" in late.raised[0].text
    assert decide(look(0, frozenset({"drill-overdue/database"}), drills={"database": 60}), LIMITS).resolved


def test_what_cannot_be_read_is_neither_raised_nor_resolved() -> None:
    first = decide(look(0, frozenset({"lag/c"}), lag={}, kafka="no broker"), LIMITS)
    assert (keys(first), first.resolved) == ([], {})
    lasting = decide(look(60, frozenset({"lag/c"}), first, lag={}, kafka="no broker"), LIMITS)
    assert (keys(lasting), lasting.resolved) == ([KAFKA], {})
    assert decide(look(90, frozenset({KAFKA}), lasting), LIMITS).resolved == {KAFKA: "Kafka answers"}


def test_a_job_that_was_a_success_is_over() -> None:
    found = decide(look(0, frozenset({"run-failure/j"}), recovered={"run-failure/j": "r1"}), LIMITS)
    assert found.resolved == {"run-failure/j": "run r1 was a success"}
