"""Alerts on a real TimescaleDB and a real OpenSearch, told to a real receiver: once each, whatever fails meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from io import StringIO
from typing import Any

import psycopg
import pytest
from rich.console import Console

from dash_pipeline.alerts import deliver as delivery
from dash_pipeline.alerts import show
from dash_pipeline.alerts.deliver import Delivered, deliver
from dash_pipeline.alerts.rules import Policy
from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.settings import Settings
from dash_pipeline.storage import alerts as store
from dash_pipeline.storage import predictions, timescale
from dash_pipeline.storage.anomalies import read_anomalies
from dash_pipeline.storage.migrate import upgrade
from dash_pipeline.storage.predictions import Prediction
from dash_pipeline.storage.search import alerts as index
from dash_pipeline.storage.search import client
from dash_pipeline.storage.timescale import Connection
from tests.webhooks import SECRET, Receiver, Request, ids

NOON = datetime.fromisoformat("2024-03-09T12:00:00+00:00")


def key(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


@dataclass
class Desk:
    """A chain of its own with anomalies written by hand, and what is done with them."""

    chain: str
    settings: Settings
    conn: Connection
    policy: Policy = field(default_factory=Policy)

    def id(self, name: str) -> bytes:
        return key(f"{self.chain} {name}")[:16]

    def anomaly(
        self, name: str, pool: str = "pool", severity: str = "high", second: float = 0, **evidence: Any
    ) -> bytes:
        """An active anomaly, detected now."""
        self.anomalies([(name, pool, severity, second, evidence or {"share": 0.97})])
        return self.id(name)

    def anomalies(self, rows: Sequence[tuple[str, str, str, float, dict[str, Any]]]) -> list[bytes]:
        with self.conn.cursor() as cursor, cursor.copy(
            "COPY intel.anomalies (id, chain, ts, block_number, block_hash, tx_hash, log_indexes, pool, token, tokens,"
            " wallets, kind, severity, score, evidence) FROM STDIN"
        ) as copy:  # fmt: skip
            for name, pool, severity, second, evidence in rows:
                copy.write_row(
                    (
                        self.id(name), self.chain, NOON + timedelta(seconds=second), 7, key("block"), key(name), [1, 2],
                        key(pool)[:20], key("token")[:20], [key("token")[:20]], [key("alice")[:20], key("bob")[:20]],
                        "liquidity_withdrawal", severity, 0.97, json.dumps(evidence),
                    )
                )  # fmt: skip
        return [self.id(row[0]) for row in rows]

    def run(self, query: str, *params: Any) -> list[tuple[Any, ...]]:
        cursor = self.conn.execute(query, params)
        return cursor.fetchall() if cursor.description else []

    def raise_(self, *anomalies: bytes) -> list[bytes]:
        with self.conn.transaction():
            stored = read_anomalies(self.conn, anomalies)
            return store.raise_alerts(self.conn, self.policy, [one for one in stored if not one.retracted], "run-1")

    def orphan(self, *anomalies: bytes) -> list[bytes]:
        """A fork takes the anomalies' events away."""
        with self.conn.transaction():
            self.run(
                "UPDATE intel.anomalies SET retracted_at = clock_timestamp(), revision = revision + 1"
                " WHERE id = ANY(%s)", list(anomalies),
            )  # fmt: skip
            return store.retract(self.conn, self.policy, anomalies, "run-1")

    def back(self, *anomalies: bytes) -> list[bytes]:
        """A fork brings them back."""
        self.run(
            "UPDATE intel.anomalies SET retracted_at = NULL, revision = revision + 1 WHERE id = ANY(%s)",
            list(anomalies),
        )
        return self.raise_(*anomalies)

    def deliver(self, wait_s: float = 0) -> Delivered:
        return deliver(self.conn, self.policy, wait_s)

    def later(self, seconds: float) -> None:
        """That much time passes."""
        for table, column in (("deliveries", "next_try_at"), ("deliveries", "delivered_at"), ("alerts", "raised_at"),
                              ("alerts", "retracted_at"), ("anomalies", "detected_at")):  # fmt: skip
            self.run(f"UPDATE intel.{table} SET {column} = {column} - %s * interval '1 second'", seconds)

    def states(self) -> dict[tuple[str, str], str]:
        """(route, event) -> waits, delivered, or why it was dropped; for tests with one alert."""
        return {
            (route, event): dropped or ("delivered" if at else "waits")
            for route, event, at, dropped in self.run(
                "SELECT d.route, d.event, d.delivered_at, d.dropped FROM intel.deliveries d"
                " JOIN intel.alerts a ON a.id = d.alert_id WHERE a.chain = %s", self.chain,
            )
        }  # fmt: skip

    def count(self, where: str = "true") -> int:
        ((count,),) = self.run(f"SELECT count(*) FROM intel.alerts WHERE chain = %s AND {where}", self.chain)
        value: int = count
        return value


