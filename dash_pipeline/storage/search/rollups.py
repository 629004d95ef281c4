"""Schema `rollup`: sums that documents are made of, recomputed from schema `chain` for what was touched.

Belongs here: what touched blocks touch, and bringing the rollups of that up to date. Does not belong here: documents
(`documents.py`), and which blocks are touched (`follower.py`).

Nothing is counted up or down: a bucket is computed anew from its rows, so a replay, a crash and a reorg all leave what
the committed rows say. Two things keep that cheap whatever the history: buckets are small (a pool's minute), and a busy
wallet's day is summed up until a moment before the newest rows (`rollup.wallet_prefixes`); sums that an older row turns
out to belong to are thrown away. Whoever calls holds the chain's lock (`follower.py`), so nobody else recomputes the
same bucket.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from dash_pipeline.storage.search.indexes import WINDOWS
from dash_pipeline.storage.timescale import Connection, of_chain

DAY = timedelta(days=1)
# How far back a pool's last price is looked for.
HORIZON = "30 days"

_EVENTS = "'swap', 'sync', 'mint', 'burn', 'initialize'"
_IN_BLOCKS = "chain = %(chain)s AND block_hash = ANY(%(blocks)b) AND ts >= %(day)s AND ts < %(day)s + interval '1 day'"


# How statements are written here, because the newest chunk and a new chain have no statistics yet, and a planner that
# expects one row where there are a hundred thousand chooses plans that take minutes:
# - rows of keys are looked up key by key, `CROSS JOIN LATERAL (... OFFSET 0)`, which leaves nothing to choose;
# - rows of the same blocks are joined under `hash_joins`;
# - where an address finds the rows, the chain is compared by `of_chain`.


@contextmanager
def hash_joins(conn: Connection) -> Iterator[None]:
    """Statements in here do not join by trying every pair, nor every pair of the same block."""
    with conn.transaction():
        conn.execute("SET LOCAL enable_nestloop = off")
        conn.execute("SET LOCAL enable_mergejoin = off")
        yield


@dataclass(frozen=True)
class Blocks:
    """Touched blocks of one UTC day of the chain's time; `first` is the earliest one's timestamp."""

    day: datetime
    hashes: list[bytes]
    first: datetime


@dataclass(frozen=True)
class Touched:
    """What rows of touched blocks name: `pools` had an event or were created, `minutes` are (pool, minute)."""

    wallets: list[bytes]
    tokens: list[bytes]
    pools: list[bytes]
    minutes: list[tuple[bytes, datetime]]


def _both(columns: str, table: str, more: str = "") -> str:
    """Rows of the blocks wherever they are: what an orphaned block names must be computed anew as well."""
    return " UNION ALL ".join(
        f"SELECT {columns} FROM {schema}.{table} WHERE {_IN_BLOCKS}{more}" for schema in ("chain", "side")
    )


_TOUCHED = f"""
WITH t AS MATERIALIZED ({_both("from_address, to_address", "transactions")}),
x AS MATERIALIZED ({_both("token_address, from_address, to_address", "token_transfers")}),
p AS MATERIALIZED ({_both("address, token0, token1", "pools")}),
k AS ({_both("address", "tokens")}),
e AS MATERIALIZED (SELECT DISTINCT pool, date_trunc('minute', ts) AS minute
      FROM ({_both("pool, ts", "pool_events", f" AND event IN ({_EVENTS})")}) e)
SELECT
 ARRAY(SELECT from_address FROM t UNION SELECT to_address FROM t WHERE to_address IS NOT NULL
       UNION SELECT from_address FROM x UNION SELECT to_address FROM x),
 ARRAY(SELECT token_address FROM x UNION SELECT address FROM k UNION SELECT token0 FROM p UNION SELECT token1 FROM p),
 ARRAY(SELECT address FROM p UNION SELECT pool FROM e),
 ARRAY(SELECT pool FROM e ORDER BY pool, minute), ARRAY(SELECT minute FROM e ORDER BY pool, minute)
