"""What the hot store knows of some wallets, as the frames that features are computed from.

Belongs here: SQL and its rows as frames. Does not belong here: what is made of them (`models/wallet_features.py`).

Transactions are found by sender and by receiver. Transfers have no such index: a wallet's are found by its blocks
(`rollup.wallet_blocks`), and in the blocks that the rollup does not show yet (`ops.search_outbox`), which are the ones
an alert is about.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import polars as pl

from dash_pipeline.models.wallet_features import OLDEST, SCHEMAS, WalletHistory
from dash_pipeline.storage.search.rollups import of_chain
from dash_pipeline.storage.timescale import Connection

#: The newest committed micro-batches that are looked through for blocks the rollup does not show yet. More are waiting
#: only while the indexes are behind by far; transfers between these and the rollup are then missing for a while.
PENDING = 500

_WALLETS = "FROM unnest(%(wallets)b::bytea[]) AS k(wallet) CROSS JOIN LATERAL"
_TX = "t.ts, t.block_number, t.tx_index, t.from_address, t.to_address, t.value_f"
_TX_OLDEST = "ORDER BY ts, block_number, tx_index LIMIT %(limit)s"

# The last part: the transaction that created the wallet, if it is a contract and one transaction's own.
_TRANSACTIONS = f"""
SELECT k.wallet, t.* {_WALLETS} (
 SELECT * FROM (
  (SELECT {_TX} FROM chain.transactions t WHERE t.from_address = k.wallet AND {of_chain("t")} AND t.ts <= %(until)s
   {_TX_OLDEST})
  UNION ALL
  (SELECT {_TX} FROM chain.transactions t WHERE t.to_address = k.wallet AND {of_chain("t")} AND t.ts <= %(until)s
   AND t.from_address <> k.wallet {_TX_OLDEST})
  UNION ALL
  SELECT t.* FROM chain.contracts c CROSS JOIN LATERAL (SELECT {_TX} FROM chain.transactions t
   WHERE t.block_hash = c.block_hash AND t.ts = c.ts AND {of_chain("t")} AND t.to_address IS NULL
   AND t.receipt_contract_address = k.wallet OFFSET 0) t
  WHERE c.address = k.wallet AND {of_chain("c")} AND c.ts <= %(until)s
  ) t {_TX_OLDEST}) t
"""

_MOVED = "x.ts, x.block_number, x.log_index, x.token_address, x.from_address, x.to_address, x.value_f"
_FUNGIBLE = (
    "NOT EXISTS (SELECT FROM chain.contracts c WHERE c.chain = %(chain)s AND c.address = x.token_address"
    " AND c.is_erc721 AND NOT coalesce(c.is_erc20, false))"
)
_NAME = (
    "LEFT JOIN LATERAL (SELECT n.name FROM chain.tokens n WHERE n.chain = %(chain)s AND n.address = x.token_address"
    " ORDER BY n.ts DESC LIMIT 1) n ON true"
)
_TRANSFER = "k.wallet, x.ts, x.block_number, x.log_index, x.token_address, n.name, x.from_address, x.to_address"

_TRANSFERS = f"""
SELECT {_TRANSFER}, x.value_f {_WALLETS} (
 SELECT {_MOVED} FROM (
  SELECT w.block_hash, w.ts FROM rollup.wallet_blocks w WHERE w.wallet = k.wallet AND {of_chain("w")}
  AND w.ts <= %(until)s AND w.transfers_out + w.transfers_in > 0
  ORDER BY w.ts FETCH FIRST %(limit)s ROWS WITH TIES) b
 CROSS JOIN LATERAL (SELECT x.* FROM chain.token_transfers x WHERE x.block_hash = b.block_hash AND x.ts = b.ts
  AND {of_chain("x")} AND k.wallet IN (x.from_address, x.to_address) OFFSET 0) x
 WHERE {_FUNGIBLE} ORDER BY x.ts, x.block_number, x.log_index LIMIT %(limit)s) x {_NAME}
"""

_PENDING = f"""
WITH o AS MATERIALIZED (SELECT blocks, ts_min, ts_max FROM ops.search_outbox WHERE chain = %(chain)s
 AND ts_min <= %(until)s ORDER BY id DESC LIMIT %(pending)s),
b AS MATERIALIZED (SELECT block_hash, min(ts_min) AS since, max(ts_max) AS upto FROM o, unnest(blocks) AS block_hash
 GROUP BY block_hash),
x AS MATERIALIZED (SELECT x.* FROM b CROSS JOIN LATERAL (
  SELECT {_MOVED} FROM chain.token_transfers x WHERE x.block_hash = b.block_hash AND {of_chain("x")}
  AND x.ts BETWEEN b.since AND b.upto AND x.ts <= %(until)s
  AND (x.from_address = ANY(%(wallets)b) OR x.to_address = ANY(%(wallets)b)) OFFSET 0) x
 WHERE {_FUNGIBLE})
SELECT {_TRANSFER}, x.value_f
FROM x JOIN unnest(%(wallets)b::bytea[]) AS k(wallet) ON k.wallet IN (x.from_address, x.to_address) {_NAME}
"""


def wallet_history(conn: Connection, chain: str, wallets: Sequence[bytes], until: datetime) -> WalletHistory:
    """What schema `chain` holds of these wallets up to and with `until`, the chain's time; of each wallet at least the
    OLDEST transactions and transfers, if there are as many. Rows come in no order.

    Transfers of tokens that are known to be ERC-721 are left out, because the amount is an id.
    """
    params: dict[str, Any] = {
        "chain": chain,
        "until": until,
        "wallets": list(dict.fromkeys(wallets)),
        "limit": OLDEST,
        "pending": PENDING,
    }
    # What is pending is read first: what the rollup takes over meanwhile is then found twice rather than not at all.
    pending = _frame("transfers", _rows(conn, _PENDING, params))
    transfers = pl.concat([pending, _frame("transfers", _rows(conn, _TRANSFERS, params))])
    return WalletHistory(
        _frame("transactions", _rows(conn, _TRANSACTIONS, params)),
        transfers.unique(["wallet", "ts", "block_number", "log_index"]),
    )


def _rows(conn: Connection, statement: str, params: dict[str, Any]) -> list[tuple[Any, ...]]:
    # Prepared at once: planning costs more than reading a young wallet's rows.
    return conn.execute(statement, params, prepare=True, binary=True).fetchall()


def _frame(name: str, rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMAS[name], orient="row")
