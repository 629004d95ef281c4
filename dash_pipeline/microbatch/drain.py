"""The warm loop: a lane's run from its first read to its end.

Belongs here: the loop, its limits, its retries, what it reports. Does not belong here: what a batch becomes
(`commit.py`), who starts the loop (the lag sensor).

A reader thread reads and decodes up to two batches ahead while this thread talks to the database; the search indexes
are followed by a thread of their own and are never waited for before a commit.
"""

from __future__ import annotations

import gc
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import psycopg
from confluent_kafka import Consumer

from dash_pipeline.chains import load_chains
from dash_pipeline.errors import Unavailable, first_line
from dash_pipeline.metrics import Histogram
from dash_pipeline.microbatch import consume
from dash_pipeline.microbatch.announce import Announcer
from dash_pipeline.microbatch.commit import Committed, Part, Rules, commit, decode_batch
from dash_pipeline.microbatch.dead_letters import Publisher
from dash_pipeline.microbatch.detect import Detector
from dash_pipeline.microbatch.lanes import Lane
from dash_pipeline.microbatch.latency import Latency
from dash_pipeline.microbatch.record import Recorder
from dash_pipeline.predictions.direct import DirectAlerts
from dash_pipeline.settings import Settings
from dash_pipeline.storage import timescale as db
from dash_pipeline.storage.anomalies import Stored
from dash_pipeline.storage.search import Follower
from dash_pipeline.topics import Partition

log = logging.getLogger(__name__)

_AHEAD = 2
_POLL_S = 0.05
_TELL_EVERY_S = 1.0
# An idle lane looks that often whether its partitions are still its own; a commit sees it by itself.
_LOOK_EVERY_S = 1.0
# What publishes and indexes beside the lane has that long to finish.
_CLOSE_S = 30.0
# Between two tries; doubled every time up to the longest.
_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
# A failure after that long without messages is another one.
_CALM_S = 5.0
# A block whose parent has not come by then belongs to another chain, or to a fork that was not sent whole.
DETACHED_FOR_S = 30.0


ASKED_TO_STOP = "asked to stop"


@dataclass(frozen=True)
class Limits:
    """When a run ends and how large its batches are."""

    idle_timeout_s: float = 20
    max_run_s: float = 600
    batch_rows: int = 10_000
    batch_bytes: int = 32 << 20
    checkpoint_s: float = 10


@dataclass(frozen=True)
class Checkpoint:
    """What a run did since the last checkpoint, or altogether. `latency`: stage -> {p50, p95, p99} in ms;
    `ended_early`: why the run ended before it was idle or its time was up; `errors`: failures after which it tried
    again; `histograms`: stage -> latencies, if metrics are shown to anybody."""

    seconds: float = 0
    messages: int = 0
    bytes: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    dead_letters: int = 0
    reorgs: int = 0
    anomalies: int = 0
    offsets: dict[str, int] = field(default_factory=dict)
    lag_before: int = 0
    lag_after: int = 0
    events_per_s: float = 0
    latency: dict[str, dict[str, float]] = field(default_factory=dict)
    index_behind_s: float = 0
    heights: tuple[int, int] | None = None
    ended_early: str = ""
    batches: int = 0
    errors: int = 0
    histograms: dict[str, Histogram] = field(default_factory=dict)


def drain(
    settings: Settings,
    lane: Lane,
    limits: Limits,
    run_id: str,
    on_checkpoint: Callable[[Checkpoint], None] = lambda checkpoint: None,
    stop: Callable[[], bool] = lambda: False,
) -> Checkpoint:
    """Drain the lane's partitions until they have been idle for `idle_timeout_s` or `max_run_s` is over, or another run
    has claimed one of them, or `stop()`: then the batch in hand is committed, and what follows commits has half of
    `stop_within_s` to come to an end.

    `on_checkpoint` is called from another thread about every `checkpoint_s` with what happened since the last call.
    Returns the whole run's account. Raises Unavailable when a server stays away longer than `retry_for_s`; whatever was
    committed until then stays committed.
    """
    # Three threads share the interpreter, and the one that commits gives it up at every statement: with the default of
    # 5 ms it would wait for it longer than for the database.
    sys.setswitchinterval(0.000_5)
    run = _Run(settings, lane, limits, run_id, on_checkpoint, stop)
    try:
        return run.loop()
    finally:
        run.close()
        # Frozen, a run that is over would never be collected, and its clients' threads would live on.
        gc.unfreeze()