"""


def touched(conn: Connection, chain: str, blocks: Blocks) -> Touched:
    """The wallets, tokens and minutes of pools that rows of these blocks name, canonical or not."""
    row = conn.execute(_TOUCHED, {"chain": chain, "blocks": blocks.hashes, "day": blocks.day}, binary=True).fetchone()
    assert row is not None
    wallets, tokens, pools, minutes_of, minutes = row
    return Touched(wallets, tokens, pools, list(zip(minutes_of, minutes, strict=True)))


# ---------------------------------------------------------------------------------------------- candles

# V2 tells reserves, V3 the price and the liquidity in range, from which virtual reserves follow; both then give a
# price (token1 per token0) and a depth. A mint or burn moves liquidity at the same price.
# A minute without events is kept out of the table: after a reorg there may be none left.
_MINUTES = f"""
WITH k AS MATERIALIZED (
 SELECT pool, minute FROM unnest(%(pools)b::bytea[], %(minutes)b::timestamptz[]) k(pool, minute)),
e AS (
 SELECT k.pool, k.minute, e.event, e.ts, e.amount0_f, e.amount1_f, (e.block_number << 24) + e.log_index AS at,
  CASE WHEN sqrt_price_x96 > 0 THEN (sqrt_price_x96 / 79228162514264337593543950336)::float8 END AS root,
  e.liquidity::float8 AS liquidity, e.reserve0_f, e.reserve1_f
 FROM k LEFT JOIN LATERAL (
  SELECT event, ts, amount0_f, amount1_f, block_number, log_index, sqrt_price_x96, liquidity, reserve0_f, reserve1_f
  FROM chain.pool_events e
  WHERE e.pool = k.pool AND e.ts >= k.minute AND e.ts < k.minute + interval '1 minute' AND {of_chain("e")}
  AND e.ts >= %(day)s AND e.ts < %(day)s + interval '1 day' AND e.event IN ({_EVENTS}) OFFSET 0) e ON true),
p AS (
 SELECT pool, minute, event, ts, amount0_f, amount1_f, at,
  CASE WHEN event = 'sync' THEN reserve0_f WHEN event = 'swap' AND root > 0 THEN liquidity / root END AS reserve0,
  CASE WHEN event = 'sync' THEN reserve1_f WHEN event = 'swap' AND root > 0 THEN liquidity * root END AS reserve1,
  CASE WHEN event = 'sync' AND reserve0_f > 0 AND reserve1_f > 0 THEN reserve1_f / reserve0_f
   ELSE root * root END AS price
 FROM e),
fresh AS MATERIALIZED (
 SELECT pool, minute AS ts, count(event) > 0 AS found,
  first(price, at) FILTER (WHERE price IS NOT NULL) AS open, max(price) AS high, min(price) AS low,
  last(price, at) FILTER (WHERE price IS NOT NULL) AS close,
  coalesce(sum(abs(amount0_f)) FILTER (WHERE event = 'swap'), 0) AS volume0,
  coalesce(sum(abs(amount1_f)) FILTER (WHERE event = 'swap'), 0) AS volume1,
  count(*) FILTER (WHERE event = 'swap') AS trades, count(*) FILTER (WHERE event = 'mint') AS mints,
  count(*) FILTER (WHERE event = 'burn') AS burns,
  last(reserve0, at) FILTER (WHERE reserve0 IS NOT NULL) AS reserve0,
  last(reserve1, at) FILTER (WHERE reserve1 IS NOT NULL) AS reserve1,
  max(ts) FILTER (WHERE event = 'swap') AS last_trade
 FROM p GROUP BY pool, minute),
"""

_HOURS = """
WITH k AS MATERIALIZED (
 SELECT DISTINCT pool, date_trunc('hour', minute) AS hour
 FROM unnest(%(pools)b::bytea[], %(minutes)b::timestamptz[]) k(pool, minute)),
