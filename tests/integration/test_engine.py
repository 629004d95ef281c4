"""From an anomaly on its topic to whoever is told of it: scored, alerted, delivered and indexed once each, whatever is
killed, down or broken meanwhile. On the real servers, with small champions of the real models."""

from __future__ import annotations

import json
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import psycopg
import pytest
from confluent_kafka import Producer
from kafka import KafkaAdminClient, TopicPartition

from dash_pipeline import topics
from dash_pipeline.alerts import deliver as delivery
from dash_pipeline.archive.retain import retain
from dash_pipeline.chains import load_chains
from dash_pipeline.errors import Unavailable
from dash_pipeline.feed.wait import end_offsets
from dash_pipeline.kafka import confluent_options, kafka_python_options
from dash_pipeline.lag import ExtentReader
from dash_pipeline.microbatch import drain as lanes
from dash_pipeline.microbatch.announce import Announcer
from dash_pipeline.microbatch.lanes import lane
from dash_pipeline.models.artifact import Artifact
from dash_pipeline.models.catalogue import MODELS
from dash_pipeline.models.champions import Champions
from dash_pipeline.models.liquidity_outlook import NO_RESERVES
from dash_pipeline.models.pool_features import NO_HISTORY, NO_TOKENS
from dash_pipeline.models.registry import Registry
from dash_pipeline.models.spec import Spec
from dash_pipeline.predictions import direct, react
from dash_pipeline.predictions.direct import DirectAlerts
from dash_pipeline.predictions.engine import Limits, Outcome, run_engine
from dash_pipeline.predictions.explain import explain
from dash_pipeline.predictions.predict import predict
from dash_pipeline.settings import Settings
from dash_pipeline.storage import alerts as store
from dash_pipeline.storage import s3
from dash_pipeline.storage import timescale as db
from dash_pipeline.storage.anomalies import Stored, read_anomalies
from dash_pipeline.storage.migrate import upgrade
from dash_pipeline.storage.predictions import Prediction
from dash_pipeline.storage.search import client
from dash_pipeline.storage.search.alerts import ALERTS_INDEX, find_alerts
from dash_pipeline.topics import ANOMALIES, Partition
from sensors.anomalies_decision import Seen, decide
from tests.chain import START, TOPIC0, Messages, address, merge, word
from tests.faults import faulty
from tests.pools import NOBODY, UNIT, WETH, Pool, block, life
from tests.webhooks import SECRET, Receiver

DEVELOPER = "0x" + "d" * 40
BLOCKS = 40
SOON = Limits(idle_timeout_s=1, max_run_s=110)
POOL_MODELS = ("liquidity_outlook", "pool_risk")


def raw(value: str) -> bytes:
    return bytes.fromhex(value[2:])