class _Run:
    """The state of one run: connections, offsets, and the account since the last checkpoint."""

    def __init__(
        self,
        settings: Settings,
        lane: Lane,
        limits: Limits,
        run_id: str,
        report: Callable[[Checkpoint], None],
        stop: Callable[[], bool],
    ) -> None:
        self.settings, self.lane, self.limits, self.run_id, self.stop = settings, lane, limits, run_id, stop
        self.stopped_at: float | None = None
        self.consumer = consume.open_consumer(settings, f"dash-{lane.chain}")
        self.publisher = Publisher(settings)
        self.follower = Follower(settings, lane.chain)
        self.alerts = DirectAlerts(settings, run_id) if settings.direct_alerts else None
        self.announcer = Announcer(settings, lane.chain, self._tell)
        self.recorder = Recorder(settings, lane, run_id)
        self.reporter = _Reporter([report, self.recorder.record])
        self.conn: db.Connection | None = None
        registered = load_chains(settings.chains_file).get(lane.chain)
        genesis = registered.genesis_hash if registered else None
        self.detector = Detector(lane.chain, registered.quotes if registered else ())
        self.rules = Rules(
            settings.max_reorg_depth,
            bytes.fromhex(genesis[2:]) if genesis else None,
            # Chains have become faster, by less than that.
            registered.block_time_s / 20 if registered else 0.0,
        )
        self.claimed = False
        self.ended_early = ""
        self.next: dict[Partition, int] = {}
        self.ends: dict[Partition, int] = {}
        self.total, self.recent = _Account(), _Account()
        self.latency, self.latency_total = Latency(), Latency()
        self.lag_before = 0
        self.started = time.monotonic()
        self.failing_since: float | None = None
        self.pause = _PAUSE_S

    def loop(self) -> Checkpoint:
        self.reporter.run(self.recorder.begin)
        self.follower.start()
        self.announcer.start()
        if self.alerts:
            self.alerts.start()
        # What is there now lives as long as the run; collecting it again and again would only add pauses.
        gc.collect()
        gc.freeze()
        while True:
            try:
                if not self._stopping():
                    self._connect()
                    self._drain()
                break
            except db.Fenced as fence:
                self.ended_early = str(fence)
                log.info("%s: %s; nothing of the batch in hand was committed", self.lane.name, fence)
                break
            except (Unavailable, psycopg.OperationalError, psycopg.InterfaceError) as error:
                line = first_line(error)
                self.recent.errors += 1
                self.failing_since = self.failing_since or time.monotonic()
                if time.monotonic() - self.failing_since > self.settings.retry_for_s:
                    raise Unavailable(f"{line} (tried for {self.settings.retry_for_s:g} s; nothing is lost)") from error
                log.warning("%s; trying again in %.1f s", line, self.pause)
                self._disconnect()
                again_at = time.monotonic() + self.pause
                while time.monotonic() < again_at and not self._stopping():
                    time.sleep(_POLL_S)
                self.pause = min(self.pause * 2, _LONGEST_PAUSE_S)
        self._close_alerts(drain_timeout_s=min(_CLOSE_S, self._left()))
        self.follower.close(drain_timeout_s=_CLOSE_S, at_most=self._left)
        self._checkpoint(last=True)
        return self.total.checkpoint(
            time.monotonic() - self.started, self.next, self.lag_before, self._lag(), self.latency_total.take(),
            self.follower.behind_s, self.ended_early,
        )  # fmt: skip

    def _stopping(self) -> bool:
        if self.stopped_at is None and self.stop():
            self.stopped_at, self.ended_early = time.monotonic(), ASKED_TO_STOP
            log.info("%s: asked to stop", self.lane.name)
        return self.stopped_at is not None

    def _left(self) -> float:
        """Seconds that are left for what follows commits."""
        if not self._stopping():
            return float("inf")
        assert self.stopped_at is not None
        return max(0.0, self.stopped_at + self.settings.stop_within_s / 2 - time.monotonic())

    def _all_is_well(self) -> None:
        """Being connected is not enough to say so: a database with a full disk lets everybody in."""
        self.failing_since, self.pause = None, _PAUSE_S

    def _connect(self) -> None:
        self.conn = db.connect(self.settings)
        self.writer = db.Writer(self.conn)
        ranges = consume.ranges(self.consumer, self.lane)
        if self.claimed:
            self.next = db.claimed(self.conn, ranges, self.run_id)
        else:
            self.next = db.claim(self.conn, {p: first for p, (first, _) in ranges.items()}, self.run_id)
            self.claimed = True
        self.detector.begin(self.conn)
        if any(self.next[partition] > end for partition, (_, end) in ranges.items()):
            # The owner before this run has committed what came after the look.
            ranges = consume.ranges(self.consumer, self.lane)
        self.ends.update({partition: end for partition, (_, end) in ranges.items()})
        for partition, (first, end) in ranges.items():
            self._check_range(partition, first, end)
        if not self.lag_before:
            self.lag_before = self._lag()

    def _check_range(self, partition: Partition, first: int, end: int) -> None:
        topic, number = partition
        offset = self.next[partition]
        if offset > end:
            raise consume.OffsetsGoneError(
                f"{topic}/{number} ends at offset {end}, but {offset} is the next to ingest: the topic was made anew."
                " `dash-pipeline offsets --set-beginning TOPIC` starts it from its beginning"
            )
        if offset < first:
            assert self.conn is not None
            lost = db.DeadLetter(
                topic, number, offset, int(time.time() * 1e3), b"",
                f"offsets {offset} to {first - 1} were deleted from Kafka before they were ingested",
            )  # fmt: skip
            with self.conn.transaction():
                db.lock_offsets(self.conn, {partition: offset}, self.run_id)
                db.write_dead_letters(self.conn, [lost], self.run_id)
                self.publisher.publish([lost])
                db.advance_offsets(self.conn, {partition: first}, self.run_id)
            self.next[partition] = first

    def _disconnect(self) -> None:
        if self.conn is not None:
            self.conn.close()
            self.conn = None

    def _drain(self) -> None:
        """Read, decode and commit until the lane is idle or its time is up."""
        consume.assign(self.consumer, self.next)
        ahead = _Reader(self.consumer, self.lane.chain, self.settings, self.limits, self.ends)
        idle_since = last_checkpoint = looked = time.monotonic()
        swept = False
        try:
            while not self._stopping():
                item = ahead.get(_POLL_S)
                now = time.monotonic()
                if item is not None:
                    self._commit(*item)
                    ahead.committed = self.next
                    self._all_is_well()
                    idle_since, swept = time.monotonic(), False
                    looked = idle_since
                elif now - idle_since >= self.limits.idle_timeout_s:
                    return
                elif now - idle_since >= min(DETACHED_FOR_S, self.limits.idle_timeout_s / 2) and not swept:
                    self._sweep()
                    swept = True
                if now - looked >= _LOOK_EVERY_S:
                    assert self.conn is not None
                    db.claimed(self.conn, self.next, self.run_id)
                    looked = now
                if now - idle_since >= _CALM_S:
                    self._all_is_well()
                if now - last_checkpoint >= self.limits.checkpoint_s and self.recent.messages:
                    self._checkpoint()
                    last_checkpoint = now
                if now - self.started >= self.limits.max_run_s:
                    return
        finally:
            ahead.close()

    def _commit(self, batch: consume.Batch, parts: list[Part]) -> None:
        decoded_ms = time.time() * 1e3
        done = commit(
            self.writer,
            self.lane.chain,
            parts,
            self.next,
            batch,
            self.rules,
            self.run_id,
            self.publisher.publish,
            self.detector,
        )
        committed_ms = time.time() * 1e3
        self.next = self.next | batch.next_offsets
        for topic in batch.topics:
            for latency in (self.latency, self.latency_total):
                latency.add(topic.timestamps, batch.consumed_ms, decoded_ms, committed_ms)
        for account in (self.recent, self.total):
            account.add(batch, done)
        if done.anomalies:
            self.announcer.wake()
        self.follower.wake(full=batch.messages >= self.limits.batch_rows)

    def _tell(self, anomalies: Sequence[Stored]) -> None:
        """In a backlog parts of blocks are still to come, and what is found without them may not hold: the engine tells
        of what does."""
        if self.alerts and self._lag() <= self.limits.batch_rows:
            self.alerts.take(anomalies)

    def _sweep(self) -> None:
        assert self.conn is not None
        refused = db.give_up_detached(self.conn, self.lane.chain, DETACHED_FOR_S, self.run_id, self.publisher.publish)
        if refused:
            log.error(
                "%s: %d blocks refused: their parents never came; see ops.dead_letters",
                self.lane.chain,
                refused,
            )

    def _lag(self) -> int:
        return sum(max(0, end - self.next[partition]) for partition, end in self.ends.items())

    def _checkpoint(self, last: bool = False) -> None:
        if self.recent.messages:
            histograms = self.latency.histograms() if self.recorder.shown else {}
            self.reporter.submit(
                self.recent.checkpoint(
                    time.monotonic() - self.recent.since, self.next, self.lag_before, self._lag(), self.latency.take(),
                    self.follower.behind_s, histograms=histograms,
                )
            )  # fmt: skip
        self.recent = _Account()
        if last:
            self.reporter.close()

    def _close_alerts(self, drain_timeout_s: float) -> None:
        self.announcer.close(drain_timeout_s)
        if self.alerts:
            self.alerts.close(drain_timeout_s)

    def close(self) -> None:
        self._close_alerts(drain_timeout_s=0)
        self.follower.close(drain_timeout_s=0)
        self.reporter.close()
        self.recorder.close()
        self.publisher.close()
        self._disconnect()
        consume.close(self.consumer)


