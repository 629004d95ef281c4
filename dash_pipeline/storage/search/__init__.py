"""The search indexes in OpenSearch: made, kept up with the tables, rebuilt, asked.

Belongs here: everything that knows OpenSearch. Does not belong here: orchestration (`assets/`), and the tables, which
are the truth: whatever is in an index can be computed from them again.
"""

from dash_pipeline.storage.search.bulk import Written, client
from dash_pipeline.storage.search.follower import Follower, Outbox, Progress, connect, follow_once, outbox
from dash_pipeline.storage.search.indexes import (
    INDEXES,
    TOKENS_INDEX,
    TRANSACTIONS_INDEX,
    WALLETS_INDEX,
    delete,
    ensure,
)
from dash_pipeline.storage.search.queries import token, top_tokens, wallet_days, wallet_transactions
from dash_pipeline.storage.search.rebuilding import rebuild

__all__ = [
    "INDEXES",
    "TOKENS_INDEX",
    "TRANSACTIONS_INDEX",
    "WALLETS_INDEX",
    "Follower",
    "Outbox",
    "Progress",
    "Written",
    "client",
    "connect",
    "delete",
    "ensure",
    "follow_once",
    "outbox",
    "rebuild",
    "token",
    "top_tokens",
    "wallet_days",
    "wallet_transactions",
]
