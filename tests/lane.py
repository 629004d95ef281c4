"""Lanes on a real broker and database: a chain of the test's own, runs in the background and in processes.

Belongs here: what several tests of lanes use. Does not belong here: batches without a broker (`run.py`).
"""

from __future__ import annotations

import faulthandler
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Producer

from dash_pipeline import topics
from dash_pipeline.feed.wait import end_offsets
from dash_pipeline.kafka import confluent_options
from dash_pipeline.microbatch.drain import Checkpoint, Limits, drain
from dash_pipeline.microbatch.lanes import Lane, lane
from dash_pipeline.settings import Settings
from dash_pipeline.storage import timescale as db
from dash_pipeline.storage.tables import TABLES
from dash_pipeline.topics import Partition
from tests.chain import ROWS, Messages, merge

PARTITIONS = 2
QUICK = Limits(idle_timeout_s=1.5, max_run_s=120, checkpoint_s=1)
SMALL = Limits(idle_timeout_s=3, max_run_s=120, batch_rows=40, checkpoint_s=1)
PATIENCE_S = 90


@dataclass
class Market:
    """A chain of the test's own on the broker and in the database."""

    settings: Settings
    chain: str
    partition_count: int = PARTITIONS
    checkpoints: list[Checkpoint] = field(default_factory=list)

    def topic(self, type_: str) -> str:
        return topics.topic_name(self.chain, type_)

    def produce(self, messages: Mapping[str, list[bytes]]) -> int:
        """In order; messages of one topic go round its partitions."""
        options = confluent_options(self.settings) | {"message.max.bytes": 20 << 20, "linger.ms": 1}
        producer = Producer(options)
        failed: list[Any] = []
        sent = 0
        for type_, values in messages.items():
            count = 1 if type_ in topics.SINGLE else self.partition_count
            for i, value in enumerate(values):
                producer.produce(
                    self.topic(type_),
                    value,
                    partition=i % count,
                    on_delivery=lambda e, _: failed.append(e) if e else None,
                )
                sent += 1
                if sent % 10_000 == 0:
                    producer.flush(30)
        assert producer.flush(60) == 0
        assert failed == []
        return sent

    def ends(self) -> dict[Partition, int]:
        return end_offsets(self.settings, topics.chain_topics(self.chain))

    def partitions(self) -> list[Partition]:
        return sorted(self.ends())

    def lane(self, *numbers: int) -> Lane:
        """The lane of these partition numbers, of all without any."""
        return lane(self.chain, (p for p in self.partitions() if not numbers or p[1] in numbers))

    def drain(self, limits: Limits = QUICK, run: str = "run", of: Lane | None = None, **other: Any) -> Checkpoint:
        settings = self.settings.model_copy(update=other)
        return drain(settings, of or self.lane(), limits, run, self.checkpoints.append)

    def query(self, text: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with db.connect(self.settings) as conn:
            return conn.execute(text, parameters).fetchall()

    def counts(self) -> dict[str, int]:
        return {t: self.query(f"SELECT count(*) FROM chain.{t} WHERE chain = %s", self.chain)[0][0] for t in TABLES}

    def letters(self) -> list[tuple[str, int, int, str]]:
        return self.query(
            'SELECT topic, partition, "offset", reason FROM ops.dead_letters WHERE topic LIKE %s'
            ' ORDER BY topic, partition, "offset"',
            f"{self.chain}.%",
        )

    def lag(self) -> int:
        with db.connect(self.settings) as conn:
            committed = db.committed_offsets(conn)
        ends = self.ends()
        return sum(end - committed.get(partition, 0) for partition, end in ends.items())

    def check(self, blocks: int) -> None:
        """All rows of that many blocks are there, once, and nothing is left to read."""
        assert self.counts() == {name: count * blocks for name, count in ROWS.items()}
        assert self.lag() == 0


def new_market(settings: Settings, chain: str, partition_count: int = PARTITIONS) -> Market:
    """A market with its topics."""
    topics.ensure(settings, [chain], partition_count)
    return Market(settings, chain, partition_count)


def whole(blocks: list[tuple[str, Messages]]) -> Messages:
    """The messages of these blocks, by type."""
    return merge(messages for _, messages in blocks)


class Background:
    """A drain in a thread."""

    def __init__(self, call: Callable[[], Checkpoint]) -> None:
        self.result: Checkpoint | None = None
        self.error: BaseException | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._call()
        except BaseException as error:
            self.error = error

    def join(self) -> None:
        self._thread.join(PATIENCE_S)
        if self._thread.is_alive():
            faulthandler.dump_traceback(sys.stderr)
            raise AssertionError("the run hangs; each thread's stack is on stderr")

    @property
    def running(self) -> bool:
        return self._thread.is_alive()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


# Told on stdin to go, so that what happens to it falls into its work and not into its start.
_PROCESS = """
import pickle, sys
from dash_pipeline.microbatch.drain import drain
settings, lane, limits, run = pickle.loads(bytes.fromhex(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
drain(settings, lane, limits, run)
"""


class Process:
    """A drain in a process of its own, which can be killed."""

    def __init__(self, settings: Settings, lane: Lane, limits: Limits, run: str) -> None:
        given = pickle.dumps((settings, lane, limits, run)).hex()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROCESS, given], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def go(self) -> None:
        """Let it begin."""
        assert self.process.stdin
        assert self.process.stdout
        assert self.process.stdout.readline() == "ready\n"
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """As kill -9 does."""
        self.process.kill()
        self.process.wait()