@pytest.fixture(scope="module")
def migrated(database: Settings) -> Settings:
    upgrade(database)
    return database


@pytest.fixture
def desk(migrated: Settings, unique: Callable[[str], str]) -> Iterator[Desk]:
    with timescale.connect(migrated) as conn:
        yield Desk(unique("c"), migrated, conn)
        # Deliveries have no chain: what this test left must not come due in the next one's.
        conn.execute("TRUNCATE intel.anomalies, intel.alerts, intel.deliveries, intel.predictions")


@pytest.fixture
def hook(desk: Desk) -> Iterator[Receiver]:
    """Where the desk's alerts go, by route `ops`."""
    with Receiver() as receiver:
        desk.policy = Policy(routes={"ops": receiver.url}, secret=SECRET)
        yield receiver


# --- raising


def test_an_anomaly_is_an_alert_with_its_id_and_is_told_once(desk: Desk, hook: Receiver) -> None:
    one = desk.anomaly("a", share=0.97, amount=2**256 - 1)
    assert desk.raise_(one) == [one]
    assert desk.raise_(one) == []
    assert desk.deliver() == Delivered(requests=1, delivered=1)
    assert desk.deliver() == Delivered()
    (request,) = hook.requests
    assert request.signed
    (told,) = request.alerts
    assert told | {"url": "", "text": "", "raised_at": ""} == {
        "event": "raised", "id": one.hex(), "chain": desk.chain, "pool": "0x" + key("pool")[:20].hex(),
        "token": "0x" + key("token")[:20].hex(), "kind": "liquidity_withdrawal", "severity": "high",
        "ts": "2024-03-09T12:00:00.000Z", "block_number": 7, "tx_hash": "0x" + key("a").hex(),
        "wallets": ["0x" + key(name)[:20].hex() for name in ("alice", "bob")],
        "evidence": {"share": 0.97, "amount": 2**256 - 1}, "predictions": [], "raised_at": "", "revision": 1,
        "url": "", "text": "",
    }  # fmt: skip
    assert told["text"].startswith("HIGH: liquidity withdrawal on")
    assert request.message["text"] == told["text"]


def test_one_alert_per_pool_and_cool_down_unless_it_gets_worse(desk: Desk) -> None:
    first = desk.anomaly("a", severity="medium")
    assert desk.raise_(first, desk.anomaly("b", severity="low", second=-9)) == [first]
    assert desk.raise_(desk.anomaly("c", severity="medium", second=5)) == []
    worse = desk.anomaly("d", severity="high", second=6)
    assert desk.raise_(worse) == [worse]
    assert desk.raise_(desk.anomaly("e"), desk.anomaly("f", severity="medium")) == []
    elsewhere = desk.anomaly("g", pool="other")
    assert desk.raise_(elsewhere) == [elsewhere]
    desk.later(3601)
    assert desk.raise_(*(desk.id(name) for name in "abcdef")) == [], "what was covered then stays covered"
    after = desk.anomaly("h", severity="medium")
    assert desk.raise_(after) == [after]


def test_below_the_least_severity_nothing_is_raised_and_routes_have_their_own(desk: Desk) -> None:
    desk.policy = Policy(
        "low", routes={"all": "http://h/", "pager": "http://h/"}, route_severity={"pager": "high"}
    )  # fmt: skip
    for severity in ("low", "medium", "high"):
        desk.raise_(desk.anomaly(severity, pool=severity, severity=severity))
    got = desk.run("SELECT d.route, a.severity FROM intel.deliveries d JOIN intel.alerts a ON a.id = d.alert_id")
    assert sorted(got) == [("all", "high"), ("all", "low"), ("all", "medium"), ("pager", "high")]
    desk.policy = replace(desk.policy, min_severity="high")
    assert desk.raise_(desk.anomaly("x", pool="x", severity="medium")) == []


def test_what_is_retracted_meanwhile_raises_nothing(desk: Desk) -> None:
    one = desk.anomaly("a")
    stored = read_anomalies(desk.conn, [one])
    desk.run("UPDATE intel.anomalies SET retracted_at = now()")
    with desk.conn.transaction():
        assert store.raise_alerts(desk.conn, desk.policy, stored) == []
    assert desk.count() == 0


def test_without_a_route_alerts_are_raised_all_the_same(desk: Desk) -> None:
    one = desk.anomaly("a")
    assert desk.raise_(one) == [one]
    assert desk.deliver() == Delivered()
    assert desk.states() == {}


