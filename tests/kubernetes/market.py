"""The recorded market, fed to a release while something is done to it.

Belongs here: feeding, and the count at the end. Does not belong here: what is done (`test_cluster_*.py`).
"""

from __future__ import annotations

import csv
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice, takewhile
from pathlib import Path

from confluent_kafka import Producer

from dash_pipeline.demo import LIVE_CHAIN, forget
from dash_pipeline.feed import files
from dash_pipeline.feed.replay import replay
from dash_pipeline.kafka import confluent_options
from dash_pipeline.market import RECORDED
from dash_pipeline.stack.status import lag
from dash_pipeline.storage import timescale
from dash_pipeline.topics import topic_name
from tests.kubernetes.release import Release, wait
from tests.whole import check, settle

CHAIN = LIVE_CHAIN
JOB = f"ingest_{CHAIN}"
#: Messages a second, at which the 82,560 of the whole market last for half a minute.
RATE = 2_500.0
#: The market's first part, 34,162 messages; and a rate at which it lasts for nearly a minute and a half.
PART_BLOCKS, SLOW = 500, 400.0


@contextmanager
def feeding(release: Release, rate: float = RATE, *, whole: bool = False) -> Iterator[None]:
    """Feed the market's first part, or all of it; the block runs once a lane drains it. At the end each message is a
    row, once, and each transaction a document."""
    settings = release.stores.settings()
    market = RECORDED if whole else _part(release.folder / "market.jsonl")
    with timescale.connect(settings) as conn:
        forget(settings, conn, CHAIN)
    with ThreadPoolExecutor(1) as pool:
        fed = pool.submit(replay, settings, [market], CHAIN, rate=rate)
        wait("rows from a run's pod", lambda: rows(release) > 0)
        yield
        report = fed.result()
    settle(settings, CHAIN)
    check(settings, CHAIN, report.types)


def _part(file: Path) -> Path:
    """The first blocks with all that belongs to them, in the order in which an exporter sends them."""
    if not file.exists():
        (recorded,) = files.find([RECORDED]).groups
        blocks = takewhile(lambda event: (event.message.block or 0) < PART_BLOCKS, files.merged(recorded))
        file.write_bytes(b"".join(event.line + b"\n" for event in blocks))
    return file


def course(release: Release, rate: Callable[[float], float], seconds: float, trace: Path) -> list[int]:
    """Feed the market, as much of it as there is, with `rate(seconds since the beginning)` messages a second; write a
    csv of seconds, lag and lanes. Returns the lanes of each moment. At the end each message is a row, once."""
    settings = release.stores.settings()
    with timescale.connect(settings) as conn:
        forget(settings, conn, CHAIN)
    producer, sent, seen = (
        Producer(confluent_options(settings) | {"linger.ms": 5, "queue.buffering.max.messages": 1_000_000}),
        Counter[str](),
        list[int](),
    )
    (recorded,) = files.find([RECORDED]).groups
    messages, due, began, last = files.merged(recorded), 0.0, time.monotonic(), 0.0

    def send(events: Iterable[files.Event]) -> None:
        for message, line in events:
            producer.produce(topic_name(CHAIN, message.type), line)
            sent[message.type] += 1

    with ThreadPoolExecutor(1) as pool, trace.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["seconds", "lag", "lanes"])

        def look(at: float) -> None:
            behind = sum(topic.lag for topic in lag(settings) if topic.topic.startswith(f"{CHAIN}."))
            seen.append(len(lanes(release)))
            table.writerow([f"{at:.1f}", behind, seen[-1]])

        looking = pool.submit(look, 0.0)
        while (now := time.monotonic() - began) < seconds:
            due, last = due + rate(now) * (now - last), now
            send(islice(messages, max(0, int(due) - sent.total())))
            producer.poll(0)
            if looking.done():
                looking.result()
                looking = pool.submit(look, now)
            time.sleep(0.1)
    send(messages)  # a chain that breaks off within a block would be one that is wrong
    assert producer.flush(60) == 0
    settle(settings, CHAIN)
    check(settings, CHAIN, sent)
    return seen


def rows(release: Release) -> int:
    """Logs of the market that are committed."""
    with timescale.connect(release.stores.settings()) as conn:
        row = conn.execute("SELECT count(*) FROM chain.logs WHERE chain = %s", (CHAIN,)).fetchone()
        return int(row[0]) if row else 0


def lanes(release: Release) -> list[str]:
    """The runs of lanes whose pods are running."""
    return [
        pod["metadata"]["labels"]["dagster/run-id"]
        for pod in release.run_pods()
        if pod["metadata"]["labels"].get("dagster/job") == JOB
    ]


def at_work(release: Release) -> list[str]:
    """The lanes among them that own partitions: their step has begun."""
    with timescale.connect(release.stores.settings()) as conn:
        owners = "SELECT DISTINCT run_id FROM ops.stream_offsets WHERE starts_with(topic, %s)"
        found = {run_id for (run_id,) in conn.execute(owners, (f"{CHAIN}.",)).fetchall()}
    return [run_id for run_id in lanes(release) if run_id in found]


def failed(release: Release) -> set[str]:
    """Runs that have failed, of any job."""
    return {run["runId"] for run in release.runs(statuses=["FAILURE"])}
