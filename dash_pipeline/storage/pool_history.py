"""What is stored of some pools, hot or archived, as the frames that features are computed from.

Belongs here: SQL and its rows as frames. Does not belong here: what is made of them (`models/pool_features.py`,
`models/liquidity_outlook.py`).

A pool, its events, its token's transfers and its creator's other tokens take four statements, whatever the number of
pools; each reads through an index that is there for others too. Archived rows are put beside the hot ones of those who
have some (`archived.py`); who has none costs a look at when he began.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import polars as pl

from dash_pipeline.models.pool_features import SCHEMAS, PoolHistory, empty, token_creators
from dash_pipeline.settings import Settings
from dash_pipeline.storage import archived
from dash_pipeline.storage.archived import Archive, Wanted
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
 t.from_address, s.total_supply::float8, p.tx_hash, p.ts
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
 FROM chain.pool_events e WHERE e.pool = k.pool AND e.chain = %(chain)s AND e.ts <= %(until)s
 AND e.event = ANY(%(kinds)s)
 ORDER BY e.ts {order}, e.block_number {order}, e.log_index {order} LIMIT %(limit)s) e
"""
_IN_USE = ("mint", "burn", "swap", "sync", "transfer")
_TRANSFERS = ("transfer",)
_EVENT = ["pool", "block_number", "log_index"]

_CREATIONS = """
SELECT k.wallet, t.token, t.ts, t.block_number FROM unnest(%(wallets)b::bytea[]) AS k(wallet) CROSS JOIN LATERAL (
 SELECT t.receipt_contract_address AS token, t.ts, t.block_number FROM (
  SELECT t.* FROM chain.transactions t WHERE t.from_address = k.wallet AND t.chain = %(chain)s AND t.ts <= %(until)s
  ORDER BY t.ts DESC, t.block_number DESC, t.tx_index DESC LIMIT %(limit)s) t
 WHERE t.receipt_contract_address IS NOT NULL AND (
  EXISTS (SELECT FROM chain.pools p WHERE p.chain = %(chain)s AND p.token0 = t.receipt_contract_address)
  OR EXISTS (SELECT FROM chain.pools p WHERE p.chain = %(chain)s AND p.token1 = t.receipt_contract_address))) t
"""


_SENT = """
SELECT k.wallet, t.* FROM unnest(%(wallets)b::bytea[]) AS k(wallet) CROSS JOIN LATERAL (
 SELECT t.receipt_contract_address AS token, t.ts, t.block_number, t.tx_index FROM chain.transactions t
 WHERE t.from_address = k.wallet AND t.chain = %(chain)s AND t.ts <= %(until)s
 ORDER BY t.ts DESC, t.block_number DESC, t.tx_index DESC LIMIT %(limit)s) t
"""
_IN_POOLS = """
SELECT k.token FROM unnest(%(tokens)b::bytea[]) AS k(token)
WHERE EXISTS (SELECT FROM chain.pools p WHERE p.chain = %(chain)s AND p.token0 = k.token)
 OR EXISTS (SELECT FROM chain.pools p WHERE p.chain = %(chain)s AND p.token1 = k.token)
"""


