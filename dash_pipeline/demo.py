"""`dash-pipeline demo`: the recorded market through the whole platform, and what came out.

Belongs here: the order of things and the comparison of counts. Does not belong here: starting servers (`stack/`),
publishing (`feed/`), and the ingestion itself: runs that the lag sensor starts do that.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import msgspec
import psycopg
from rich.console import Console
from rich.table import Table

from dash_pipeline.alerts import show as alerts
from dash_pipeline.chains import load_chains
from dash_pipeline.errors import Unavailable
from dash_pipeline.feed import files
from dash_pipeline.feed.follow import Followed
from dash_pipeline.feed.live import LiveReport, live
from dash_pipeline.feed.replay import Progress, Report, replay
from dash_pipeline.feed.show import followed_line
from dash_pipeline.feed.wait import end_offsets, missing
from dash_pipeline.market import RECORDED, free_port, live_market
from dash_pipeline.models.registry import Registry
from dash_pipeline.settings import Settings
from dash_pipeline.stack import Stack
from dash_pipeline.stack.servers.dagster import graphql
from dash_pipeline.stack.status import lag
from dash_pipeline.storage.alerts import forget as forget_alerts
from dash_pipeline.storage.search import alerts as alerts_index
from dash_pipeline.storage.search import indexes
from dash_pipeline.storage.search.bulk import client, opensearch_errors
from dash_pipeline.storage.search.indexes import INDEXES
from dash_pipeline.storage.timescale import committed_offsets, connect, forget_chain
from dash_pipeline.topics import ANOMALIES, TYPES

CHAIN = "anvil"
LIVE_CHAIN = "anvil_live"
RATE = 6_000.0

_POLL_S = 0.5
_TRAINED_ON_SAMPLES = ("pool_risk", "wallet_risk")


class Outcome(msgspec.Struct, frozen=True):
    """What the demo found. `tables`: table -> (messages published, rows of the recorded blocks); `latency_ms`: stage ->
    percentiles over the newest run's messages, as far as its checkpoints reached Dagster."""

    chain: str
    published: int
    per_second: int
    ingested_after_s: float
    tables: dict[str, tuple[int, int]]
    derived: dict[str, int]
    lag: int
    documents: dict[str, int]
    dead_letters: int
    latency_ms: dict[str, dict[str, float]]
    rug_pulls: list[str]
    alerts: list[dict[str, Any]]
    ui: str

    @property
    def missed(self) -> list[str]:
        """Pools that were rug pulls by the market's own labels, and raised no alert of high severity."""
        alerted = {alert["pool"] for alert in self.alerts if alert["severity"] == "high"}
        return [pool for pool in self.rug_pulls if pool not in alerted]

    @property
    def agrees(self) -> bool:
        """Every published message is a row, nothing waits, each transaction is a document, each rug pull an alert."""
        rows = all(published == stored for published, stored in self.tables.values())
        documents = self.documents["transactions"] >= self.tables["transactions"][1]
        return rows and not self.lag and documents and not self.missed


def demo(stack: Stack, progress: Progress, say: Callable[[str], None], timeout_s: float = 300) -> Outcome:
    """Publish the recorded market and wait until sensor-started runs have ingested and indexed all of it.

    Raises Unavailable, saying what is missing, when that takes longer than `timeout_s`.
    """
    settings = stack.settings()
    say("waiting for the first champions")
    _wait(lambda: _untrained(settings), timeout_s)
    report = replay(settings, [RECORDED], CHAIN, rate=RATE, wait_s=timeout_s, progress=progress)
    with connect(settings) as conn:
        say("waiting for the search indexes")
        _wait(lambda: _unindexed(conn), timeout_s)
        say("waiting for the prediction engine")
        _wait(lambda: _unreacted(settings, conn), timeout_s)
        return _outcome(stack, settings, conn, report)


def forget(settings: Settings, conn: psycopg.Connection[Any], chain: str) -> None:
    """Delete everything stored of a local chain, so that it can begin anew."""
    forget_alerts(conn, chain)
    forget_chain(conn, chain)
    alerts_index.forget(client(settings), chain)
    with opensearch_errors():
        indexes.delete(client(settings), chain)
    indexes.ensure(settings, [chain])


def live_demo(stack: Stack, say: Callable[[str], None]) -> LiveReport:
    """Mine a market, a block a second, and stream it through the platform until it is over or SIGINT comes."""
    settings = stack.settings()
    with connect(settings) as conn:
        # Every live market is a chain of its own that begins at block 0 under the same name.
        forget(settings, conn, LIVE_CHAIN)

        def tell(followed: Followed) -> None:
            stored = _count(conn, "chain.blocks WHERE chain = %s", LIVE_CHAIN)
            say(f"{followed_line(followed)}, {stored:,} blocks ingested; watch {settings.dagster_url}/runs")

        with live_market(free_port()) as (url, _):
            chain = load_chains(settings.chains_file)[LIVE_CHAIN]
            return live(settings, url, chain, from_block=0, tell=tell, say=say)


def _wait(lacking: Callable[[], str], timeout_s: float) -> None:
    """Until nothing is lacking; raises Unavailable with what `lacking` says is."""
    deadline = time.monotonic() + timeout_s
    while text := lacking():
        if time.monotonic() > deadline:
            raise Unavailable(f"{text}; waited {timeout_s:g} s")
        time.sleep(_POLL_S)


def _unindexed(conn: psycopg.Connection[Any]) -> str:
    pending = _count(conn, "ops.search_outbox WHERE chain = %s", CHAIN)
    return f"the search indexes are {pending} micro-batches behind" if pending else ""