class _Account:
    """Sums over batches."""

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.messages = self.bytes = self.batches = self.errors = 0
        self.done = Committed()

    def add(self, batch: consume.Batch, done: Committed) -> None:
        self.messages += batch.messages
        self.bytes += batch.bytes
        self.batches += 1
        self.done.add(done)

    def checkpoint(
        self,
        seconds: float,
        offsets: dict[Partition, int],
        lag_before: int,
        lag_after: int,
        latency: dict[str, dict[str, float]],
        index_behind_s: float,
        ended_early: str = "",
        histograms: dict[str, Histogram] | None = None,
    ) -> Checkpoint:
        return Checkpoint(
            seconds=seconds,
            messages=self.messages,
            bytes=self.bytes,
            rows=dict(self.done.rows),
            dead_letters=len(self.done.letters),
            reorgs=self.done.reorgs,
            anomalies=self.done.anomalies,
            offsets={f"{topic}/{partition}": offset for (topic, partition), offset in sorted(offsets.items())},
            lag_before=lag_before,
            lag_after=lag_after,
            events_per_s=self.messages / seconds if seconds else 0.0,
            latency=latency,
            index_behind_s=index_behind_s,
            heights=self.done.heights,
            ended_early=ended_early,
            batches=self.batches,
            errors=self.errors,
            histograms=histograms or {},
        )