def pool_history(
    conn: Connection,
    chain: str,
    pools: Sequence[bytes],
    until: datetime,
    quotes: Sequence[bytes] = (),
    archive: Settings | None = None,
) -> PoolHistory:
    """What is stored of these pools up to and with `until`, the chain's time, hot or archived; one row of `pools` for
    each.

    `quotes`: the registry's quote tokens, the preferred first. A history of more than NEWEST + OLDEST rows is cut in
    the middle, and its pool says so (`cut`): counts and sums are then those of what is left. Rows come in no order.

    `archive`: the settings that S3 is reached by. Without them no object is read: pools that may have archived rows,
    or whose token or creator may, are in `unread` and nowhere else. Raises Unavailable when an object cannot be read,
    DashError when the settings lack its key.
    """
    with archived.opened(conn, chain, archive) as store:
        params: dict[str, Any] = {"chain": chain, "until": until, "pools": list(dict.fromkeys(pools)),
                                  "quotes": list(quotes)}  # fmt: skip
        found = _rows(conn, _POOLS, params)
        old = store.old_contracts(address for row in found for address in (row[0], row[2]))
        if archive is None:
            # A pool whose token is not known was not seen being created.
            found = [row for row in found if row[0] not in old and row[2] not in old]
        base = [row[2] for row in found]
        events, cut_events = _newest_and_oldest(store, params, [row[0] for row in found], _IN_USE, old)
        moved, cut_tokens = _newest_and_oldest(store, params, [*dict.fromkeys(filter(None, base))], _TRANSFERS, old)
        makers = _makers(store, found, until) if old else {}
        known = _frame(
            "pools",
            [(*row[:5], row[5] or makers.get(row[7]), row[6], row[0] in cut_events or row[2] in cut_tokens)
             for row in found],
        )  # fmt: skip
        history = PoolHistory(known, events, _transfers(moved), empty("creations"))
        creators = token_creators(history)
        wallets = set(creators.drop_nulls())
        old_wallets = store.old_wallets(wallets)
        if archive is None and old_wallets:
            history = history.of(known.filter(~creators.is_in(list(old_wallets)).fill_null(False))["pool"].to_list())
        young = list(wallets - old_wallets)
        made = _rows(conn, _CREATIONS, params | {"wallets": young, "limit": CREATORS_TRANSACTIONS}) if young else []
        creations, busy = _frame("creations", made), set[bytes]()
        if archive and old_wallets:
            more, busy = _creations(store, params | {"wallets": list(old_wallets)})
            creations = pl.concat([creations, more])
    unread = frozenset(params["pools"]) - set(history.pools["pool"])
    return PoolHistory(history.pools, history.events, history.transfers, creations, unread, frozenset(busy))


def newest_pools(conn: Connection, chain: str, limit: int, archive: Settings | None = None) -> list[bytes]:
    """The V2 pools with events, those with the newest ones first; hot events alone without the settings that S3 is
    reached by. Raises as `pool_history` does."""
    with archived.opened(conn, chain, archive) as store:
        rows = conn.execute(
            "SELECT pool, max(ts) AS ts FROM chain.pool_events WHERE chain = %s AND event = 'sync' GROUP BY pool"
            " ORDER BY 2 DESC, pool LIMIT %s",
            (chain, limit),
        ).fetchall()
        known = pl.DataFrame(rows, {name: SCHEMAS["events"][name] for name in ("pool", "ts")}, orient="row")
        until = store.edge if archive else None
        for group in store.groups("pool_events", until, newest=True) if until else ():
            if known.filter(pl.col("ts") > max(one.ts_max for one in group)).height >= limit:
                break
            more = store.read("pool_events", group, known.columns, pl.col("event") == "sync")
            known = pl.concat([known, more]).group_by("pool").agg(pl.col("ts").max())
    return known.sort(["ts", "pool"], descending=[True, False])["pool"].head(limit).to_list()


def busy_wallets(conn: Connection, chain: str, wallets: Iterable[bytes | None], until: datetime) -> set[bytes]:
    """Those that have sent more than CREATORS_TRANSACTIONS, hot ones: the newest are other ones at every moment."""
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
    store: Archive,
    params: dict[str, Any],
    contracts: list[bytes],
    kinds: Sequence[str],
    old: Mapping[bytes, datetime | None],
) -> tuple[pl.DataFrame, set[bytes]]:
    """Rows of pool_events of these contracts, and which of them have more rows than that."""
    if not contracts:
        return empty("events"), set()
    asked = params | {"pools": contracts, "kinds": list(kinds), "limit": NEWEST}
    newest = _ordered(store, asked, old, newest=True)
    if newest.height < NEWEST:
        return newest, set()
    long = newest.group_by("pool").len().filter(pl.col("len") == NEWEST)["pool"].to_list()
    oldest = _ordered(store, asked | {"pools": long, "limit": OLDEST}, old, newest=False) if long else empty("events")
    # Where the two meet, nothing is missing between them.
    whole = set(oldest.join(newest, on=_EVENT, how="semi")["pool"])
    return pl.concat([newest, oldest.join(newest, on=_EVENT, how="anti")]), set(long) - whole


