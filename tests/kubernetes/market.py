"""The recorded market, fed to a release while something is done to it.

Belongs here: feeding, and the count at the end. Does not belong here: what is done (`test_cluster_*.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from dash_pipeline.demo import forget
from dash_pipeline.feed.replay import replay
from dash_pipeline.market import RECORDED
from dash_pipeline.storage import timescale
from tests.kubernetes.release import Release, wait
from tests.whole import check, settle

CHAIN = "anvil_live"
JOB = f"ingest_{CHAIN}"
#: Messages a second: 82,560 last for half a minute.
RATE = 2_500.0


@contextmanager
def feeding(release: Release, rate: float = RATE) -> Iterator[None]:
    """Feed the market from its beginning; the block runs once a lane drains it. At the end each message is a row, once,
    and each transaction a document."""
    settings = release.stores.settings()
    with timescale.connect(settings) as conn:
        forget(settings, conn, CHAIN)
    with ThreadPoolExecutor(1) as pool:
        fed = pool.submit(replay, settings, [RECORDED], CHAIN, rate=rate)
        wait("rows from a run's pod", lambda: rows(release) > 0)
        yield
        report = fed.result()
    settle(settings, CHAIN)
    check(settings, CHAIN, report.types)


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


def failed(release: Release) -> set[str]:
    """Runs that have failed, of any job."""
    return {run["runId"] for run in release.runs(statuses=["FAILURE"])}
