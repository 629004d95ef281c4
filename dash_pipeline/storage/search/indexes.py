"""The search indexes: names, mappings, templates, aliases.

Belongs here: what an index looks like and that it is there. Does not belong here: what is written into it
(`documents.py`) or asked of it (`queries.py`).

Each chain has its own index of each kind: `<kind>-<chain>-<n>` behind the alias `<kind>-<chain>`, which is written to,
and the alias `<kind>`, which spans all chains. Not by month: a transaction that a reorg moves into another block keeps
its id, must replace its old document, and nobody who holds only a hash could name the month. A chain's index is rebuilt
and swapped without touching the others; seven days of one chain are a size that one index holds.

`_id` and routing: `<chain>:<tx hash>` by sender, `<chain>:<wallet>:<day>` by wallet, `<chain>:<token>` by id. A
transaction keeps its sender whatever block it is in, so its document never changes shards.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Any

from opensearchpy import OpenSearch
from opensearchpy.exceptions import NotFoundError, RequestError

from dash_pipeline.settings import Settings
from dash_pipeline.storage.search.bulk import client, one_line, opensearch_errors
from dash_pipeline.storage.search.fields import (
    COUNT,
    DATE,
    DOUBLE,
    INTEGER,
    KEYWORD,
    LONG,
    MEASURE,
    NAME,
    SEEN,
    STORED,
    TERM,
    Mapping,
    properties,
)
from dash_pipeline.storage.tables import LOGS, POOL_EVENTS, TOKEN_TRANSFERS, TRANSACTIONS

log = logging.getLogger(__name__)

TRANSACTIONS_INDEX = "transactions"
TOKENS_INDEX = "token-performance"
WALLETS_INDEX = "wallet-activity"
INDEXES = (TRANSACTIONS_INDEX, TOKENS_INDEX, WALLETS_INDEX)

WINDOWS = {"1h": "1 hour", "24h": "1 day", "7d": "7 days"}

# What rows inside a transaction's document need not repeat.
EMBEDDED_SKIP = ("chain", "ts", "block_number", "block_hash", "tx_hash", "tx_index")
# The four topics are one list in a document.
LOG_SKIP = (*EMBEDDED_SKIP, "topic0", "topic1", "topic2", "topic3")


def _transactions() -> dict[str, Mapping]:
    sorted_by = ("ts", "block_number", "tx_index", "value_f", "from_address", "to_address", "receipt_gas_used")
    searched = ("chain", "block_hash", "tx_hash", "value", "transaction_type", "receipt_status", *sorted_by)
    # Arrays of plain objects, not nested ones: a nested object is a hidden document of its own, which would make an
    # average transaction twelve documents. Who needs two conditions on one log filters the hits.
    logs = properties(LOGS, ("address",), skip=LOG_SKIP) | {"topics": TERM}
    parties = ("token_address", "from_address", "to_address")
    return properties(TRANSACTIONS, (*searched, "receipt_contract_address"), sorted_by) | {
        "method": KEYWORD,
        "wallets": TERM,
        "logs": {"properties": logs},
        "token_transfers": {"properties": properties(TOKEN_TRANSFERS, parties, skip=EMBEDDED_SKIP)},
        "pool_events": {"properties": properties(POOL_EVENTS, ("event", "pool"), skip=EMBEDDED_SKIP)},
    }


def _tokens() -> dict[str, Mapping]:
    fields: dict[str, Mapping] = {
        "chain": KEYWORD,
        "address": KEYWORD,
        "symbol": NAME,
        "name": NAME,
        "decimals": INTEGER,
        "total_supply": STORED,
        "as_of": DATE,
        "price": DOUBLE,
        "quote": KEYWORD,
        "quote_symbol": NAME,
        "liquidity": DOUBLE,
        "main_pool": KEYWORD,
        "protocol": KEYWORD,
        "pools": LONG,
        "last_trade": DATE,
        "last_transfer": DATE,
    }
    for window in WINDOWS:
        fields |= {f"{name}_{window}": DOUBLE for name in ("change", "volume", "volume_quote", "liquidity_change")}
        fields[f"trades_{window}"] = LONG
    return fields


def _wallets() -> dict[str, Mapping]:
    counts = ("tx_sent", "tx_received", "tx_failed", "transfers_out", "transfers_in", "tokens", "swaps")
    amounts = ("value_out", "value_in", "fee")
    # Many documents a second: only what they are found by is indexed.
    return (
        {"chain": TERM, "wallet": TERM, "day": DATE, "first_seen": SEEN, "last_seen": SEEN}
        | dict.fromkeys(counts, COUNT)
        | dict.fromkeys(amounts, STORED)
        | {f"{name}_f": MEASURE for name in amounts}
    )


PROPERTIES = {TRANSACTIONS_INDEX: _transactions(), TOKENS_INDEX: _tokens(), WALLETS_INDEX: _wallets()}


def alias(index: str, chain: str) -> str:
    """The name that one chain's documents of a kind are written to and found under."""
    return f"{index}-{chain}"


