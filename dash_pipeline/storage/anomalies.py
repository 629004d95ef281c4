"""Anomalies in the database: the windows that detectors read, and what they found.

Belongs here: SQL. Does not belong here: what is an anomaly (`dash_pipeline/anomalies/`), and the order of things inside
a micro-batch's transaction (`dash_pipeline/microbatch/detect.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from dash_pipeline.storage.timescale import Connection

_TIME = pl.Datetime("us", "UTC")

#: What is known of a pool's last window before it is looked at closely; see `dash_pipeline.anomalies.candidates`.
STATS: dict[str, Any] = {
    "pool": pl.Binary,
    "swaps": pl.Int64,
    "burns": pl.Int64,
    "busiest": pl.Int64,
    **{
        f"{name}_{end}": pl.Float64
        for name in ("reserve0", "reserve1", "root", "near0", "near1")
        for end in ("max", "min")
    },
    "turned0": pl.Float64,
    "turned1": pl.Float64,
    "found_before": pl.Boolean,
}

#: Events as detectors take them: columns of table pool_events, exact amounts as floats, and `token`: the token's
#: contract where the row is a transfer of one of the pool's tokens.
EVENTS: dict[str, Any] = {
    "pool": pl.Binary,
    "ts": _TIME,
    "block_number": pl.Int64,
    "block_hash": pl.Binary,
    "tx_hash": pl.Binary,
    "log_index": pl.Int32,
    "protocol": pl.String,
    "event": pl.String,
    "sender": pl.Binary,
    "recipient": pl.Binary,
    "amount0_f": pl.Float64,
    "amount1_f": pl.Float64,
    "reserve0_f": pl.Float64,
    "reserve1_f": pl.Float64,
    "liquidity_f": pl.Float64,
    "sqrt_price_f": pl.Float64,
    "tick": pl.Int32,
    "tick_lower": pl.Int32,
    "tick_upper": pl.Int32,
    "token": pl.Binary,
}
POOLS: dict[str, Any] = {
    "pool": pl.Binary,
    "protocol": pl.String,
    "token0": pl.Binary,
    "token1": pl.Binary,
    "quote": pl.Int8,
    "creator": pl.Binary,
}
# Events that say what is in a pool after them.
_STATE = "(e.event = 'sync' OR (e.event = 'swap' AND e.liquidity IS NOT NULL))"
#: What happened to a pool in a minute: what STATS is summed from. `direct`: swaps that paid another than who called.
MINUTES = {
    "pool": "bytea",
    "ts": "timestamptz",
    "swaps": "int4",
    "direct": "int4",
    "burns": "int4",
    **{f"{name}_{end}": "float8" for name in ("reserve0", "reserve1", "liquidity", "root") for end in ("max", "min")},
    "volume0": "float8",
    "volume1": "float8",
}
_SUMS = ("swaps", "direct", "burns", "volume0", "volume1")
_EXTREMES = [name for name in MINUTES if name.endswith(("_max", "_min"))]
# As many as a window has at the most: one in a tenth of a second, for ten minutes.
_NEWEST_BLOCKS = 6_000
#: Pools that something happened to, and between which of the chain's times.
Touched = dict[bytes, tuple[datetime, datetime]]

_OF_TWO = {"max": "greatest", "min": "least"}
# Rows between a pool's times, and between those of all pools, by which chunks are left out.
_INSIDE = "{0}.ts BETWEEN p.lo AND p.hi AND {0}.ts BETWEEN %(first)s AND %(last)s"
# 2^96.
_Q96 = "79228162514264337593543950336::float8"
# The square root of token1's price in token0, of an event that says what is in a pool; of V2, of amounts of at least 1.
_ROOT = (
    "coalesce(e.sqrt_price_x96::float8, CASE WHEN e.event = 'sync' THEN sqrt(greatest(e.reserve1_f, 1)"
    f" / greatest(e.reserve0_f, 1)) * {_Q96} END)"
)
_OF_POOL = "e.pool = p.pool AND e.chain = %(chain)s"
# Of minutes `m`: volumes in multiples of the least that was in the pool; of V3, of what its liquidity stands for. A
# minute whose swaps came without that may have turned over anything.
_HELD = (
    f"coalesce(m.reserve0_min, m.liquidity_min / nullif(m.root_max, 0) * {_Q96})",
    f"coalesce(m.reserve1_min, m.liquidity_min * m.root_min / {_Q96})",
)
_TURNED = ", ".join(
    f"coalesce(sum(coalesce(m.volume{i} / nullif({held}, 0), 'Infinity')) FILTER (WHERE m.swaps > 0), 0) AS turned{i}"
    for i, held in enumerate(_HELD)
)
# The columns of MINUTES behind `ts`, of rows of pool_events `e` that are no transfers.
_COUNTED = (
    "count(*) FILTER (WHERE e.event = 'swap'), count(*) FILTER (WHERE e.event = 'swap' AND e.recipient <> e.sender),"
    " count(*) FILTER (WHERE e.event = 'burn'), max(e.reserve0_f), min(e.reserve0_f), max(e.reserve1_f),"
    " min(e.reserve1_f), max(e.liquidity::float8) FILTER (WHERE e.event = 'swap'),"
    f" min(e.liquidity::float8) FILTER (WHERE e.event = 'swap'), max({_ROOT}), min({_ROOT}),"
    " coalesce(sum(abs(e.amount0_f)) FILTER (WHERE e.event = 'swap'), 0),"
    " coalesce(sum(abs(e.amount1_f)) FILTER (WHERE e.event = 'swap'), 0)"
)


def lock_detection(conn: Connection, chain: str) -> None:
    """Hold the chain's anomalies for this transaction. Two lanes may bring events of one pool at the same time: the
    second reads its windows when the first has committed, so that one of them sees both."""
    conn.execute("SELECT pg_advisory_xact_lock(hashtextextended('anomalies:' || %s, 0))", (chain,), prepare=True)


def pools_of_blocks(
    conn: Connection, chain: str, blocks: Mapping[bytes, datetime]
) -> tuple[Touched, dict[bytes, datetime]]:
    """The pools with events in these blocks (hash -> timestamp), whichever branch they are on; and the contracts whose
    tokens or shares were moved, each with when it first was."""
    rows = conn.execute(
        "SELECT pool, moved, min(ts), max(ts) FROM ("
        + " UNION ALL ".join(
            f"SELECT pool, event = 'transfer' AS moved, ts FROM {schema}.pool_events WHERE chain = %(chain)s"
            " AND block_hash = ANY(%(blocks)s) AND ts BETWEEN %(lo)s AND %(hi)s"
            for schema in ("chain", "side")
        )
        + ") e GROUP BY pool, moved",
        {"chain": chain, "blocks": list(blocks), "lo": min(blocks.values()), "hi": max(blocks.values())},
    ).fetchall()
    touched = {pool: (lo, hi) for pool, moved, lo, hi in rows if not moved}
    return touched, {contract: lo for contract, moved, lo, _ in rows if moved}


def pools_found_since(conn: Connection, chain: str, lo: datetime, moved: Iterable[bytes]) -> Touched:
    """The pools with anomalies of that time or later whose tokens or shares were moved."""
    rows = conn.execute(
        "SELECT pool, max(ts) FROM intel.anomalies WHERE ts >= %(lo)s AND chain = %(chain)s"
        " AND (pool = ANY(%(moved)s) OR tokens && %(moved)s::bytea[]) GROUP BY pool",
        {"lo": lo, "chain": chain, "moved": list(moved)},
        binary=True,
        prepare=True,
    ).fetchall()
    return {pool: (lo, hi) for pool, hi in rows}


def add_minutes(conn: Connection, chain: str, minutes: Mapping[str, list[Any]]) -> None:
    """Add what new rows say of their minutes (the columns of MINUTES) to what is known of them. Rows that were there
    before count twice: what is counted may be too much for what the tables hold, and is never too little."""
    merged = [f"{name} = m.{name} + excluded.{name}" for name in _SUMS]
    merged += [f"{name} = {_OF_TWO[name[-3:]]}(m.{name}, excluded.{name})" for name in _EXTREMES]
    conn.execute(
        f"INSERT INTO rollup.pool_minutes AS m (chain, {', '.join(MINUTES)})"
        f" SELECT %s, n.* FROM unnest({', '.join(f'%s::{type_}[]' for type_ in MINUTES.values())}) n"
        f" ON CONFLICT (pool, ts, chain) DO UPDATE SET {', '.join(merged)}",
        [chain, *(minutes[name] for name in MINUTES)],
        binary=True,
        prepare=True,
    )


def recount_minutes(conn: Connection, chain: str, touched: Touched) -> None:
    """Make the minutes between each touched pool's times say what its rows are now."""
    bounds = _bounds(touched, timedelta(0)) | {"chain": chain}
    # To the end of the last minute.
    ends = [hi.replace(second=59, microsecond=999_999) for hi in bounds["hi"]]
    bounds |= {"hi": ends, "last": max(ends)}
    pools = "unnest(%(pools)s::bytea[], %(lo)s::timestamptz[], %(hi)s::timestamptz[]) AS p(pool, lo, hi)"
    conn.execute(
        f"DELETE FROM rollup.pool_minutes m USING {pools}"
        f" WHERE m.pool = p.pool AND m.chain = %(chain)s AND {_INSIDE.format('m')}",
        bounds,
    )
    conn.execute(
        f"INSERT INTO rollup.pool_minutes (chain, {', '.join(MINUTES)}) SELECT %(chain)s, p.pool, e.*"
        f" FROM {pools} CROSS JOIN LATERAL (SELECT date_trunc('minute', e.ts), {_COUNTED} FROM chain.pool_events e"
        f"  WHERE e.pool = p.pool AND e.chain = %(chain)s AND e.event <> 'transfer' AND {_INSIDE.format('e')}"
        "  GROUP BY 1) e",
        bounds,
    )


