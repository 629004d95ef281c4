"""Documents, written by the database: each query gives lines for a bulk request, action and document.

Belongs here: one query per index, used by the follower and by the rebuild alike. Does not belong here: which keys are
asked for (`follower.py`, `rebuilding.py`), sums (`rollups.py`), sending (`bulk.py`).

JSON is built in SQL because the lane's thread shares the interpreter: Python only hands bytes from one socket to the
other. Every line carries a version that was taken before its rows were read, so a writer that was overtaken loses.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from datetime import datetime
from typing import Any

from dash_pipeline.chains import QuoteToken
from dash_pipeline.storage.search.fields import hex_text, select_list
from dash_pipeline.storage.search.indexes import EMBEDDED_SKIP, LOG_SKIP, WINDOWS
from dash_pipeline.storage.search.rollups import (
    BUSY_ROWS,
    DAY,
    HORIZON,
    WALLET_SUMS,
    WALLET_TOTALS,
    Blocks,
    hash_joins,
)
from dash_pipeline.storage.tables import LOGS, POOL_EVENTS, TOKEN_TRANSFERS, TRANSACTIONS
from dash_pipeline.storage.timescale import Connection, of_chain

# Rows fetched at a time: after each fetch the thread waits for the lane's to hand the interpreter over.
_FETCH = 1_000
# A null is left out, which is what the index makes of it anyway.
_WITHOUT_NULLS = "json_strip_nulls(row_to_json({}))"


def _line(kind: str, id_: str, routing: str | None, document: str | None) -> str:
    """SQL: an action and, unless it deletes, its document (a JSON expression), as the bytes of a bulk request.

    `id_` and `routing` are text that needs no escaping: names of chains (which are parts of topics' names), hex, dates.
    """
    route = f""" || '","routing":"' || {routing}""" if routing else ""
    action = (
        f"""'{{"{kind}":{{"_id":"' || {id_}{route} || '","version":' || %(version)s::int8"""
        """ || ',"version_type":"external_gte"}}' || E'\\n'"""
    )
    body = f" || {document}::text || E'\\n'" if document else ""
    return f"convert_to({action}{body}, 'UTF8')"


def _stream(conn: Connection, query: str, params: dict[str, Any]) -> Generator[bytes]:
    with conn.cursor(binary=True) as cursor:
        for row in cursor.stream(query, params, size=_FETCH):
            yield row[0]


# ---------------------------------------------------------------------------------------------- transactions


def _grouped(name: str, table: str, columns: str, more: str = "") -> str:
    """SQL: the rows of the blocks as one JSON array per transaction."""
    return f"""{name} AS (
 SELECT r.block_hash, r.tx_hash, json_agg(j ORDER BY r.log_index) AS {name}{more}
 FROM chain.{table} r CROSS JOIN LATERAL (SELECT {columns}) j WHERE {_ROWS} GROUP BY r.block_hash, r.tx_hash)"""


_ROWS = (
    "r.chain = %(chain)s AND r.block_hash = ANY(%(blocks)b) AND r.ts >= %(day)s AND r.ts < %(day)s + interval '1 day'"
)
_TOPICS = ", ".join(hex_text(f"r.topic{i}") for i in range(4))
_ID = f"%(chain)s || ':' || {hex_text('r.tx_hash')}"

_TRANSACTION_LINES = f"""
WITH {_grouped("logs", "logs", select_list(LOGS, "r", LOG_SKIP) + f", array_remove(ARRAY[{_TOPICS}], NULL) AS topics")},
{
    _grouped(
        "token_transfers",
        "token_transfers",
        select_list(TOKEN_TRANSFERS, "r", EMBEDDED_SKIP),
        ", array_agg(r.from_address) || array_agg(r.to_address) AS parties",
    )
},
pool_events AS (
 SELECT r.block_hash, r.tx_hash, json_agg(j ORDER BY r.log_index) AS pool_events
 FROM chain.pool_events r CROSS JOIN LATERAL (SELECT {select_list(POOL_EVENTS, "r", EMBEDDED_SKIP)}) j
 WHERE {_ROWS} AND r.event <> 'transfer' GROUP BY r.block_hash, r.tx_hash)
SELECT {_line("index", _ID, hex_text("r.from_address"), _WITHOUT_NULLS.format("d"))}
FROM chain.transactions r
LEFT JOIN logs USING (block_hash, tx_hash)
LEFT JOIN token_transfers USING (block_hash, tx_hash)
LEFT JOIN pool_events USING (block_hash, tx_hash)
CROSS JOIN LATERAL (SELECT {select_list(TRANSACTIONS, "r")},
 CASE WHEN length(r.input) >= 4 THEN {hex_text("substr(r.input, 1, 4)")} END AS method,
 ARRAY(SELECT DISTINCT {hex_text("w")} FROM unnest(ARRAY[r.from_address, r.to_address] || parties) w
       WHERE w IS NOT NULL ORDER BY 1) AS wallets,
 logs, token_transfers, pool_events) d
WHERE {_ROWS}
"""

# A transaction that an orphaned block shares with a canonical one stays; the sender's index finds it there.
_ORPHAN_LINES = f"""
SELECT {_line("delete", _ID, hex_text("r.from_address"), None)}
FROM side.transactions r WHERE {_ROWS} AND NOT EXISTS (
 SELECT FROM chain.transactions t WHERE {of_chain("t")} AND t.from_address = r.from_address AND t.tx_hash = r.tx_hash
 AND t.ts >= %(day)s - interval '1 day' AND t.ts < %(day)s + interval '2 days')
"""


def transaction_lines(conn: Connection, chain: str, blocks: Blocks, version: int) -> Generator[bytes]:
    """Every transaction of these blocks: the canonical ones whole, the others as deletions. A statement reads them all:
    callers come with a few blocks at a time.

    A log or transfer whose transaction has not arrived is in no document yet; its block is touched again by it.
    """
    params = {"chain": chain, "blocks": blocks.hashes, "day": blocks.day, "version": version}
    # Deletions first: what becomes canonical between the two statements ends as a document.
    yield from _stream(conn, _ORPHAN_LINES, params)
    with hash_joins(conn):
        yield from _stream(conn, _TRANSACTION_LINES, params)


# ---------------------------------------------------------------------------------------------- wallets

_WALLET_ID = f"%(chain)s || ':' || {hex_text('w.wallet')} || ':' || to_char(%(day)s::timestamptz, 'YYYY-MM-DD')"
_AMOUNTS = ("value_out", "value_in", "fee")
_WALLET_COLUMNS = ", ".join(
    f"w.{c}::text AS {c}, w.{c}::float8 AS {c}_f" if c in _AMOUNTS else f"w.{c}::int8 AS {c}" for c in WALLET_SUMS
)

_WALLET_LINES = f"""{WALLET_TOTALS}
SELECT CASE WHEN w.first_seen IS NULL THEN {_line("delete", _WALLET_ID, hex_text("w.wallet"), None)}
 ELSE {_line("index", _WALLET_ID, hex_text("w.wallet"), "row_to_json(d)")} END,
 CASE WHEN w.fresh > %(busy)s AND w.since < %(settled)s THEN w.wallet END
FROM totals w CROSS JOIN LATERAL (SELECT %(chain)s::text AS chain, {hex_text("w.wallet")} AS wallet,
 (%(day)s::timestamptz)::date AS day, {_WALLET_COLUMNS}, cardinality(w.tokens) AS tokens,
 w.first_seen, w.last_seen) d
"""

_WALLETS_AT_ONCE = 2_000


def wallet_lines(
    conn: Connection,
    chain: str,
    day: datetime,
    wallets: Sequence[bytes],
    version: int,
    settled: datetime | None = None,
    busy: list[bytes] | None = None,
) -> Generator[bytes]:
    """The wallets' documents of one day; a wallet without a row on it is a deletion.

    Wallets that took many rows to sum up, some of them from before `settled`, are added to `busy` (for
    `rollups.extend_prefixes`).
    """
    for start in range(0, len(wallets), _WALLETS_AT_ONCE):
        params = {
            "chain": chain,
            "day": day,
            "until": day + DAY,
            "wallets": list(wallets[start : start + _WALLETS_AT_ONCE]),
            "version": version,
            "busy": BUSY_ROWS,
            "settled": settled or day,
        }
        with conn.cursor(binary=True) as cursor:
            for line, wallet in cursor.stream(_WALLET_LINES, params, size=_FETCH):
                if wallet is not None and busy is not None:
                    busy.append(wallet)
                yield line


# ---------------------------------------------------------------------------------------------- tokens


def _described(name: str, token: str) -> str:
    """SQL: symbol, name and decimals: as the registry has them, else as the contract says, else 18 decimals.

    A contract may say anything; more decimals than a uint256 has digits would only overflow the floats.
    """
    return f"""LEFT JOIN LATERAL (
 SELECT coalesce(r.symbol, t.symbol) AS symbol, t.name, t.total_supply, coalesce(r.decimals, t.decimals) AS declared,
  coalesce(r.decimals, CASE WHEN t.decimals BETWEEN 0 AND 77 THEN t.decimals END, 18) AS decimals, t.ts
 FROM (SELECT) one
 LEFT JOIN (SELECT * FROM chain.tokens t WHERE {of_chain("t")} AND t.address = {token}
  ORDER BY t.ts DESC LIMIT 1) t ON true
 LEFT JOIN registry r ON r.address = {token}) {name} ON true"""


def _per(decimals: str) -> str:
    return f"10::float8 ^ -{decimals}"


def _window_fields(window: str) -> str:
    return f"""
 m.price / nullif(m.price_{window}, 0) - 1 AS change_{window},
 (coalesce(b.volume_{window}, 0) + coalesce(o.volume_{window}, 0)) * {_per("d.decimals")} AS volume_{window},
 b.volume_quote_{window} * {_per("q.decimals")} AS volume_quote_{window},
 b.reserve_quote / nullif(b.reserve_quote_{window}, 0) - 1 AS liquidity_change_{window},
 coalesce(b.trades_{window}, 0) + coalesce(o.trades_{window}, 0) AS trades_{window}"""


def _base_sums(window: str) -> str:
    same = "FILTER (WHERE w.quote = m.quote)"
    return (
        f"sum(volume_base_{window}) AS volume_{window}, sum(volume_quote_{window}) {same} AS volume_quote_{window},"
        f" sum(trades_{window}) AS trades_{window}, sum(reserve_quote_{window}) {same} AS reserve_quote_{window}"
    )


def _quote_sums(window: str) -> str:
    return f"sum(volume_quote_{window}) AS volume_{window}, sum(trades_{window}) AS trades_{window}"


# m: the main pool, where the token has its price. b: all pools that price the token. o: pools priced in it.
_TOKEN_LINES = f"""
WITH registry AS (SELECT * FROM unnest(%(quotes)b::bytea[], %(symbols)s::text[], %(decimals)s::int4[])
 r(address, symbol, decimals))
SELECT CASE WHEN d.ts IS NULL AND x.ts IS NULL AND NOT p.known
 THEN {_line("delete", f"%(chain)s || ':' || {hex_text('k.token')}", None, None)}
 ELSE {_line("index", f"%(chain)s || ':' || {hex_text('k.token')}", None, _WITHOUT_NULLS.format("doc"))} END
FROM unnest(%(tokens)b::bytea[]) k(token)
{_described("d", "k.token")}
LEFT JOIN LATERAL (SELECT ts FROM chain.token_transfers x WHERE x.token_address = k.token AND {of_chain("x")}
 AND x.ts >= %(as_of)s::timestamptz - interval '{HORIZON}' ORDER BY x.ts DESC LIMIT 1) x ON true
CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM chain.pools p WHERE {of_chain("p")} AND p.token0 = k.token)
 OR EXISTS (SELECT FROM chain.pools p WHERE {of_chain("p")} AND p.token1 = k.token) AS known) p