fresh AS MATERIALIZED (
 SELECT k.pool, k.hour AS ts, count(c.ts) > 0 AS found,
  first(open, c.ts) FILTER (WHERE open IS NOT NULL) AS open, max(high) AS high, min(low) AS low,
  last(close, c.ts) FILTER (WHERE close IS NOT NULL) AS close, sum(volume0) AS volume0, sum(volume1) AS volume1,
  sum(trades) AS trades, sum(mints) AS mints, sum(burns) AS burns,
  last(reserve0, c.ts) FILTER (WHERE reserve0 IS NOT NULL) AS reserve0,
  last(reserve1, c.ts) FILTER (WHERE reserve1 IS NOT NULL) AS reserve1, max(last_trade) AS last_trade
 FROM k LEFT JOIN LATERAL (
  SELECT * FROM rollup.pool_candles c
  WHERE c.pool = k.pool AND c.ts >= k.hour AND c.ts < k.hour + interval '1 hour' AND c.chain = %(chain)s
  AND c.seconds = 60 AND c.ts >= %(day)s AND c.ts < %(day)s + interval '1 day' OFFSET 0) c ON true
 GROUP BY k.pool, k.hour),
"""

_CANDLE_COLUMNS = (
    "open", "high", "low", "close", "volume0", "volume1", "trades", "mints", "burns", "reserve0", "reserve1",
    "last_trade",
)  # fmt: skip

_WRITE_CANDLES = f"""
written AS (
 INSERT INTO rollup.pool_candles (chain, pool, seconds, ts, {", ".join(_CANDLE_COLUMNS)})
 SELECT %(chain)s, pool, %(seconds)s, ts, {", ".join(_CANDLE_COLUMNS)} FROM fresh WHERE found
 ON CONFLICT (chain, pool, seconds, ts) DO UPDATE SET {", ".join(f"{c} = excluded.{c}" for c in _CANDLE_COLUMNS)})
DELETE FROM rollup.pool_candles c USING fresh f
 WHERE NOT f.found AND c.chain = %(chain)s AND c.pool = f.pool AND c.seconds = %(seconds)s AND c.ts = f.ts
 AND c.ts >= %(day)s AND c.ts < %(day)s + interval '1 day'
"""


def refresh_candles(conn: Connection, chain: str, day: datetime, minutes: Collection[tuple[bytes, datetime]]) -> None:
    """Compute these minutes of one day, and the hours they are in, from the pools' events."""
    if not minutes:
        return
    pools, starts = zip(*sorted(minutes), strict=True)
    params = {"chain": chain, "day": day, "pools": list(pools), "minutes": list(starts)}
    conn.execute(_MINUTES + _WRITE_CANDLES, params | {"seconds": 60})
    conn.execute(_HOURS + _WRITE_CANDLES, params | {"seconds": 3600})


# ---------------------------------------------------------------------------------------------- windows of pools


def _candles(seconds: int, since: str, until: str = "") -> str:
    end = f" AND c.ts < {until}" if until else ""
    return (
        f"FROM rollup.pool_candles c WHERE c.chain = %(chain)s AND c.pool = k.pool AND c.seconds = {seconds}"
        f" AND c.ts >= {since}{end}"
    )