def recent_pools(conn: Connection, chain: str, window_s: float) -> Touched:
    """The pools with events in the chain's newest blocks, as far as they are of the last `window_s`."""
    rows = conn.execute(
        "WITH b AS MATERIALIZED (SELECT b.block_hash, c.tip_ts - %(window)s * interval '1 second' AS since"
        "  FROM ops.chains c CROSS JOIN LATERAL (SELECT block_hash, ts FROM ops.block_tree b WHERE b.chain = c.chain"
        "   ORDER BY block_number DESC LIMIT %(blocks)s) b"
        "  WHERE c.chain = %(chain)s AND b.ts >= c.tip_ts - %(window)s * interval '1 second')"
        " SELECT e.pool, min(e.ts), max(e.ts) FROM b CROSS JOIN LATERAL (SELECT pool, ts"
        "  FROM chain.pool_events e WHERE e.block_hash = b.block_hash AND e.chain = %(chain)s AND e.ts >= b.since"
        "  AND e.event <> 'transfer' OFFSET 0) e GROUP BY e.pool",
        {"chain": chain, "window": window_s, "blocks": _NEWEST_BLOCKS},
    ).fetchall()
    return {pool: (lo, hi) for pool, lo, hi in rows}


def window_stats(
    conn: Connection, chain: str, touched: Touched, window_s: float, trades: float, lost: float
) -> pl.DataFrame:
    """One row of STATS for each touched pool: of the minutes from that of `window_s` before its first touched event to
    that of its last, and the state before them. `busiest`: trades that paid the same wallet, 0 where less than `trades`
    paid any. `turned`: volumes in multiples of the least that was in the pool in their minute. `near` and `burns`: the
    reserves and burns from the first touched event on, and the reserves before it; looked at only where the window has
    a burn or its reserves lie so far apart (in multiples, the mean of both) as `lost` says.

    Whole minutes, summed as rows come in: a busy pool's window has thousands of events, and each commit asks."""
    seen = ", ".join(f"{name[-3:]}(m.{name}) AS {name}" for name in _EXTREMES if not name.startswith("liquidity"))
    extremes = ", ".join(
        f"greatest(s.{name}_max, b.{name}) AS {name}_max, least(s.{name}_min, b.{name}) AS {name}_min"
        for name in ("reserve0", "reserve1", "root")
    )
    near = ", ".join(
        f"CASE WHEN w.close THEN n.reserve{i}_{end} ELSE w.reserve{i}_{end} END"
        for i in (0, 1)
        for end in ("max", "min")
    )
    state = f"SELECT reserve0_f, reserve1_f, event FROM chain.pool_events e WHERE w.close AND {_OF_POOL}"
    rows = conn.execute(
        "SELECT p.pool, w.swaps, n.burns, g.busiest, w.reserve0_max, w.reserve0_min, w.reserve1_max,"
        f" w.reserve1_min, w.root_max, w.root_min, {near}, w.turned0, w.turned1,"
        "  EXISTS (SELECT FROM intel.anomalies a WHERE a.pool = p.pool AND a.ts >= p.touched AND a.chain = %(chain)s)"
        " FROM unnest(%(pools)s::bytea[], %(lo)s::timestamptz[], %(hi)s::timestamptz[], %(touched)s::timestamptz[])"
        "  AS p(pool, lo, hi, touched)"
        f" CROSS JOIN LATERAL (SELECT coalesce(sum(m.swaps), 0) AS swaps, coalesce(sum(m.direct), 0) AS direct,"
        f"  coalesce(sum(m.burns), 0) AS burns, {seen}, {_TURNED} FROM rollup.pool_minutes m WHERE m.pool = p.pool"
        f"  AND m.chain = %(chain)s AND {_INSIDE.format('m')}) s"
        " CROSS JOIN LATERAL (SELECT coalesce(max(n), 0) AS busiest FROM (SELECT count(*) AS n"
        f"  FROM chain.pool_events e WHERE s.direct >= %(trades)s AND {_OF_POOL}"
        "  AND e.event = 'swap' AND e.recipient <> e.sender"
        f"  AND {_INSIDE.format('e')} GROUP BY e.recipient) w) g"
        f" LEFT JOIN LATERAL (SELECT reserve0_f AS reserve0, reserve1_f AS reserve1, {_ROOT} AS root FROM"
        f"  chain.pool_events e WHERE {_OF_POOL} AND {_STATE} AND e.ts < p.lo ORDER BY e.ts DESC LIMIT 1) b ON true"
        f" CROSS JOIN LATERAL (SELECT s.swaps, s.turned0, s.turned1, {extremes}) x"
        " CROSS JOIN LATERAL (SELECT x.*, s.burns > 0 OR coalesce(sqrt(x.reserve0_max / greatest(x.reserve0_min, 1)"
        "  * x.reserve1_max / greatest(x.reserve1_min, 1)) >= %(lost)s, false) AS close OFFSET 0) w"
        " CROSS JOIN LATERAL (SELECT count(*) FILTER (WHERE event = 'burn') AS burns, max(reserve0_f) AS reserve0_max,"
        "  min(reserve0_f) AS reserve0_min, max(reserve1_f) AS reserve1_max, min(reserve1_f) AS reserve1_min"
        f"  FROM ({state} AND e.ts >= p.touched AND {_INSIDE.format('e')} UNION ALL"
        f"  ({state} AND {_STATE} AND e.ts < p.touched"
        "   ORDER BY e.ts DESC, e.block_number DESC, e.log_index DESC LIMIT 1)) e) n",
        _bounds(touched, timedelta(seconds=window_s))
        | {"chain": chain, "trades": trades, "lost": lost, "touched": [lo for lo, _ in touched.values()]},
        binary=True,
        prepare=True,
    ).fetchall()
    return pl.DataFrame(rows, STATS, orient="row")


