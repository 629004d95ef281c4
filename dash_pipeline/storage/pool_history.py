"""What the hot store knows of some pools, as the frames that features are computed from.

Belongs here: SQL and its rows as frames. Does not belong here: what is made of them (`models/pool_features.py`,
`models/liquidity_outlook.py`).

A pool, its events, its token's transfers and its creator's other tokens take four statements, whatever the number of
pools; each reads through an index that is there for others too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import polars as pl

from dash_pipeline.models.pool_features import SCHEMAS, PoolHistory, empty, token_creators
from dash_pipeline.storage.timescale import Connection

#: A pool or wallet, and the moment of the chain's time that it is looked at as of.
Moment = tuple[bytes, datetime]

#: The newest events that are read of a pool, and the newest transfers of its token. A longer history is cut: of what is
#: between these and the OLDEST ones (who made the pool, who got the first supply), nothing is read.
NEWEST = 5_000
OLDEST = 500
#: The newest transactions of a creator among which his other tokens are looked for.
CREATORS_TRANSACTIONS = 10_000

# The quote token is the registry's earlier one of the two, else the one that more pools hold.
_POOLS = """
SELECT k.pool, p.protocol,
 CASE WHEN q.zero THEN p.token1 ELSE p.token0 END, CASE WHEN q.zero THEN p.token0 ELSE p.token1 END, NOT q.zero,
 t.from_address, s.total_supply::float8
FROM unnest(%(pools)b::bytea[]) WITH ORDINALITY AS k(pool, place)
LEFT JOIN LATERAL (SELECT p.* FROM chain.pools p WHERE p.chain = %(chain)s AND p.address = k.pool
 AND p.ts <= %(until)s ORDER BY p.ts DESC LIMIT 1) p ON true
LEFT JOIN LATERAL (SELECT array_position(%(quotes)b::bytea[], p.token0) AS r0,
 array_position(%(quotes)b::bytea[], p.token1) AS r1) r ON true
LEFT JOIN LATERAL (SELECT CASE WHEN p.address IS NULL THEN NULL WHEN r0 IS NULL AND r1 IS NULL
 THEN (SELECT count(*) FROM (SELECT FROM chain.pools o WHERE o.chain = %(chain)s AND p.token0 IN (o.token0, o.token1)
  LIMIT 1000) o)
  > (SELECT count(*) FROM (SELECT FROM chain.pools o WHERE o.chain = %(chain)s AND p.token1 IN (o.token0, o.token1)
  LIMIT 1000) o)
 ELSE coalesce(r0, 1000000) < coalesce(r1, 1000000) END AS zero OFFSET 0) q ON true
LEFT JOIN LATERAL (SELECT t.from_address FROM chain.transactions t WHERE t.block_hash = p.block_hash
 AND t.tx_hash = p.tx_hash AND t.chain = p.chain AND t.ts = p.ts) t ON true
LEFT JOIN LATERAL (SELECT n.total_supply FROM chain.tokens n WHERE n.chain = %(chain)s
 AND n.address = CASE WHEN q.zero THEN p.token1 ELSE p.token0 END ORDER BY n.ts DESC LIMIT 1) s ON true
ORDER BY k.place
"""

_EVENTS = """
SELECT e.* FROM unnest(%(pools)b::bytea[]) AS k(pool) CROSS JOIN LATERAL (
 SELECT e.pool, e.ts, e.block_number, e.log_index, e.event, e.sender, e.recipient, e.amount0_f, e.amount1_f,
  e.reserve0_f, e.reserve1_f
 FROM chain.pool_events e WHERE e.pool = k.pool AND e.chain = %(chain)s AND e.ts <= %(until)s {and_}
 ORDER BY e.ts {order}, e.log_index {order} LIMIT %(limit)s) e
"""
_IN_USE = " AND e.event IN ('mint', 'burn', 'swap', 'sync', 'transfer')"
_TRANSFERS = " AND e.event = 'transfer'"

_CREATIONS = """
SELECT k.wallet, t.token, t.ts, t.block_number FROM unnest(%(wallets)b::bytea[]) AS k(wallet) CROSS JOIN LATERAL (
 SELECT t.receipt_contract_address AS token, t.ts, t.block_number FROM (
  SELECT t.* FROM chain.transactions t WHERE t.from_address = k.wallet AND t.chain = %(chain)s AND t.ts <= %(until)s
  ORDER BY t.ts DESC LIMIT %(limit)s) t
 WHERE t.receipt_contract_address IS NOT NULL AND (
  EXISTS (SELECT FROM chain.pools p WHERE p.chain = %(chain)s AND p.token0 = t.receipt_contract_address)
  OR EXISTS (SELECT FROM chain.pools p WHERE p.chain = %(chain)s AND p.token1 = t.receipt_contract_address))) t