@dataclass
class Desk:
    """A chain of the test's own with one pool, the receiver of its alerts, and runs of the lane and of the engine."""

    chain: str
    settings: Settings
    conn: db.Connection
    champions: Champions
    hook: Receiver
    pool: Pool = field(default_factory=lambda: Pool("x", DEVELOPER))

    def produce(self, blocks: Sequence[tuple[str, Messages]]) -> None:
        producer = Producer(confluent_options(self.settings))
        for type_, values in merge(messages for _, messages in blocks).items():
            for value in values:
                producer.produce(topics.topic_name(self.chain, type_), value, partition=0)
        assert producer.flush(30) == 0

    def drain(self, idle_s: float = 1.5, **settings: Any) -> lanes.Checkpoint:
        mine = lane(self.chain, end_offsets(self.settings, topics.chain_topics(self.chain)))
        limits = lanes.Limits(idle_timeout_s=idle_s, max_run_s=120, checkpoint_s=1)
        return lanes.drain(self.settings.model_copy(update=settings), mine, limits, "lane")

    def rug(self) -> Stored:
        """The pool lives and is drained; its one severe anomaly, which is on the topic then."""
        self.produce([*life(self.pool, BLOCKS), self.end()])
        assert self.drain().lag_after == 0
        return self.severe()

    def end(self) -> tuple[str, Messages]:
        """The block in which the pool is drained."""
        name = f"A{BLOCKS}"
        return name, block(name, f"A{BLOCKS - 1}", [(DEVELOPER, self.pool.drained())])

    def severe(self) -> Stored:
        ((id_,),) = self.rows("SELECT id FROM intel.anomalies WHERE severity = 'high'")
        (one,) = read_anomalies(self.conn, [id_])
        assert one.chain == self.chain
        return one

    def insert(self, rows: Sequence[tuple[str, str, datetime]]) -> list[bytes]:
        """Anomalies (pool, severity, ts) by hand, and on the topic."""
        columns = (
            "id, chain, ts, block_number, block_hash, tx_hash, log_indexes, pool, token, tokens, wallets, kind,"
            " severity, score, evidence"
        )
        ids = [f"{self.chain}{i:07}".encode() for i in range(len(rows))]
        with self.conn.cursor() as cursor, cursor.copy(f"COPY intel.anomalies ({columns}) FROM STDIN") as copy:
            for id_, (pool, severity, ts) in zip(ids, rows, strict=True):
                token, wallet = raw(pool)[1:] + b"t", raw(pool)[::-1]
                copy.write_row((id_, self.chain, ts, 7, bytes(32), id_, [1], raw(pool), token, [token], [wallet],
                                "liquidity_withdrawal", severity, 0.9, json.dumps({"share": 0.9})))  # fmt: skip
        announcer = Announcer(self.settings, self.chain)
        while announcer.publish():
            pass
        return ids

    def partitions(self) -> dict[Partition, int]:
        return end_offsets(self.settings, [ANOMALIES])

    def engine(self, limits: Limits = SOON, champions: Champions | None = None) -> Outcome:
        outcome = run_engine(self.settings, self.partitions(), champions or self.champions, limits, "engine")
        assert not any(ExtentReader(self.settings).read([ANOMALIES]).lag(db.committed_offsets(self.conn)).values())
        return outcome

    def seek(self, offsets: dict[Partition, int]) -> None:
        db.forget_offsets(self.conn, ANOMALIES)
        db.claim(self.conn, offsets, "test")

    def rows(self, query: str, *params: Any) -> list[tuple[Any, ...]]:
        return self.conn.execute(query, params).fetchall()

    def predictions(self) -> list[dict[str, Any]]:
        names = ("anomaly_id", "model", "subject", "as_of", "version", "score", "reason", "features", "contributions")
        found = self.rows(f"SELECT {', '.join(names)} FROM intel.predictions ORDER BY 1, 2, 3")
        return [dict(zip(names, row, strict=True)) for row in found]

    def everything(self) -> list[Any]:
        """All that follows from anomalies, with when it was written."""
        tables = ("predictions", "alerts", "deliveries")
        return [self.rows(f"SELECT x.*, xmin::text FROM intel.{name} x ORDER BY x::text") for name in tables]

    def documents(self) -> list[dict[str, Any]]:
        """The chain's alerts in the index."""
        opensearch = client(self.settings)
        opensearch.indices.refresh(index=ALERTS_INDEX, params={"ignore_unavailable": "true"})
        return find_alerts(opensearch, chain=self.chain, active_only=False)

    def later(self, seconds: float) -> None:
        """That much time passes for what waits to be delivered."""
        self.conn.execute(
            "UPDATE intel.deliveries SET next_try_at = next_try_at - %s * interval '1 second'", (seconds,)
        )

    def told_once(self, *alerts: bytes) -> None:
        """The receiver took each of these once and no other; the index shows each once, as it is."""
        assert self.hook.told() == {(id_.hex(), "raised"): 1 for id_ in alerts}
        assert all(request.signed for request in self.hook.requests)
        assert [id_ for (id_,) in self.rows("SELECT id FROM intel.alerts ORDER BY id")] == sorted(alerts)
        revisions = self.rows("SELECT encode(id, 'hex'), revision FROM intel.alerts ORDER BY 1")
        assert sorted((one["id"], one["revision"]) for one in self.documents()) == revisions
        assert store.waiting(self.conn) == (0, 0)


def small(spec: Spec) -> Artifact:
    """A champion of a real model, small: its label is whether the sum of the features is large."""
    dice = np.random.default_rng(1)
    features = spec.derive({name: dice.lognormal(0, 1, 300) for name in spec.columns})
    matrix = np.column_stack(list(features.values()))
    places = np.nan_to_num(matrix).argsort(0).argsort(0).sum(1)
    params = {"objective": "binary", "num_leaves": 7, "verbose": -1, "num_threads": 1}
    booster = lightgbm.train(params, lightgbm.Dataset(matrix, places > np.median(places)), 10)
    return Artifact(spec.name, list(features), [booster.model_to_string()], ([0.0, 1.0], [0.01, 0.99]), 0.5, {}, {})


