"""The read API over more than a million documents: 200 requests/s alone, then fewer while the platform ingests 5,000
events/s.

The documents are made of rows as in the benchmark `search`; events come and are drained as in `live`, on a chain of
their own; both, the API and who asks it are processes of their own. Requests are sent when they are due, whether the
ones before have been answered or not, and timed from then.
"""

from __future__ import annotations

import asyncio
import multiprocessing as mp
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from statistics import median

import aiohttp
import psycopg
from pydantic import SecretStr

from benchmarks.load import fresh_database, make_topics, send_blocks
from benchmarks.search import address, fill
from dash_pipeline.microbatch.drain import Limits, drain
from dash_pipeline.microbatch.lanes import lane
from dash_pipeline.settings import PREFIX, Settings
from dash_pipeline.stack import Stack
from dash_pipeline.storage import api_keys, search, timescale

TRANSACTIONS, POOLS, WALLETS = 400_000, 380_000, 45_000
RATE, RATE_WHILE_INGESTING, EVENTS_PER_S = 200, 20, 5_000
SECONDS = 60
# For about two minutes after the fill p99 is twice as high.
WARM_UP_S = 150
INGEST_WARM_UP_S = 15
TYPES = ("blocks", "transactions", "logs", "token_transfers")
PARTITIONS = 4
# As much as the client waits by itself.
LINGER_MS = 5

#: What a lane did lately: messages, seconds, percentiles of milliseconds from append to commit.
Seen = tuple[int, float, dict[str, float]]

_random = random.Random(20_261_128)


def _any(kind: str, count: int) -> str:
    return address(kind, _random.randrange(count))


# An endpoint, its share of the requests, and one request: nothing that is asked for twice.
_MIX: tuple[tuple[str, float, Callable[[str], str]], ...] = (
    ("token", 0.35, lambda chain: f"/v1/tokens/{_any('k', POOLS)}?chain={chain}"),
    (
        "tokens by 7-day change",
        0.15,
        lambda chain: f"/v1/tokens?chain={chain}&window=7d&by=change&min_liquidity={_random.random():.6f}",
    ),
    ("wallet activity", 0.35, lambda chain: f"/v1/wallets/{_any('w', WALLETS)}/activity?chain={chain}&days=7"),
    ("wallet transactions", 0.10, lambda chain: f"/v1/wallets/{_any('w', WALLETS)}/transactions?chain={chain}"),
    ("search", 0.05, lambda chain: f"/v1/search?chain={chain}&q={_any('k', POOLS)[:10]}"),
)


def run(stack: Stack) -> dict[str, object]:
    """Documents, and of each part what `_part` says; of the second the rate of events that were committed, too, and
    how long they took from Kafka to their commit."""
    with fresh_database(stack) as settings, tempfile.TemporaryDirectory() as folder:
        return _measure(settings, Path(folder))


def _measure(settings: Settings, folder: Path) -> dict[str, object]:
    started = time.time_ns()
    chain, live = f"searched{started}", f"live{started}"
    registry = folder / "chains.toml"
    registry.write_text(
        "\n".join(
            f'[{name}]\ntitle = "{name}"\nchain_id = {i + 1}\nblock_time_s = 12.0'
            for i, name in enumerate((chain, live))
        )
    )
    settings = settings.model_copy(update={"chains_file": registry})
    with psycopg.connect(settings.timescale_dsn.get_secret_value()) as conn:
        fill(conn, chain, transactions=TRANSACTIONS, pools=POOLS, wallets=WALLETS, logs=False)
    opensearch = search.client(settings)
    try:
        documents = {index: search.rebuild(settings, index, chain)[chain].documents for index in search.INDEXES}
        with timescale.connect(settings) as conn:
            key = api_keys.add(conn, "benchmark", "paying", list(settings.api_tiers))
        with _serving(settings, folder) as (url, pid):

            def part(rate: int, warm_up_s: float) -> dict[str, object]:
                asyncio.run(_ask(url, key, chain, rate, warm_up_s))
                cpu = _cpu_s(pid)
                times = asyncio.run(_ask(url, key, chain, rate, SECONDS))
                return _part(times, _cpu_s(pid) - cpu)

            alone = part(RATE, WARM_UP_S)
            with _ingesting(settings, live) as committed:
                ingesting = part(RATE_WHILE_INGESTING, INGEST_WARM_UP_S) | committed()
        return {"documents": documents, "alone": alone, "ingesting": ingesting}
    finally:
        for name in (chain, live):
            search.delete(opensearch, name)


