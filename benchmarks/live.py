"""Live: events published at a steady rate, each timed from Kafka's append to its committed row, lane warm."""

from __future__ import annotations

import multiprocessing as mp
import time

from benchmarks.load import fresh_database, make_topics, send_blocks
from dash_pipeline.microbatch.drain import Checkpoint, Limits, drain
from dash_pipeline.microbatch.lanes import lane
from dash_pipeline.settings import Settings
from dash_pipeline.stack import Stack

TYPES = ("blocks", "transactions", "logs", "token_transfers")
PARTITIONS = 4
SECONDS = 30
WARM_UP_S = 8
# rate, the producer's linger in ms
RATES = ((1_000, 0), (3_000, 1), (10_000, 2))


def run(stack: Stack) -> dict[str, object]:
    """End-to-end latency and its parts at each rate, and how far the index was behind."""
    figures = {}
    for rate, linger in RATES:
        with fresh_database(stack) as settings:
            figures[f"{rate}_per_s"] = _once(settings, rate, linger)
    return figures


def _once(settings: Settings, rate: int, linger_ms: int) -> dict[str, object]:
    chain = f"live{time.time_ns()}"
    make_topics(settings, [f"{chain}.{type_}" for type_ in TYPES], PARTITIONS)
    mine = lane(chain, ((f"{chain}.{type_}", p) for type_ in TYPES for p in range(PARTITIONS)))
    sender = mp.get_context("spawn").Process(
        target=send_blocks, args=(settings, chain, rate, SECONDS + WARM_UP_S, linger_ms, min(rate, 2_000))
    )
    sender.start()
    seen: list[Checkpoint] = []
    drain(settings, mine, Limits(idle_timeout_s=4, max_run_s=120, checkpoint_s=WARM_UP_S / 2), "bench", seen.append)
    sender.join()
    warm = seen[2:-1]
    return {
        "events": sum(one.messages for one in seen),
        "events_per_s": round(sum(one.messages for one in warm) / sum(one.seconds for one in warm)),
        "ms": {
            stage: {p: round(_median(one.latency[stage][p] for one in warm), 1) for p in ("p50", "p95", "p99")}
            for stage in warm[0].latency
        },
        "worst_p99_ms": round(max(one.latency["end_to_end"]["p99"] for one in warm), 1),
        "index_behind_s": {
            "median": round(_median(one.index_behind_s for one in warm), 2),
            "worst": round(max(one.index_behind_s for one in warm), 2),
        },
    }


def _median(values: object) -> float:
    ordered = sorted(values)  # type: ignore[call-overload]
    return float(ordered[len(ordered) // 2])