def _window_lateral(window: str, length: str) -> str:
    """Sums over a window, what the pool was like when it began, and its first minute with an event.

    A window is whole minutes, up to and with the newest; hours inside it are read as hours.
    """
    start = f"(date_trunc('minute', %(as_of)s::timestamptz) - interval '{length}')"
    hour = f"date_trunc('hour', {start} + interval '59 minutes 59.999999 seconds')"
    sums = "c.volume0, c.volume1, c.trades"
    return f"""
LEFT JOIN LATERAL (SELECT sum(volume0) AS volume0, sum(volume1) AS volume1, sum(trades)::int8 AS trades FROM (
 SELECT {sums} {_candles(3600, hour)} UNION ALL SELECT {sums} {_candles(60, start, hour)}) c) s_{window} ON true
LEFT JOIN LATERAL (SELECT * FROM (
 (SELECT 1 AS choice, c.close AS price, c.reserve0, c.reserve1
  {_candles(60, f"{start} - interval '{HORIZON}'", start)} AND c.close IS NOT NULL ORDER BY c.ts DESC LIMIT 1)
 UNION ALL
 (SELECT 2, c.open, c.reserve0, c.reserve1 {_candles(60, start)} AND c.open IS NOT NULL ORDER BY c.ts LIMIT 1)
 ) c ORDER BY choice LIMIT 1) b_{window} ON true
LEFT JOIN LATERAL (SELECT c.ts {_candles(60, start)} ORDER BY c.ts LIMIT 1) f_{window} ON true"""


def _window_columns(window: str) -> str:
    return f""",
 {_oriented_price(f"b_{window}.price")} AS price_{window},
 CASE WHEN q.zero THEN b_{window}.reserve0 ELSE b_{window}.reserve1 END AS reserve_quote_{window},
 coalesce(CASE WHEN q.zero THEN s_{window}.volume1 ELSE s_{window}.volume0 END, 0) AS volume_base_{window},
 coalesce(CASE WHEN q.zero THEN s_{window}.volume0 ELSE s_{window}.volume1 END, 0) AS volume_quote_{window},
 coalesce(s_{window}.trades, 0) AS trades_{window}"""


def _oriented_price(expression: str) -> str:
    return f"CASE WHEN q.zero THEN 1 / nullif({expression}, 0) ELSE {expression} END"


def _occurrences(token: str) -> str:
    side = f"(SELECT FROM chain.pools o WHERE {of_chain('o')} AND o.token{{}} = {{}} LIMIT 1000)"
    return f"(SELECT count(*) FROM ({side.format(0, token)} UNION ALL {side.format(1, token)}) o)"


_POOL_COLUMNS = ["chain", "pool", "protocol", "base", "quote", "as_of", "due", "last_event", "last_trade", "price",
                 "reserve_base", "reserve_quote"]  # fmt: skip
for _w in WINDOWS:
    _POOL_COLUMNS += [f"{c}_{_w}" for c in ("price", "reserve_quote", "volume_base", "volume_quote", "trades")]

#: SQL: of pool `p`, the places of its tokens among %(quotes)s (`r`), and whether token0 is the quote token (`q.zero`).
#: That is the registry's earlier one of the two, else the one that more pools hold; found once, hence OFFSET.
QUOTE_SIDE = f"""CROSS JOIN LATERAL (SELECT array_position(%(quotes)b::bytea[], p.token0) AS r0,
  array_position(%(quotes)b::bytea[], p.token1) AS r1) r
 CROSS JOIN LATERAL (SELECT CASE WHEN r0 IS NULL AND r1 IS NULL
   THEN {_occurrences("p.token0")} > {_occurrences("p.token1")}
   ELSE coalesce(r0, 1000000) < coalesce(r1, 1000000) END AS zero OFFSET 0) q"""

