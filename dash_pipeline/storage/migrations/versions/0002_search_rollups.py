"""Schema `rollup`: sums of schema `chain` that keep search documents cheap; each is recomputed, never counted up."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ROLLUP = """
CREATE SCHEMA rollup;
COMMENT ON SCHEMA rollup IS 'Derived from schema chain by the search follower, a moment after the commit. Every row is
 recomputed from its source, so replays and reorgs change nothing that they should not';

CREATE TABLE rollup.pool_candles (
    chain text NOT NULL, pool bytea NOT NULL, seconds int4 NOT NULL, ts timestamptz NOT NULL,
    open float8, high float8, low float8, close float8, volume0 float8 NOT NULL, volume1 float8 NOT NULL,
    trades int4 NOT NULL, mints int4 NOT NULL, burns int4 NOT NULL, reserve0 float8, reserve1 float8,
    last_trade timestamptz);
COMMENT ON TABLE rollup.pool_candles IS 'A pool''s minute (seconds = 60) or hour (3600) that saw an event. Prices are
 token1 per token0, all amounts in smallest units. Reserves are those after the last event; V3: virtual ones';

CREATE TABLE rollup.wallet_blocks (
    chain text NOT NULL, ts timestamptz NOT NULL, block_hash bytea NOT NULL, wallet bytea NOT NULL,
    tx_sent int4 NOT NULL, tx_received int4 NOT NULL, tx_failed int4 NOT NULL, value_out numeric NOT NULL,
    value_in numeric NOT NULL, transfers_out int4 NOT NULL, transfers_in int4 NOT NULL, swaps int4 NOT NULL,
    fee numeric NOT NULL, tokens bytea[] NOT NULL);
COMMENT ON TABLE rollup.wallet_blocks IS 'What a wallet did in a block';

CREATE AGGREGATE rollup.concat(anycompatiblearray) (
    sfunc = array_cat, stype = anycompatiblearray, initcond = '{}', parallel = safe);

CREATE TABLE rollup.wallet_prefixes (
    chain text, day date, wallet bytea, upto timestamptz NOT NULL, tx_sent int8 NOT NULL, tx_received int8 NOT NULL,
    tx_failed int8 NOT NULL, value_out numeric NOT NULL, value_in numeric NOT NULL, transfers_out int8 NOT NULL,
    transfers_in int8 NOT NULL, swaps int8 NOT NULL, fee numeric NOT NULL, tokens bytea[] NOT NULL,
    first_seen timestamptz NOT NULL, last_seen timestamptz NOT NULL, PRIMARY KEY (wallet, day, chain, upto));
COMMENT ON TABLE rollup.wallet_prefixes IS 'What busy wallets did on a day until `upto`, not with it';

CREATE TABLE rollup.pool_windows (
    chain text, pool bytea, protocol text NOT NULL, base bytea NOT NULL, quote bytea NOT NULL,
    as_of timestamptz NOT NULL, due timestamptz NOT NULL, last_event timestamptz NOT NULL, last_trade timestamptz,
    price float8, reserve_base float8, reserve_quote float8,
    price_1h float8, reserve_quote_1h float8, volume_base_1h float8, volume_quote_1h float8, trades_1h int8,
    price_24h float8, reserve_quote_24h float8, volume_base_24h float8, volume_quote_24h float8, trades_24h int8,
    price_7d float8, reserve_quote_7d float8, volume_base_7d float8, volume_quote_7d float8, trades_7d int8,
    PRIMARY KEY (pool, chain));
COMMENT ON TABLE rollup.pool_windows IS 'A pool''s last hour, day and week, counted back from as_of, the chain''s time.
 Prices are quote per base in smallest units; price_1h is the price an hour ago. At `due` a window loses a minute';
"""

# What selects most comes first: a chain newer than the statistics looks as if it had no rows.
INDEXES = """
CREATE UNIQUE INDEX pool_candles_key ON rollup.pool_candles (pool, chain, seconds, ts);
CREATE UNIQUE INDEX wallet_blocks_key ON rollup.wallet_blocks (wallet, ts DESC, block_hash, chain);
CREATE INDEX pool_windows_base ON rollup.pool_windows (base, chain);
-- The token that most pools are priced in has as many rows: its sums are read from the index alone.
CREATE INDEX pool_windows_quote ON rollup.pool_windows (quote, chain, last_event) INCLUDE (
    last_trade, volume_quote_1h, trades_1h, volume_quote_24h, trades_24h, volume_quote_7d, trades_7d);
CREATE INDEX pool_windows_due ON rollup.pool_windows (due, chain);
"""

OPS = """
CREATE TABLE ops.search_rebuilds (
    index text, chain text, target text NOT NULL, started_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (index, chain));
COMMENT ON TABLE ops.search_rebuilds IS 'Indexes being built: documents go to the old and the new';
CREATE INDEX search_outbox_chain ON ops.search_outbox (chain, id);
"""


def upgrade() -> None:
    run = op.get_bind().exec_driver_sql
    run(ROLLUP)
    for table in ("pool_candles", "wallet_blocks"):
        run(
            f"SELECT create_hypertable('rollup.{table}', by_range('ts', INTERVAL '1 day'),"
            " create_default_indexes => false)"
        )
    run(INDEXES)
    run(OPS)


def downgrade() -> None:
    run = op.get_bind().exec_driver_sql
    run("DROP INDEX ops.search_outbox_chain")
    run("DROP TABLE ops.search_rebuilds")
    run("DROP SCHEMA rollup CASCADE")