def window_pools(conn: Connection, chain: str, pools: Sequence[bytes], quotes: Sequence[bytes]) -> pl.DataFrame:
    """The pools (POOLS) with their tokens and who got the first shares in the creating transaction, null where that
    was not seen. `quotes`: quote tokens, preferred ones first."""
    rows = conn.execute(
        "SELECT DISTINCT ON (p.pool) p.pool, c.protocol, c.token0, c.token1, t.recipient,"
        " array_position(%(quotes)s::bytea[], c.token0), array_position(%(quotes)s::bytea[], c.token1)"
        " FROM unnest(%(pools)s::bytea[]) AS p(pool)"
        " LEFT JOIN chain.pools c ON c.address = p.pool AND c.chain = %(chain)s"
        " LEFT JOIN LATERAL (SELECT recipient FROM chain.pool_events t WHERE t.block_hash = c.block_hash"
        "  AND t.tx_hash = c.tx_hash AND t.chain = c.chain AND t.ts = c.ts AND t.pool = p.pool AND t.event = 'transfer'"
        "  AND t.sender = %(nobody)s AND t.recipient <> %(nobody)s ORDER BY t.log_index LIMIT 1) t ON true"
        " ORDER BY p.pool, c.block_number",
        {"nobody": bytes(20), "chain": chain, "pools": list(pools), "quotes": list(quotes)},
        binary=True,
    ).fetchall()
    return pl.DataFrame([(*row[:4], _quote_side(row[5], row[6]), row[4]) for row in rows], POOLS, orient="row")


