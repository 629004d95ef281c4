"""Questions to the indexes: what the command line, the benchmarks and the API ask.

Belongs here: one request per question, bounded in size. Does not belong here: how a document comes about.

A question is made by a pure function, which takes a chain's name and addresses as `0x...` text in any case, so that
whoever asks may have a client of his own (the API's is asynchronous). The functions that take the client of
`bulk.client` ask that chain's index only, and return documents as they are in the index. An index or document that is
not there is an empty answer. They raise Unavailable when the index does not answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
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


# What is shown of a transaction where many are listed: not its logs, nor its input.
SUMMARY = (
    "chain", "ts", "block_number", "block_hash", "tx_hash", "tx_index", "from_address", "to_address", "value",
    "receipt_status", "receipt_gas_used", "receipt_contract_address", "method", "token_transfers.token_address",
    "token_transfers.from_address", "token_transfers.to_address", "token_transfers.value",
    "token_transfers.log_index",
)  # fmt: skip
# The fewest characters of an address or hash that are looked for: shorter ones begin too many.
SHORTEST_PREFIX = len("0x") + 4


@dataclass(frozen=True)
class Question:
    """A search: which index or alias, the request's body, and the shard it is for if one is enough."""

    index: str
    body: Document
    routing: str | None = None


def token_id(chain: str, address: str) -> str:
    """The id of a token's document."""
    return f"{chain}:{address.lower()}"


def token(client: OpenSearch, chain: str, address: str) -> Document | None:
    """A token's document, or None."""
    with opensearch_errors():
        try:
            found = client.get(index=alias(TOKENS_INDEX, chain), id=token_id(chain, address))
        except NotFoundError:
            return None
    document: Document = found["_source"]
    return document


def top_tokens(
    client: OpenSearch, chain: str, window: str = "7d", by: str = "change", size: int = 10, min_liquidity: float = 0
) -> list[Document]:
    """The answer to `ask_top_tokens`; `min_liquidity` is in the token's quote token."""
    leading = _search(client, ask_leading_tokens(chain, window, by, size, min_liquidity))
    order = in_order([(one[f"{by}_{window}"], one["address"]) for one in leading], size)
    if order is None:
        return _search(client, ask_top_tokens(chain, window, by, size, min_liquidity))
    return [leading[place] for place in order]


def wallet_days(client: OpenSearch, chain: str, wallet: str, days: int = 7) -> list[Document]:
    """The answer to `ask_wallet_days`."""
    return _search(client, ask_wallet_days(chain, wallet, days))


def wallet_transactions(client: OpenSearch, chain: str, wallet: str, size: int = 20) -> list[Document]:
    """The answer to `ask_wallet_transactions`, with all that is in the documents."""
    return _search(client, ask_wallet_transactions(chain, wallet, size))


def ask_top_tokens(
    chain: str,
    window: str = "7d",
    by: str = "change",
    size: int = 10,
    min_liquidity: float = 0,
    after: Sequence[object] | None = None,
) -> Question:
    """The tokens with the largest `by` (one of RANKS) in a window (1h, 24h, 7d), of those that traded in it.

    `min_liquidity` is in the token's quote token: a price that a few coins set is not worth a rank. `after`: the sort
    values (rank, address) of the hit before the first. Raises DashError for an unknown window or rank.
    """
    field = f"{by}_{window}"
    if window not in WINDOWS or by not in RANKS or field not in PROPERTIES[TOKENS_INDEX]:
        raise DashError(f"tokens rank by {', '.join(RANKS)} over {', '.join(WINDOWS)}, not by {by} over {window}")
    wanted: list[Document] = [{"range": {f"trades_{window}": {"gte": 1}}}, {"exists": {"field": field}}]
    if min_liquidity:
        wanted.append({"range": {"liquidity": {"gte": min_liquidity}}})
    return _question(TOKENS_INDEX, chain, wanted, [{field: "desc"}, {"address": "asc"}], size, after)


def ask_leading_tokens(
    chain: str, window: str = "7d", by: str = "change", size: int = 10, min_liquidity: float = 0
) -> Question:
    """`ask_top_tokens` by rank alone, and one token more: by one key OpenSearch leaves unread what cannot lead, by two
    it looks at every token. `in_order` tells whether that says enough. `min_liquidity`: in the token's quote token."""
    exact = ask_top_tokens(chain, window, by, size + 1, min_liquidity)
    return replace(exact, body=exact.body | {"sort": exact.body["sort"][:1]})


