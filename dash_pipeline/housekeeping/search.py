"""Documents that are older than their index promises leave it.

Belongs here: the windows and the deletion. Does not belong here: rows leaving the database (`archive/`).

Transactions and wallets' days count from their chain's newest blocks, alerts from the newest alert, none from the wall
clock. A token has one document, which shows its present: it has no window.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta

from opensearchpy import NotFoundError, OpenSearch

from dash_pipeline.settings import Settings
from dash_pipeline.storage.search.alerts import ALERTS_INDEX
from dash_pipeline.storage.search.bulk import client, opensearch_errors
from dash_pipeline.storage.search.follower import connect
from dash_pipeline.storage.search.indexes import TRANSACTIONS_INDEX, WALLETS_INDEX, alias
from dash_pipeline.storage.timescale import newest_times

# A request deletes so many at most, so that none outlasts its time and indexing goes on between them.
_AT_ONCE = 20_000
_REQUEST_S = 300


def roll_off(settings: Settings, say: Callable[[str], None] = lambda line: None) -> dict[str, int]:
    """Delete what is older than `search_transaction_days`, `search_wallet_days` and `search_alert_days`; alias -> how
    many documents. A document that somebody writes meanwhile stays.

    Raises Unavailable when database or OpenSearch do not answer; what is deleted by then stays deleted.
    """
    opensearch = client(settings)
    with closing(connect(settings)) as conn, opensearch_errors():
        gone: dict[str, int] = {}
        for chain, newest in newest_times(conn, settings).items():
            for index, field, days in (
                (TRANSACTIONS_INDEX, "ts", settings.search_transaction_days),
                (WALLETS_INDEX, "day", settings.search_wallet_days),
            ):
                gone[alias(index, chain)] = _delete(opensearch, alias(index, chain), field, newest, days)
        if newest_alert := _newest_alert(opensearch):
            gone[ALERTS_INDEX] = _delete(
                opensearch, ALERTS_INDEX, "raised_at", newest_alert, settings.search_alert_days
            )
    for name, count in gone.items():
        if count:
            say(f"{name}: {count:,} documents were older than their window")
    return {name: count for name, count in gone.items() if count}


def _newest_alert(opensearch: OpenSearch) -> datetime | None:
    body = {"size": 1, "sort": [{"raised_at": "desc"}], "_source": ["raised_at"]}
    try:
        hits = opensearch.search(index=ALERTS_INDEX, body=body)["hits"]["hits"]
    except NotFoundError:
        return None
    return datetime.fromisoformat(hits[0]["_source"]["raised_at"]) if hits else None


def _delete(opensearch: OpenSearch, name: str, field: str, newest: datetime, days: float) -> int:
    """Delete the documents behind an alias whose time lies more than `days` before `newest`; how many."""
    edge = (newest - timedelta(days=days)).isoformat()
    body = {"query": {"range": {field: {"lt": edge}}}}
    params = {"conflicts": "proceed", "max_docs": _AT_ONCE, "refresh": "true", "request_timeout": _REQUEST_S}
    deleted = 0
    while True:
        try:
            answer = opensearch.delete_by_query(index=name, body=body, params=params)
        except NotFoundError:  # a chain without an index
            return deleted
        deleted += int(answer["deleted"])
        if not answer["deleted"]:
            return deleted