def _quote_side(place0: int | None, place1: int | None) -> int | None:
    """Which token prices are in: the one that the registry prefers; None where neither is a quote token."""
    if place0 is None and place1 is None:
        return None
    return int(place0 is None or (place1 is not None and place1 < place0))


def window_events(conn: Connection, chain: str, touched: Touched, pools: pl.DataFrame, around_s: float) -> pl.DataFrame:
    """EVENTS of the touched pools, from `around_s` before the first touched event to as long behind the last one,
    with the transfers of the pool's own token and those of its base token into and out of the pool; and the last event
    before that which says what was in the pool."""
    base = {row["pool"]: row["token1"] if row["quote"] == 0 else row["token0"] for row in pools.iter_rows(named=True)}
    columns = (
        "ts, block_number, block_hash, tx_hash, log_index, protocol, event, sender, recipient, amount0_f, amount1_f,"
        " reserve0_f, reserve1_f, liquidity::float8, sqrt_price_x96::float8, tick, tick_lower, tick_upper"
    )
    inside = (
        "e.chain = %(chain)s AND e.ts BETWEEN p.lo - %(back)s * interval '1 second' AND p.hi + %(back)s * interval"
        " '1 second' AND e.ts BETWEEN %(first)s - %(back)s * interval '1 second' AND %(last)s + %(back)s * interval"
        " '1 second'"
    )
    # OFFSET 0: a new day's chunk has no statistics yet, and a planner that takes it for empty reads all of it.
    rows = conn.execute(
        f"WITH p AS MATERIALIZED (SELECT * FROM unnest(%(pools)s::bytea[], %(lo)s::timestamptz[],"
        "  %(hi)s::timestamptz[], %(base)s::bytea[]) AS p(pool, lo, hi, base))"
        f" SELECT p.pool, e.*, NULL::bytea FROM p CROSS JOIN LATERAL (SELECT {columns} FROM chain.pool_events e"
        f"  WHERE e.pool = p.pool AND {inside} OFFSET 0) e"
        f" UNION ALL SELECT p.pool, e.*, p.base FROM p CROSS JOIN LATERAL (SELECT {columns} FROM chain.pool_events e"
        f"  WHERE e.pool = p.base AND e.event = 'transfer' AND (e.sender = p.pool OR e.recipient = p.pool)"
        f"  AND {inside} OFFSET 0) e"
        # A quiet pool's state is older than the window.
        f" UNION ALL SELECT p.pool, e.*, NULL::bytea FROM p CROSS JOIN LATERAL (SELECT {columns} FROM chain.pool_events"
        f"  e WHERE e.pool = p.pool AND e.chain = %(chain)s AND {_STATE}"
        f"  AND e.ts < p.lo - %(back)s * interval '1 second'"
        f"  ORDER BY e.ts DESC, e.block_number DESC, e.log_index DESC LIMIT 1) e",
        _bounds(touched) | {"chain": chain, "back": around_s, "base": [base.get(p) for p in touched]},
        binary=True,
        prepare=True,
    ).fetchall()
    return pl.DataFrame(rows, EVENTS, orient="row")


