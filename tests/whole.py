"""Whether a fed market has arrived whole, after whatever was done to the platform meanwhile.

Belongs here: waiting until all is through, and counting. Does not belong here: feeding, killing.
"""

from __future__ import annotations

import time
from collections import Counter

from opensearchpy import helpers

from dash_pipeline import topics
from dash_pipeline.feed.wait import end_offsets, missing
from dash_pipeline.settings import Settings
from dash_pipeline.storage import alerts, anomalies, timescale
from dash_pipeline.storage.search.bulk import client
from dash_pipeline.topics import TYPES, topic_name

SETTLE_S = 420


def settle(settings: Settings, chain: str) -> None:
    """Wait until all is committed and indexed."""
    deadline = time.monotonic() + SETTLE_S
    targets = end_offsets(settings, [topic_name(chain, type_) for type_ in TYPES])
    while True:
        with timescale.connect(settings) as conn:
            behind = missing(targets, timescale.committed_offsets(conn))
            waits = alerts.waiting(conn)
            unread = missing(end_offsets(settings, [topics.ANOMALIES]), timescale.committed_offsets(conn))
            unpublished = anomalies.unpublished(conn)
            if not (behind or unread or any(waits) or chain in unpublished or chain in timescale.unindexed(conn)):
                return
        assert time.monotonic() < deadline, f"behind: {dict(behind)}, {unread}, {waits}"
        time.sleep(1)


def check(settings: Settings, chain: str, sent: Counter[str]) -> None:
    """Rows equal messages, no key twice, no dead letters; the index holds every transaction with all its logs."""
    with timescale.connect(settings) as conn:

        def count(what: str, table: str) -> int:
            row = conn.execute(f"SELECT count({what}) FROM chain.{table} WHERE chain = %s", (chain,)).fetchone()
            return int(row[0]) if row else 0

        keys = {
            "blocks": "block_hash", "transactions": "tx_hash", "logs": "(block_hash, log_index)",
            "token_transfers": "(block_hash, log_index)", "traces": "(block_hash, trace_id)", "contracts": "address",
        }  # fmt: skip
        rows = {table: count("*", table) for table in keys}
        assert rows == {TYPES[type_]: n for type_, n in sent.items()}
        assert {table: count(f"DISTINCT {key}", table) for table, key in keys.items()} == rows
        assert conn.execute(
            "SELECT count(*) FROM ops.dead_letters WHERE topic LIKE %s", (f"{chain}.%",)
        ).fetchone() == (0,)
        logs = dict(
            conn.execute(
                "SELECT '0x' || encode(tx_hash, 'hex'), count(*) FROM chain.logs WHERE chain = %s GROUP BY 1", (chain,)
            ).fetchall()
        )
    opensearch = client(settings)
    opensearch.indices.refresh(index="transactions")
    query = {"query": {"term": {"chain": chain}}, "_source": ["tx_hash", "logs.log_index"]}
    documents = [hit["_source"] for hit in helpers.scan(opensearch, query, index="transactions")]
    assert len(documents) == rows["transactions"]
    assert {one["tx_hash"]: len(one["logs"]) for one in documents if one.get("logs")} == logs
