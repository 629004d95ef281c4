"""What is stored of some wallets, hot or archived, as the frames that features are computed from.

Belongs here: SQL and its rows as frames. Does not belong here: what is made of them (`models/wallet_features.py`).

Transactions are found by sender and by receiver. Transfers have no such index: a wallet's are found by its blocks
(`rollup.wallet_blocks`), and in the blocks that the rollup does not show yet (`ops.search_outbox`), which are the ones
an alert is about. The rollup also says on which archived days a wallet did anything (`archived.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from typing import Any

import polars as pl

from dash_pipeline.models.wallet_features import OLDEST, SCHEMAS, WalletHistory
from dash_pipeline.settings import Settings
from dash_pipeline.storage import archived
from dash_pipeline.storage.archived import Archive, Wanted
from dash_pipeline.storage.timescale import Connection, of_chain

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


_CREATED = f"""
SELECT c.address, c.block_hash, c.ts FROM chain.contracts c WHERE c.address = ANY(%(wallets)b) AND {of_chain("c")}
 AND c.ts <= %(until)s
"""
# The last block that transfers are looked for in, of a wallet with more of them.
_LAST = f"""
SELECT k.wallet, l.ts FROM unnest(%(wallets)b::bytea[]) AS k(wallet) CROSS JOIN LATERAL (
 SELECT w.ts FROM rollup.wallet_blocks w WHERE w.wallet = k.wallet AND {of_chain("w")} AND w.ts <= %(until)s
 AND w.transfers_out + w.transfers_in > 0 ORDER BY w.ts OFFSET %(limit)s - 1 LIMIT 1) l
"""
_TOKENS = f"""
SELECT x.token_address, n.name FROM unnest(%(tokens)b::bytea[]) AS x(token_address) {_NAME} WHERE {_FUNGIBLE}
"""


def wallet_history(
    conn: Connection, chain: str, wallets: Sequence[bytes], until: datetime, archive: Settings | None = None
) -> WalletHistory:
    """What is stored of these wallets up to and with `until`, the chain's time, hot or archived; of each wallet at
    least the OLDEST transactions and transfers, if there are as many. Rows come in no order.

    Transfers of tokens that are known to be ERC-721 are left out, because the amount is an id.

    `archive`: the settings that S3 is reached by. Without them no object is read: wallets that have archived rows are
    in `unread` and nowhere else. Raises Unavailable when an object cannot be read, DashError when the settings lack
    its key.
    """
    with archived.opened(conn, chain, archive) as store:
        old = store.old_wallets(wallets)
        read = [wallet for wallet in dict.fromkeys(wallets) if archive or wallet not in old]
        params: dict[str, Any] = {"chain": chain, "until": until, "wallets": read, "limit": OLDEST, "pending": PENDING}
        # What is pending is read first: what the rollup takes over meanwhile is then found twice, rather than not at
        # all.
        transfers = [_frame("transfers", _rows(conn, _PENDING, params)),
                     _frame("transfers", _rows(conn, _TRANSFERS, params))]  # fmt: skip
        transactions = [_frame("transactions", _rows(conn, _TRANSACTIONS, params))]
        if archive and old:
            asked = params | {"wallets": list(old)}
            days = store.days(old, until)
            transactions += _archived_transactions(store, asked, days)
            transfers.append(_archived_transfers(store, asked, days))
    return WalletHistory(
        pl.concat(transactions).unique(["wallet", "ts", "block_number", "tx_index"])
        if len(transactions) > 1
        else transactions[0],
        pl.concat(transfers).unique(["wallet", "ts", "block_number", "log_index"]),
        frozenset() if archive else frozenset(old),
    )


def _archived_transactions(
    store: Archive, params: dict[str, Any], days: Mapping[bytes, set[date]]
) -> Iterator[pl.DataFrame]:
    """What these wallets sent and received, and what created them."""
    until = params["until"]
    columns = ["ts", "block_number", "tx_index", "from_address", "to_address", "value_f"]
    wanted = {wallet: Wanted(OLDEST, some) for wallet, some in days.items()}
    parts = [store.rows("transactions", columns, ["from_address", "to_address"], wanted, until, newest=False)]
    created = _rows(store.conn, _CREATED, params)
    if created:
        made = {wallet: Wanted(len(created), {ts.date() for other, _, ts in created if other == wallet})
                for wallet, _, _ in created}  # fmt: skip
        where = pl.col("to_address").is_null() & pl.col("block_hash").is_in([block for _, block, _ in created])
        by = ["receipt_contract_address"]
        parts.append(store.rows("transactions", columns, by, made, until, where, newest=False))
    for part in parts:
        yield part.select(wallet="address", ts="ts", block_number="block_number", tx_index="tx_index",
                          sender="from_address", recipient="to_address", value_f="value_f")  # fmt: skip


def _archived_transfers(store: Archive, params: dict[str, Any], days: Mapping[bytes, set[date]]) -> pl.DataFrame:
    """The ERC-20 transfers that these wallets sent and received."""
    last = pl.DataFrame(
        _rows(store.conn, _LAST, params), {"address": pl.Binary, "_last": SCHEMAS["transfers"]["ts"]}, orient="row"
    )

    def named(rows: pl.DataFrame) -> pl.DataFrame:
        tokens = _rows(store.conn, _TOKENS, params | {"tokens": rows["token_address"].unique().to_list()})
        return rows.join(pl.DataFrame(tokens, {"token_address": pl.Binary, "name": pl.String}, orient="row"),
                         on="token_address")  # fmt: skip

    def keep(rows: pl.DataFrame) -> pl.DataFrame:
        rows = rows.join(last, on="address", how="left")
        return named(rows.filter(pl.col("_last").is_null() | (pl.col("ts") <= pl.col("_last"))))

    columns = ["ts", "block_number", "log_index", "token_address", "from_address", "to_address", "value_f"]
    wanted = {wallet: Wanted(OLDEST, some) for wallet, some in days.items()}
    by = ["from_address", "to_address"]
    rows = store.rows("token_transfers", columns, by, wanted, params["until"], newest=False, keep=keep)
    return named(rows).select(
        wallet="address", ts="ts", block_number="block_number", log_index="log_index", token="token_address",
        name="name", sender="from_address", recipient="to_address", value_f="value_f",
    )  # fmt: skip


def _rows(conn: Connection, statement: str, params: dict[str, Any]) -> list[tuple[Any, ...]]:
    # Prepared at once: planning costs more than reading a young wallet's rows.
    return conn.execute(statement, params, prepare=True, binary=True).fetchall()


def _frame(name: str, rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMAS[name], orient="row")
