"""What happened to pools minute by minute: what says which pools are worth a detector's look."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# Rows change until their minute is over: room for that in each page spares the index.
MINUTES = """
COMMENT ON SCHEMA rollup IS 'Derived from schema chain: pool_minutes in the transaction of the rows, the others by the
 search follower, a moment after the commit; those are recomputed from their source, so replays and reorgs change
 nothing that they should not';
CREATE TABLE rollup.pool_minutes (
    chain text NOT NULL, pool bytea NOT NULL, ts timestamptz NOT NULL, swaps int4 NOT NULL, direct int4 NOT NULL,
    burns int4 NOT NULL, reserve0_max float8, reserve0_min float8, reserve1_max float8, reserve1_min float8,
    liquidity_max float8, liquidity_min float8, root_max float8, root_min float8, volume0 float8 NOT NULL,
    volume1 float8 NOT NULL) WITH (fillfactor = 70);
COMMENT ON TABLE rollup.pool_minutes IS 'A pool''s minute that saw an event: bounds by which lanes decide whether to
 look at its events. Written in the transaction of the rows. Of rows that came twice it counts both: sums and extremes
 are at least those of the rows';
SELECT create_hypertable('rollup.pool_minutes', by_range('ts', INTERVAL '1 day'), create_default_indexes => false);
CREATE UNIQUE INDEX pool_minutes_key ON rollup.pool_minutes (pool, ts DESC, chain);
INSERT INTO rollup.pool_minutes
SELECT chain, pool, date_trunc('minute', ts), count(*) FILTER (WHERE event = 'swap'),
 count(*) FILTER (WHERE event = 'swap' AND recipient <> sender), count(*) FILTER (WHERE event = 'burn'),
 max(reserve0_f), min(reserve0_f), max(reserve1_f), min(reserve1_f),
 max(liquidity::float8) FILTER (WHERE event = 'swap'), min(liquidity::float8) FILTER (WHERE event = 'swap'),
 max(sqrt_price_x96::float8), min(sqrt_price_x96::float8),
 coalesce(sum(abs(amount0_f)) FILTER (WHERE event = 'swap'), 0),
 coalesce(sum(abs(amount1_f)) FILTER (WHERE event = 'swap'), 0)
FROM chain.pool_events WHERE event <> 'transfer' GROUP BY 1, 2, 3;
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(MINUTES)


def downgrade() -> None:
    op.get_bind().exec_driver_sql("DROP TABLE rollup.pool_minutes")