def _bounds(touched: Touched, back: timedelta | None = None) -> dict[str, Any]:
    """The pools and their times as parameters; with `back` from the minute of so long before the first one."""
    lo, hi = [lo for lo, _ in touched.values()], [hi for _, hi in touched.values()]
    if back is not None:
        lo = [(at - back).replace(second=0, microsecond=0) for at in lo]
    return {"pools": list(touched), "lo": lo, "hi": hi, "first": min(lo), "last": max(hi)}


# ---------------------------------------------------------------------------------------------- what was found


def write_anomalies(
    conn: Connection, chain: str, touched: Touched, found: Iterable[Mapping[str, Any]], run_id: str
) -> int:
    """Make the stored anomalies of the touched pools, from their first touched event on, those of `found` (the columns
    of the table, without chain): new ones are inserted, changed ones updated, others retracted. How many changed.

    One that was archived and not taken back is final: found again after a replay, it is neither stored nor published
    again."""
    found = list(found)
    changed = 0
    for row in found:
        changed += conn.execute(
            "INSERT INTO intel.anomalies AS a (id, chain, ts, block_number, block_hash, tx_hash, log_indexes, pool,"
            " token, tokens, wallets, kind, severity, score, evidence, run_id) SELECT %(id)s, %(chain)s, %(ts)s,"
            " %(block_number)s, %(block_hash)s, %(tx_hash)s, %(log_indexes)s, %(pool)s, %(token)s, %(tokens)s,"
            " %(wallets)s, %(kind)s, %(severity)s, %(score)s, %(evidence)s, %(run_id)s"
            " WHERE NOT EXISTS (SELECT FROM intel.archived_anomalies WHERE id = %(id)s)"
            " ON CONFLICT (id) DO UPDATE SET retracted_at = NULL, revision = a.revision + 1, score = excluded.score,"
            " evidence = excluded.evidence, wallets = excluded.wallets, tokens = excluded.tokens,"
            " token = excluded.token, log_indexes = excluded.log_indexes"
            " WHERE a.retracted_at IS NOT NULL OR (a.score, a.evidence, a.wallets, a.tokens, a.log_indexes)"
            " IS DISTINCT FROM (excluded.score, excluded.evidence, excluded.wallets, excluded.tokens,"
            " excluded.log_indexes)",
            {**row, "chain": chain, "run_id": run_id},
        ).rowcount
    retracted = conn.execute(
        "UPDATE intel.anomalies a SET retracted_at = clock_timestamp(), revision = revision + 1"
        " FROM unnest(%s::bytea[], %s::timestamptz[]) AS t(pool, lo)"
        " WHERE a.chain = %s AND a.pool = t.pool AND a.ts >= t.lo AND a.retracted_at IS NULL AND a.id <> ALL(%s)",
        (list(touched), [lo for lo, _ in touched.values()], chain, [row["id"] for row in found]),
    ).rowcount
    return changed + retracted