_POOL_WINDOWS = f"""
WITH k AS MATERIALIZED (SELECT DISTINCT unnest(%(pools)b::bytea[]) AS pool),
fresh AS MATERIALIZED (
 SELECT %(chain)s::text AS chain, k.pool, p.protocol,
 CASE WHEN q.zero THEN p.token1 ELSE p.token0 END AS base, CASE WHEN q.zero THEN p.token0 ELSE p.token1 END AS quote,
 %(as_of)s::timestamptz AS as_of,
 coalesce(least({", ".join(f"f_{w}.ts + interval '{length}'" for w, length in WINDOWS.items())})
  + interval '1 minute', 'infinity') AS due,
 e.ts AS last_event, t.last_trade, {_oriented_price("c.close")} AS price,
 CASE WHEN q.zero THEN c.reserve1 ELSE c.reserve0 END AS reserve_base,
 CASE WHEN q.zero THEN c.reserve0 ELSE c.reserve1 END AS reserve_quote
 {"".join(_window_columns(w) for w in WINDOWS)}
 FROM k
 CROSS JOIN LATERAL (SELECT protocol, token0, token1 FROM chain.pools p
  WHERE {of_chain("p")} AND p.address = k.pool ORDER BY p.ts DESC LIMIT 1) p
 {QUOTE_SIDE}
 CROSS JOIN LATERAL (SELECT c.ts {_candles(60, f"%(as_of)s::timestamptz - interval '{HORIZON}'")}
  ORDER BY c.ts DESC LIMIT 1) e
 LEFT JOIN LATERAL (SELECT c.last_trade {_candles(60, f"%(as_of)s::timestamptz - interval '{HORIZON}'")}
  AND c.trades > 0 ORDER BY c.ts DESC LIMIT 1) t ON true
 LEFT JOIN LATERAL (SELECT c.close, c.reserve0, c.reserve1
  {_candles(60, f"%(as_of)s::timestamptz - interval '{HORIZON}'")} AND c.close IS NOT NULL ORDER BY c.ts DESC LIMIT 1
  ) c ON true
 {"".join(_window_lateral(w, length) for w, length in WINDOWS.items())}),
written AS (
 INSERT INTO rollup.pool_windows ({", ".join(_POOL_COLUMNS)}) SELECT {", ".join(_POOL_COLUMNS)} FROM fresh
 ON CONFLICT (chain, pool) DO UPDATE SET {", ".join(f"{c} = excluded.{c}" for c in _POOL_COLUMNS[2:])}),
gone AS (
 DELETE FROM rollup.pool_windows w USING k WHERE w.chain = %(chain)s AND w.pool = k.pool
 AND NOT EXISTS (SELECT FROM fresh f WHERE f.pool = k.pool) RETURNING w.base, w.quote)
SELECT ARRAY(SELECT base FROM fresh UNION SELECT quote FROM fresh
 UNION SELECT base FROM gone UNION SELECT quote FROM gone)
"""


def refresh_pool_windows(
    conn: Connection, chain: str, pools: Sequence[bytes], as_of: datetime, quotes: Sequence[bytes]
) -> list[bytes]:
    """Compute the windows of these pools, counted back from `as_of`; returns the tokens whose documents that changes.

    `quotes`: the registry's quote tokens, the preferred first. A pool nobody saw being created has no known tokens
    and gets no windows; its candles are there for when the creation arrives.
    """
    if not pools:
        return []
    params = {"chain": chain, "pools": list(pools), "as_of": as_of, "quotes": list(quotes)}
    row = conn.execute(_POOL_WINDOWS, params, binary=True).fetchone()
    assert row is not None
    tokens: list[bytes] = row[0]
    return tokens


def due_pools(conn: Connection, chain: str, as_of: datetime, limit: int) -> list[bytes]:
    """Pools without new events whose windows lost a minute since they were computed, the longest overdue first."""
    rows = conn.execute(
        "SELECT pool FROM rollup.pool_windows WHERE chain = %s AND due <= %s ORDER BY due LIMIT %s",
        (chain, as_of, limit),
    ).fetchall()
    return [pool for (pool,) in rows]


# ---------------------------------------------------------------------------------------------- wallets' days

# A wallet's day with more rows than this that no prefix sums up gets a longer prefix.
BUSY_ROWS = 64
# Rows of the last seconds are likely to be followed by more of the same seconds, from other topics.
PREFIX_LAG = timedelta(seconds=20)

WALLET_SUMS = ("tx_sent", "tx_received", "tx_failed", "value_out", "value_in", "transfers_out", "transfers_in", "swaps",
               "fee")  # fmt: skip