LEFT JOIN LATERAL (SELECT * FROM rollup.pool_windows w WHERE w.chain = %(chain)s AND w.base = k.token
 ORDER BY array_position(%(quotes)b::bytea[], w.quote) IS NULL, w.trades_7d DESC, w.last_event DESC, w.pool LIMIT 1
 ) m ON true
{_described("q", "m.quote")}
LEFT JOIN LATERAL (SELECT count(*) AS pools, max(last_trade) AS last_trade,
 sum(reserve_quote) FILTER (WHERE w.quote = m.quote) AS reserve_quote, {", ".join(map(_base_sums, WINDOWS))}
 FROM rollup.pool_windows w WHERE w.chain = %(chain)s AND w.base = k.token) b ON true
LEFT JOIN LATERAL (SELECT count(*) AS pools, max(last_trade) AS last_trade, {", ".join(map(_quote_sums, WINDOWS))}
 FROM rollup.pool_windows w WHERE w.chain = %(chain)s AND w.quote = k.token
 AND w.last_event >= %(as_of)s::timestamptz - interval '7 days 1 hour') o ON true
CROSS JOIN LATERAL (SELECT %(chain)s::text AS chain, {hex_text("k.token")} AS address, d.symbol, d.name,
 d.declared AS decimals, d.total_supply::text AS total_supply, %(as_of)s::timestamptz AS as_of,
 m.price * {_per("(q.decimals - d.decimals)")} AS price, {hex_text("m.quote")} AS quote, q.symbol AS quote_symbol,
 2 * b.reserve_quote * {_per("q.decimals")} AS liquidity, {hex_text("m.pool")} AS main_pool, m.protocol,
 b.pools + o.pools AS pools, greatest(b.last_trade, o.last_trade) AS last_trade, x.ts AS last_transfer,
 {",".join(map(_window_fields, WINDOWS))}) doc
"""

_TOKENS_AT_ONCE = 1_000


def preferred_quotes(quotes: Iterable[QuoteToken]) -> list[QuoteToken]:
    """The registry's quote tokens, those first that prices are rather expressed in: stable ones, then its order."""
    return sorted(quotes, key=lambda quote: not quote.stable)


def token_lines(
    conn: Connection, chain: str, tokens: Sequence[bytes], as_of: datetime, quotes: Sequence[QuoteToken], version: int
) -> Generator[bytes]:
    """The tokens' documents, windows as their pools' rollups have them; a token that left no trace is a deletion."""
    for start in range(0, len(tokens), _TOKENS_AT_ONCE):
        params = {
            "chain": chain,
            "tokens": list(tokens[start : start + _TOKENS_AT_ONCE]),
            "as_of": as_of,
            "quotes": [quote.contract for quote in quotes],
            "symbols": [quote.symbol for quote in quotes],
            "decimals": [quote.decimals for quote in quotes],
            "version": version,
        }
        yield from _stream(conn, _TOKEN_LINES, params)
