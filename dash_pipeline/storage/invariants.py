"""What must hold of the database whenever one looks, as SQL.

Belongs here: rows that should not be where they are, and work that waits for longer than it should. Does not belong
here: what must hold of a block once it has settled (`checks.py`), how it is shown (`assets/`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dash_pipeline.storage.alerts import WAITS
from dash_pipeline.storage.tables import HISTORIES

if TYPE_CHECKING:
    from dash_pipeline.storage.timescale import Connection

#: So many heights below the tip are looked at: four times as deep as a fork may go by default.
HEIGHTS = 1_024
#: Work is late when it has waited for so many seconds: a run of the engine begins and ends within that.
LATE_S = 300.0
# Blocks that are named; the rest are counted.
_NAMED = 20


@dataclass(frozen=True)
class OffChain:
    """`rows` of blocks that are not on the chain; `blocks`: the first of their hashes, as 0x text."""

    rows: int
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class Late:
    """What has waited for more than LATE_S seconds: anomalies that nobody has reacted to, deliveries of alerts that are
    due, alerts that the index does not show as they are."""

    anomalies: int
    deliveries: int
    unindexed: int


def off_chain(conn: Connection, table: str, chain: str) -> OffChain:
    """Rows of a chain's table whose block a fork has taken away, or that were never taken: those belong into schema
    `side`. Of the newest HEIGHTS heights. Anomalies that are retracted do not count; they say so themselves."""
    described = HISTORIES[table]
    active = "AND t.retracted_at IS NULL" if "retracted_at" in described.columns else ""
    found = conn.execute(
        "WITH off AS (SELECT b.block_hash FROM ops.block_tree b JOIN ops.chains c USING (chain)"
        " WHERE b.chain = %(chain)s AND b.block_number > c.tip_number - %(heights)s"
        " AND b.status NOT IN ('canonical', 'provisional'))"
        " SELECT '0x' || encode(t.block_hash, 'hex'), count(*) FROM off"
        f" JOIN {described.relation} t ON t.block_hash = off.block_hash AND t.chain = %(chain)s {active}"
        " GROUP BY 1 ORDER BY 1",
        {"chain": chain, "heights": HEIGHTS},
    ).fetchall()
    return OffChain(sum(rows for _, rows in found), tuple(block for block, _ in found[:_NAMED]))


def refused_lately(conn: Connection, hours: float) -> dict[str, int]:
    """Topic -> messages that were refused in so many hours of the wall clock."""
    return dict(
        conn.execute(
            "SELECT topic, count(*) FROM ops.dead_letters WHERE seen_at > clock_timestamp() - %s * interval '1 hour'"
            " GROUP BY 1 ORDER BY 1",
            (hours,),
        ).fetchall()
    )


def late(conn: Connection) -> Late:
    """What intelligence has left undone for more than LATE_S seconds of the wall clock."""
    before = "clock_timestamp() - %(late)s * interval '1 second'"
    row = conn.execute(
        f"SELECT (SELECT count(*) FROM intel.anomalies t WHERE detected_at < {before} AND retracted_at IS NULL"
        "  AND NOT EXISTS (SELECT FROM intel.alerts a WHERE a.id = t.id)"
        "  AND NOT EXISTS (SELECT FROM intel.predictions p WHERE p.anomaly_id = t.id)),"
        f" (SELECT count(*) FROM intel.deliveries d WHERE {WAITS.format('d')} AND next_try_at < {before}),"
        f" (SELECT count(*) FROM intel.alerts WHERE indexed_revision < revision AND raised_at < {before})",
        {"late": LATE_S},
    ).fetchone()
    assert row is not None
    return Late(*row)