@pytest.fixture(scope="module")
def migrated(database: Settings, unique: Callable[[str], str]) -> Settings:
    """With a bucket of this module's own, that holds no champion."""
    upgrade(database)
    own = database.model_copy(update={"s3_bucket": unique("engine-"), "direct_alerts": False, "alert_secret": SECRET})
    s3.bucket(own).client.create_bucket(Bucket=own.s3_bucket)
    topics.ensure(own, [])
    return own


@pytest.fixture(scope="module")
def promoted(migrated: Settings, unique: Callable[[str], str]) -> Settings:
    """With a champion of each model."""
    own = migrated.model_copy(update={"s3_bucket": unique("engine-")})
    s3.bucket(own).client.create_bucket(Bucket=own.s3_bucket)
    registry = Registry(own)
    for name, spec in MODELS.items():
        registry.promote(name, registry.save(small(spec), {}))
    return own


@pytest.fixture(scope="module")
def champions(promoted: Settings) -> Iterator[Champions]:
    with Champions(promoted) as champions:
        assert all(champions.get(name) for name in MODELS)
        yield champions


@pytest.fixture
def desk(promoted: Settings, champions: Champions, unique: Callable[[str], str], tmp_path: Path) -> Iterator[Desk]:
    chain, registry = unique("c"), tmp_path / "chains.toml"
    registry.write_text(
        f'[{chain}]\ntitle = "A test"\nchain_id = 1\nblock_time_s = 12.0\n'
        f'quote_tokens = [{{ symbol = "WETH", decimals = 18, stable = false, address = "{WETH}" }}]\n'
    )
    topics.ensure(promoted, [chain], 1)
    with db.connect(promoted) as conn, Receiver() as hook:
        settings = promoted.model_copy(update={"chains_file": registry, "alert_routes": {"ops": hook.url}})
        one = Desk(chain, settings, conn, champions, hook)
        one.seek(one.partitions())
        yield one
        conn.execute("TRUNCATE intel.anomalies, intel.alerts, intel.deliveries, intel.predictions")
        # What is no JSON, or is ten thousand messages, is not for other tests to read.
        with KafkaAdminClient(**kafka_python_options(settings)) as admin:
            admin.delete_records({TopicPartition(*place): end for place, end in one.partitions().items()})


# --- all is well


def test_a_rug_pull_is_scored_told_and_indexed_once(desk: Desk) -> None:
    anomaly = desk.rug()
    assert (desk.everything(), desk.hook.requests) == ([[], [], []], []), "the lane does it only if it may"
    outcome = desk.engine()
    published = desk.rows("SELECT id FROM intel.anomalies")
    assert (outcome.messages, outcome.refused, outcome.failed) == (len(published), 0, 0)
    assert outcome.reaction.anomalies == len(published)
    assert (outcome.reaction.unpredicted, outcome.delivered, outcome.indexed) == (0, 1, 1)

    said = [one for one in desk.predictions() if one["anomaly_id"] == anomaly.id]
    assert [(one["model"], one["subject"]) for one in said] == [
        *((model, raw(desk.pool.address)) for model in POOL_MODELS), ("wallet_risk", raw(DEVELOPER)),
    ]  # fmt: skip
    for one in said:
        scorer = desk.champions.get(one["model"])
        assert scorer is not None
        assert (one["version"], one["reason"], one["as_of"]) == (scorer.version, None, anomaly.ts)
        columns = {name: np.array([one["features"][name]], np.float64) for name in MODELS[one["model"]].columns}
        assert 0 <= one["score"] <= 1
        assert one["score"] == scorer.score(columns)[0]
        assert one["contributions"] == dict(scorer.explain(columns)[0])
        assert one["contributions"]
    by_model = {one["model"]: one for one in said}
    assert by_model["pool_risk"]["features"]["burn_count_per_week"] > 0, "as of the block of the rug pull, with it"
    assert by_model["liquidity_outlook"]["features"]["withdrawn_share"] > 0.9

    (request,) = desk.hook.requests
    assert delivery.verify(SECRET, request.headers, request.body, time.time())
    assert not delivery.verify(SECRET, request.headers, request.body + b" ", time.time())
    (alert,) = request.alerts
    assert (alert["event"], alert["id"], alert["chain"]) == ("raised", anomaly.id.hex(), desk.chain)
    assert (alert["pool"], alert["wallets"]) == (desk.pool.address, [DEVELOPER])
    told = {(one["model"], one["version"], one["score"]) for one in alert["predictions"]}
    assert told == {(one["model"], one["version"], one["score"]) for one in said}
    (document,) = desk.documents()
    assert [document[model] for model in POOL_MODELS] == [by_model[model]["score"] for model in POOL_MODELS]
    assert document["predictions"] == alert["predictions"]
    desk.told_once(anomaly.id)


