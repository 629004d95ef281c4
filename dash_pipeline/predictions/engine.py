"""The engine's run: drains topic dash.anomalies until it is idle, and sees to it that alerts arrive.

Belongs here: the loop, its offsets, its retries. Does not belong here: what an anomaly leads to (`react.py`), who
starts the loop (the anomaly sensor).

Messages say which anomalies changed; what they are now is read from the table. Offsets are committed in the transaction
of the predictions and alerts, so a kill at any moment is followed by the same work or none.

Reading the archive takes its time, and alerts do not wait for it: they are raised with what hot rows say, and pools and
wallets with archived rows are scored afterwards, when little new waits. Only then do the offsets move on.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
import psycopg
from confluent_kafka import Consumer

from dash_pipeline.alerts.deliver import deliver
from dash_pipeline.alerts.rules import Policy
from dash_pipeline.chains import load_chains
from dash_pipeline.errors import Unavailable, first_line
from dash_pipeline.metrics import Sample, publish
from dash_pipeline.microbatch import consume
from dash_pipeline.microbatch.lanes import Lane, lane
from dash_pipeline.models.champions import Champions
from dash_pipeline.predictions.react import Reaction, react
from dash_pipeline.settings import Settings
from dash_pipeline.storage import timescale as db
from dash_pipeline.storage.anomalies import read_anomalies
from dash_pipeline.storage.search import client
from dash_pipeline.storage.search.alerts import index_pending
from dash_pipeline.topics import Partition

log = logging.getLogger(__name__)

_AT_ONCE = 200
# Anomalies that the archive is read for at a time: new ones wait so long.
_OLD_AT_ONCE = 50
# Batches that may wait for that while there is more to read.
_UNDONE = 20
_BATCH_BYTES = 8 << 20
_POLL_S = 0.2
_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_INDEX_AGAIN_S = 5.0
# The longest that alerts wait for others in a flood.
_TELL_EVERY_S = 5.0


@dataclass
class Outcome:
    """What a run did. `refused`: messages on the topic that are not anomalies."""

    messages: int = 0
    refused: int = 0
    reaction: Reaction = field(default_factory=Reaction)
    delivered: int = 0
    failed: int = 0
    indexed: int = 0
    seconds: float = 0.0


class _Message(msgspec.Struct):
    id: str


_DECODER = msgspec.json.Decoder(_Message)


@dataclass(frozen=True)
class Limits:
    """When a run ends."""

    idle_timeout_s: float = 20
    max_run_s: float = 600


def run_engine(
    settings: Settings, partitions: Iterable[Partition], champions: Champions, limits: Limits, run_id: str
) -> Outcome:
    """Drain these partitions of dash.anomalies, deliver and index alerts, until there has been nothing to do for
    `idle_timeout_s` or `max_run_s` is over, or another run has claimed a partition. Raises Unavailable when a server
    stays away longer than `retry_for_s`; what was committed until then stays committed."""
    mine = lane("dash", partitions)
    consumer = consume.open_consumer(settings, "dash-predictions")
    outcome, started = Outcome(), time.monotonic()
    failing_since, pause, claimed = None, _PAUSE_S, False
    try:
        while True:
            done_before = outcome.messages
            try:
                with db.connect(settings) as conn:
                    run = _Run(settings, conn, consumer, champions, run_id, outcome)
                    run.begin(mine, claimed)
                    claimed = True
                    run.loop(limits, started)
                break
            except db.Fenced as fence:
                log.info("%s; nothing of the batch in hand was committed", fence)
                break
            except (Unavailable, psycopg.OperationalError, psycopg.InterfaceError) as error:
                line = first_line(error)
                if failing_since is None or outcome.messages > done_before:
                    failing_since, pause = time.monotonic(), _PAUSE_S
                if time.monotonic() - failing_since > settings.retry_for_s:
                    raise Unavailable(f"{line} (tried for {settings.retry_for_s:g} s; nothing is lost)") from error
                log.warning("%s; trying again in %.1f s", line, pause)
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
    finally:
        consume.close(consumer)
    outcome.seconds = time.monotonic() - started
    _show(settings, outcome)
    return outcome


def _show(settings: Settings, outcome: Outcome) -> None:
    """Metrics of a run that has ended. They are of the last run: what counts on would look the same after two alike."""
    numbers = {
        "end_seconds": time.time(),
        "duration_seconds": outcome.seconds,
        "anomalies": outcome.reaction.anomalies,
        "predictions": outcome.reaction.predictions,
        "alerts": len(outcome.reaction.alerts),
    }
    samples: list[Sample] = [(f"dash_engine_last_run_{name}", (), value) for name, value in numbers.items()]
    samples += [
        ("dash_engine_last_run_deliveries", (result,), count)
        for result, count in (("delivered", outcome.delivered), ("failed", outcome.failed))
    ]
    try:
        publish(settings.metrics_push_url, settings.metrics_dir, "dash_engine", {}, samples)
    except OSError as error:
        log.warning("metrics are not shown: %s", first_line(error))


@dataclass
class _Run:
    """A run's connections and offsets."""

    settings: Settings
    conn: db.Connection
    consumer: Consumer
    champions: Champions
    run_id: str
    outcome: Outcome
    next: dict[Partition, int] = field(default_factory=dict)
    # What was read but is not done: anomalies to read the archive for, and the offsets behind them, by batch.
    undone: deque[tuple[list[bytes], dict[Partition, int]]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.policy = Policy.of(self.settings)
        self.chains = load_chains(self.settings.chains_file)
        self.opensearch = client(self.settings)
        self.index_after = 0.0

    def begin(self, mine: Lane, claimed: bool) -> None:
        """Read on from the committed offsets; what Kafka no longer has is in the table all the same."""
        ranges = consume.ranges(self.consumer, mine)
        if claimed:
            self.next = db.claimed(self.conn, ranges, self.run_id)
        else:
            self.next = db.claim(self.conn, {p: first for p, (first, _) in ranges.items()}, self.run_id)
        for (topic, number), (first, end) in ranges.items():
            if self.next[topic, number] > end:
                raise consume.OffsetsGoneError(
                    f"{topic}/{number} ends at offset {end}, but {self.next[topic, number]} is the next to read: the"
                    f" topic was made anew. `dash-pipeline offsets --set-beginning {topic}` starts it over"
                )
            if self.next[topic, number] < first:
                log.warning("%s/%d: offsets below %d are gone from Kafka", topic, number, first)
        consume.assign(self.consumer, {p: max(self.next[p], first) for p, (first, _) in ranges.items()})

    def loop(self, limits: Limits, started: float) -> None:
        idle_since = heard = time.monotonic()
        told_at = -_TELL_EVERY_S
        while True:
            read = 0
            for batch in consume.read(self.consumer, _AT_ONCE, _BATCH_BYTES, _POLL_S):
                self._take(batch)
                read += batch.messages
            busy, over = read > 0, time.monotonic() - started >= limits.max_run_s
            # While there is more to read, alerts gather until they fill requests.
            if read < _AT_ONCE or over or time.monotonic() - told_at >= _TELL_EVERY_S:
                busy |= self._see_through()
                told_at = time.monotonic()
            # In a flood the archive waits for a while.
            if not over and (read < _AT_ONCE or len(self.undone) >= _UNDONE):
                busy |= self._read_archive()
            now = time.monotonic()
            if busy:
                idle_since = now
            if read:
                heard = now
            elif now - heard >= consume.SILENCE_S:
                consume.ask(self.consumer)
                heard = now
            if over or now - idle_since >= limits.idle_timeout_s:
                return

    def _take(self, batch: consume.Batch) -> None:
        """What the messages name, as it is now, and the offsets behind them, in one transaction."""
        ids: dict[bytes, None] = {}
        for topic in batch.topics:
            for value in topic.values:
                try:
                    ids[bytes.fromhex(_DECODER.decode(value).id.removeprefix("0x"))] = None
                except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                    self.outcome.refused += 1
                    log.error("%s: a message that is not an anomaly is passed over: %s", topic.topic, error)
        offsets = dict(batch.next_offsets)
        with self.conn.transaction():
            db.lock_offsets(self.conn, {p: self.next[p] for p in offsets}, self.run_id)
            anomalies = read_anomalies(self.conn, list(ids))
            reaction = react(self.conn, self.policy, self.chains, self.champions, anomalies, self.run_id)
            done = not reaction.old and not self.undone
            if done:
                db.advance_offsets(self.conn, offsets, self.run_id)
        if done:
            self.next |= offsets
        else:
            self.undone.append((sorted(reaction.old), offsets))
        self.outcome.messages += batch.messages
        self.outcome.reaction.add(reaction)

    def _read_archive(self) -> bool:
        """Score some of those whose history is archived in part, whose alerts are out; the offsets behind what is done
        now. Whether there was anything to do. What cannot be read is said in the prediction."""
        if not self.undone:
            return False
        ids, offsets = self.undone[0]
        some, rest = ids[:_OLD_AT_ONCE], ids[_OLD_AT_ONCE:]
        with self.conn.transaction():
            db.lock_offsets(self.conn, {p: self.next[p] for p in offsets}, self.run_id)
            anomalies = read_anomalies(self.conn, some)
            reaction = react(self.conn, self.policy, self.chains, self.champions, anomalies, self.run_id, self.settings)
            if not rest:
                db.advance_offsets(self.conn, offsets, self.run_id)
        if rest:
            self.undone[0] = (rest, offsets)
        else:
            self.undone.popleft()
            self.next |= offsets
        self.outcome.reaction.predictions += reaction.predictions
        self.outcome.reaction.unpredicted += reaction.unpredicted
        self.outcome.reaction.alerts += reaction.alerts
        return True

    def _see_through(self) -> bool:
        """Deliver what is due and index what has changed. An index that does not answer keeps no alert waiting."""
        sent = deliver(self.conn, self.policy)
        self.outcome.delivered += sent.delivered
        self.outcome.failed += sent.failed
        indexed = 0
        if time.monotonic() >= self.index_after:
            try:
                indexed = index_pending(self.conn, self.opensearch)
            except Unavailable as error:
                log.warning("%s; alerts are indexed later", error)
                self.index_after = time.monotonic() + _INDEX_AGAIN_S
        self.outcome.indexed += indexed
        return bool(sent.delivered or indexed)