def test_a_rolled_back_transaction_raised_nothing(desk: Desk, hook: Receiver) -> None:
    one = desk.anomaly("a")
    with desk.conn.transaction(force_rollback=True):
        assert store.raise_alerts(desk.conn, desk.policy, read_anomalies(desk.conn, [one])) == [one]
    assert (desk.count(), desk.states()) == (0, {})
    assert desk.raise_(one) == [one]


def test_two_processes_that_raise_the_same_raise_it_once(desk: Desk, hook: Receiver) -> None:
    """Each with its own connection, in its own order; of a pool's two anomalies whichever comes first."""
    anomalies = desk.anomalies(
        [(f"{pool} {n}", f"pool {pool}", "high", n, {}) for pool in range(40) for n in range(2)]
    )  # fmt: skip
    raised: list[list[bytes]] = []
    start = threading.Barrier(4)

    def work(seed: int) -> None:
        rng = random.Random(seed)
        with timescale.connect(desk.settings) as conn:
            other = replace(desk, conn=conn)
            start.wait()
            raised.extend(other.raise_(*rng.sample(anomalies, 30)) for _ in range(20))
            other.deliver()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    everything = [id_ for some in raised for id_ in some]
    assert len(everything) == len(set(everything)) == desk.count() == 40
    desk.deliver()
    assert hook.told() == {(id_.hex(), "raised"): 1 for id_ in everything}


# --- floods