"""


def pool_history(
    conn: Connection, chain: str, pools: Sequence[bytes], until: datetime, quotes: Sequence[bytes] = ()
) -> PoolHistory:
    """What schema `chain` holds of these pools up to and with `until`, the chain's time; one row of `pools` for each.

    `quotes`: the registry's quote tokens, the preferred first. A history of more than NEWEST + OLDEST rows is cut in
    the middle, and its pool says so (`cut`): counts and sums are then those of what is left. Rows come in no order.
    """
    pools = list(dict.fromkeys(pools))
    params: dict[str, Any] = {"chain": chain, "until": until, "pools": pools, "quotes": list(quotes)}
    found = _rows(conn, _POOLS, params)
    base = [row[2] for row in found]
    events, cut_events = _newest_and_oldest(conn, params, pools, _IN_USE)
    moved, cut_tokens = _newest_and_oldest(conn, params, [*dict.fromkeys(filter(None, base))], _TRANSFERS)
    known = _frame("pools", [(*row, row[0] in cut_events or row[2] in cut_tokens) for row in found])
    history = PoolHistory(known, _frame("events", events), _transfers(moved), empty("creations"))
    wallets = token_creators(history).drop_nulls().unique().to_list()
    made = _rows(conn, _CREATIONS, params | {"wallets": wallets, "limit": CREATORS_TRANSACTIONS}) if wallets else []
    return PoolHistory(known, history.events, history.transfers, _frame("creations", made))


def newest_pools(conn: Connection, chain: str, limit: int) -> list[bytes]:
    """The V2 pools with events, those with the newest ones first."""
    rows = conn.execute(
        "SELECT pool FROM chain.pool_events WHERE chain = %s AND event = 'sync' GROUP BY pool ORDER BY max(ts) DESC,"
        " pool LIMIT %s",
        (chain, limit),
    ).fetchall()
    return [pool for (pool,) in rows]


def busy_wallets(conn: Connection, chain: str, wallets: Iterable[bytes | None], until: datetime) -> set[bytes]:
    """Those that have sent more than CREATORS_TRANSACTIONS: the newest ones are other ones at every moment."""
    rows = conn.execute(
        "SELECT k.wallet FROM unnest(%s::bytea[]) AS k(wallet) WHERE (SELECT count(*) FROM (SELECT FROM"
        " chain.transactions t WHERE t.from_address = k.wallet AND t.chain = %s AND t.ts <= %s LIMIT %s) t) > %s",
        (list({*wallets} - {None}), chain, until, CREATORS_TRANSACTIONS + 1, CREATORS_TRANSACTIONS),
    )
    return {wallet for (wallet,) in rows}


def made_later(conn: Connection, chain: str, asked: Sequence[Moment], until: datetime) -> set[Moment]:
    """The pools that were made, or made anew, between their moment and `until`."""
    rows = conn.execute(
        "SELECT k.pool, k.as_of FROM unnest(%s::bytea[], %s::timestamptz[]) AS k(pool, as_of) WHERE EXISTS (SELECT FROM"
        " chain.pools p WHERE p.chain = %s AND p.address = k.pool AND p.ts > k.as_of AND p.ts <= %s)",
        ([pool for pool, _ in asked], [as_of for _, as_of in asked], chain, until),
    )
    return set(rows.fetchall())


def _newest_and_oldest(
    conn: Connection, params: dict[str, Any], pools: list[bytes], which: str
) -> tuple[list[tuple[Any, ...]], set[bytes]]:
    """Rows of pool_events of these contracts, and which of them have more rows than that."""
    if not pools:
        return [], set()
    newest = _EVENTS.format(and_=which, order="DESC")
    rows = _rows(conn, newest, params | {"pools": pools, "limit": NEWEST})
    if len(rows) < NEWEST:
        return rows, set()
    counts: dict[bytes, int] = {}
    for row in rows:
        counts[row[0]] = counts.get(row[0], 0) + 1
    long = [pool for pool, count in counts.items() if count == NEWEST]
    oldest = _EVENTS.format(and_=which, order="ASC")
    seen = {(row[2], row[3]) for row in rows}
    more = _rows(conn, oldest, params | {"pools": long, "limit": OLDEST}) if long else []
    # Where the two meet, nothing is missing between them.
    whole = {row[0] for row in more if (row[2], row[3]) in seen}
    return rows + [row for row in more if (row[2], row[3]) not in seen], set(long) - whole


def _rows(conn: Connection, statement: str, params: dict[str, Any]) -> list[tuple[Any, ...]]:
    # Prepared at once: planning costs more than reading a young pool's rows.
    return conn.execute(statement, params, prepare=True, binary=True).fetchall()


def _frame(name: str, rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMAS[name], orient="row")


def _transfers(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    events = _frame("events", rows)
    return events.select(pl.col("pool").alias("token"), "ts", "block_number", "log_index", "sender", "recipient",
                         pl.col("amount0_f").alias("amount_f"))  # fmt: skip
