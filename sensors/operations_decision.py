"""What operators are told of the platform's state: a pure decision.

Belongs here: the rules, with their hysteresis, and the words. Does not belong here: reading and telling
(`operations.py`).

A condition has a key. It is raised when it holds, and resolved by a bar of its own, so that a number that sways around
a limit does not tell everybody every time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from assets import owners
from dash_pipeline.notify.notice import Notice
from dash_pipeline.storage.health import ChainHealth

KAFKA = "unreachable/kafka"
_DAY_S = 86_400.0


@dataclass(frozen=True)
class Limits:
    """From when on something is worth a notice. `lag`: messages; `after_s`: seconds that lag lasts or commits stand
    still; `quiet_s`: seconds without an event of a live chain, whose newest block was `live_within_s` old at the most
    when it was committed; `dead_letters`: within an hour; `drill_days`: since the last good drill."""

    lag: int = 100_000
    after_s: float = 300
    quiet_s: float = 900
    live_within_s: float = 900
    dead_letters: int = 1
    drill_days: float = 8


@dataclass(frozen=True)
class Seen:
    """What a tick has read. `lag`: chain -> messages, empty when Kafka did not answer, which `kafka` then says;
    `drills`: what is restored -> seconds since its last good drill, or since its first backup if there never was one;
    `recovered`: job with an open notice -> the run that was a success since; `open`: keys of open notices; `since`:
    what the decision before has remembered; `now`: Unix time."""

    chains: Mapping[str, ChainHealth]
    lag: Mapping[str, int]
    drills: Mapping[str, float]
    open: frozenset[str]
    now: float
    kafka: str = ""
    recovered: Mapping[str, str] = field(default_factory=dict)
    since: Mapping[str, float] = field(default_factory=dict)
    url: str = ""


@dataclass(frozen=True)
class Decision:
    """What is told: notices that hold; keys that are over, and why. `since`: key -> when its condition began."""

    raised: list[Notice]
    resolved: dict[str, str]
    since: dict[str, float]


def decide(seen: Seen, limits: Limits) -> Decision:
    """Which notices hold now, and which open ones are over."""
    since: dict[str, float] = {}
    raised: list[Notice] = []
    over: dict[str, str] = {}
    for condition in _conditions(seen, limits):
        begun = condition.holds or (condition.lasts and (condition.key in seen.since or condition.key in seen.open))
        if not begun:
            over[condition.key] = condition.well
            continue
        since[condition.key] = seen.since.get(condition.key, seen.now)
        if condition.key in seen.open or seen.now - since[condition.key] >= condition.after_s:
            raised.append(condition.notice)
    over |= {key: f"run {run} was a success" for key, run in seen.recovered.items()}
    return Decision(raised, {key: why for key, why in over.items() if key in seen.open}, since)


@dataclass(frozen=True)
class _Condition:
    """`holds`: the limit is reached; `lasts`: what has begun goes on; `after_s`: so long before it is told."""

    notice: Notice
    holds: bool
    lasts: bool
    after_s: float
    well: str

    @property
    def key(self) -> str:
        return self.notice.key


def _conditions(seen: Seen, limits: Limits) -> Iterator[_Condition]:
    """Every condition that can be judged from what was read."""
    yield _Condition(
        Notice(KAFKA, "high", "Kafka does not answer", seen.kafka, owners.OPERATIONS),
        bool(seen.kafka), bool(seen.kafka), limits.after_s, "Kafka answers",
    )  # fmt: skip
    for chain, health in seen.chains.items():
        links = {"platform health": f"{seen.url.rstrip('/')}/assets/platform_health/{chain}"}
        if chain in seen.lag:
            yield _lag(chain, seen.lag[chain], limits, links)
            yield _standstill(chain, seen.lag[chain], health, limits, links)
            yield _quiet(chain, seen.lag[chain], health, limits, links)
        letters = health.dead_letters
        yield _Condition(
            Notice(
                f"dead-letters/{chain}", "medium", f"{chain}: messages are refused",
                f"{letters} dead letters in the last hour. Why: SELECT reason, count(*) FROM ops.dead_letters WHERE"
                f" topic LIKE '{chain}.%' AND seen_at > now() - interval '1 hour' GROUP BY 1",
                owners.CHAIN_DATA, links,
            ),
            letters >= limits.dead_letters, letters > 0, 0, "no dead letter for an hour",
        )  # fmt: skip
    for what, seconds in seen.drills.items():
        late = seconds >= limits.drill_days * _DAY_S
        yield _Condition(
            Notice(
                f"drill-overdue/{what}", "medium", f"{what}: the restore drill is overdue",
                f"no good drill for {seconds / _DAY_S:.1f} days (limit: {limits.drill_days:g}). Until then nobody knows"
                " whether the backups can be restored: `dash-pipeline drill`",
                owners.OPERATIONS, {"drills": f"{seen.url.rstrip('/')}/assets/backups"},
            ),
            late, late, 0, "a drill was good",
        )  # fmt: skip


def _lag(chain: str, lag: int, limits: Limits, links: Mapping[str, str]) -> _Condition:
    notice = Notice(
        f"lag/{chain}", "medium", f"{chain}: {lag:,} events wait",
        f"{lag:,} events are on Kafka and not in the tables (limit: {limits.lag:,}, for {limits.after_s:g} s). More"
        " lanes: DASH_MAX_LANES; what holds them up: the plots of platform_health",
        owners.CHAIN_DATA, links,
    )  # fmt: skip
    return _Condition(notice, lag >= limits.lag, lag >= limits.lag / 2, limits.after_s, f"{lag:,} events wait")


def _standstill(
    chain: str, lag: int, health: ChainHealth, limits: Limits, links: Mapping[str, str]
) -> _Condition:  # fmt: skip
    age = health.commit_age_s
    still = lag > 0 and (age is None or age >= limits.after_s)
    said = "nothing was ever committed" if age is None else f"the newest commit is {age:,.0f} s old"
    notice = Notice(
        f"standstill/{chain}", "high", f"{chain}: ingestion stands still",
        f"{lag:,} events wait, and {said}. The tick history of lag_sensor says why no lane runs",
        owners.CHAIN_DATA, links,
    )  # fmt: skip
    # A chain that was quiet has an old commit in the moment in which the next event comes: its lag must last, too.
    return _Condition(notice, still, still, limits.after_s, "commits go on" if lag else "nothing waits")


def _quiet(chain: str, lag: int, health: ChainHealth, limits: Limits, links: Mapping[str, str]) -> _Condition:
    age, behind = health.commit_age_s, health.behind_s
    quiet = lag == 0 and age is not None and behind is not None and age >= limits.quiet_s
    live = behind is not None and behind <= limits.live_within_s
    notice = Notice(
        f"quiet/{chain}", "medium", f"{chain}: no events come",
        f"the last event came {age or 0:,.0f} s ago, and the chain was live then. Is its feed running?",
        owners.CHAIN_DATA, links,
    )  # fmt: skip
    return _Condition(notice, quiet and live, quiet and live, 0, "events come again")