@pytest.mark.parametrize("pools", [5, 10_000])
def test_ten_thousand_anomalies_are_few_requests(desk: Desk, hook: Receiver, pools: int) -> None:
    flood = desk.anomalies([(f"{n}", f"p{n % pools}", "medium", n, {}) for n in range(9_990)])
    flood += desk.anomalies([(f"h{n}", f"p{n % pools if pools > 10 else n % 5}h", "high", n, {}) for n in range(10)])
    raised = desk.raise_(*flood)
    expected = 10_000 if pools == 10_000 else 10
    assert len(raised) == len(set(raised)) == desk.count() == expected
    done = desk.deliver()
    assert (done.delivered, done.requests) == (expected, -(-expected // 50))
    assert hook.sizes() == [min(50, expected)] * done.requests
    severities = [alert["severity"] for alert in hook.taken()]
    assert severities == sorted(severities), "the most severe first"
    assert set(hook.told().values()) == {1}
    assert len(hook.told()) == expected


# --- receivers that fail


@pytest.mark.parametrize("status", [500, 503, 408, 429, 401, 403, 404, 410, 301])
def test_what_failed_is_tried_again_and_told_once(desk: Desk, hook: Receiver, status: int) -> None:
    hook.fail(2, status)
    desk.raise_(desk.anomaly("a"), desk.anomaly("b", pool="other"))
    done = desk.deliver()
    assert (done.requests, done.delivered, done.failed, done.dropped) == (1, 0, 2, 0)
    assert done.next_due_s == pytest.approx(1, abs=0.3)
    done = desk.deliver(wait_s=4)
    assert (done.requests, done.delivered, done.failed) == (2, 2, 2)
    assert len(hook.requests) == 3
    assert hook.requests[2].at - hook.requests[1].at == pytest.approx(2, abs=0.5), "twice as long"
    assert len(ids(hook.taken())) == 2
    assert set(hook.told().values()) == {1}


def test_retry_after_is_kept_to(desk: Desk, hook: Receiver) -> None:
    hook.fail(1, 429, Retry_After="40")
    desk.raise_(desk.anomaly("a"))
    assert desk.deliver().next_due_s == pytest.approx(40, abs=1)
    assert desk.deliver().requests == 0


def test_a_receiver_that_is_down_for_an_hour_gets_what_waited_once(desk: Desk, hook: Receiver) -> None:
    hook.down()
    pauses = []
    for minute in range(60):
        desk.raise_(desk.anomaly(f"{minute}", pool=f"{minute}"))
        done = desk.deliver()
        assert done.delivered == 0
        assert done.requests <= 2, "the new one, and one for all that wait"
        pauses.append(done.next_due_s)
        desk.later(60)
    assert max(pause for pause in pauses if pause is not None) == pytest.approx(300, abs=2)
    ((error,),) = desk.run("SELECT DISTINCT error FROM intel.deliveries WHERE error IS NOT NULL")
    assert "no connection: " in error
    hook.up()
    desk.later(301)
    done = desk.deliver()
    assert (done.delivered, done.requests, done.next_due_s) == (60, 2, None)
    assert len(hook.told()) == 60
    assert set(hook.told().values()) == {1}
    desk.later(90_000)
    assert desk.deliver() == Delivered()


def test_a_new_process_goes_on_where_the_last_one_was(desk: Desk, hook: Receiver) -> None:
    hook.fail(3, 500)
    desk.raise_(desk.anomaly("a"))
    for pause in (1, 2, 4):
        with timescale.connect(desk.settings) as conn:
            done = deliver(conn, desk.policy)
        assert done.next_due_s == pytest.approx(pause, abs=0.3)
        desk.later(pause)
    assert desk.deliver().delivered == 1


def test_a_receiver_that_hangs_is_left_and_its_alert_counts_once(desk: Desk, hook: Receiver) -> None:
    hook.hang_s = 7
    desk.raise_(desk.anomaly("a"))
    started = time.monotonic()
    done = desk.deliver()
    assert (done.delivered, done.failed) == (0, 1)
    assert 4 < time.monotonic() - started < 7
    hook.hang_s = 0
    time.sleep(3)
    # Meanwhile another alert: what has had no answer is asked again as it was.
    desk.raise_(desk.anomaly("b", pool="other"))
    assert desk.deliver().delivered == 2
    assert len(hook.requests) == 3
    assert hook.requests[0].key in {request.key for request in hook.requests[1:]}
    assert hook.told() == {(desk.id(name).hex(), "raised"): 1 for name in "ab"}


def test_a_route_that_hangs_holds_up_nothing_of_the_others(desk: Desk, hook: Receiver) -> None:
    with Receiver(hang_s=30) as slow:
        desk.policy = Policy(routes={"slow": slow.url, "ops": hook.url}, secret=SECRET, batch=1)
        for n in range(5):
            desk.raise_(desk.anomaly(f"{n}", pool=f"{n}"))
        done = desk.deliver()
        assert (done.delivered, done.requests) == (5, 6), "the slow one is asked once"
    assert len(hook.told()) == 5


def test_what_is_given_up_says_why(desk: Desk, hook: Receiver) -> None:
    hook.fail(100, 503)
    desk.raise_(desk.anomaly("a"))
    desk.deliver()
    desk.later(86_300)
    assert desk.deliver().failed == 1
    desk.later(301)
    assert desk.deliver() == Delivered(dropped=1)
    assert desk.states() == {("ops", "raised"): "given up: HTTP 503: status 503"}


def test_an_alert_of_a_route_that_was_taken_away_ends(desk: Desk, hook: Receiver) -> None:
    desk.raise_(desk.anomaly("a"))
    desk.policy = Policy()
    assert store.waiting(desk.conn) == (1, 1)
    assert store.waiting(desk.conn, desk.policy.routes) == (0, 1)
    desk.later(86_000)
    assert desk.deliver() == Delivered()
    desk.later(401)
    assert desk.deliver() == Delivered(dropped=1)
    assert desk.states() == {("ops", "raised"): "there is no such route any more"}


# --- receivers that refuse


def test_an_alert_that_is_refused_is_found_and_the_others_arrive(desk: Desk, hook: Receiver) -> None:
    bad = {desk.id(f"{n}").hex() for n in (3, 17, 18)}
    hook.refuses = lambda request: 422 if bad & ids(request.alerts) else 0
    desk.raise_(*desk.anomalies([(f"{n}", f"p{n}", "high", n, {}) for n in range(50)]))
    done = desk.deliver()
    assert (done.delivered, done.dropped, done.failed, done.next_due_s) == (47, 3, 0, None)
    dropped = desk.run("SELECT encode(alert_id, 'hex'), dropped FROM intel.deliveries WHERE dropped IS NOT NULL")
    assert dict(dropped) == dict.fromkeys(bad, "refused: HTTP 422: status 422")
    assert ids(hook.taken()) == {desk.id(f"{n}").hex() for n in range(50)} - bad
    assert set(hook.told().values()) == {1}


def test_a_receiver_that_refuses_everything_is_the_routes_mistake(desk: Desk, hook: Receiver) -> None:
    """A flood must not be a request per alert because a URL is wrong; and nothing is lost when it is put right."""
    hook.refuses = lambda request: 400
    desk.raise_(*desk.anomalies([(f"{n}", f"p{n}", "high", n, {}) for n in range(1_000)]))
    done = desk.deliver()
    assert (done.delivered, done.dropped) == (0, 0)
    assert done.requests < 30
    hook.refuses = lambda request: 0
    done = desk.deliver(wait_s=3)
    assert (done.delivered, done.dropped, done.requests) == (1_000, 0, 20)


def test_an_alert_that_makes_the_receiver_fail_holds_up_no_other(desk: Desk, hook: Receiver) -> None:
    desk.policy = replace(desk.policy, batch=1)
    hook.refuses = lambda request: 500 if desk.id("0").hex() in ids(request.alerts) else 0
    desk.raise_(*desk.anomalies([(f"{n}", f"p{n}", "high", n, {}) for n in range(20)]))
    for _ in range(2):
        desk.deliver()
        desk.later(2)
    assert len(hook.told()) == 19
    assert desk.deliver().failed == 1


# --- retractions


def test_an_alert_that_was_not_sent_is_never_told(desk: Desk, hook: Receiver) -> None:
    one = desk.anomaly("a")
    desk.raise_(one)
    assert desk.orphan(one) == []
    assert desk.count("retracted_at IS NOT NULL AND revision = 2") == 1
    assert desk.deliver() == Delivered()
    assert desk.states() == {("ops", "raised"): "retracted before it was sent"}
    assert desk.orphan(one) == []
    assert desk.count("revision = 2") == 1, "once"


def test_an_alert_that_could_not_be_sent_is_never_told(desk: Desk, hook: Receiver) -> None:
    one = desk.anomaly("a")
    desk.raise_(one)
    hook.fail(1, 503)
    desk.deliver()
    desk.orphan(one)
    desk.later(400)
    assert desk.deliver() == Delivered()
    assert desk.states() == {("ops", "raised"): "retracted before it was sent"}


def test_what_was_told_is_taken_back_and_told_again(desk: Desk, hook: Receiver) -> None:
    one = desk.anomaly("a")
    desk.raise_(one)
    desk.deliver()
    for _ in range(2):
        desk.orphan(one)
        desk.deliver()
        assert desk.back(one) == [one]
        desk.deliver()
    assert hook.events() == ["raised", "retracted", "raised", "retracted", "raised"]
    assert [alert["revision"] for alert in hook.taken()] == [1, 2, 3, 4, 5]
    assert len({request.key for request in hook.requests}) == 5
    assert desk.count("retracted_at IS NULL") == 1


def test_what_is_back_before_anybody_heard_is_not_told_again(desk: Desk, hook: Receiver) -> None:
    one = desk.anomaly("a")
    desk.raise_(one)
    desk.deliver()
    for _ in range(3):
        desk.orphan(one)
        assert desk.back(one) == [one]
    assert desk.deliver() == Delivered()
    desk.orphan(one)
    desk.deliver()
    assert hook.events() == ["raised", "retracted"]


def test_what_was_dropped_unsent_is_told_when_it_is_back(desk: Desk, hook: Receiver) -> None:
    one = desk.anomaly("a")
    desk.raise_(one)
    desk.orphan(one)
    desk.back(one)
    desk.deliver()
    assert hook.events() == ["raised"]
    assert desk.states() == {("ops", "raised"): "delivered"}


def test_an_alert_that_may_have_arrived_is_taken_back(desk: Desk, hook: Receiver) -> None:
    one = desk.anomaly("a")
    desk.raise_(one)
    hook.hang_s = 6
    desk.deliver()
    hook.hang_s = 0
    desk.orphan(one)
    desk.later(2)
    desk.deliver()
    time.sleep(1.5)
    assert sorted(hook.events()) == ["raised", "retracted"]
    desk.deliver()
    assert len(hook.requests) == 2


def test_an_alert_that_is_taken_back_while_it_is_sent_is_taken_back_after_that(desk: Desk, hook: Receiver) -> None:
    one = desk.anomaly("a")
    desk.raise_(one)

    def fork(request: Request) -> None:
        if request.alerts[0]["event"] == "raised":
            with timescale.connect(desk.settings) as conn:
                other = replace(desk, conn=conn)
                other.orphan(one)
                assert other.deliver().requests == 0, "not while the other is under way"

    hook.seen = fork
    assert desk.deliver().delivered == 2
    assert hook.events() == ["raised", "retracted"]
    assert desk.deliver() == Delivered()


def test_an_alert_that_is_back_while_its_retraction_is_sent_is_told_after_that(desk: Desk, hook: Receiver) -> None:
    one = desk.anomaly("a")
    desk.raise_(one)
    desk.deliver()
    desk.orphan(one)

    def fork(request: Request) -> None:
        if request.alerts[0]["event"] == "retracted":
            with timescale.connect(desk.settings) as conn:
                replace(desk, conn=conn).back(one)

    hook.seen = fork
    desk.deliver()
    assert hook.events() == ["raised", "retracted", "raised"]
    assert desk.deliver() == Delivered()


def test_what_an_alert_covered_is_raised_when_it_is_taken_back(desk: Desk, hook: Receiver) -> None:
    first, second, third, low = (
        desk.anomaly(name, severity=severity, second=n)
        for n, (name, severity) in enumerate([("a", "high"), ("b", "high"), ("c", "medium"), ("d", "low")])
    )
    assert desk.raise_(first, second, third, low) == [first]
    desk.deliver()
    assert desk.orphan(first) == [second]
    desk.deliver()
    told = hook.taken()
    assert [(alert["id"], alert["event"]) for alert in told[:1]] == [(first.hex(), "raised")]
    assert {(alert["id"], alert["event"]) for alert in told[1:]} == {
        (first.hex(), "retracted"), (second.hex(), "raised"),
    }  # fmt: skip
    assert desk.orphan(second, third, low) == []


def test_a_fork_that_brings_the_same_in_another_block_is_one_alert_each(desk: Desk, hook: Receiver) -> None:
    """The new branch's anomaly comes before the old one's alert is taken back, or after."""
    old, new = desk.anomaly("old"), desk.anomaly("new")
    desk.raise_(old)
    desk.run("UPDATE intel.anomalies SET retracted_at = now() WHERE id = %s", old)
    assert desk.raise_(new) == [new], "an alert that no longer holds covers nothing"
    assert desk.orphan(old) == []
    desk.deliver()
    assert [alert["id"] for alert in hook.taken()] == [new.hex()]


@pytest.mark.parametrize("seed", range(8))
def test_what_the_receiver_heard_last_is_what_holds(desk: Desk, hook: Receiver, seed: int) -> None:
    """Forks, failures and deliveries in any order."""
    rng = random.Random(seed)
    names = [f"{n}" for n in range(4)]
    anomalies = [desk.anomaly(name, pool=name) for name in names]
    gone: set[bytes] = set()
    desk.raise_(*anomalies)
    for _ in range(40):
        some = rng.sample(anomalies, rng.randrange(1, 4))
        match rng.randrange(4):
            case 0:
                desk.orphan(*some)
                gone |= set(some)
            case 1:
                desk.back(*some)
                gone -= set(some)
            case 2:
                hook.fail(rng.randrange(2), 503)
                desk.deliver()
            case _:
                desk.later(rng.choice([0.5, 400]))
    hook.answers.clear()
    desk.later(400)
    desk.deliver()
    last: dict[str, str] = {}
    for alert in hook.taken():
        assert last.get(alert["id"]) != alert["event"], "nothing is said twice"
        last[alert["id"]] = alert["event"]
    for id_ in anomalies:
        assert last.get(id_.hex(), "retracted") == ("retracted" if id_ in gone else "raised")
    assert desk.deliver() == Delivered()


# --- kills


SENDER = """
import json, os, sys
import psycopg
from pydantic import SecretStr
from dash_pipeline.alerts.deliver import deliver
from dash_pipeline.alerts.rules import Policy
url, secret, batch = sys.argv[1:]
with psycopg.connect(os.environ["DSN"], autocommit=True) as conn:
    deliver(conn, Policy(routes={"ops": url}, secret=SecretStr(secret), batch=int(batch)))
"""


def sender(desk: Desk, hook: Receiver) -> subprocess.Popen[bytes]:
    """Another process that delivers."""
    env = os.environ | {"DSN": desk.settings.timescale_dsn.get_secret_value()}
    arguments = [hook.url, SECRET.get_secret_value(), str(desk.policy.batch)]
    return subprocess.Popen([sys.executable, "-c", SENDER, *arguments], env=env)


def test_a_sender_killed_before_it_hears_the_answer_tells_nothing_twice(desk: Desk, hook: Receiver) -> None:
    desk.raise_(*(desk.anomaly(f"{n}", pool=f"{n}") for n in range(3)))
    killed: list[int] = []

    def kill(request: Request) -> None:
        if not killed:
            killed.append(process.pid)
            os.kill(process.pid, signal.SIGKILL)

    hook.seen = kill
    process = sender(desk, hook)
    assert process.wait(60) == -signal.SIGKILL
    desk.raise_(desk.anomaly("later", pool="later"))
    assert desk.deliver().delivered == 1, "what was claimed by the dead rests"
    desk.later(delivery.LEASE_S)
    assert desk.deliver().delivered == 3
    first, second, third = hook.requests
    assert first.key == third.key != second.key
    assert ids(first.alerts) == ids(third.alerts)
    assert (first.new, third.taken, third.new) == (True, True, False)
    assert set(hook.told().values()) == {1}
    assert len(hook.told()) == 4


def test_a_request_without_an_answer_is_made_again_whole_whatever_the_settings_are_by_then(
    desk: Desk, hook: Receiver
) -> None:
    desk.raise_(*desk.anomalies([(f"{n}", f"p{n}", "high", n, {}) for n in range(30)]))
    hook.hang_s = 6
    desk.deliver()
    hook.hang_s = 0
    desk.policy = replace(desk.policy, batch=7)
    desk.later(2)
    assert desk.deliver() == Delivered(requests=1, delivered=30)
    time.sleep(1.5)
    assert hook.told() == {(desk.id(f"{n}").hex(), "raised"): 1 for n in range(30)}


def test_senders_killed_at_random_moments_lose_nothing(desk: Desk, hook: Receiver) -> None:
    hook.hang_s = 0.02
    desk.policy = replace(desk.policy, batch=5)
    desk.raise_(*desk.anomalies([(f"{n}", f"p{n}", "high", n, {}) for n in range(150)]))
    rng = random.Random(1)
    for _ in range(4):
        before = len(hook.requests)
        process = sender(desk, hook)
        while len(hook.requests) == before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.1)
        process.kill()
        process.wait(10)
        desk.later(delivery.LEASE_S)
    desk.deliver(wait_s=1)
    assert hook.told() == {(desk.id(f"{n}").hex(), "raised"): 1 for n in range(150)}


def test_two_senders_at_a_time_tell_each_alert_once(desk: Desk, hook: Receiver) -> None:
    desk.raise_(*desk.anomalies([(f"{n}", f"p{n}", "high", n, {}) for n in range(500)]))
    policy = replace(desk.policy, batch=10)

    def work() -> None:
        with timescale.connect(desk.settings) as conn:
            deliver(conn, policy, wait_s=0.2)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    told = Counter(alert["id"] for request in hook.requests for alert in request.alerts)
    assert len(told) == 500
    assert set(told.values()) == {1}
    assert len(hook.requests) == 50


def test_a_database_that_goes_away_while_a_request_is_made_loses_nothing(desk: Desk, hook: Receiver) -> None:
    desk.raise_(desk.anomaly("a"))
    with timescale.connect(desk.settings) as conn:

        def cut(request: Request) -> None:
            hook.seen = lambda request: None
            desk.run("SELECT pg_terminate_backend(%s)", conn.info.backend_pid)

        hook.seen = cut
        with pytest.raises(psycopg.OperationalError):
            deliver(conn, desk.policy)
    desk.later(delivery.LEASE_S)
    assert desk.deliver().delivered == 1
    first, second = hook.requests
    assert (first.key, first.new, second.new) == (second.key, True, False)


def test_nothing_is_sent_inside_a_transaction(desk: Desk, hook: Receiver) -> None:
    with pytest.raises(ValueError, match="outside of a transaction"), desk.conn.transaction():
        desk.deliver()


# --- predictions, lists, index


def predict(desk: Desk, anomaly: bytes, model: str = "pool_risk", score: float | None = 0.973, **more: Any) -> None:
    made = Prediction(
        anomaly, model, **({"subject": key("pool")[:20], "subject_kind": "pool", "chain": desk.chain, "as_of": NOON,
                            "version": "v1", "score": score} | more),
    )  # fmt: skip
    predictions.write_predictions(desk.conn, [made], "run-1")


def test_an_alert_carries_what_was_predicted_when_it_is_sent(desk: Desk, hook: Receiver) -> None:
    one = desk.anomaly("a")
    desk.raise_(one)
    contributions = {f"f{n}": (-1.0) ** n * n for n in range(9)}
    predict(desk, one, contributions=contributions)
    predict(desk, one, "liquidity_outlook", None, reason="model: none", version="none")
    predict(desk, one, "wallet_risk", float("nan"), subject=key("alice")[:20], subject_kind="wallet")
    desk.deliver()
    (told,) = hook.taken()
    assert [(p["model"], p["version"], p["score"], p["reason"]) for p in told["predictions"]] == [
        ("liquidity_outlook", "none", None, "model: none"), ("pool_risk", "v1", 0.973, None),
        ("wallet_risk", "v1", None, None),
    ]  # fmt: skip
    assert told["predictions"][1]["contributions"] == [["f8", 8], ["f7", -7], ["f6", 6], ["f5", -5], ["f4", 4]]
    assert "pool_risk 97%" in told["text"]


def test_the_list_shows_all_there_is_to_say(desk: Desk, hook: Receiver) -> None:
    gone, one, medium = desk.anomaly("a"), desk.anomaly("b", pool="b"), desk.anomaly("c", pool="c", severity="medium")
    desk.raise_(gone)
    desk.deliver()
    desk.orphan(gone)
    desk.raise_(one)
    desk.raise_(medium)
    predict(desk, gone)
    found = show.alerts(desk.conn, chain=desk.chain)
    assert [alert["id"] for alert in found] == [medium.hex(), one.hex(), gone.hex()], "newest first"
    assert [alert["id"] for alert in show.alerts(desk.conn, "high")] == [one.hex(), gone.hex()]
    assert [alert["id"] for alert in show.alerts(desk.conn, active_only=True, limit=1)] == [medium.hex()]
    assert show.alerts(desk.conn, chain="elsewhere") == []
    taken_back = found[2]
    assert taken_back["retracted"]
    assert {name for name, value in taken_back.items() if value in (None, "")} == set()
    assert [(d["event"], bool(d["delivered_at"])) for d in taken_back["deliveries"]] == [
        ("raised", True), ("retracted", False),
    ]  # fmt: skip
    json.dumps(found)
    console = Console(width=200, file=StringIO())
    console.print(show.alerts_table(found))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "(taken back)" in text
    assert "0x" + key("b")[:20].hex() in text
    assert "97%" in text
    assert "ops waits" in text
    with pytest.raises(DashError, match=r"^--severity: loud is not one of low, medium, high$"):
        show.alerts(desk.conn, "loud")


@pytest.fixture
def name(desk: Desk, unique: Callable[[str], str]) -> Iterator[str]:
    """An index of this test's own."""
    name = unique("test-alerts-")
    yield name
    index.delete(client(desk.settings), name)


def test_the_index_shows_every_alert_as_it_is(desk: Desk, name: str) -> None:
    opensearch = client(desk.settings)
    one, other = desk.anomaly("a", amount=2**256 - 1, deep={"x": [1, {"y": None}]}), desk.anomaly("b", pool="b")
    desk.raise_(one, other)
    predict(desk, one)
    desk.run("UPDATE intel.alerts SET severity = 'medium' WHERE id = %s", other)

    def find(**query: Any) -> dict[str, dict[str, Any]]:
        opensearch.indices.refresh(index=name)
        found = index.find_alerts(opensearch, index=name, chain=desk.chain, **query)
        return {document["id"]: document for document in found}

    assert index.find_alerts(opensearch, index=name) == []
    assert index.index_pending(desk.conn, opensearch, name) == 2
    assert index.index_pending(desk.conn, opensearch, name) == 0
    found = find()
    assert set(found) == {one.hex(), other.hex()}
    assert found[one.hex()]["pool_risk"] == 0.973
    assert found[one.hex()]["evidence"] == {"amount": 2**256 - 1, "deep": {"x": [1, {"y": None}]}}
    assert set(find(severity="high")) == {one.hex()}
    assert set(find(pool="0x" + key("b")[:20].hex().upper())) == {other.hex()}
    assert set(find(wallet="0x" + key("bob")[:20].hex())) == {one.hex(), other.hex()}
    assert find(wallet="0x00") == {}

    desk.orphan(one)
    assert store.waiting(desk.conn) == (0, 1)
    assert index.index_pending(desk.conn, opensearch, name) == 1
    assert set(find()) == {other.hex()}
    assert find(active_only=False)[one.hex()]["retracted"]
    index.forget(opensearch, desk.chain, name)
    assert find(active_only=False) == {}
    assert store.forget(desk.conn, desk.chain) == 2
    assert desk.count() == 0


def test_what_is_predicted_later_comes_into_the_index(desk: Desk, name: str) -> None:
    opensearch = client(desk.settings)
    one = desk.anomaly("a")
    desk.raise_(one)
    assert index.index_pending(desk.conn, opensearch, name) == 1
    assert desk.raise_(one) == []
    assert index.index_pending(desk.conn, opensearch, name) == 0
    with desk.conn.transaction():
        predict(desk, one, score=0.5)
        assert desk.raise_(one) == []
    assert index.index_pending(desk.conn, opensearch, name) == 1
    opensearch.indices.refresh(index=name)
    assert [document["pool_risk"] for document in index.find_alerts(opensearch, index=name)] == [0.5]


def test_an_alert_has_its_anomalys_newest_evidence(desk: Desk, hook: Receiver) -> None:
    one = desk.anomaly("a", share=0.5)
    desk.raise_(one)
    desk.run("UPDATE intel.anomalies SET evidence = '{\"share\": 0.9}', revision = 2")
    assert desk.raise_(one) == []
    desk.deliver()
    assert [alert["evidence"] for alert in hook.taken()] == [{"share": 0.9}]


def test_a_stale_writer_does_not_win(desk: Desk, name: str) -> None:
    opensearch = client(desk.settings)
    one = desk.anomaly("a")
    desk.raise_(one)
    old = store.unindexed(desk.conn, 10)
    desk.orphan(one)
    index.index_pending(desk.conn, opensearch, name)
    written = index.write(opensearch, name, [index._line(alert) for alert in old.values()], 5)
    assert (written.conflicts, written.rejected) == (1, 0)
    store.indexed(desk.conn, [(one, 1)])
    assert store.waiting(desk.conn) == (0, 0)


def test_an_index_that_is_away_keeps_alerts_waiting(desk: Desk) -> None:
    desk.raise_(desk.anomaly("a"))
    away = client(desk.settings.model_copy(update={"opensearch_url": "http://127.0.0.1:1"}))
    with pytest.raises(Unavailable, match="no connection"):
        index.index_pending(desk.conn, away, retry_for_s=0)
    assert store.waiting(desk.conn) == (0, 1)