def test_a_second_run_and_one_from_offset_0_change_nothing(desk: Desk) -> None:
    anomaly = desk.rug()
    desk.engine()
    before = desk.everything()
    again = desk.engine()
    assert (again.messages, again.delivered, again.indexed) == (0, 0, 0)
    desk.seek(dict.fromkeys(desk.partitions(), 0))
    again = desk.engine()
    assert again.reaction.anomalies == len(desk.rows("SELECT FROM intel.anomalies"))
    assert (again.reaction.predictions, again.reaction.alerts, again.delivered, again.indexed) == (0, [], 0, 0)
    assert desk.everything() == before
    assert len(desk.hook.requests) == 1
    desk.told_once(anomaly.id)


# --- kills


KILLED = """
import os, pickle, signal, sys
from importlib import import_module
from dash_pipeline.models.champions import Champions
from dash_pipeline.archive.retain import retain
from dash_pipeline.predictions.engine import Limits, run_engine
settings, partitions, at = pickle.load(sys.stdin.buffer)
module, _, name = at.rpartition(".")
setattr(import_module(module), name, lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL))
with Champions(settings) as champions:
    run_engine(settings, partitions, champions, Limits(1, 60), "killed")
"""


@pytest.mark.parametrize(
    ("at", "committed", "requests", "indexed"),
    [
        pytest.param("storage.timescale.advance_offsets", False, 0, False, id="before the commit"),
        pytest.param("storage.alerts.delivered", True, 1, False, id="before the answer is recorded"),
        *(
            pytest.param(*step, id=name, marks=pytest.mark.patient)
            for *step, name in [
                ("predictions.engine.deliver", True, 0, False, "before delivery"),
                ("predictions.engine.index_pending", True, 1, False, "before indexing"),
                ("storage.alerts.indexed", True, 1, True, "before it is recorded that it is indexed"),
            ]
        ),
    ],
)
def test_killed_at_a_step_the_next_run_does_the_rest(
    desk: Desk, at: str, committed: bool, requests: int, indexed: bool
) -> None:
    anomaly = desk.rug()
    given = pickle.dumps((desk.settings, list(desk.partitions()), f"dash_pipeline.{at}"))
    done = subprocess.run([sys.executable, "-c", KILLED], input=given, timeout=90, check=False)
    assert done.returncode == -signal.SIGKILL
    assert bool(desk.predictions()) is bool(desk.rows("SELECT FROM intel.alerts")) is committed
    assert len(desk.hook.requests) == requests
    assert len(desk.documents()) == indexed
    before = desk.predictions()
    desk.later(delivery.LEASE_S)
    outcome = desk.engine()
    assert (outcome.messages == 0) is committed
    if committed:
        assert desk.predictions() == before, "what was said stands"
    keys = [(one["anomaly_id"], one["model"], one["subject"]) for one in desk.predictions()]
    assert [key[0] for key in keys].count(anomaly.id) == 3
    desk.told_once(anomaly.id)
    # A request whose answer nobody heard is made again: the same one, for the receiver to know it by.
    assert len(desk.hook.requests) == 1 + (at == "storage.alerts.delivered")
    assert len({request.key for request in desk.hook.requests}) == 1


# --- what cannot be scored


def test_without_a_champion_the_alert_carries_the_anomaly_alone(desk: Desk, migrated: Settings) -> None:
    anomaly = desk.rug()
    with Champions(migrated) as none:
        desk.engine(champions=none)
    for one in desk.predictions():
        assert (one["version"], one["score"], one["contributions"]) == ("none", None, {})
        assert "no champion yet" in one["reason"]
    (alert,) = desk.hook.taken()
    assert alert["evidence"] == anomaly.evidence
    assert len(alert["predictions"]) == 3
    assert {one["score"] for one in alert["predictions"]} == {None}
    assert not any(model in alert["text"] for model in MODELS)
    desk.told_once(anomaly.id)
    # A champion that comes later is asked when the anomaly comes by again, and nobody is told anew.
    desk.seek(dict.fromkeys(desk.partitions(), 0))
    desk.engine()
    assert None not in {one["score"] for one in desk.predictions()}
    desk.told_once(anomaly.id)