class _Reader:
    """Reads and decodes in a thread that has the consumer to itself: a second thread that asks the same client for
    anything waits for ever. Its errors are raised by `get`. Keeps `ends` at what the fetches report, and tells Kafka's
    group of `committed`.

    It reads ahead of the commits only while batches are full. When it has caught up, messages had better gather in
    Kafka and go with the next batch than wait in a queue behind the one before.
    """

    def __init__(
        self, consumer: Consumer, chain: str, settings: Settings, limits: Limits, ends: dict[Partition, int]
    ) -> None:
        self.committed: dict[Partition, int] = {}
        self._consumer, self._chain, self._settings, self._limits, self._ends = consumer, chain, settings, limits, ends
        self._queue: queue.Queue[tuple[consume.Batch, list[Part]] | Exception] = queue.Queue(_AHEAD)
        self._stop, self._wanted = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        told, told_at = self.committed, time.monotonic()
        heard = told_at
        try:
            while not self._stop.is_set():
                for batch in consume.read(self._consumer, self._limits.batch_rows, self._limits.batch_bytes, _POLL_S):
                    parts = decode_batch(batch, self._chain, self._settings.max_message_bytes)
                    self._wanted.clear()
                    self._put((batch, parts))
                    if batch.messages < self._limits.batch_rows:
                        self._wanted.wait(_TELL_EVERY_S)
                    heard = time.monotonic()
                if time.monotonic() - heard >= consume.SILENCE_S:
                    consume.ask(self._consumer)
                    heard = time.monotonic()
                if time.monotonic() - told_at >= _TELL_EVERY_S:
                    self._ends.update(consume.ends(self._consumer, list(self._ends)))
                    if self.committed is not told:
                        consume.tell_group(self._consumer, self.committed)
                    told, told_at = self.committed, time.monotonic()
        except Exception as error:
            self._put(error)

    def _put(self, item: tuple[consume.Batch, list[Part]] | Exception) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def get(self, wait_s: float) -> tuple[consume.Batch, list[Part]] | None:
        """The next batch, or None when there is none in time."""
        self._wanted.set()
        try:
            item = self._queue.get(timeout=wait_s)
        except queue.Empty:
            return None
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        self._stop.set()
        self._wanted.set()
        self._thread.join()


class _Reporter:
    """Calls back from a thread of its own: an event log that is slow to write must not stop the lane."""

    def __init__(self, reports: Sequence[Callable[[Checkpoint], None]]) -> None:
        self._reports = reports
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reporter")

    def submit(self, checkpoint: Checkpoint) -> None:
        for report in self._reports:
            self.run(partial(report, checkpoint))

    def run(self, call: Callable[[], None]) -> None:
        self._pool.submit(self._call, call)

    def _call(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            log.exception("a checkpoint could not be reported; the run goes on")

    def close(self) -> None:
        self._pool.shutdown(wait=True)