@dataclass(frozen=True)
class Stored:
    """An anomaly as it is stored; `retracted`: its events are no longer on the canonical chain."""

    id: bytes
    chain: str
    ts: datetime
    block_number: int
    block_hash: bytes
    tx_hash: bytes
    log_indexes: list[int]
    pool: bytes
    token: bytes
    tokens: list[bytes]
    wallets: list[bytes]
    kind: str
    severity: str
    score: float
    evidence: dict[str, Any]
    detected_at: datetime
    retracted: bool
    revision: int

    def message(self) -> bytes:
        """The message on topic dash.anomalies: JSON, bytes as 0x and hex, times ISO 8601 in UTC."""
        return json.dumps(
            {"type": "anomaly"} | {name: plain(value) for name, value in vars(self).items()}, separators=(",", ":")
        ).encode()


def plain(value: Any) -> Any:
    """A value as JSON has it: bytes as 0x and hex, times ISO 8601."""
    match value:
        case bytes():
            return f"0x{value.hex()}"
        case datetime():
            return value.isoformat()
        case list():
            return [plain(item) for item in value]
    return value


_COLUMNS = (
    "id, chain, ts, block_number, block_hash, tx_hash, log_indexes, pool, token, tokens, wallets, kind, severity,"
    " score, evidence, detected_at, retracted_at IS NOT NULL, revision"
)