def _ordered(
    store: Archive, params: dict[str, Any], old: Mapping[bytes, datetime | None], *, newest: bool
) -> pl.DataFrame:
    """The newest (else the oldest) rows of each contract, `limit` at most."""
    limit, until = params["limit"], params["until"]
    hot = _frame("events", _rows(store.conn, _EVENTS.format(order="DESC" if newest else "ASC"), params))
    had: dict[bytes, int] = {}
    if newest and old:
        # Newer than anything archived.
        had = dict(hot.filter(pl.col("ts") >= store.edge).group_by("pool").len().iter_rows())
    wanted = {
        contract: Wanted(limit - had.get(contract, 0), since=old[contract])
        for contract in params["pools"]
        if contract in old and had.get(contract, 0) < limit
    }
    if not wanted:
        return hot
    where = pl.col("event").is_in(params["kinds"])
    more = store.rows("pool_events", hot.columns, ["pool"], wanted, until, where, newest=newest).select(hot.columns)
    rows = pl.concat([hot, more]).unique(_EVENT)
    order = ["ts", "block_number", "log_index"]
    return rows.sort(order, descending=newest).filter(pl.int_range(pl.len()).over("pool") < limit)


def _makers(store: Archive, found: Sequence[tuple[Any, ...]], until: datetime) -> dict[bytes, bytes]:
    """The senders of the archived ones of the transactions that made these pools, by the transactions' hashes."""
    wanted = {
        tx_hash: Wanted(1, days={ts.date()})
        for *_, creator, _, tx_hash, ts in found
        if creator is None and tx_hash is not None
    }
    columns = ["ts", "block_number", "tx_index", "from_address"]
    rows = store.rows("transactions", columns, ["tx_hash"], wanted, until, newest=True) if wanted else None
    return {} if rows is None else dict(rows.select("address", "from_address").iter_rows())


def _creations(store: Archive, params: dict[str, Any]) -> tuple[pl.DataFrame, set[bytes]]:
    """The tokens that have a pool of creators who have archived transactions, and those of whom not all were read."""
    sent = _rows(store.conn, _SENT, params | {"limit": CREATORS_TRANSACTIONS})
    schema = SCHEMAS["creations"] | {"tx_index": SCHEMAS["events"]["log_index"]}
    hot = pl.DataFrame(sent, schema, orient="row")
    had = dict(hot.filter(pl.col("ts") >= store.edge).group_by("wallet").len().iter_rows())
    days = store.days(params["wallets"], params["until"])
    wanted = {
        wallet: Wanted(CREATORS_TRANSACTIONS - had.get(wallet, 0), days[wallet])
        for wallet in params["wallets"]
        if had.get(wallet, 0) < CREATORS_TRANSACTIONS
    }
    columns = ["ts", "block_number", "tx_index", "receipt_contract_address"]
    more = store.rows("transactions", columns, ["from_address"], wanted, params["until"], newest=True)
    more = more.rename({"address": "wallet", "receipt_contract_address": "token"})
    every = pl.concat([hot, more.select(hot.columns)]).unique(["wallet", "block_number", "tx_index"])
    every = every.sort("ts", "block_number", "tx_index", descending=True)
    every = every.filter(pl.int_range(pl.len()).over("wallet") < CREATORS_TRANSACTIONS)
    busy = every.group_by("wallet").len().filter(pl.col("len") == CREATORS_TRANSACTIONS)["wallet"]
    tokens = every["token"].drop_nulls().unique().to_list()
    pooled = [token for (token,) in _rows(store.conn, _IN_POOLS, params | {"tokens": tokens})]
    return every.filter(pl.col("token").is_in(pooled)).select(*SCHEMAS["creations"]), set(busy)


def _rows(conn: Connection, statement: str, params: dict[str, Any]) -> list[tuple[Any, ...]]:
    # Prepared at once: planning costs more than reading a young pool's rows.
    return conn.execute(statement, params, prepare=True, binary=True).fetchall()


def _frame(name: str, rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMAS[name], orient="row")


def _transfers(events: pl.DataFrame) -> pl.DataFrame:
    return events.select(pl.col("pool").alias("token"), "ts", "block_number", "log_index", "sender", "recipient",
                         pl.col("amount0_f").alias("amount_f"))  # fmt: skip