_WALLET_SETS = (*WALLET_SUMS, "tokens")

_FAILED = "(receipt_status IS NOT DISTINCT FROM 0)"
_VALUE = f"CASE WHEN {_FAILED} THEN 0 ELSE value END"
_FEE = "coalesce(receipt_gas_used::numeric * coalesce(receipt_effective_gas_price, gas_price), 0)"


def _moves(wallet: str, table: str, **counted: str) -> str:
    """SQL: rows of the blocks as what they mean for one of their wallets; what is not named is nothing."""
    nothing = dict.fromkeys(WALLET_SUMS, "0") | {"token": "NULL::bytea"}
    return f"SELECT block_hash, ts, {wallet} AS wallet, {', '.join((nothing | counted).values())} FROM {table}"


def _row(alias: str) -> str:
    return f"({', '.join(f'{alias}.{c}' for c in _WALLET_SETS)})"


_WALLET_BLOCKS = f"""
WITH t AS MATERIALIZED (SELECT * FROM chain.transactions WHERE {_IN_BLOCKS}),
x AS MATERIALIZED (SELECT * FROM chain.token_transfers WHERE {_IN_BLOCKS}),
e AS (SELECT block_hash, tx_hash FROM chain.pool_events WHERE {_IN_BLOCKS} AND event = 'swap'),
moves (block_hash, ts, wallet, {", ".join(WALLET_SUMS)}, token) AS (
 {_moves("from_address", "t", tx_sent="1", tx_failed=f"{_FAILED}::int4", value_out=_VALUE, fee=_FEE)}
 UNION ALL {_moves("to_address", "t WHERE to_address IS NOT NULL", tx_received="1", value_in=_VALUE)}
 UNION ALL {_moves("from_address", "x", transfers_out="1", token="token_address")}
 UNION ALL {_moves("to_address", "x", transfers_in="1", token="token_address")}
 UNION ALL {_moves("from_address", "t JOIN e USING (block_hash, tx_hash)", swaps="1")})
INSERT INTO rollup.wallet_blocks AS w (chain, block_hash, ts, wallet, {", ".join(WALLET_SUMS)}, tokens)
SELECT %(chain)s, block_hash, ts, wallet, {", ".join(f"sum({c})" for c in WALLET_SUMS)},
 coalesce(array_agg(DISTINCT token) FILTER (WHERE token IS NOT NULL), ARRAY[]::bytea[])
FROM moves GROUP BY block_hash, ts, wallet
ON CONFLICT (chain, wallet, block_hash, ts) DO UPDATE SET {", ".join(f"{c} = excluded.{c}" for c in _WALLET_SETS)}
WHERE {_row("w")} IS DISTINCT FROM {_row("excluded")}
"""

# What a block that is not canonical any more did is found by its rows in schema side.
_LEFT_WALLET_BLOCKS = f"""
DELETE FROM rollup.wallet_blocks WHERE wallet = ANY(ARRAY(
 SELECT from_address FROM side.transactions WHERE {_IN_BLOCKS}
 UNION SELECT to_address FROM side.transactions WHERE {_IN_BLOCKS} AND to_address IS NOT NULL
 UNION SELECT from_address FROM side.token_transfers WHERE {_IN_BLOCKS}
 UNION SELECT to_address FROM side.token_transfers WHERE {_IN_BLOCKS})) AND {_IN_BLOCKS}
"""


def refresh_wallet_blocks(conn: Connection, chain: str, blocks: Blocks) -> None:
    """Sum up what each wallet did in each of these blocks."""
    params = {"chain": chain, "blocks": blocks.hashes, "day": blocks.day}
    with hash_joins(conn):
        conn.execute(_LEFT_WALLET_BLOCKS, params)
        conn.execute(_WALLET_BLOCKS, params)


