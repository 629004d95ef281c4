"""Questions to the indexes: what the command line, the benchmarks and a page ask.

Belongs here: one request per question, bounded in size. Does not belong here: how a document comes about.

Every function takes the client of `bulk.client`, a chain's name and addresses as `0x...` text in any case, asks that
chain's index only, and returns documents as they are in the index. An index or document that is not there is an empty
answer. Raises Unavailable when the index does not answer.
"""

from __future__ import annotations

from typing import Any

from opensearchpy import NotFoundError, OpenSearch

from dash_pipeline.errors import DashError
from dash_pipeline.storage.search.bulk import opensearch_errors
from dash_pipeline.storage.search.indexes import (
    PROPERTIES,
    TOKENS_INDEX,
    TRANSACTIONS_INDEX,
    WALLETS_INDEX,
    WINDOWS,
    alias,
)  # fmt: skip

Document = dict[str, Any]

# What a token can be ranked by, per window.
RANKS = ("change", "volume", "volume_quote", "trades", "liquidity_change")


def token(client: OpenSearch, chain: str, address: str) -> Document | None:
    """A token's document, or None."""
    with opensearch_errors():
        try:
            found = client.get(index=alias(TOKENS_INDEX, chain), id=f"{chain}:{address.lower()}")
        except NotFoundError:
            return None
    document: Document = found["_source"]
    return document


def top_tokens(
    client: OpenSearch, chain: str, window: str = "7d", by: str = "change", size: int = 10, min_liquidity: float = 0
) -> list[Document]:
    """The tokens with the largest `by` (one of RANKS) in a window (1h, 24h, 7d), of those that traded in it.

    `min_liquidity` is in the token's quote token: a price that a few coins set is not worth a rank. Raises DashError
    for an unknown window or rank.
    """
    field = f"{by}_{window}"
    if window not in WINDOWS or by not in RANKS or field not in PROPERTIES[TOKENS_INDEX]:
        raise DashError(f"tokens rank by {', '.join(RANKS)} over {', '.join(WINDOWS)}, not by {by} over {window}")
    wanted: list[Document] = [{"range": {f"trades_{window}": {"gte": 1}}}, {"exists": {"field": field}}]
    if min_liquidity:
        wanted.append({"range": {"liquidity": {"gte": min_liquidity}}})
    order = [{field: "desc"}, {"address": "asc"}]
    return _search(client, TOKENS_INDEX, chain, wanted, order, size)


def wallet_days(client: OpenSearch, chain: str, wallet: str, days: int = 7) -> list[Document]:
    """A wallet's last `days` days on which it did something, newest first."""
    wanted = [{"term": {"wallet": wallet.lower()}}]
    return _search(client, WALLETS_INDEX, chain, wanted, [{"day": "desc"}], days, routing=wallet.lower())


def wallet_transactions(client: OpenSearch, chain: str, wallet: str, size: int = 20) -> list[Document]:
    """The newest transactions that a wallet sent or received, or in which a token went to or from it."""
    wanted = [{"term": {"wallets": wallet.lower()}}]
    order = [{"block_number": "desc"}, {"tx_index": "desc"}]
    return _search(client, TRANSACTIONS_INDEX, chain, wanted, order, size)


def _search(
    client: OpenSearch,
    index: str,
    chain: str,
    wanted: list[Document],
    order: list[dict[str, str]],
    size: int,
    routing: str | None = None,
) -> list[Document]:
    # Filters, not scores; and no total, so that a query may stop at its first `size` hits.
    body = {"query": {"bool": {"filter": wanted}}, "sort": order, "size": size, "track_total_hits": False}
    params = {"routing": routing} if routing else {}
    with opensearch_errors():
        try:
            found = client.search(index=alias(index, chain), body=body, params=params)
        except NotFoundError:
            return []
    return [hit["_source"] for hit in found["hits"]["hits"]]
