"""Search: queries over at least 200,000 documents in each index, and how fast a rebuild makes them from the tables.

The rows are made in the database, a week of a chain on which every transaction goes through one router and most pools
trade once, and the documents are made of them as always. Queries are timed from Python, one at a time.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable
from typing import Any

import psycopg

from benchmarks.load import fresh_database
from dash_pipeline.settings import Settings
from dash_pipeline.stack import Stack
from dash_pipeline.storage import search

BLOCKS = 10_080
TRANSACTIONS = 210_000
POOLS = 200_000
WALLETS = 40_000
QUERIES = 1_000

_random = random.Random(20_261_124)

# Functions of a number, so that rows of different tables agree and queries can ask for what is there.
_FUNCTIONS = """
CREATE FUNCTION pg_temp.addr(kind text, n int8) RETURNS bytea LANGUAGE sql IMMUTABLE
 AS $$ SELECT substr(sha256((kind || n)::bytea), 1, 20) $$;
CREATE FUNCTION pg_temp.hash(kind text, n int8) RETURNS bytea LANGUAGE sql IMMUTABLE
 AS $$ SELECT sha256((kind || n)::bytea) $$;
"""

_ROWS = """
CREATE TEMP TABLE b AS
 SELECT '{chain}'::text AS chain, '2024-05-01 00:00:00+00'::timestamptz + n * interval '1 minute' AS ts,
  n AS block_number, pg_temp.hash('b', n) AS block_hash, pg_temp.hash('b', n - 1) AS parent_hash
 FROM generate_series(0, {blocks} - 1) n;
CREATE TEMP TABLE t AS
 SELECT b.*, pg_temp.hash('t', n) AS tx_hash, n / {blocks} AS tx_index, pg_temp.addr('w', w) AS wallet,
  pg_temp.addr('p', p) AS pool, pg_temp.addr('k', p) AS token, 1e18 * (1 + random()) AS r0, 1e20 * (1 + random()) AS r1,
  random() * 1e16 AS a0, random() * 1e18 AS a1
 FROM (SELECT n, n::int8 * 7919 % {wallets} AS w,
        CASE WHEN n < {pools} THEN n ELSE (1000 * random() ^ 3)::int8 END AS p
       FROM generate_series(0, {transactions} - 1) n) n
 JOIN b ON b.block_number = n % {blocks};
INSERT INTO chain.blocks (chain, ts, block_number, block_hash, parent_hash) SELECT * FROM b;
INSERT INTO ops.block_tree (chain, ts, block_number, block_hash, parent_hash, status) SELECT *, 'canonical' FROM b;
INSERT INTO ops.chains (chain, tip_ts, tip_number, tip_hash)
 SELECT chain, ts, block_number, block_hash FROM b ORDER BY block_number DESC LIMIT 1;
INSERT INTO chain.pools (chain, ts, block_number, block_hash, tx_hash, address, protocol, factory, token0, token1)
 SELECT chain, ts, 0, block_hash, block_hash, pg_temp.addr('p', p), 'uniswap_v2', pg_temp.addr('f', 0),
  pg_temp.addr('q', 0), pg_temp.addr('k', p) FROM b, generate_series(0, {pools} - 1) p WHERE block_number = 0;
INSERT INTO chain.transactions (chain, ts, block_number, block_hash, tx_hash, tx_index, nonce, from_address, to_address,
  value, value_f, gas, gas_price, input, receipt_status, receipt_gas_used, receipt_effective_gas_price)
 SELECT chain, ts, block_number, block_hash, tx_hash, tx_index, 1, wallet, pg_temp.addr('r', 0), round(a0::numeric), a0,
  200000, 1000000000, '\\x7ff36ab5'::bytea || tx_hash || tx_hash, 1, 111861, 1000000000 FROM t ORDER BY ts;
INSERT INTO chain.token_transfers (chain, ts, block_number, block_hash, tx_hash, log_index, token_address, from_address,
  to_address, value, value_f)
 SELECT chain, ts, block_number, block_hash, tx_hash, tx_index * 4 + i,
  CASE i WHEN 0 THEN pg_temp.addr('q', 0) ELSE token END, CASE i WHEN 0 THEN wallet ELSE pool END,
  CASE i WHEN 0 THEN pool ELSE wallet END, round(a1::numeric), a1 FROM t, generate_series(0, 1) i ORDER BY ts;
INSERT INTO chain.pool_events (chain, ts, block_number, block_hash, tx_hash, log_index, protocol, event, pool,
  reserve0, reserve1, reserve0_f, reserve1_f)
 SELECT chain, ts, block_number, block_hash, tx_hash, tx_index * 4 + 2, 'uniswap_v2', 'sync', pool,
  round(r0::numeric), round(r1::numeric), r0, r1 FROM t ORDER BY ts;