def _untrained(settings: Settings) -> str:
    """The training sensor trains what has no champion; the sample that comes with the project is enough."""
    registry = Registry(settings)
    lacking = [model for model in _TRAINED_ON_SAMPLES if registry.champion(model) is None]
    return f"no champion of {', '.join(lacking)}; see {settings.dagster_url}/runs" if lacking else ""


def _unreacted(settings: Settings, conn: psycopg.Connection[Any]) -> str:
    """Every anomaly is to be published, and the engine to have read them all and indexed the alerts."""
    unpublished = _count(conn, "intel.anomalies WHERE chain = %s AND published_revision < revision", CHAIN)
    unread = missing(end_offsets(settings, [ANOMALIES]), committed_offsets(conn)).total()
    unindexed = _count(conn, "intel.alerts WHERE chain = %s AND indexed_revision < revision", CHAIN)
    if not (unpublished or unread or unindexed):
        return ""
    return (
        f"the prediction engine is behind: {unpublished} anomalies are not published, {unread} not read,"
        f" {unindexed} alerts not indexed"
    )


def rug_pulls() -> list[str]:
    """The pools that the recorded market's generator says were rug pulls."""
    labels = json.loads((RECORDED / "labels.json").read_bytes())["labels"]
    return sorted({label["pool"] for label in labels if label["is_rug"]})


def _outcome(stack: Stack, settings: Settings, conn: psycopg.Connection[Any], report: Report) -> Outcome:
    blocks = _recorded_blocks()
    tables = {
        TYPES[type_]: (
            published,
            _count(conn, f"chain.{TYPES[type_]} WHERE chain = %s AND block_hash = ANY(%s)", CHAIN, blocks),
        )
        for type_, published in report.types.items()
    }
    return Outcome(
        chain=CHAIN,
        published=report.messages,
        per_second=report.per_second,
        ingested_after_s=report.committed_after_s or 0.0,
        tables=tables,
        derived={name: _count(conn, f"chain.{name} WHERE chain = %s", CHAIN) for name in ("pool_events", "pools")},
        lag=sum(topic.lag for topic in lag(settings) if topic.topic.startswith(f"{CHAIN}.")),
        documents=_documents(settings),
        dead_letters=_count(conn, "ops.dead_letters WHERE topic LIKE %s", f"{CHAIN}.%"),
        latency_ms=_latency(stack),
        rug_pulls=rug_pulls(),
        alerts=alerts.alerts(conn, severity="high", chain=CHAIN, limit=100, active_only=True),
        ui=settings.dagster_url,
    )


def _count(conn: psycopg.Connection[Any], source: str, *params: object) -> int:
    row = conn.execute(f"SELECT count(*) FROM {source}", params).fetchone()
    return int(row[0]) if row else 0


def _recorded_blocks() -> list[bytes]:
    """The hashes of the recorded blocks."""
    events = (event for file in RECORDED.glob("block.*") for event in files.read_events(file))
    return [bytes.fromhex(event.message.hash[2:]) for event in events]


def _documents(settings: Settings) -> dict[str, int]:
    """Documents of the chain in each index."""
    opensearch = client(settings)
    with opensearch_errors():
        opensearch.indices.refresh(index=",".join(INDEXES))
        return {
            index: opensearch.count(index=index, body={"query": {"term": {"chain": CHAIN}}})["count"]
            for index in INDEXES
        }


def _latency(stack: Stack) -> dict[str, dict[str, float]]:
    """Stage -> percentiles of the newest checkpoint that a lane reported to Dagster; empty when none has come yet."""
    answer = graphql(stack.place, _CHECKPOINTS, key=[CHAIN, "logs"])["assetOrError"]
    found: dict[str, dict[str, float]] = {}
    for materialization in answer.get("assetMaterializations", []):
        for entry in materialization["metadataEntries"]:
            name, _, unit = entry["label"].rpartition(", ")
            if unit == "ms" and name.startswith("latency "):
                _, stage, percentile = name.split(" ")
                found.setdefault(stage, {})[percentile] = entry["floatValue"]
        if found:
            break
    return found


_CHECKPOINTS = """
query($key: [String!]!) { assetOrError(assetKey: {path: $key}) { ... on Asset {
  assetMaterializations(limit: 20) { metadataEntries { label ... on FloatMetadataEntry { floatValue } } } } } }
"""


def show(outcome: Outcome, console: Console) -> None:
    """The closing table."""
    table = Table("", "published", "stored", box=None, pad_edge=False)
    for name, (published, stored) in outcome.tables.items():
        table.add_row(name, f"{published:,}", f"{stored:,}", style="" if published == stored else "red")
    for name, stored in outcome.derived.items():
        table.add_row(f"{name} (decoded)", "", f"{stored:,}")
    for name, documents in outcome.documents.items():
        table.add_row(f"{name} (search documents)", "", f"{documents:,}")
    for column in table.columns[1:]:
        column.justify = "right"
    console.print(table)
    console.print(
        f"{outcome.published:,} events at {outcome.per_second:,}/s, all committed {outcome.ingested_after_s:.1f} s"
        f" after the last; lag {outcome.lag:,}, dead letters {outcome.dead_letters:,}",
        highlight=False,
    )
    for stage, values in outcome.latency_ms.items():
        figures = ", ".join(f"{percentile} {value:,.1f} ms" for percentile, value in values.items())
        console.print(f"latency {stage:<11} {figures} (newest checkpoint, cold start included)", highlight=False)
    found = len(outcome.rug_pulls) - len(outcome.missed)
    console.print(f"\nrug pulls: {len(outcome.rug_pulls)}, with an alert of high severity: {found}", highlight=False)
    console.print(alerts.alerts_table(outcome.alerts))
    console.print(f"Dagster UI: {outcome.ui}/asset-groups", highlight=False)