def test_unknown_pools_and_unknown_numbers_have_reasons(desk: Desk) -> None:
    """One pool of which nothing is stored, and one whose creation is not."""
    known = Pool("m", DEVELOPER)
    desk.produce(life(known, 9)[1:])
    desk.drain()
    pools = [address("nowhere"), known.address]
    ids = desk.insert([(pool, "high", datetime.fromtimestamp(START + 12 * 8, UTC)) for pool in pools])
    assert desk.engine().reaction.unpredicted == 0
    said = {(one["subject"], one["model"]): one for one in desk.predictions()}
    reasons = {(subject, model): one["reason"] for (subject, model), one in said.items()}
    for model in POOL_MODELS:
        assert reasons.pop((raw(pools[0]), model)) == NO_HISTORY
    assert reasons.pop((raw(pools[1]), "liquidity_outlook")) == NO_RESERVES
    assert reasons.pop((raw(pools[1]), "pool_risk")) == NO_TOKENS
    assert all(reason.startswith("no history") for reason in reasons.values()), "the wallets are made up"
    (scored,) = [one for one in said.values() if one["score"] is not None]
    assert (scored["model"], scored["subject"]) == ("pool_risk", raw(known.address)), "by what is known of it"
    assert 0 <= scored["score"] <= 1
    assert None in scored["features"].values()
    desk.told_once(*ids)


def test_a_bug_in_scoring_costs_the_score_not_the_alert(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*args: object) -> None:
        raise ValueError("a bug")

    anomaly = desk.rug()
    monkeypatch.setattr(react, "predict", bug)
    outcome = desk.engine()
    assert outcome.reaction.unpredicted == outcome.reaction.anomalies > 0
    assert desk.predictions() == []
    desk.told_once(anomaly.id)


# --- forks, and what is no anomaly


def test_a_fork_takes_the_alert_back(desk: Desk) -> None:
    anomaly = desk.rug()
    desk.engine()
    before = desk.predictions()
    names = [f"B{BLOCKS}", f"B{BLOCKS + 1}"]
    desk.produce([(name, block(name, below)) for name, below in zip(names, [f"A{BLOCKS - 1}", *names], strict=False)])
    assert desk.drain().reorgs == 1
    assert read_anomalies(desk.conn, [anomaly.id])[0].retracted
    outcome = desk.engine()
    assert outcome.reaction.retracted == outcome.messages > 0
    assert desk.hook.told() == {(anomaly.id.hex(), "raised"): 1, (anomaly.id.hex(), "retracted"): 1}
    assert desk.hook.events() == ["raised", "retracted"]
    assert desk.hook.taken()[1]["text"].startswith("TAKEN BACK")
    (document,) = desk.documents()
    assert (document["id"], document["retracted"]) == (anomaly.id.hex(), True)
    assert document["retracted_at"]
    assert desk.predictions() == before
    desk.seek(dict.fromkeys(desk.partitions(), 0))
    desk.engine()
    assert len(desk.hook.requests) == 2


def test_what_is_no_anomaly_is_refused_and_passed_over(desk: Desk) -> None:
    nested = b'{"id": "0x00", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    refused = [b"", b"nonsense", b"\xff\xfe", b"[]", b"{}", b'{"id": 5}', b'{"id": "0xzz"}', b'{"id": "\xff"}', nested]
    producer = Producer(confluent_options(desk.settings))
    for partition in {number for _, number in desk.partitions()}:
        for value in [*refused, json.dumps({"id": "0x" + "ab" * 16}).encode()]:
            producer.produce(ANOMALIES, value, partition=partition)
    producer.flush(30)
    partitions = len(desk.partitions())
    anomaly = desk.rug()
    outcome = desk.engine()
    assert outcome.refused == len(refused) * partitions
    assert outcome.messages == (len(refused) + 1) * partitions + outcome.reaction.anomalies
    desk.told_once(anomaly.id)


# --- pools and wallets that are older than the hot tables


LATER = 9 * 86_400


