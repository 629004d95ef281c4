"""Detection: what it adds to a commit, of small batches as they come live and of full ones as in a drain.

The same kind of blocks, V2 swaps on 400 pools, goes into one database with and without detection, in turns; there is no
broker. The figures that matter are the ratios.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from benchmarks.load import Chain, block, fresh_database, pairs
from dash_pipeline.microbatch.commit import Rules, commit, decode_batch
from dash_pipeline.microbatch.consume import Batch, TopicBatch
from dash_pipeline.microbatch.detect import Detector
from dash_pipeline.settings import Settings
from dash_pipeline.stack import Stack
from dash_pipeline.storage import timescale as db
from dash_pipeline.topics import TYPES, Partition

SMALL = 12
ROUNDS = 6
TRANSACTIONS = 250


def run(stack: Stack) -> dict[str, object]:
    """Milliseconds from decoding to commit, medians, without and with detection."""
    with fresh_database(stack) as settings:
        sides = {
            "plain": _Side(settings, "plain", None),
            "detecting": _Side(settings, "detecting", Detector("detecting")),
        }
        small: dict[str, list[float]] = {name: [] for name in sides}
        full: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(ROUNDS):
            for name, side in sides.items():
                small[name] += side.take(4, SMALL)
            for name, side in sides.items():
                full[name] += side.take(10, None)
    return {
        f"{what}_{name}_ms": round(float(np.median(times[name])), 1)
        for what, times in ((f"batches_of_{SMALL}", small), ("batches_of_10000", full))
        for name in sides
    }


class _Side:
    """A chain of its own, its blocks and its connection."""

    def __init__(self, settings: Settings, chain: str, detector: Detector | None) -> None:
        self.conn = db.connect(settings)
        self.writer, self.chain, self.detector = db.Writer(self.conn), chain, detector
        self.blocks, self.ends = Chain(spacing_s=1), dict[Partition, int]()
        self._commit(list(pairs(self.blocks)))

    def take(self, blocks: int, size: int | None) -> list[float]:
        """Commit so many blocks in batches of `size` messages, or as one; ms of each batch."""
        messages = [message for _ in range(blocks) for message in block(self.blocks, TRANSACTIONS)]
        return [self._commit(some) for some in _slices(messages, size or len(messages))]

    def _commit(self, messages: list[tuple[str, bytes]]) -> float:
        batch = self._batch(messages)
        db.claim(self.conn, batch.first_offsets, "bench")
        began = time.perf_counter()
        parts = decode_batch(batch, self.chain, 8 << 20)
        commit(self.writer, self.chain, parts, dict(batch.first_offsets), batch, Rules(256), "bench",
               lambda letters: None, self.detector)  # fmt: skip
        return (time.perf_counter() - began) * 1e3

    def _batch(self, messages: list[tuple[str, bytes]]) -> Batch:
        by_type: dict[str, list[bytes]] = {}
        for type_, message in messages:
            by_type.setdefault(type_, []).append(message)
        topics, first, after = [], {}, {}
        for type_, values in by_type.items():
            place, count = (f"{self.chain}.{TYPES[type_]}", 0), len(values)
            start = self.ends.get(place, 0)
            first[place], after[place] = start, start + count
            zeros = np.zeros(count, np.int64)
            topics.append(TopicBatch(place[0], values, zeros, zeros, np.arange(start, start + count, dtype=np.int64)))
        self.ends |= after
        return Batch(topics, after, 0.0, len(messages), 0, first)


def _slices(messages: list[tuple[str, bytes]], size: int) -> Iterator[list[tuple[str, bytes]]]:
    for start in range(0, len(messages), size):
        yield messages[start : start + size]