def remember_archived(conn: Connection, chain: str, lo: datetime, hi: datetime) -> None:
    """The chain's anomalies of this time are to be archived in this transaction: which of them hold stays. Lanes that
    detect wait for its end."""
    lock_detection(conn, chain)
    conn.execute(
        "INSERT INTO intel.archived_anomalies SELECT id FROM intel.anomalies WHERE chain = %s AND ts >= %s AND ts < %s"
        " AND retracted_at IS NULL ON CONFLICT DO NOTHING",
        (chain, lo, hi),
    )


def read_anomalies(conn: Connection, ids: Sequence[bytes]) -> list[Stored]:
    """The anomalies with these ids, as they are now, by time; ids that are not there are left out."""
    rows = conn.execute(
        f"SELECT {_COLUMNS} FROM intel.anomalies WHERE id = ANY(%s) ORDER BY ts, block_number, id", (list(ids),)
    ).fetchall()
    return [Stored(*row) for row in rows]


def active_ids(conn: Connection, ids: Sequence[bytes]) -> frozenset[bytes]:
    """Those of these ids that are stored and not retracted."""
    rows = conn.execute("SELECT id FROM intel.anomalies WHERE id = ANY(%s) AND retracted_at IS NULL", (list(ids),))
    return frozenset(bytes(id_) for (id_,) in rows)


def lock_unpublished(conn: Connection, chain: str, limit: int) -> list[Stored]:
    """Anomalies whose newest revision is not on the topic, oldest first; locked until this transaction ends. What
    somebody else is publishing is left out."""
    rows = conn.execute(
        f"SELECT {_COLUMNS} FROM intel.anomalies WHERE chain = %s AND published_revision < revision"
        " ORDER BY detected_at LIMIT %s FOR UPDATE SKIP LOCKED",
        (chain, limit),
        prepare=True,
    ).fetchall()
    return [Stored(*row) for row in rows]


def mark_published(conn: Connection, anomalies: Sequence[Stored]) -> None:
    """These revisions are on the topic."""
    conn.execute(
        "UPDATE intel.anomalies a SET published_revision = greatest(published_revision, n.revision)"
        " FROM unnest(%s::bytea[], %s::int4[]) AS n(id, revision) WHERE a.id = n.id",
        ([one.id for one in anomalies], [one.revision for one in anomalies]),
        prepare=True,
    )


def unpublished(conn: Connection) -> frozenset[str]:
    """Chains with anomalies that are not on the topic yet."""
    rows = conn.execute("SELECT DISTINCT chain FROM intel.anomalies WHERE published_revision < revision")
    return frozenset(chain for (chain,) in rows)


def count_unpublished(conn: Connection) -> int:
    """Anomalies that the topic does not show as they are."""
    row = conn.execute("SELECT count(*) FROM intel.anomalies WHERE published_revision < revision").fetchone()
    assert row is not None
    count: int = row[0]
    return count