INSERT INTO chain.pool_events (chain, ts, block_number, block_hash, tx_hash, log_index, protocol, event, pool,
  sender, recipient, amount0, amount1, amount0_f, amount1_f)
 SELECT chain, ts, block_number, block_hash, tx_hash, tx_index * 4 + 3, 'uniswap_v2', 'swap', pool, wallet, wallet,
  round(a0::numeric), -round(a1::numeric), a0, -a1 FROM t ORDER BY ts;
"""
_LOGS = """
INSERT INTO chain.logs (chain, ts, block_number, block_hash, tx_hash, tx_index, log_index, address, topic0, topic1,
  topic2, data)
 SELECT chain, ts, block_number, block_hash, tx_hash, tx_index, tx_index * 4 + i,
  CASE WHEN i < 2 THEN token ELSE pool END, pg_temp.hash('topic', i), pg_temp.hash('topic', i) || wallet,
  pg_temp.hash('topic', i) || pool, tx_hash || tx_hash FROM t, generate_series(0, 3) i ORDER BY ts;
"""


def fill(
    conn: psycopg.Connection[Any],
    chain: str,
    blocks: int = BLOCKS,
    transactions: int = TRANSACTIONS,
    pools: int = POOLS,
    wallets: int = WALLETS,
    *,
    logs: bool = True,
) -> None:
    """Rows of a chain: a block a minute, every transaction a swap of a wallet in a pool, each pool's token its own.
    Pool n is `address("p", n)`, its token `address("k", n)`, wallet n `address("w", n)`."""
    conn.execute(_FUNCTIONS)
    sizes = {"blocks": blocks, "transactions": transactions, "pools": pools, "wallets": wallets}
    conn.execute((_ROWS + (_LOGS if logs else "")).format(chain=chain, **sizes))
    conn.execute("DROP TABLE b, t")


def address(kind: str, number: int) -> str:
    """An address that `fill` makes."""
    return "0x" + hashlib.sha256(f"{kind}{number}".encode()).hexdigest()[:40]


def run(stack: Stack) -> dict[str, object]:
    """Documents and rebuild rate per index; p50 and p99 of each query in ms."""
    with fresh_database(stack) as settings:
        return _measure(settings)


def _measure(settings: Settings) -> dict[str, object]:
    chain = f"searched{time.time_ns()}"
    with psycopg.connect(settings.timescale_dsn.get_secret_value()) as conn:
        fill(conn, chain)
    try:
        rebuilds = {index: _rebuild(settings, index, chain) for index in search.INDEXES}
        return {"rebuild": rebuilds, "query_ms": _queries(settings, chain)}
    finally:
        search.delete(search.client(settings), chain)


def _rebuild(settings: Settings, index: str, chain: str) -> dict[str, int]:
    started = time.perf_counter()
    written = search.rebuild(settings, index, chain)[chain]
    seconds = time.perf_counter() - started
    return {
        "documents": written.documents,
        "documents_per_s": round(written.documents / seconds),
        "MB_per_s": round(written.bytes / seconds / 1e6),
    }


def _queries(settings: Settings, chain: str) -> dict[str, dict[str, float]]:
    client = search.client(settings)

    def any_(kind: str, count: int) -> str:
        return address(kind, _random.randrange(count))

    return {
        "token_by_id": _timed(lambda: search.token(client, chain, any_("k", POOLS))),
        "top_tokens_by_7d_change": _timed(lambda: search.top_tokens(client, chain, "7d", "change")),
        # A bound that no two queries share: nothing can be answered from a cache.
        "top_tokens_of_some_liquidity": _timed(
            lambda: search.top_tokens(client, chain, "7d", "change", min_liquidity=_random.random())
        ),
        "wallet_last_7_days": _timed(lambda: search.wallet_days(client, chain, any_("w", WALLETS), 7)),
        "wallet_transactions": _timed(lambda: search.wallet_transactions(client, chain, any_("w", WALLETS))),
        "router_transactions": _timed(lambda: search.wallet_transactions(client, chain, any_("r", 1))),
    }


def _timed(query: Callable[[], object]) -> dict[str, float]:
    """A query whose parameters change from call to call; an answer that is empty is a mistake in the benchmark."""
    for _ in range(20):
        query()
    times = []
    for _ in range(QUERIES):
        started = time.perf_counter()
        found = query()
        times.append((time.perf_counter() - started) * 1e3)
        if not found:
            raise RuntimeError("a query found nothing")
    times.sort()
    return {"p50": round(times[len(times) // 2], 2), "p99": round(times[len(times) * 99 // 100], 2)}