def ensure(settings: Settings, chains: Iterable[str] = ()) -> list[str]:
    """Make sure that the templates are current and these chains' indexes are there; others come with their first lane.

    An index that exists gets the fields that are new to it. Returns the aliases that had no index: what the database
    holds for them is not in the index yet. Raises Unavailable when OpenSearch does not answer.
    """
    opensearch = client(settings)
    with opensearch_errors():
        for index in INDEXES:
            opensearch.indices.put_index_template(name=index, body=_template(index, settings.opensearch_shards))
        return [name for chain in chains for index in INDEXES if (name := _ensure_index(opensearch, index, chain))]


def _ensure_index(opensearch: OpenSearch, index: str, chain: str) -> str | None:
    name = alias(index, chain)
    if opensearch.indices.exists_alias(name=name):
        try:
            opensearch.indices.put_mapping(index=name, body={"properties": PROPERTIES[index]})
        except RequestError as error:
            log.error("%s keeps its mapping until it is rebuilt (`dash-pipeline search rebuild %s`): %s",
                      name, index, one_line(error))  # fmt: skip
        return None
    body = {"aliases": {index: {}, name: {"is_write_index": True}}}
    try:
        opensearch.indices.create(index=f"{name}-000001", body=body)
    except RequestError as error:
        if error.error == "resource_already_exists_exception":  # another lane was faster
            return None
        raise
    return name


def _template(index: str, shards: int) -> dict[str, Any]:
    return {
        "index_patterns": [f"{index}-*"],
        "template": {
            "settings": {
                "number_of_shards": shards if index == TRANSACTIONS_INDEX else 1,
                "auto_expand_replicas": "0-1",
                "refresh_interval": "1s",
                # How long a deletion is remembered, so that a writer that was cut off for minutes cannot bring an
                # orphaned transaction back.
                "gc_deletes": "1h",
            },
            # A field that is not in the mapping is a mistake in this package; tests find it because it is refused.
            "mappings": {"dynamic": "strict", "properties": PROPERTIES[index]},
        },
    }


def backing(opensearch: OpenSearch, index: str, chain: str) -> list[str]:
    """The indexes behind a chain's alias: one, or none when there is no such alias."""
    try:
        return sorted(opensearch.indices.get_alias(name=alias(index, chain)))
    except NotFoundError:
        return []


def _numbered(opensearch: OpenSearch, index: str, chain: str) -> dict[str, int]:
    """All indexes of this kind and chain, behind an alias or not, with their numbers."""
    name = alias(index, chain)
    found = opensearch.indices.get(index=f"{name}-*", params={"filter_path": "*.aliases"})
    matches = (re.fullmatch(re.escape(name) + r"-(\d{6})", one) for one in found)
    return {match[0]: int(match[1]) for match in matches if match}


def create_next(opensearch: OpenSearch, index: str, chain: str) -> str:
    """Create an index that no alias shows yet, numbered after every existing one of this kind and chain; its name."""
    number = max(_numbered(opensearch, index, chain).values(), default=0) + 1
    target = f"{alias(index, chain)}-{number:06}"
    opensearch.indices.create(index=target)
    return target


def swap(opensearch: OpenSearch, index: str, chain: str, target: str) -> None:
    """Put `target` behind the aliases in one step, in place of what is there."""
    opensearch.indices.refresh(index=target)
    name = alias(index, chain)
    actions: list[dict[str, Any]] = [
        {"remove": {"index": old, "aliases": [index, name]}} for old in backing(opensearch, index, chain)
    ]
    actions += [
        {"add": {"index": target, "alias": index}},
        {"add": {"index": target, "alias": name, "is_write_index": True}},
    ]
    opensearch.indices.update_aliases(body={"actions": actions})


def delete_unused(opensearch: OpenSearch, index: str, chain: str) -> None:
    """Delete the indexes of this kind and chain that no alias shows: a rebuild's old ones, or what a crash left."""
    used = backing(opensearch, index, chain)
    for name in _numbered(opensearch, index, chain):
        if name not in used:
            opensearch.indices.delete(index=name)


def delete(opensearch: OpenSearch, chain: str) -> None:
    """Delete a chain's indexes with all their documents; one that is not there is no mistake."""
    for index in INDEXES:
        for name in _numbered(opensearch, index, chain):
            opensearch.indices.delete(index=name)
