"""Everything is killed, again and again, while events flow: nothing is lost, nothing is doubled, the index is whole,
each anomaly is there once, and each alert is told once.

Kills are SIGKILL, at random moments, of a lane's run, the prediction engine's run, the broker, the database, the index,
S3 and the daemon. The order is random but every kind comes up; the seed is printed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from dash_pipeline import topics
from dash_pipeline.demo import LIVE_CHAIN, Outcome
from dash_pipeline.feed import files
from dash_pipeline.kafka import confluent_options
from dash_pipeline.market import RECORDED
from dash_pipeline.settings import Settings
from dash_pipeline.stack import Stack, processes
from dash_pipeline.storage import timescale
from dash_pipeline.storage.search.alerts import find_alerts
from dash_pipeline.storage.search.bulk import client
from dash_pipeline.topics import topic_name
from tests.webhooks import Receiver
from tests.whole import check, settle

KILLS = 21
KILL_FOR_S = 400
CHAIN = LIVE_CHAIN  # no other end-to-end test feeds it
#: Kills of runs, by the code server that has them as its children.
RUNS = {"lane": "code-ingestion", "engine": "code-intelligence"}
SERVERS = ("kafka", "timescale", "opensearch", "s3", "daemon")
TARGETS = (*RUNS, *SERVERS)
BETWEEN_S = (1.0, 5.0)


def runs(stack: Stack, code_server: str) -> list[int]:
    """Processes that execute runs: the code server spawns one for each."""
    server = stack.pid(code_server)
    found = []
    for pid in processes.tree(server) - {server}:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"spawn_main" in command:
            found.append(pid)
    return found


class Feed(threading.Thread):
    """Publishes the recorded market, and then again, slowly, until it is told that the kills are over; whole once at
    least. Its producer never gives up."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(name="feed", daemon=True)
        self.kills_over = threading.Event()
        self.sent: Counter[str] = Counter()
        self.whole = False
        self._producer = Producer(
            confluent_options(settings)
            | {
                "enable.idempotence": True,
                "log_level": 2,
                "message.timeout.ms": 600_000,
                "queue.buffering.max.messages": 1_000_000,
            }
        )

    def run(self) -> None:
        (recorded,) = files.find([RECORDED]).groups
        self.sent = files.check(recorded)
        while not (self.whole and self.kills_over.is_set()):
            for i, (message, line) in enumerate(files.merged(recorded)):
                self._producer.produce(topic_name(CHAIN, message.type), line)
                self._producer.poll(0)
                if self.kills_over.is_set():
                    if self.whole:
                        break
                elif i % 100 == 0:
                    time.sleep(0.25)
            self.whole = True
        assert self._producer.flush(300) == 0


def kill(stack: Stack, target: str) -> bool:
    """SIGKILL; whether there was something to kill."""
    if target in SERVERS:
        stack.kill(target)
        return True
    found = runs(stack, RUNS[target])
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return bool(found)


@pytest.fixture
def receiver(platform: Stack) -> Iterator[Receiver]:
    """Gets every alert while it is there. Runs read the settings when they start."""
    file, secret = platform.layout.env, platform.settings().alert_secret
    assert secret is not None
    text = file.read_text()
    with Receiver(secret) as there:
        file.write_text(f"{text}DASH_ALERT_ROUTES='{json.dumps({'ops': there.url})}'\n")
        yield there
        file.write_text(text)


@pytest.mark.parametrize("seed", [int(os.environ.get("DASH_KILL_SEED") or random.SystemRandom().randrange(10**6))])
def test_nothing_is_lost_or_doubled(platform: Stack, outcome: Outcome, receiver: Receiver, seed: int) -> None:
    assert outcome.agrees, "ingested without kills, for comparison; the champions are there then, too"
    settings, dice, killed = platform.settings(), random.Random(seed), Counter[str]()
    topics.ensure(settings, [CHAIN])
    feed = Feed(settings)
    feed.start()
    order = list(TARGETS) * (KILLS // len(TARGETS))
    dice.shuffle(order)
    deadline = time.monotonic() + KILL_FOR_S
    while order:
        assert feed.is_alive(), "the feed died"
        assert time.monotonic() < deadline, f"only {dict(killed)}"
        time.sleep(dice.uniform(*BETWEEN_S))
        target = order.pop(0)
        if target in SERVERS:
            platform.wait_ready(target, deadline - time.monotonic())
        if kill(platform, target):
            killed[target] += 1
        else:
            order.append(target)  # no run is alive at the moment: its turn comes later
            order.sort(key=lambda _: dice.random())
    feed.kills_over.set()
    feed.join(400)
    assert not feed.is_alive()
    for target in SERVERS:
        platform.wait_ready(target, 120)
    print(f"seed {seed}: {killed.total()} kills: {dict(killed)}")
    settle(settings, CHAIN)
    check(settings, CHAIN, feed.sent)
    check_alerts(settings, receiver, outcome)
    assert killed.total() >= KILLS


def check_alerts(settings: Settings, receiver: Receiver, whole: Outcome) -> None:
    """The anomalies are those of the same market ingested in one go; each that people are told of was told once."""
    found = (
        "SELECT kind, severity, encode(pool, 'hex'), encode(tx_hash, 'hex'), score FROM intel.anomalies"
        " WHERE chain = %s AND retracted_at IS NULL ORDER BY 1, 2, 3, 4"
    )
    with timescale.connect(settings) as conn:
        killed, in_one_go = (conn.execute(found, (chain,)).fetchall() for chain in (CHAIN, whole.chain))
        assert killed == in_one_go != []
        raised = [
            row[0]
            for row in conn.execute(
                "SELECT encode(id, 'hex') FROM intel.alerts WHERE chain = %s AND retracted_at IS NULL", (CHAIN,)
            )
        ]
        # While S3 was away a new run had no champions: then the prediction says so.
        silent_about = conn.execute(
            "SELECT count(*) FROM intel.anomalies a WHERE chain = %s AND retracted_at IS NULL AND NOT EXISTS ("
            " SELECT FROM intel.predictions p"
            " WHERE p.anomaly_id = a.id AND p.model = 'pool_risk'"
            " AND (p.score IS NOT NULL OR p.version = 'none' AND p.reason IS NOT NULL))",
            (CHAIN,),
        ).fetchone()
    assert silent_about == (0,)
    told = receiver.told()
    # Once, and once more for each time that it was taken back.
    assert all(told[id_, "raised"] == told[id_, "retracted"] + 1 for id_ in raised), told
    pools = {alert["pool"] for alert in receiver.taken() if alert["severity"] == "high" and alert["chain"] == CHAIN}
    assert pools == set(whole.rug_pulls)
    opensearch = client(settings)
    opensearch.indices.refresh(index="alerts")
    assert {document["id"] for document in find_alerts(opensearch, chain=CHAIN, size=1_000)} == set(raised)