def in_order(leading: Sequence[tuple[float, str]], size: int) -> list[int] | None:
    """The places of the first `size` tokens among `leading` (rank and address of each, by rank alone), in the order of
    `ask_top_tokens`. None where the last one's rank is the next one's, too: which comes first only that tells."""
    if len(leading) > size and leading[size - 1][0] == leading[size][0]:
        return None
    return sorted(range(min(size, len(leading))), key=lambda place: (-leading[place][0], leading[place][1]))


def ask_wallet_days(chain: str, wallet: str, days: int = 7) -> Question:
    """A wallet's last `days` days on which it did something, newest first."""
    wanted = [{"term": {"wallet": wallet.lower()}}]
    return _question(WALLETS_INDEX, chain, wanted, [{"day": "desc"}], days, routing=wallet.lower())


def ask_wallet_transactions(
    chain: str, wallet: str, size: int = 20, after: Sequence[object] | None = None, fields: Sequence[str] = ()
) -> Question:
    """The newest transactions that a wallet sent or received, or in which a token went to or from it.

    `after`: the sort values (height, place in the block) of the hit before the first; `fields`: these only.
    """
    wanted = [{"term": {"wallets": wallet.lower()}}]
    order = [{"block_number": "desc"}, {"tx_index": "desc"}]
    return _question(TRANSACTIONS_INDEX, chain, wanted, order, size, after, fields=fields)


def ask_anything(text: str, chain: str, size: int = 10) -> list[Question]:
    """What text may stand for: a transaction's hash, a token, a wallet, the beginning of a hash or of a token's
    contract (at least SHORTEST_PREFIX characters), or of a token's symbol or name, in any case. `size`: of each kind.
    """
    low = text.lower()
    if re.fullmatch("0x[0-9a-f]{64}", low):
        return [_by_hash(chain, {"term": {"tx_hash": low}}, 1)]
    if re.fullmatch("0x[0-9a-f]{40}", low):
        is_token: list[Document] = [{"term": {"address": low}}]
        return [_question(TOKENS_INDEX, chain, is_token, [{"address": "asc"}], 1), ask_wallet_days(chain, low, 1)]
    if re.fullmatch(f"0x[0-9a-f]{{{SHORTEST_PREFIX - 2},}}", low):
        begins = [{"prefix": {"address": low}}]
        tokens = _question(TOKENS_INDEX, chain, begins, [{"address": "asc"}], size)
        return [tokens, _by_hash(chain, {"prefix": {"tx_hash": low}}, size)]
    named: list[Document] = [
        {"prefix": {field: {"value": text, "case_insensitive": True}}} for field in ("symbol", "name")
    ]
    either = [{"bool": {"should": named, "minimum_should_match": 1}}]
    # Anyone may name a token as he likes: those that are traded come first.
    order: list[Document] = [{"trades_7d": {"order": "desc", "missing": "_last"}}, {"address": "asc"}]
    return [_question(TOKENS_INDEX, chain, either, order, size)]


def _by_hash(chain: str, wanted: Document, size: int) -> Question:
    order = [{"block_number": "desc"}, {"tx_index": "desc"}]
    return _question(TRANSACTIONS_INDEX, chain, [wanted], order, size, fields=SUMMARY)


def _question(
    index: str,
    chain: str,
    wanted: Sequence[Document],
    order: Sequence[Document],
    size: int,
    after: Sequence[object] | None = None,
    routing: str | None = None,
    fields: Sequence[str] = (),
) -> Question:
    # Filters, not scores; and no total, so that a query may stop at its first `size` hits.
    body = {"query": {"bool": {"filter": wanted}}, "sort": order, "size": size, "track_total_hits": False}
    if after is not None:
        body["search_after"] = list(after)
    if fields:
        body["_source"] = list(fields)
    return Question(alias(index, chain), body, routing)


def _search(client: OpenSearch, question: Question) -> list[Document]:
    params = {"routing": question.routing} if question.routing else {}
    with opensearch_errors():
        try:
            found = client.search(index=question.index, body=question.body, params=params)
        except NotFoundError:
            return []
    return [hit["_source"] for hit in found["hits"]["hits"]]