@pytest.fixture
def old(desk: Desk) -> tuple[Desk, Stored, Stored, list[Prediction]]:
    """A pool whose first day is archived and one that is younger, both drained; what is said of the old one while all
    of it is hot."""
    young = Pool("y", address("newcomer"))
    blocks = life(desk.pool, 20)
    for n in range(20, BLOCKS):
        wallet = address(f"late{n % 5}")
        did = [(wallet, desk.pool.traded(wallet))]
        did.append((wallet, young.traded(wallet)) if n > 20 else (young.developer, young.opened()))
        blocks.append((f"A{n}", block(f"A{n}", f"A{n - 1}", did, later=LATER)))
    end = [(pool.developer, pool.drained()) for pool in (desk.pool, young)]
    desk.produce([*blocks, (f"A{BLOCKS}", block(f"A{BLOCKS}", f"A{BLOCKS - 1}", end, later=LATER))])
    assert desk.drain().lag_after == 0
    desk.conn.execute(
        "INSERT INTO chain.contracts (chain, ts, block_number, block_hash, address) SELECT chain, ts, block_number,"
        " block_hash, token0 FROM chain.pools WHERE chain = %s",
        (desk.chain,),
    )
    found = {}
    for (id_,) in desk.rows("SELECT id FROM intel.anomalies WHERE severity = 'high'"):
        (one,) = read_anomalies(desk.conn, [id_])
        found[one.pool] = one
    anomaly = found[raw(desk.pool.address)]
    said = predict(desk.conn, load_chains(desk.settings.chains_file)[desk.chain], desk.champions, [anomaly])
    assert [one.score is not None for one in said] == [True] * 3
    desk.conn.execute("DELETE FROM ops.changed_hours WHERE chain = %s", (desk.chain,))  # as a run of the marts does
    assert retain(desk.settings, "run", chain=desk.chain) > 0
    assert not desk.rows("SELECT FROM chain.pool_events WHERE chain = %s AND event = 'mint' AND pool = %s",
                         desk.chain, anomaly.pool)  # fmt: skip
    return desk, anomaly, found[raw(young.address)], said


def said_of(desk: Desk, anomaly: Stored) -> dict[tuple[str, bytes], tuple[Any, ...]]:
    return {
        (one["model"], one["subject"]): (one["score"], one["features"], one["contributions"])
        for one in desk.predictions()
        if one["anomaly_id"] == anomaly.id
    }


def wanted(said: Sequence[Prediction]) -> dict[tuple[str, bytes], tuple[Any, ...]]:
    return {(one.model, one.subject): (one.score, one.features, one.contributions) for one in said}


def test_the_lane_tells_at_once_and_the_engine_scores_what_is_archived(
    old: tuple[Desk, Stored, Stored, list[Prediction]],
) -> None:
    desk, anomaly, young, said = old
    with faulty(desk.settings) as (through, fault):
        thread = DirectAlerts(through, "lane")
        thread.start()
        wait_for(lambda: all(thread._champions.get(name) for name in MODELS))
        try:
            thread.take([anomaly, young])
            wait_for(lambda: len(desk.hook.taken()) == 2)
        finally:
            thread.close(20)
        assert not [one.path for one in fault.requests if "archive/" in one.path]
    told = {alert["id"]: [one["score"] is not None for one in alert["predictions"]] for alert in desk.hook.taken()}
    assert told == {anomaly.id.hex(): [], young.id.hex(): [True] * 3}
    first = said_of(desk, young)
    outcome = desk.engine()
    assert (outcome.delivered, outcome.reaction.unpredicted) == (0, 0)
    assert said_of(desk, anomaly) == wanted(said), "to the last bit what it was while all was hot"
    assert said_of(desk, young) == first
    document = next(one for one in desk.documents() if one["id"] == anomaly.id.hex())
    scores = {one.model: one.score for one in said}
    assert [document[model] for model in POOL_MODELS] == [scores[model] for model in POOL_MODELS]
    assert [one["score"] is not None for one in document["predictions"]] == [True] * 3
    desk.told_once(anomaly.id, young.id)
    explained = explain(desk.settings, desk.chain, desk.pool.address)
    assert {one.model: one.features for one in explained} == {
        one.model: one.features for one in said if one.subject == anomaly.pool
    }


def test_an_archive_that_is_away_holds_up_no_alert(old: tuple[Desk, Stored, Stored, list[Prediction]]) -> None:
    desk, anomaly, young, said = old
    fine = desk.settings
    with faulty(fine) as (desk.settings, fault):
        fault.down()
        outcome = desk.engine()
    desk.settings = fine
    assert (outcome.delivered, outcome.reaction.unpredicted) == (2, 0)
    mine = [one for one in desk.predictions() if one["anomaly_id"] == anomaly.id]
    assert [one["score"] for one in mine] == [None] * 3
    for one in mine:
        assert one["reason"].startswith("archive: ")
        assert "cannot be read" in one["reason"]
        assert one["features"] == {}
    assert None not in [score for score, *_ in said_of(desk, young).values()]
    # It is asked again when the anomaly comes by again, and nobody is told anew.
    desk.seek(dict.fromkeys(desk.partitions(), 0))
    desk.engine()
    assert said_of(desk, anomaly) == wanted(said)
    desk.told_once(anomaly.id, young.id)


