"""The index of alerts: made, kept up with the table, asked.

Belongs here: everything that knows how alerts are in OpenSearch. Does not belong here: the alerts themselves
(`dash_pipeline/storage/alerts.py`).

One index for all chains, `alerts-000001` behind the alias `alerts`: alerts are few. A document's id is the alert's, its
external version the alert's revision, so that a stale writer never overwrites a newer one, and repeating is harmless.
"""

from __future__ import annotations

import json
from typing import Any

from opensearchpy import NotFoundError, OpenSearch
from opensearchpy.exceptions import RequestError

from dash_pipeline.alerts.rules import SEVERITIES, rank
from dash_pipeline.storage import alerts as store
from dash_pipeline.storage.search.bulk import IndexMissing, opensearch_errors, write
from dash_pipeline.storage.search.fields import DATE, DOUBLE, INTEGER, KEYWORD, LONG, STORED, Mapping
from dash_pipeline.storage.timescale import Connection

Document = dict[str, Any]

ALERTS_INDEX = "alerts"

_AT_ONCE = 500
# Whatever numbers a detector found, and whatever a model says: kept, not searched.
_KEPT: Mapping = {"type": "object", "enabled": False}

PROPERTIES: dict[str, Mapping] = {
    "chain": KEYWORD,
    "pool": KEYWORD,
    "token": KEYWORD,
    "kind": KEYWORD,
    "severity": KEYWORD,
    "ts": DATE,
    "block_number": LONG,
    "tx_hash": KEYWORD,
    "wallets": KEYWORD,
    "evidence": _KEPT,
    "pool_risk": DOUBLE,
    "liquidity_outlook": DOUBLE,
    "predictions": _KEPT,
    "raised_at": DATE,
    "retracted": {"type": "boolean"},
    "retracted_at": DATE,
    "revision": INTEGER,
    "run_id": STORED,
}


def ensure(opensearch: OpenSearch, index: str = ALERTS_INDEX) -> bool:
    """Make sure that the template is current and the index is there; whether it was made. Raises Unavailable when
    OpenSearch does not answer."""
    mappings = {"dynamic": "strict", "properties": PROPERTIES}
    settings = {"number_of_shards": 1, "auto_expand_replicas": "0-1", "refresh_interval": "1s"}
    body = {"index_patterns": [f"{index}-*"], "template": {"settings": settings, "mappings": mappings}}
    with opensearch_errors():
        opensearch.indices.put_index_template(name=index, body=body)
        if opensearch.indices.exists_alias(name=index):
            opensearch.indices.put_mapping(index=index, body={"properties": PROPERTIES})
            return False
        try:
            opensearch.indices.create(index=f"{index}-000001", body={"aliases": {index: {"is_write_index": True}}})
        except RequestError as error:
            if error.error == "resource_already_exists_exception":  # another process was faster
                return False
            raise
    return True


def index_pending(conn: Connection, opensearch: OpenSearch, index: str = ALERTS_INDEX, retry_for_s: float = 5) -> int:
    """Write every alert that the index does not show as it is; how many. Makes the index if there is none.

    Raises Unavailable when OpenSearch does not answer for `retry_for_s` seconds; what was not written waits.
    """
    count = 0
    while batch := store.unindexed(conn, _AT_ONCE):
        lines = [_line(alert) for alert in batch.values()]
        try:
            write(opensearch, index, lines, retry_for_s)
        except IndexMissing:
            ensure(opensearch, index)
            write(opensearch, index, lines, retry_for_s)
        # Those that lost to a newer document are in it; one that the index refuses is in the log and stays refused.
        store.indexed(conn, ((id_, alert["revision"]) for id_, alert in batch.items()))
        count += len(batch)
    return count


def _line(alert: Document) -> bytes:
    action = {"index": {"_id": alert["id"], "version": alert["revision"], "version_type": "external"}}
    scores = {p["model"]: p["score"] for p in alert["predictions"] if p["subject"] == alert["pool"]}
    document = {name: value for name, value in alert.items() if name != "id"}
    document |= {name: scores.get(name) for name in ("pool_risk", "liquidity_outlook")}
    return f"{json.dumps(action)}\n{json.dumps(document)}\n".encode()


def find_alerts(
    opensearch: OpenSearch,
    *,
    severity: str = SEVERITIES[0],
    chain: str = "",
    pool: str = "",
    wallet: str = "",
    active_only: bool = True,
    size: int = 50,
    index: str = ALERTS_INDEX,
) -> list[Document]:
    """Alerts of at least this severity, newest first, as they are in the index; addresses as `0x...` in any case. An
    index that is not there is an empty answer. Raises Unavailable when OpenSearch does not answer."""
    wanted: list[Document] = [{"terms": {"severity": SEVERITIES[rank(severity) :]}}]
    asked = {"chain": chain, "pool": pool.lower(), "wallets": wallet.lower()}
    wanted += [{"term": {name: value}} for name, value in asked.items() if value]
    if active_only:
        wanted.append({"term": {"retracted": False}})
    body = {"query": {"bool": {"filter": wanted}}, "sort": [{"raised_at": "desc"}, {"ts": "desc"}], "size": size}
    with opensearch_errors():
        try:
            found = opensearch.search(index=index, body=body)
        except NotFoundError:
            return []
    return [{"id": hit["_id"]} | hit["_source"] for hit in found["hits"]["hits"]]


def forget(opensearch: OpenSearch, chain: str, index: str = ALERTS_INDEX) -> None:
    """Delete a chain's documents; an index that is not there is no mistake."""
    query = {"query": {"term": {"chain": chain}}}
    with opensearch_errors():
        try:
            opensearch.delete_by_query(index=index, body=query, params={"refresh": "true", "conflicts": "proceed"})
        except NotFoundError:
            return


def delete(opensearch: OpenSearch, index: str = ALERTS_INDEX) -> None:
    """Delete the index and its template."""
    with opensearch_errors():
        for name in opensearch.indices.get(index=f"{index}-0*", params={"filter_path": "*.aliases"}):
            opensearch.indices.delete(index=name)
        opensearch.indices.delete_index_template(name=index, params={"ignore": 404})
