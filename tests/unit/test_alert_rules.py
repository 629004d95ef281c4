"""Which anomalies become alerts. Random cases beside the examples."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from pydantic import SecretStr

from dash_pipeline.alerts.rules import CANDIDATES, RAISED, SEVERITIES, Policy, decide, rank
from dash_pipeline.errors import DashError
from dash_pipeline.settings import Settings

NOON = datetime(2024, 3, 9, 12, tzinfo=UTC)
HOUR = Policy(cooldown_s=3600)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def anomaly(name: str, pool: str = "p", severity: str = "high", ts: float = 0, detected: float = 0) -> tuple[Any, ...]:
    return name.encode(), pool.encode(), severity, at(ts), at(detected)


def alert(pool: str = "p", severity: str = "high", raised: float = 0) -> tuple[Any, ...]:
    return pool.encode(), severity, at(raised)


def chosen(anomalies: list[tuple[Any, ...]], raised: list[tuple[Any, ...]] = [], policy: Policy = HOUR) -> list[str]:  # noqa: B006
    frames = (pl.DataFrame(anomalies, CANDIDATES, orient="row"), pl.DataFrame(raised, RAISED, orient="row"))
    return [id_.decode() for id_ in decide(*frames, policy)]


def test_nothing_is_nothing() -> None:
    assert chosen([]) == []
    assert chosen([], [alert()]) == []


def test_what_is_not_severe_enough_raises_none() -> None:
    all_three = [anomaly(severity, severity, severity) for severity in SEVERITIES]
    assert chosen(all_three) == ["high", "medium"]
    assert chosen(all_three, policy=Policy("low")) == ["high", "low", "medium"]
    assert chosen(all_three, policy=Policy("high")) == ["high"]


def test_of_a_pool_the_most_severe_then_the_earliest() -> None:
    found = [anomaly("a", severity="medium", ts=0), anomaly("b", ts=9), anomaly("d", ts=5), anomaly("c", ts=5)]
    for seed in range(10):
        random.Random(seed).shuffle(found)
        assert chosen(found) == ["c"]


def test_one_alert_per_pool_and_cool_down() -> None:
    assert chosen([anomaly("a", detected=3599)], [alert()]) == []
    assert chosen([anomaly("a", detected=3600)], [alert()]) == ["a"]
    assert chosen([anomaly("a", "other", detected=1)], [alert()]) == ["a"]


def test_what_is_more_severe_is_raised_within_the_cool_down() -> None:
    assert chosen([anomaly("a", detected=1)], [alert(severity="medium")]) == ["a"]
    assert chosen([anomaly("a", detected=1)], [alert(severity="medium"), alert(raised=-30)]) == []
    assert chosen([anomaly("a", severity="medium", detected=1)], [alert(severity="medium")]) == []


def test_an_anomaly_handed_over_late_is_decided_as_it_was_then() -> None:
    """Raised after its detection, whenever it comes: an alert that told of it, or would have."""
    assert chosen([anomaly("a", detected=0)], [alert(raised=50_000)]) == []
    assert chosen([anomaly("a", detected=10)], [alert(raised=0)]) == []


def test_without_a_cool_down_only_what_comes_later_is_raised() -> None:
    policy = Policy(cooldown_s=0)
    assert chosen([anomaly("a", detected=1)], [alert()], policy) == ["a"]
    assert chosen([anomaly("a", detected=-1)], [alert()], policy) == []


def test_a_flood_on_a_few_pools_is_a_few_alerts() -> None:
    flood = [anomaly(f"{n:05}", f"p{n % 7}", ts=n) for n in range(10_000)]
    assert chosen(flood) == [f"{n:05}" for n in range(7)]
    assert len(chosen([anomaly(f"{n:05}", f"{n:05}") for n in range(10_000)])) == 10_000


@pytest.mark.parametrize("seed", range(100))
def test_the_rule_in_other_words(seed: int) -> None:
    rng = random.Random(seed)
    policy = Policy(rng.choice(SEVERITIES), cooldown_s=rng.choice([0, 10, 100]))
    anomalies = [
        anomaly(f"{n}", rng.choice("pqr"), rng.choice(SEVERITIES), rng.randrange(5), rng.randrange(200))
        for n in range(rng.randrange(12))
    ]
    raised = [alert(rng.choice("pqr"), rng.choice(SEVERITIES), rng.randrange(200)) for _ in range(rng.randrange(4))]
    want = []
    for pool in (b"p", b"q", b"r"):
        open_ = [
            (-rank(severity), ts, id_.decode())
            for id_, where, severity, ts, detected in anomalies
            if where == pool
            and rank(severity) >= rank(policy.min_severity)
            and not any(
                at_pool == pool
                and rank(as_severe) >= rank(severity)
                and (detected - when).total_seconds() < policy.cooldown_s
                for at_pool, as_severe, when in raised
            )
        ]
        want += [min(open_)[2]] if open_ else []
    assert chosen(anomalies, raised, policy) == want


# --- settings


def test_a_route_gets_what_is_severe_enough_for_it() -> None:
    policy = Policy("low", routes={"chat": "http://h/", "pager": "https://h:8/x"}, route_severity={"pager": "high"})
    assert policy.told() == [("chat", "low"), ("chat", "medium"), ("chat", "high"), ("pager", "high")]
    assert [policy.tells(severity) for severity in SEVERITIES] == [True, True, True]
    assert [Policy("medium").tells(severity) for severity in SEVERITIES] == [False, True, True]


@pytest.mark.parametrize(
    "url", ["ftp://h/", "h:80/x", "http://", "http://h:port/", "http://h:99999/", "/x", "", "http://["]
)
def test_a_route_that_cannot_be_posted_to_is_one_line_without_the_address(url: str) -> None:
    with pytest.raises(DashError, match=r"^DASH_ALERT_ROUTES: chat is no http:// or https:// address$"):
        Policy(routes={"chat": url})


def test_what_makes_no_sense_is_one_line() -> None:
    with pytest.raises(DashError, match=r"^DASH_ALERT_MIN_SEVERITY: loud is not one of low, medium, high$"):
        Policy("loud")
    with pytest.raises(DashError, match=r"^chat: loud is not one of"):
        Policy(routes={"chat": "http://h/"}, route_severity={"chat": "loud"})
    with pytest.raises(DashError, match=r"^DASH_ALERT_ROUTE_SEVERITY: DASH_ALERT_ROUTES has no pager$"):
        Policy(routes={"chat": "http://h/"}, route_severity={"pager": "high"})


def test_the_policy_is_what_the_settings_say(environment: pytest.MonkeyPatch) -> None:
    assert Policy.of(Settings()) == Policy(url="http://127.0.0.1:3000")  # type: ignore[call-arg]
    for name, value in {
        "MIN_SEVERITY": "high", "COOLDOWN_S": "60", "ROUTES": '{"chat": "http://h/"}', "SECRET": "s", "BATCH": "7",
        "ROUTE_SEVERITY": '{"chat": "high"}', "GIVE_UP_S": "100",
    }.items():  # fmt: skip
        environment.setenv(f"DASH_ALERT_{name}", value)
    assert Policy.of(Settings()) == Policy(  # type: ignore[call-arg]
        "high", 60, {"chat": "http://h/"}, {"chat": "high"}, SecretStr("s"), 100, 7, "http://127.0.0.1:3000"
    )