@pytest.mark.parametrize("at", ["storage.history.archived", "predictions.engine.read_anomalies"])
def test_killed_while_the_archive_is_read_the_next_run_does_the_rest(
    old: tuple[Desk, Stored, Stored, list[Prediction]], at: str
) -> None:
    desk, anomaly, young, said = old
    given = pickle.dumps((desk.settings, list(desk.partitions()), f"dash_pipeline.{at}"))
    done = subprocess.run([sys.executable, "-c", KILLED], input=given, timeout=90, check=False)
    assert done.returncode == -signal.SIGKILL
    if at == "storage.history.archived":
        assert len(desk.hook.taken()) == 2, "alerts do not wait for the archive"
        assert said_of(desk, anomaly) == {}
        assert any(ExtentReader(desk.settings).read([ANOMALIES]).lag(db.committed_offsets(desk.conn)).values())
    desk.engine()
    assert said_of(desk, anomaly) == wanted(said)
    desk.told_once(anomaly.id, young.id)


# --- floods, and receivers that are away


def test_many_moments_at_a_time_say_what_each_says_alone(desk: Desk) -> None:
    """To the last bit: also of pools that share a creator, are not there yet, get another creator, are made twice."""
    pools = [Pool(f"p{i}", DEVELOPER if i % 2 else address(f"d{i}")) for i in range(6)]
    traders = [address(f"t{i}") for i in range(5)]
    blocks = []
    for n in range(50):
        did = [(pool.developer, pool.opened()) for i, pool in enumerate(pools) if n == 3 * i]
        did += [(t := traders[(n + i) % 5], p.traded(t)) for i, p in enumerate(pools) if n > 3 * i and (n + i) % 3]
        did += [(pool.developer, pool.drained(0.3)) for i, pool in enumerate(pools) if n == 30 + 3 * i]
        blocks.append((f"A{n}", block(f"A{n}", f"A{n - 1}", did)))
    swapped = [TOPIC0["uniswap_v2", "pair_created"], *("0x" + word(token) for token in (WETH, pools[0].token))]
    issued = [TOPIC0["erc20", "transfer"], *("0x" + word(wallet) for wallet in (NOBODY, pools[2].developer))]
    late = [(address("other"), swapped, word(pools[0].address) + word(1)), (pools[1].token, issued, word(UNIT))]
    desk.produce([*blocks, ("A50", block("A50", "A49", [(traders[0], late)]))])
    desk.drain()
    desk.conn.execute(
        "UPDATE chain.transactions t SET receipt_contract_address = p.token0 FROM chain.pools p"
        " WHERE t.chain = %s AND t.block_hash = p.block_hash AND t.tx_hash = p.tx_hash",
        (desk.chain,),
    )
    start = datetime.fromtimestamp(START, UTC)
    desk.insert([(pools[i % 6].address, "high", start + timedelta(seconds=8 * i)) for i in range(80)])
    people = [raw(wallet) for wallet in [*traders, DEVELOPER]]
    desk.conn.execute("UPDATE intel.anomalies SET wallets = %s WHERE log_indexes = '{1}'", (people,))
    anomalies = read_anomalies(desk.conn, [id_ for (id_,) in desk.rows("SELECT id FROM intel.anomalies")])
    registered = load_chains(desk.settings.chains_file)[desk.chain]

    def said(*some: Stored) -> list[str]:
        return sorted(map(repr, predict(desk.conn, registered, desk.champions, some)))

    together = said(*anomalies)
    assert together == sorted(text for one in anomalies for text in said(one))
    assert len(together) > 80 * 8
    assert sum("score=0." in text for text in together) > 80 * 6