def _part(times: dict[str, list[float]], cpu_s: float) -> dict[str, object]:
    """Requests a second, processors that the API used, failures, and p50, p95, p99 and the worst of each endpoint in
    ms."""
    return {
        "requests_per_s": round(sum(map(len, times.values())) / SECONDS, 1),
        "api_cpu": round(cpu_s / SECONDS, 2),
        "failed": len(times.pop("failed", ())),
        "ms": {name: _percentiles(found) for name, found in times.items()},
    }


async def _ask(url: str, key: str, chain: str, rate: int, length_s: float) -> dict[str, list[float]]:
    """Seconds from when a request was due to its whole answer, by endpoint, and of those that failed."""
    times: dict[str, list[float]] = defaultdict(list)
    names, shares, makers = zip(*_MIX, strict=True)

    async def one(session: aiohttp.ClientSession, due: float, which: int) -> None:
        async with session.get(url + makers[which](chain)) as answer:
            body = await answer.read()
        if answer.status == 200 and len(body) < 100:
            raise RuntimeError(f"{answer.url}: nothing is found: {body[:200]!r}")
        times[names[which] if answer.status == 200 else "failed"].append(time.perf_counter() - due)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers={"X-Api-Key": key}) as session:
        begun = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number in range(round(rate * length_s)):
                due = begun + number / rate
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                tasks.create_task(one(session, due, _random.choices(range(len(names)), shares)[0]))
    return dict(times)


@contextmanager
def _serving(settings: Settings, folder: Path) -> Iterator[tuple[str, int]]:
    """The API as a process of its own: its address and process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        f"{PREFIX}{name.upper()}": value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in settings
        if name.startswith(("kafka", "timescale", "opensearch", "chains")) and value is not None
    }
    environment["DASH_API_TIERS"] = '{"anonymous": {"rate": 1, "burst": 1}, "paying": {"rate": 1e6, "burst": 1000000}}'
    command = [str(Path(sys.executable).with_name("dash-pipeline")), "api", "--port", str(port)]
    with (folder / "api.log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | environment, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}/healthz", timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def _ingesting(settings: Settings, chain: str) -> Iterator[Callable[[], dict[str, object]]]:
    """A lane and who feeds it, until the end; yields what tells how many events a second were committed of late, and
    the medians of their latencies' percentiles over windows of two seconds."""
    make_topics(settings, [f"{chain}.{type_}" for type_ in TYPES], PARTITIONS)
    context = mp.get_context("spawn")
    seen: SimpleQueue[Seen] = context.SimpleQueue()
    length = INGEST_WARM_UP_S + SECONDS + 5
    sender = context.Process(target=send_blocks, args=(settings, chain, EVENTS_PER_S, length, LINGER_MS, 2_000))
    drainer = context.Process(target=_drain, args=(settings, chain, length, seen))
    drainer.start()
    sender.start()

    def committed() -> dict[str, object]:
        found = []
        while not seen.empty():
            found.append(seen.get())
        # The first ones are of the warm-up.
        kept = found[len(found) // 3 :]
        rate = sum(messages for messages, _, _ in kept) / sum(seconds for _, seconds, _ in kept)
        latency = {name: round(median(ms[name] for _, _, ms in kept), 1) for name in ("p50", "p95", "p99")}
        return {"events_per_s": round(rate), "append_to_commit_ms": latency}

    try:
        yield committed
    finally:
        sender.join()
        drainer.join()


def _drain(settings: Settings, chain: str, length: float, seen: SimpleQueue[Seen]) -> None:
    mine = lane(chain, ((f"{chain}.{type_}", p) for type_ in TYPES for p in range(PARTITIONS)))
    limits = Limits(idle_timeout_s=10, max_run_s=length + 60, checkpoint_s=2)
    drain(settings, mine, limits, "bench", lambda one: seen.put((one.messages, one.seconds, one.latency["end_to_end"])))


def _cpu_s(pid: int) -> float:
    """Processor seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    found = {f"p{p}": ordered[min(len(ordered) - 1, len(ordered) * p // 100)] for p in (50, 95, 99)}
    return {name: round(1e3 * value, 1) for name, value in (found | {"worst": ordered[-1]}).items()}