_PREFIX = "p.chain = %(chain)s AND p.day = (%(day)s::timestamptz)::date AND p.wallet ="

#: SQL: `totals`, what each of %(wallets)s did on %(day)s before %(until)s, and `fresh`, the rows read for that; a row
#: per wallet whether it did anything or not.
WALLET_TOTALS = f"""
WITH k AS MATERIALIZED (
 SELECT w.key, coalesce(p.upto, %(day)s) AS since, p.* FROM unnest(%(wallets)b::bytea[]) w(key)
 LEFT JOIN LATERAL (SELECT * FROM rollup.wallet_prefixes p WHERE {_PREFIX} w.key AND p.upto <= %(until)s
  ORDER BY upto DESC LIMIT 1) p ON true),
totals AS (
 SELECT k.key AS wallet, k.since, s.fresh, {", ".join(f"s.{c} + coalesce(k.{c}, 0) AS {c}" for c in WALLET_SUMS)},
  CASE WHEN s.tokens <@ k.tokens THEN k.tokens ELSE ARRAY(SELECT DISTINCT unnest(s.tokens || k.tokens)) END AS tokens,
  least(s.first_seen, k.first_seen) AS first_seen, greatest(s.last_seen, k.last_seen) AS last_seen
 FROM k CROSS JOIN LATERAL (
  SELECT count(*) AS fresh, {", ".join(f"coalesce(sum({c}), 0) AS {c}" for c in WALLET_SUMS)},
   rollup.concat(tokens) AS tokens, min(ts) AS first_seen, max(ts) AS last_seen
  FROM rollup.wallet_blocks w WHERE w.wallet = k.key AND w.ts >= k.since AND {of_chain("w")}
  AND w.ts >= %(day)s AND w.ts < %(until)s OFFSET 0) s)
"""

_PREFIX_COLUMNS = ("upto", *_WALLET_SETS, "first_seen", "last_seen")


def settled(blocks: Blocks) -> datetime:
    """Until when wallets' days may be summed up when these are the newest blocks."""
    return blocks.first - PREFIX_LAG


def drop_prefixes(conn: Connection, chain: str, blocks: Blocks, wallets: Iterable[bytes]) -> None:
    """Forget the sums of these wallets' days that rows of these blocks belong to."""
    conn.execute(
        "DELETE FROM rollup.wallet_prefixes WHERE chain = %(chain)s AND day = (%(day)s::timestamptz)::date"
        " AND wallet = ANY(%(wallets)b) AND upto > %(first)s",
        {"chain": chain, "day": blocks.day, "wallets": list(wallets), "first": blocks.first},
    )


def extend_prefixes(conn: Connection, chain: str, blocks: Blocks, wallets: Sequence[bytes]) -> None:
    """Sum up busy wallets' days until a moment before these blocks, so that the next time only later rows are read.

    One sum is kept for every hour besides: when older rows appear, what is before them need not be read again.
    """
    if not wallets:
        return
    params = {"chain": chain, "day": blocks.day, "until": settled(blocks), "wallets": list(wallets)}
    columns = ", ".join(_PREFIX_COLUMNS)
    conn.execute(
        f"{WALLET_TOTALS} INSERT INTO rollup.wallet_prefixes (chain, day, wallet, {columns})"
        f" SELECT %(chain)s, (%(day)s::timestamptz)::date, wallet, %(until)s, {', '.join(_PREFIX_COLUMNS[1:])}"
        " FROM totals WHERE since < %(until)s AND first_seen IS NOT NULL",
        params,
    )
    conn.execute(
        f"DELETE FROM rollup.wallet_prefixes o USING rollup.wallet_prefixes p WHERE {_PREFIX} o.wallet"
        " AND o.chain = p.chain AND o.day = p.day AND o.wallet = ANY(%(wallets)b) AND o.upto < p.upto"
        " AND date_trunc('hour', o.upto) = date_trunc('hour', p.upto)",
        params,
    )