def test_a_flood_is_one_run_and_few_requests(desk: Desk) -> None:
    dice = random.Random(5)
    noon = datetime(2024, 3, 9, 12, tzinfo=UTC)
    rows = [
        (address(f"pool{i % 2000}"), dice.choice(["low", "medium", "high"]), noon + timedelta(seconds=i))
        for i in range(10_000)
    ]
    desk.insert(rows)

    def asked(live: int = 0) -> int:
        """How many partitions the sensor starts a run for."""
        extent = ExtentReader(desk.settings).read([ANOMALIES])
        due, unindexed = store.waiting(desk.conn)
        return len(decide(Seen(extent, db.committed_offsets(desk.conn), due, unindexed, live)).partitions)

    assert asked() == len(desk.partitions())
    assert asked(live=1) == 0, "one run, however much there is"
    outcome = desk.engine()
    assert outcome.seconds < SOON.max_run_s
    assert (outcome.messages, outcome.reaction.anomalies, outcome.reaction.unpredicted) == (10_000, 10_000, 0)
    assert asked() == 0
    assert desk.rows("SELECT count(*) FROM intel.predictions") == [(30_000,)]
    alerts = [id_ for (id_,) in desk.rows("SELECT id FROM intel.alerts")]
    severe = {pool for pool, severity, _ in rows if severity != "low"}
    assert len(severe) <= len(alerts) <= 2 * len(severe), "a pool alerts again only when it gets worse"
    assert desk.hook.told() == {(id_.hex(), "raised"): 1 for id_ in alerts}
    assert len(desk.hook.requests) <= len(alerts) / desk.settings.alert_batch + outcome.seconds / 5 + 5
    assert store.waiting(desk.conn) == (0, 0)


def test_a_receiver_that_is_away_gets_what_waited_once(desk: Desk) -> None:
    anomaly = desk.rug()
    desk.hook.fail(20)
    outcome = desk.engine()
    assert (outcome.delivered, outcome.indexed) == (0, 1)
    assert outcome.failed == len(desk.hook.requests) >= 1
    desk.hook.answers.clear()
    desk.hook.down()
    desk.later(400)
    outcome = desk.engine()
    assert outcome.delivered == 0 < outcome.failed
    assert "no connection" in desk.rows("SELECT error FROM intel.deliveries")[0][0]
    assert desk.hook.taken() == []
    desk.hook.up()
    desk.later(400)
    assert desk.engine().delivered == 1
    desk.told_once(anomaly.id)


# --- the lane's own alerts


def wait_for(true: Callable[[], Any], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_warm_lane_tells_at_once_and_the_engine_adds_nothing(desk: Desk) -> None:
    desk.produce(life(desk.pool, BLOCKS))
    warm = threading.Thread(target=desk.drain, args=(6,), kwargs={"direct_alerts": True})
    warm.start()
    wait_for(lambda: desk.rows("SELECT FROM chain.blocks WHERE chain = %s", desk.chain))
    time.sleep(1)
    assert desk.hook.requests == []
    desk.produce([desk.end()])
    wait_for(lambda: desk.hook.requests)
    warm.join()
    anomaly = desk.severe()
    assert 0 < desk.hook.requests[0].at - anomaly.detected_at.timestamp() < 3
    (alert,) = desk.hook.taken()
    assert [one["score"] is not None for one in alert["predictions"]] == [True] * 3
    before = [one for one in desk.predictions() if one["anomaly_id"] == anomaly.id]
    outcome = desk.engine()
    assert outcome.reaction.anomalies == outcome.messages > 0
    assert (outcome.reaction.alerts, outcome.delivered, outcome.indexed) == ([], 0, 1)
    assert [one for one in desk.predictions() if one["anomaly_id"] == anomaly.id] == before
    assert len(desk.hook.requests) == 1
    desk.told_once(anomaly.id)


@pytest.mark.parametrize("error", [ValueError("a bug"), psycopg.OperationalError("gone"), Unavailable("gone")])
def test_what_the_lanes_thread_fails_at_the_engine_does_and_the_thread_goes_on(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    now = datetime(2024, 3, 9, 12, tzinfo=UTC)
    ids = desk.insert([(address(f"p{n}"), "high", now) for n in range(3)])
    anomalies = read_anomalies(desk.conn, ids)
    works = react.react

    def fails(*args: Any) -> Any:
        monkeypatch.setattr(direct, "react", works)
        works(*args)
        raise error

    thread = DirectAlerts(desk.settings, "lane")
    thread.start()
    try:
        thread.take(anomalies[:1])
        thread.take(anomalies[1:2])
        monkeypatch.setattr(direct, "react", fails)
        thread.take(anomalies[2:])
        wait_for(lambda: len(desk.hook.requests) == 2)
    finally:
        thread.close(20)
    first = {alert["id"] for alert in desk.hook.taken()}
    assert len(first) == 2
    assert desk.engine().delivered == 1
    desk.told_once(*ids)
