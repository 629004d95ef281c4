"""Drain: token transfers that wait in Kafka, to committed rows, with two lanes on two cores that all servers share.

The clock runs from the moment both lanes are told to start (their interpreters are warm) until the last commit.
"""

from __future__ import annotations

import multiprocessing as mp
import time
from multiprocessing.synchronize import Barrier

from benchmarks.load import fresh_database, make_topics, producer, transfers
from dash_pipeline.microbatch.drain import Limits, drain
from dash_pipeline.microbatch.lanes import lane
from dash_pipeline.settings import Settings
from dash_pipeline.stack import Stack
from dash_pipeline.storage import timescale

MESSAGES = 600_000
PARTITIONS = 8
LANES = 2
RUNS = 3


def run(stack: Stack) -> dict[str, object]:
    """Events/s of each run; the median is the figure."""
    rates = []
    for _ in range(RUNS):
        with fresh_database(stack) as settings:
            rates.append(_once(settings, f"bench{time.time_ns()}"))
    rates.sort()
    return {"events": MESSAGES, "lanes": LANES, "events_per_s": rates[RUNS // 2], "all_runs": rates}


def _once(settings: Settings, chain: str) -> int:
    topic = f"{chain}.token_transfers"
    make_topics(settings, [topic], PARTITIONS)
    out = producer(settings, linger_ms=20)
    for i, message in enumerate(transfers(MESSAGES)):
        out.produce(topic, message, partition=i % PARTITIONS)
        if i % 1000 == 0:
            out.poll(0)
    out.flush(60)
    context = mp.get_context("spawn")
    barrier = context.Barrier(LANES + 1)
    workers = [context.Process(target=_lane, args=(settings, chain, i, barrier)) for i in range(LANES)]
    for worker in workers:
        worker.start()
    barrier.wait()
    started = time.time()
    for worker in workers:
        worker.join(120)
    with timescale.connect(settings) as conn:
        stored, last = conn.execute(
            "SELECT (SELECT count(*) FROM chain.token_transfers WHERE chain = %s),"
            " (SELECT extract(epoch FROM max(updated_at))::float8 FROM ops.stream_offsets WHERE topic = %s)",
            (chain, topic),
        ).fetchone() or (0, 0.0)
    assert stored == MESSAGES, f"{stored} rows of {MESSAGES} messages"
    return round(MESSAGES / (last - started))


def _lane(settings: Settings, chain: str, number: int, barrier: Barrier) -> None:
    mine = lane(chain, ((f"{chain}.token_transfers", p) for p in range(PARTITIONS) if p % LANES == number))
    barrier.wait()
    drain(settings, mine, Limits(idle_timeout_s=2, max_run_s=100), f"bench-{number}")
